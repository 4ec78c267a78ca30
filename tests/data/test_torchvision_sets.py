from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from image_files import assert_raises, pixels, write_idx, write_raw

from ppl_vae.data.loading import load
from ppl_vae.data.torchvision_sets import DataError


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
@pytest.mark.usefixtures("offline")
def test_raw_files_load_without_download(tmp_path: Path, name: str, folder: str) -> None:
    arrays = write_raw(tmp_path, folder)
    dataset = load(name, tmp_path)
    assert dataset.name == name
    assert dataset.train.dtype == torch.uint8
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert np.array_equal(dataset.train, arrays["train"][:, None])
    assert np.array_equal(dataset.test, arrays["t10k"][:, None])
    assert np.array_equal(dataset.train_labels, arrays["train_labels"])
    assert np.array_equal(dataset.test_labels, arrays["t10k_labels"])


@pytest.mark.parametrize("split", torchvision.datasets.EMNIST.splits)
@pytest.mark.usefixtures("offline")
def test_emnist_is_put_upright(tmp_path: Path, split: str) -> None:
    arrays = write_raw(tmp_path, "EMNIST", f"emnist-{split}-", ("train", "test"))
    dataset = load(f"emnist-{split}", tmp_path)
    assert np.array_equal(dataset.train[:, 0], arrays["train"].swapaxes(1, 2))
    assert np.array_equal(dataset.test[:, 0], arrays["test"].swapaxes(1, 2))


@pytest.mark.usefixtures("offline")
def test_qmnist_labels_are_the_first_column(tmp_path: Path) -> None:
    arrays = write_raw(tmp_path, "QMNIST", "qmnist-", ("train", "test"))
    columns = np.arange(14 * 8, dtype=np.int32).reshape(14, 8)
    write_idx(tmp_path / "QMNIST/raw/qmnist-train-labels-idx2-int", columns)
    write_idx(tmp_path / "QMNIST/raw/qmnist-test-labels-idx2-int", columns[:6])
    dataset = load("qmnist", tmp_path)
    assert np.array_equal(dataset.test, arrays["test"][:, None])
    assert dataset.train_labels is not None
    assert dataset.train_labels.tolist() == list(range(0, 14 * 8, 8))


def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: torchvision.datasets.MNIST) -> None:
        write_raw(Path(self.root), "MNIST")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    assert_raises("mnist", DataError, "download is off", data_dir=tmp_path, download=False)
    assert len(load("mnist", tmp_path).train) == 14


def test_both_parts_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: torchvision.datasets.EMNIST) -> None:
        write_idx(Path(self.images_file), pixels(14, 5, 4))
        write_idx(Path(self.labels_file), pixels(14))

    monkeypatch.setattr(torchvision.datasets.EMNIST, "download", download)
    assert len(load("emnist-digits", tmp_path).test) == 14


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("mnist", "MNIST", "t10k-labels-idx1-ubyte"),
        ("kmnist", "KMNIST", "train-images-idx3-ubyte"),
        ("qmnist", "QMNIST", "qmnist-test-labels-idx2-int"),
        ("emnist-letters", "EMNIST", "emnist-letters-test-images-idx3-ubyte"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_failed_download_tells_which_files_go_where(tmp_path: Path, name: str, folder: str, file: str) -> None:
    fragments = (
        file,
        str(tmp_path / folder / "raw"),
        "TimeoutError: no route",
        "mnist-mini",
        "fashion-mnist-mini",
    )
    assert_raises(name, DataError, *fragments, data_dir=tmp_path)
    assert issubclass(DataError, OSError)


@pytest.mark.usefixtures("offline")
def test_only_the_missing_file_is_got_no(tmp_path: Path) -> None:
    write_raw(tmp_path, "MNIST")
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    assert_raises("mnist", DataError, "got no t10k-labels-idx1-ubyte (", data_dir=tmp_path)


def test_a_download_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", tmp_path)


def test_a_file_left_by_an_old_torchvision_is_not_read(tmp_path: Path) -> None:
    arrays = write_raw(tmp_path, "MNIST")
    (tmp_path / "MNIST/processed").mkdir()
    for part in ("training", "test"):
        old = (torch.zeros(14, 5, 4, dtype=torch.uint8), torch.zeros(14, dtype=torch.int64))
        torch.save(old, tmp_path / f"MNIST/processed/{part}.pt")
    assert np.array_equal(load("mnist", tmp_path).train[:, 0], arrays["train"])


@pytest.mark.parametrize(
    ("file", "change", "fragments"),
    [
        ("train-images-idx3-ubyte", lambda raw: raw[:-1], ("296 bytes", "295 bytes", "(14, 5, 4)")),
        ("train-images-idx3-ubyte", lambda raw: raw + b"0", ("296 bytes", "297 bytes")),
        ("train-labels-idx1-ubyte", lambda raw: raw[:-3], ("22 bytes", "19 bytes")),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:7], ("16 bytes", "7 bytes")),
        ("t10k-images-idx3-ubyte", lambda raw: b"", ("16 bytes", "0 bytes")),
        ("t10k-images-idx3-ubyte", lambda raw: b"\x00\x00\x08\x01" + raw[4:], ("2051", "got 2049")),
        ("t10k-labels-idx1-ubyte", lambda raw: b"\x1f\x8b\x08\x00" + raw[4:], ("2049", "got 529205248")),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:4] + b"\xff" * 12, (f"{16 + (2**32 - 1) ** 3} bytes",)),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:4] + bytes(12), ("(0, 0, 0)",)),
    ],
)
def test_damaged_idx_files(tmp_path: Path, file: str, change: Any, fragments: tuple[str, ...]) -> None:
    write_raw(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw" / file
    path.write_bytes(change(path.read_bytes()))
    assert_raises("mnist", ValueError, str(path), *fragments, data_dir=tmp_path)


def test_idx_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write_raw(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", pixels(13))
    assert_raises("mnist", ValueError, "(14,)", "(13,)", data_dir=tmp_path)
    write_raw(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte", pixels(6, 4, 5))
    assert_raises("mnist", ValueError, "(1, 5, 4)", "(1, 4, 5)", data_dir=tmp_path)
