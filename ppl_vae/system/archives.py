"""Archives of checked files: ZIP, with the SHA-256 of each in `checksums.json`, as in the folder that they come from.

Nothing in an archive is believed before it is checked: not a name, not a size, not a content.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ppl_vae.system.arrays import refused
from ppl_vae.system.files import CHECKSUMS, check, checksums, to_checksums

# A file's name is no path, and hides nothing.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(csv|json|md|npy|npz|png|safetensors)")
WHOLE = "archive, as ppl-vae export writes it"


def to_zip(contents: Mapping[str, bytes]) -> bytes:
    """The content of an archive of files by name, with their checksums: the same for the same files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:  # weights compress by less than a tenth
        for name, content in {CHECKSUMS: to_checksums(contents), **contents}.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return archive.getvalue()


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Inside, the folder of the files in an archive, a temporary one; of a path that is no .zip file, the path itself.

    Raises `ValueError` for an archive that `to_zip` did not write: with names that are paths, sizes that are not those
    of the file, other files than have checksums, or other contents; and for what is found inside of one, with its name.
    """
    if not (path.suffix.lower() == ".zip" and path.is_file()):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with refused(path, WHOLE):
                _unpack(path, Path(folder))
            yield Path(folder)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(folder, str(path))) from None


def _unpack(path: Path, folder: Path) -> None:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_members(members, path.stat().st_size)
        for member in members:
            with archive.open(member) as content, (folder / member.filename).open("xb") as target:
                shutil.copyfileobj(content, target)
    names, sums = {member.filename for member in members}, checksums(folder)
    if names != {*sums, CHECKSUMS}:
        raise ValueError(f"expected {CHECKSUMS} and the files in it; got {', '.join(sorted(names))}")
    check(folder, *sums)


def _check_members(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    """Raises `ValueError` for what `to_zip` did not write, before a file is: members that are stored take no more than
    the archive does."""
    for member in members:
        if not NAME.fullmatch(member.filename):
            raise ValueError(f"expected the name of a file; got {member.filename[:100]!r}")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename}: expected a stored file; got a compressed one")
    if len({member.filename.lower() for member in members}) < len(members):
        raise ValueError("expected each name once; got one twice")
    if (claimed := sum(member.file_size for member in members)) > size:
        raise ValueError(f"expected files of at most {size:,} bytes; got {claimed:,} bytes")
