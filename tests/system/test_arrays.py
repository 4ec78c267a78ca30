from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from array_files import npy

from ppl_vae.data.loading import load
from ppl_vae.system.arrays import read_npy


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.system.arrays.LARGEST_ARCHIVE", 2**20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy((2**13, 32, 32), bytes(2**23)))
    with pytest.raises(ValueError, match=r"expected arrays of at most 1,048,576 bytes; got 8,388,6.. bytes, unpacked"):
        load(str(tmp_path / "bomb.npz"))


def test_an_archive_does_not_lie_about_its_sizes(tmp_path: Path) -> None:
    """The directory says 100 bytes, and there are eight million."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", npy((2**13, 32, 32), bytes(2**23)))
    size = len(npy((2**13, 32, 32))) + 2**23
    (tmp_path / "x.npz").write_bytes(content.getvalue().replace(struct.pack("<I", size), struct.pack("<I", 100)))
    with pytest.raises(ValueError, match=r"expected a whole .npz file, no objects; got"):
        load(str(tmp_path / "x.npz"))


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", npy((12, 4, 4), bytes(192)))
    with pytest.raises(ValueError, match=r"expected a member stored or deflated; got method 14"):
        load(str(tmp_path / "x.npz"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes")
    os.mkfifo(tmp_path / "x.npy")
    os.mkfifo(tmp_path / "x.npz")
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="no regular file"):
            load(str(tmp_path / name))


def test_a_mapped_file_counts_for_no_memory(tmp_path: Path) -> None:
    """What could be written to would be counted, and a file larger than memory refused."""
    np.save(tmp_path / "a.npy", np.arange(3))
    assert not read_npy(tmp_path / "a.npy", mapped=True).flags.writeable
