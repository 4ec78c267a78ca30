"""Atomic writes, checksums, JSON, and folders that are locked by one process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

CHECKSUMS = "checksums.json"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically, by a temporary file: `path` has either the old content or the new, on disk.

    Raises `OSError`, which names the file, if it can't be written; the old content is then still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk, half a file would take what is left
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def to_json(values: Any) -> bytes:
    """JSON; a number that is not finite (the standard error of a single sample, say) becomes null: JSON has no NaN."""
    return (json.dumps(_finite_or_null(values), indent=2, allow_nan=False) + "\n").encode()


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite_or_null(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, values: Any) -> None:
    """Writes JSON atomically."""
    write_whole(path, to_json(values))


def _sync_folder(folder: Path) -> None:
    """Syncs a folder to disk: after a rename a file's content is on disk, but its new name may not be."""
    if sys.platform == "win32":  # where a folder can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checked(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes first the SHA-256 of the files to `checksums.json`, then each file atomically. If it is interrupted,
    `check` refuses the files that are not of this call.

    Raises `OSError` as `write_whole` does, and `ValueError` if `checksums.json` is damaged.
    """
    write_whole(folder / CHECKSUMS, to_checksums(contents, checksums(folder)))
    for name, content in contents.items():
        write_whole(folder / name, content)


def to_checksums(contents: Mapping[str, bytes], known: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The content of `checksums.json` for files, and for others whose SHA-256 is `known`."""
    sums = {**known, **{name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}}
    return json.dumps({"sha256": sums, "of_these": _digest(sums)}, indent=2).encode()


def check(folder: Path, *names: str) -> None:
    """Raises `ValueError` for a file that differs from what `write_checked` wrote. Files without a checksum (written by
    older versions) pass."""
    sums = checksums(folder)
    for name in names:
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if sums.get(name, found) != found:
            raise ValueError(
                f"{folder / name}: expected the file as it was written; got a damaged or changed one (if you changed "
                f"it, remove {CHECKSUMS})"
            )


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of files by name, from `checksums.json`; {} where there is none. Raises `ValueError` for a damaged
    one."""
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
        if values["of_these"] != _digest(values["sha256"]):
            raise ValueError
        return dict(values["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: expected checksums as they were written; got a damaged or changed file") from None


def _digest(sums: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def writable(folder: Path) -> Path:
    """The folder, made if it does not exist. Raises `OSError`, which names it, where it can't be written to: before
    hours of work go into what is written there."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{folder}: expected a folder that can be written to; got {error.strerror}") from None
    return folder


class LockedError(OSError):
    """Another process holds the lock of the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder for this process, and creates it if it does not exist. The lock is the kernel's (flock), on the
    folder itself: it ends with the process, however that ends, and leaves no file behind.

    Raises `LockedError` if another process holds it. On file systems without locks it does nothing.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _flock(folder):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty


@contextlib.contextmanager
def _flock(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)  # not inherited by child processes
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


def shown(value: Any) -> str:
    """The repr of a value for an error, at most 100 characters."""
    return textwrap.shorten(repr(value)[:500], 100, placeholder="...")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `ValueError`, which names the file, for anything else."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON; got {shown(str(error))[1:-1]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object; got {type(values).__name__}")
    return values
