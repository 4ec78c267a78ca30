import errno
import os

import pytest

from ppl_vae.system.files import write_whole


def test_a_file_is_on_disk_before_it_has_its_name_and_else_as_it_was(tmp_path, monkeypatch):
    path, calls = tmp_path / "file", []
    path.write_bytes(b"old")

    def recorded(name, error=None, original=None):
        def call(*args):
            calls.append(name)
            if error is not None:
                raise error
            return original(*args)

        return call

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, recorded(name, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
            with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
                write_whole(path, b"new")
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
    calls.clear()
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, original=getattr(os, name)))
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert calls == ["fsync", "replace", "fsync"]  # its content, its name, and that of its folder
