"""Arrays from `.npy` and `.npz` files that nobody vouches for: they are data, and what they claim is checked first."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ppl_vae.system.errors import one_line

Array = np.ndarray[Any, Any]

# A deflated file can hold a thousand times its size. Images and counts that are worth learning from shrink far less.
LARGEST_ARCHIVE, LARGEST_RATIO = 2**30, 50


def read_npy(path: Path, *, mapped: bool = False) -> Array:
    """The array of a `.npy` file; `mapped`, it stays in the file, and changes of it stay in this process.

    Raises `FileNotFoundError`, and `ValueError` for a file that is damaged, holds objects or another size than it says.
    """
    try:
        _check_file(path)
        with path.open("rb") as file:
            _check_header(file, path.stat().st_size)
            if not mapped:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # numpy has many for a damaged file
        raise ValueError(
            f"{path}: expected a whole .npy file, no objects; got {one_line(error, foreign=True)}"
        ) from error


def read_npz(path: Path, allowed: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays of a `.npz` file by name. Together they may take 1 GB, or, if that is more, 50 times the file.

    Raises `FileNotFoundError`, and `ValueError` for a file that is damaged, holds objects, names that are not
    `allowed`, or other sizes than it says.
    """
    try:
        _check_file(path)
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:  # numpy would leave a damaged file open
            members = archive.infolist()
            if allowed is not None and (others := {m.filename.removesuffix(".npy") for m in members} - set(allowed)):
                raise ValueError(f"expected arrays {', '.join(allowed)}; got {', '.join(sorted(others))}")
            limit = max(LARGEST_ARCHIVE, LARGEST_RATIO * path.stat().st_size)
            if (claimed := sum(member.file_size for member in members)) > limit:
                raise ValueError(f"expected arrays of at most {limit:,} bytes; got {claimed:,} bytes, unpacked")
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and numpy each have their own for a damaged file
        raise ValueError(
            f"{path}: expected a whole .npz file, no objects; got {one_line(error, foreign=True)}"
        ) from error


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("no regular file")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    # numpy writes no others, and the memory that LZMA takes is what the file says
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename}: expected a member stored or deflated; got method {member.compress_type}")
    with archive.open(member) as file:
        _check_header(file, member.file_size)
    with archive.open(member) as file:
        array = npy.read_array(file, allow_pickle=False)
        file.read(1)  # to its end, where the checksum is compared
        return array


def _check_header(file: IO[bytes], size: int) -> None:
    """That what stands at the start of `file` describes just the `size` bytes that there are: before memory is taken
    for it. Raises `ValueError`."""
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
