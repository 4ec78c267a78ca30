"""Files that are whole or not there, and folders in which one process works at a time."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file by way of a temporary name: what is under `path` is the old content or the new, on disk.

    Raises `OSError`, which names the file, where it can't be written; the old content is there then.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # half a file takes the room that a full disk lacks
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk: the content of a file that was renamed is there, its name may not be."""
    if sys.platform == "win32":  # where a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LockedError(OSError):
    """Another process works in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, which is made if it isn't there, is this process's inside. The lock is the kernel's and on the folder
    itself: it ends with the process, however that ends, and leaves no file behind.

    Raises `LockedError` where another has it. On file systems without locks there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)  # not handed on to programs that this one starts
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{folder}: expected a folder in which no other run is at work; got one in use") from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
