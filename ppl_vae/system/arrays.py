"""Safe loading of untrusted `.npy` and `.npz` files: no pickles; headers and sizes are validated before memory is
allocated.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ppl_vae.system.errors import one_line

Array = np.ndarray[Any, Any]

# In bytes. A deflated file can hold a thousand times its size; images and counts are compressed far less.
LARGEST_ARCHIVE, LARGEST_RATIO = 2**30, 50


def read_npy(path: Path, *, mapped: bool = False) -> Array:
    """The array of a `.npy` file; if `mapped`, it is memory-mapped, read-only, and may be larger than memory.

    Raises `FileNotFoundError`, and `ValueError` for a file that is damaged, holds objects, or whose size is not the one
    that its header claims.
    """
    with refused(path, ".npy file, no objects"):
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
            if not mapped:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
        # a private copy ("c") would count as memory of the whole size, which the system may refuse
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_npz(path: Path, allowed: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays of a `.npz` file by name. Together they may take 1 GiB or 50 times the size of the file, whichever is
    more.

    Raises `FileNotFoundError`, and `ValueError` for a file that is damaged, holds objects, has names that are not
    `allowed`, or sizes that are not those that its headers claim.
    """
    with refused(path, ".npz file, no objects"), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if allowed is not None and (others := {m.filename.removesuffix(".npy") for m in members} - set(allowed)):
            raise ValueError(f"expected arrays {', '.join(allowed)}; got {', '.join(sorted(others))}")
        limit = max(LARGEST_ARCHIVE, LARGEST_RATIO * path.stat().st_size)
        if (claimed := sum(member.file_size for member in members)) > limit:
            raise ValueError(f"expected arrays of at most {limit:,} bytes; got {claimed:,} bytes, unpacked")
        return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}


def to_npz(arrays: Mapping[str, Array]) -> bytes:
    """The content of a compressed `.npz` file."""
    content, by_name = io.BytesIO(), dict[str, Any](arrays)
    np.savez_compressed(content, **by_name)
    return content.getvalue()


@contextlib.contextmanager
def refused(path: Path, expected: str) -> Iterator[None]:
    """What is wrong with a file is a `ValueError` of one line: zipfile, zlib and numpy each have their own errors."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")  # to read a pipe would be to wait for ever
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        what = one_line(error, foreign=True)
        raise ValueError(f"{path}: expected a whole {expected}; got {what}") from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    # numpy writes no others, and an LZMA file itself says how much memory to allocate
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename}: expected a member stored or deflated; got method {member.compress_type}")
    with archive.open(member) as file:
        _check_header(file, member.file_size)
    with archive.open(member) as file:
        array = npy.read_array(file, allow_pickle=False)
        file.read(1)  # to the end, where zipfile compares the checksum
        return array


def _check_header(file: IO[bytes], size: int) -> None:
    """Raises `ValueError` unless the header at the start of `file` describes exactly the `size` bytes that there are:
    checked before memory is allocated."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected a .npy header of version 1.0 or 2.0; got {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"expected numbers; got objects ({dtype})")
    if any(n < 0 for n in shape):
        raise ValueError(f"expected a shape of sizes; got {shape}")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"expected {expected:,} bytes for {dtype} {shape}; got {size:,} bytes")
