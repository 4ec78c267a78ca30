import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import torch
import torchvision.datasets
from PIL import Image

from ppl_vae.components import UsageError
from ppl_vae.data import loading as data
from ppl_vae.data.dataset import Dataset, Rows, select, split
from ppl_vae.data.torchvision_sets import DataError
from ppl_vae.system.hashing import fingerprint

Arrays = dict[str, Any]  # of NumPy arrays


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = struct.pack(f">{1 + array.ndim}I", code * 256 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_raw(root: Path, folder: str, prefix: str = "", parts: tuple[str, str] = ("train", "t10k")) -> Arrays:
    arrays = {}
    for seed, (part, count) in enumerate(zip(parts, (14, 6), strict=True)):
        arrays[part] = pixels(count, 5, 4, seed=seed)
        arrays[f"{part}_labels"] = pixels(count, seed=seed + 2) % 10
        write_idx(root / folder / "raw" / f"{prefix}{part}-images-idx3-ubyte", arrays[part])
        write_idx(root / folder / "raw" / f"{prefix}{part}-labels-idx1-ubyte", arrays[f"{part}_labels"])
    return arrays


def write_images(folder: Path, names: list[str], array: np.ndarray[Any, Any]) -> None:
    for name, image in zip(names, array, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def together(train: torch.Tensor, test: torch.Tensor, num_data: int) -> torch.Tensor:
    """Undo the division of images without a test part."""
    indices = torch.cat(split(num_data, len(test), seed=0))
    return torch.cat([train, test])[indices.argsort()]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise TimeoutError("no\nroute")

    for name in ("MNIST", "EMNIST", "QMNIST"):  # FashionMNIST and KMNIST inherit MNIST's
        monkeypatch.setattr(getattr(torchvision.datasets, name), "download", refuse)


def assert_raises(name: str | Path, error: type[Exception], *fragments: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        data.load(str(name), **options)
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    for fragment in ("expected", "; got", *fragments):
        assert fragment in message


# bundled sets


@pytest.mark.parametrize("name", ["mnist-mini", "fashion-mnist-mini"])
def test_bundled_sets_load(name: str) -> None:
    dataset = data.load(name)
    assert dataset.train.shape == (10_000, 1, 28, 28)
    assert dataset.test.shape == (2_000, 1, 28, 28)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert dataset.train_labels.bincount().min() > 850  # ten classes, about even
    assert dataset.test_labels.bincount().min() > 150
    assert len(dataset.train_labels.bincount()) == len(dataset.test_labels.bincount()) == 10
    assert dataset.train.min() == 0
    assert dataset.train.max() == 255
    assert repr(dataset) == f"Dataset('{name}', 10000 train, 2000 test, 1x28x28)"


def test_bundled_digits_are_upright_and_match_their_labels() -> None:
    dataset = data.load("mnist-mini")
    assert dataset.train_labels is not None
    assert dataset.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    mean = dataset.train.float().mean(0)[0]
    assert mean.mean() == pytest.approx(33.3, abs=1)  # 0.13 of 255, as of the whole set
    ones = dataset.train[dataset.train_labels == 1, 0].float().mean(0)
    assert ones.mean(0).var() > ones.mean(1).var()  # the stroke of a one is vertical
    zeros = dataset.train[dataset.train_labels == 0, 0].float().mean(0)
    assert ones[14, 14] > 150
    assert zeros[14, 14] < 30  # and a zero is hollow


def test_bundled_files_have_their_licences() -> None:
    folder = Path(data.__file__).parent / "bundled"
    assert "creativecommons.org/licenses/by-sa/3.0" in (folder / "LICENSE-mnist.txt").read_text()
    licence = (folder / "LICENSE-fashion-mnist.txt").read_text()
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in licence
    assert "WITHOUT WARRANTY OF ANY KIND" in licence


def test_make_mini_keeps_the_first_images_and_repeats_itself(tmp_path: Path) -> None:
    for seed, folder in enumerate(("MNIST", "FashionMNIST")):
        for part, count in (("train", 10_003), ("t10k", 2_002)):
            write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", pixels(count, 2, 3, seed=seed))
            write_idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", pixels(count, seed=seed))
    for output in ("a", "b"):
        data.make_mini(tmp_path, tmp_path / output)
    for seed, name in enumerate(("mnist-mini", "fashion-mnist-mini")):
        dataset = data.load(str(tmp_path / "a" / f"{name}.npz"))
        assert dataset.train_labels is not None
        assert dataset.test_labels is not None
        assert np.array_equal(dataset.train[:, 0], pixels(10_003, 2, 3, seed=seed)[:10_000])
        assert np.array_equal(dataset.test[:, 0], pixels(2_002, 2, 3, seed=seed)[:2_000])
        assert np.array_equal(dataset.train_labels, pixels(10_003, seed=seed)[:10_000])
        assert np.array_equal(dataset.test_labels, pixels(2_002, seed=seed)[:2_000])
        assert (tmp_path / f"a/{name}.npz").read_bytes() == (tmp_path / f"b/{name}.npz").read_bytes()


# torchvision's sets


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
@pytest.mark.usefixtures("offline")
def test_raw_files_load_without_download(tmp_path: Path, name: str, folder: str) -> None:
    arrays = write_raw(tmp_path, folder)
    dataset = data.load(name, tmp_path)
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
    dataset = data.load(f"emnist-{split}", tmp_path)
    assert np.array_equal(dataset.train[:, 0], arrays["train"].swapaxes(1, 2))
    assert np.array_equal(dataset.test[:, 0], arrays["test"].swapaxes(1, 2))


@pytest.mark.usefixtures("offline")
def test_qmnist_labels_are_the_first_column(tmp_path: Path) -> None:
    arrays = write_raw(tmp_path, "QMNIST", "qmnist-", ("train", "test"))
    columns = np.arange(14 * 8, dtype=np.int32).reshape(14, 8)
    write_idx(tmp_path / "QMNIST/raw/qmnist-train-labels-idx2-int", columns)
    write_idx(tmp_path / "QMNIST/raw/qmnist-test-labels-idx2-int", columns[:6])
    dataset = data.load("qmnist", tmp_path)
    assert np.array_equal(dataset.test, arrays["test"][:, None])
    assert dataset.train_labels is not None
    assert dataset.train_labels.tolist() == list(range(0, 14 * 8, 8))


@pytest.mark.usefixtures("offline")
def test_the_root_is_the_argument_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache / name))
    for seed, root in enumerate(("argument", "variable", "cache/ppl-vae")):
        write_raw(tmp_path / root, "MNIST")
        write_idx(tmp_path / root / "MNIST/raw/train-images-idx3-ubyte", pixels(14, 5, 4, seed=seed + 7))
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path / "variable"))
    assert np.array_equal(data.load("mnist", tmp_path / "argument").train[:, 0], pixels(14, 5, 4, seed=7))
    assert np.array_equal(data.load("mnist").train[:, 0], pixels(14, 5, 4, seed=8))
    monkeypatch.delenv("PPL_VAE_DATA")
    assert np.array_equal(data.load("mnist").train[:, 0], pixels(14, 5, 4, seed=9))


def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: torchvision.datasets.MNIST) -> None:
        write_raw(Path(self.root), "MNIST")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    assert_raises("mnist", DataError, "download is off", data_dir=tmp_path, download=False)
    assert len(data.load("mnist", tmp_path).train) == 14


def test_both_parts_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: torchvision.datasets.EMNIST) -> None:
        write_idx(Path(self.images_file), pixels(14, 5, 4))
        write_idx(Path(self.labels_file), pixels(14))

    monkeypatch.setattr(torchvision.datasets.EMNIST, "download", download)
    assert len(data.load("emnist-digits", tmp_path).test) == 14


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
        data.load("mnist", tmp_path)


def test_a_file_left_by_an_old_torchvision_is_not_read(tmp_path: Path) -> None:
    arrays = write_raw(tmp_path, "MNIST")
    (tmp_path / "MNIST/processed").mkdir()
    for part in ("training", "test"):
        old = (torch.zeros(14, 5, 4, dtype=torch.uint8), torch.zeros(14, dtype=torch.int64))
        torch.save(old, tmp_path / f"MNIST/processed/{part}.pt")
    assert np.array_equal(data.load("mnist", tmp_path).train[:, 0], arrays["train"])


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


# the user's arrays


def test_npz_with_parts(tmp_path: Path) -> None:
    arrays: Arrays = {"train": pixels(9, 5, 4, 3), "test": pixels(3, 5, 4, 3, seed=1)}
    labels: Arrays = {"train_labels": np.arange(9, dtype=np.int16), "test_labels": np.arange(3, dtype=">i4")}
    np.savez(tmp_path / "mine.npz", **arrays, **labels)
    dataset = data.load(str(tmp_path / "mine.npz"))
    assert dataset.name == "mine"
    assert dataset.image_shape == (3, 5, 4)
    assert np.array_equal(dataset.train, arrays["train"].transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.test, arrays["test"].transpose(0, 3, 1, 2))
    assert dataset.train.is_contiguous()
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == torch.int64
    assert dataset.train_labels.tolist() == list(range(9))
    assert dataset.test_labels.tolist() == list(range(3))


def test_one_array_is_divided_with_its_labels(tmp_path: Path) -> None:
    images = np.arange(61, dtype=np.uint8)[:, None, None] * np.ones((2, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(61))
    np.save(tmp_path / "b.npy", images)
    dataset, again = data.load(str(tmp_path / "a.npz")), data.load(str(tmp_path / "b.npy"))
    assert (len(dataset.train), len(dataset.test)) == (51, 10)
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert torch.equal(dataset.train[:, 0, 0, 0], dataset.train_labels)
    assert torch.equal(dataset.test[:, 0, 0, 0], dataset.test_labels)
    assert sorted([*dataset.train_labels.tolist(), *dataset.test_labels.tolist()]) == list(range(61))
    assert dataset.test_labels.tolist() != list(range(51, 61))  # shuffled
    assert again.train_labels is None
    assert torch.equal(again.train, dataset.train)
    assert torch.equal(again.test, dataset.test)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((12, 5, 4), (1, 5, 4)),
        ((12, 5, 4, 1), (1, 5, 4)),
        ((12, 5, 4, 3), (3, 5, 4)),
        ((12, 1, 5, 4), (1, 5, 4)),
        ((12, 3, 5, 4), (3, 5, 4)),
        ((12, 3, 5, 3), (3, 5, 3)),
    ],
)
def test_array_layouts(tmp_path: Path, shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> None:
    array = pixels(*shape)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    dataset = data.load(str(tmp_path / "a.npy"))
    assert dataset.image_shape == image_shape
    whole = together(dataset.train, dataset.test, 12).numpy()
    last = len(shape) == 4 and shape[1] not in (1, 3)
    assert np.array_equal(whole, array.transpose(0, 3, 1, 2) if last else array.reshape(12, *image_shape))


@pytest.mark.parametrize(
    ("array", "fragments"),
    [
        (np.linspace(0, 1, 240, dtype=np.float32).reshape(12, 5, 4), ("float32 from 0.0 to 1.0", "by 255")),
        (pixels(12, 5, 4) / 255, ("float64",)),
        (np.where(np.eye(12, 20) == 1, np.nan, 0.5).reshape(12, 5, 4), ("from 0.5 to 0.5 with NaN",)),
        (np.full((12, 5, 4), np.nan), ("from nan to nan with NaN",)),
        (np.arange(-2, 238).reshape(12, 5, 4), ("int64 from -2 to 237",)),
        (pixels(12, 5, 4).astype(np.uint16), ("uint16 from",)),
        (pixels(12, 5, 4) > 9, ("bool from False to True",)),
        (np.full((12, 5, 4), "a"), ("<U1",)),
        (np.zeros((12, 5, 4), complex), ("complex128",)),
        (np.zeros((0, 5, 4)), ("(0, 5, 4)",)),
        (pixels(0, 5, 4), ("(0, 5, 4)",)),
        (pixels(12, 0, 4), ("(12, 0, 4)",)),
        (pixels(12, 20), ("(12, 20)",)),
        (np.uint8(3), ("shape ()",)),
        (pixels(12, 1, 5, 4, 1), ("(12, 1, 5, 4, 1)",)),
        (pixels(12, 5, 4, 2), ("(12, 5, 4, 2)",)),
        (pixels(9, 5, 4), ("at least 10", "got 9")),
        (np.full((12, 5), 2**63, np.uint64), ("whole numbers below 2^63; got 9223372036854775808",)),
    ],
)
def test_bad_arrays(tmp_path: Path, array: Any, fragments: tuple[str, ...]) -> None:
    np.save(tmp_path / "a.npy", array)
    assert_raises(tmp_path / "a.npy", ValueError, str(tmp_path / "a.npy"), *fragments)


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"train": pixels(12, 5, 4)}, ("got train",)),
        ({"x": pixels(12, 5, 4), "y": pixels(12)}, ("got x, y",)),
        ({}, ("got none",)),
        ({"images": pixels(12, 5, 4), "label": np.arange(12)}, ("got images, label",)),
        ({"train": pixels(5, 5, 4), "test": pixels(4, 5, 4)}, ("got 9",)),
        ({"train": pixels(12, 5, 4), "test": pixels(3, 4, 5)}, ("(1, 5, 4)", "(1, 4, 5)")),
        ({"train": pixels(12, 5, 4), "test": pixels(3, 5, 4) / 255}, ("test: ", "float64")),
        ({"images": pixels(12, 5, 4), "labels": np.arange(11)}, ("labels: ", "(12,)", "(11,)")),
        ({"images": pixels(12, 5, 4), "labels": np.zeros(12)}, ("labels: ", "float64")),
        (
            {"train": pixels(12, 5, 4), "test": pixels(3, 5, 4), "test_labels": np.zeros((3, 10), int)},
            ("test_labels: ", "(3, 10)"),
        ),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: Arrays, fragments: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert_raises(tmp_path / "a.npz", ValueError, str(tmp_path / "a.npz"), *fragments)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_array_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    np.save(path, pixels(12, 50, 4)) if suffix == "npy" else np.savez(path, images=pixels(12, 50, 4))
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-200], b"text" * 50, whole[:1000] + b"damage" + whole[1006:-7]):
        path.write_bytes(damaged)
        assert_raises(path, ValueError, str(path))


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}] * 12), allow_pickle=True)
    assert_raises(tmp_path / "a.npy", ValueError, str(tmp_path / "a.npy"), "no objects; got", "objects")


@pytest.mark.parametrize(
    "array",
    [
        pixels(60, 5, 4),
        pixels(60, 5, 4, 3),
        np.arange(60 * 5).reshape(60, 5),
        np.arange(60 * 5, dtype=np.float32).reshape(60, 5),
        np.arange(60 * 5, dtype=">f8").reshape(60, 5),
    ],
)
def test_a_large_file_is_read_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: Any) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array)
    read = data.load(str(path))
    monkeypatch.setattr("ppl_vae.data.readers.MAPPED_FROM", path.stat().st_size)
    mapped = data.load(str(path))
    assert type(read.train) is torch.Tensor
    assert type(mapped.train) is Rows
    assert fingerprint(mapped.train, mapped.test) == fingerprint(read.train, read.test)
    some = torch.tensor([7, 1, 3])
    for used in (
        lambda t: t[some],
        lambda t: t.index_select(0, some),
        lambda t: t[2:30],
        lambda t: t[-2:],
        lambda t: t[:None],
        lambda t: t[4],
        lambda t: t / 255,
        lambda t: t.flatten(1),
        lambda t: torch.cat([t, t[:3]]),
        lambda t: select(t, some)[:2],
    ):
        assert torch.equal(used(mapped.train), used(read.train))
    assert select(mapped.train, some).source is mapped.train.source
    assert mapped.train[some].is_contiguous()


def test_rows_read_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = Rows.rows
    monkeypatch.setattr(Rows, "rows", lambda self, index: seen.append(len(self.at[index])) or whole(self, index))
    rows = Rows(torch.from_numpy(pixels(60, 1, 5, 4)), torch.arange(50))
    monkeypatch.setattr("ppl_vae.system.hashing._CHUNK", 7 * 20)
    fingerprint(rows)
    assert max(seen) == 7
    assert sum(seen) == 50 + 1  # and the first, for its size
    rows.index_select(0, torch.tensor([3, 1]))  # as `fit` takes a batch
    assert seen[-1] == 2


# the user's folder


def test_folder_of_grey_images(tmp_path: Path) -> None:
    array = pixels(12, 5, 4)
    names = [f"{i:02}.{suffix}" for i, suffix in enumerate(["png", "bmp", "tif", "PNG"] * 3)]
    write_images(tmp_path / "faces", names[::-1], array[::-1])
    (tmp_path / "faces/notes.txt").write_text("no image")
    write_images(tmp_path / "faces", [".hidden.png", ".cache/a.png"], pixels(2, 9, 9))
    dataset = data.load(str(tmp_path / "faces"))
    assert dataset.name == "faces"
    assert dataset.train_labels is None
    assert (len(dataset.train), len(dataset.test)) == (10, 2)
    assert np.array_equal(together(dataset.train, dataset.test, 12), array[:, None])


def test_one_colour_image_makes_all_of_them_rgb(tmp_path: Path) -> None:
    grey, colour = pixels(11, 5, 4), pixels(5, 4, 3, seed=1)
    write_images(tmp_path, [f"{i:02}.png" for i in range(11)], grey)
    write_images(tmp_path, ["11.png"], colour[None])
    dataset = data.load(str(tmp_path))
    whole = together(dataset.train, dataset.test, 12).numpy()
    assert whole.shape == (12, 3, 5, 4)
    assert np.array_equal(whole[:11], np.repeat(grey[:, None], 3, axis=1))
    assert np.array_equal(whole[11], colour.transpose(2, 0, 1))


def test_other_modes_and_formats(tmp_path: Path) -> None:
    colour = Image.fromarray(np.full((5, 4, 3), (10, 200, 30), np.uint8))
    for name, mode in (
        ("0.png", "RGBA"),
        ("1.png", "P"),
        ("2.gif", "RGB"),
        ("3.webp", "RGB"),
        ("4.jpg", "CMYK"),
    ):
        (colour.quantize() if mode == "P" else colour.convert(mode)).save(tmp_path / name)
    colour.quantize().save(tmp_path / "5.png", transparency=b"\x80")  # Pillow's warning must not surface
    for i in range(6, 12):
        colour.save(tmp_path / f"{i}.jpeg", quality=100)
    dataset = data.load(str(tmp_path))
    whole = torch.cat([dataset.train, dataset.test]).int()
    assert dataset.image_shape == (3, 5, 4)
    assert (whole - torch.tensor([10, 200, 30])[:, None, None]).abs().max() < 16


def test_photographs_are_put_upright(tmp_path: Path) -> None:
    for i in range(10):
        image = Image.fromarray(np.arange(2, dtype=np.uint8)[:, None] * np.full((1, 3), 255, np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6  # the camera lay on its side
        image.save(tmp_path / f"{i}.png", exif=exif)
    train = data.load(str(tmp_path)).train
    assert train.shape == (9, 1, 3, 2)
    assert train[0, 0, 0].tolist() == [255, 0]


def test_subfolders_are_labels(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((5, 4), np.uint8)
    write_images(tmp_path, [f"{'dog' if i % 3 else 'cat'}/{i}.png" for i in range(12)], array)
    dataset = data.load(str(tmp_path))
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert torch.equal(dataset.train_labels, (dataset.train[:, 0, 0, 0] % 3 > 0).long())
    assert torch.equal(dataset.test_labels, (dataset.test[:, 0, 0, 0] % 3 > 0).long())
    write_images(tmp_path, ["stray.png"], array[:1])  # not all are in subfolders now
    assert data.load(str(tmp_path)).train_labels is None


def test_nested_subfolders_are_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{i % 2}/{i % 3}/{i}.png" for i in range(12)], pixels(12, 5, 4))
    assert data.load(str(tmp_path)).train_labels is None


def test_folders_named_train_and_test_are_the_parts(tmp_path: Path) -> None:
    array = pixels(12, 5, 4)
    write_images(tmp_path / "a", [f"{'test' if i < 3 else 'train'}/{i:02}.png" for i in range(12)], array)
    dataset = data.load(str(tmp_path / "a"))
    assert np.array_equal(dataset.test[:, 0], array[:3])
    assert np.array_equal(dataset.train[:, 0], array[3:])
    assert dataset.train_labels is None
    names = [f"{'test' if i < 3 else 'train'}/{'x' if i == 1 or i > 9 else 'y'}/{i:02}.png" for i in range(12)]
    write_images(tmp_path / "b", names, array)
    labelled = data.load(str(tmp_path / "b"))
    assert labelled.train_labels is not None
    assert labelled.test_labels is not None
    assert labelled.train_labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert labelled.test_labels.tolist() == [0, 1, 1]
    assert np.array_equal(labelled.test[:, 0], array[[1, 0, 2]])


def test_bad_folders(tmp_path: Path) -> None:
    assert_raises(tmp_path, FileNotFoundError, str(tmp_path), ".png")
    write_images(tmp_path, [f"{i:02}.png" for i in range(9)], pixels(9, 5, 4))
    assert_raises(tmp_path, ValueError, str(tmp_path), "at least 10", "got 9")
    write_images(tmp_path, ["09.png"], pixels(1, 4, 5))
    assert_raises(tmp_path, ValueError, "09.png", "00.png", "5x4", "4x5")
    write_images(tmp_path, ["09.png"], pixels(1, 5, 4).astype(np.uint16))
    assert_raises(tmp_path, ValueError, str(tmp_path / "09.png"), "I;16")
    write_images(tmp_path, ["09.png"], pixels(1, 5, 4))
    whole = (tmp_path / "09.png").read_bytes()
    size = b"IHDR" + struct.pack(">2I", 60_000, 60_000) + whole[24:29]
    bomb = whole[:12] + size + struct.pack(">I", zlib.crc32(size)) + whole[33:]
    for damaged in (b"", b"text", whole[:-30], bomb):
        (tmp_path / "09.png").write_bytes(damaged)
        assert_raises(tmp_path, ValueError, str(tmp_path / "09.png"))


# names


def test_every_name_is_described() -> None:
    assert [name for name, about in data.names().items() if about.endswith("bundled")] == [
        "mnist-mini",
        "fashion-mnist-mini",
    ]
    splits = {f"emnist-{split}" for split in torchvision.datasets.EMNIST.splits}
    assert data.names().keys() >= {"mnist", "fashion-mnist", "kmnist", "qmnist"} | splits
    assert all("28x28" in about and "\n" not in about for about in data.names().values())


def test_unknown_names(tmp_path: Path) -> None:
    assert_raises("mnits", UsageError, "did you mean 'mnist'?", "emnist-letters", "got 'mnits'")
    assert_raises("MNIST", UsageError, "did you mean 'mnist'?")
    assert_raises("", UsageError, "got ''")
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        data.load("zzz")
    assert_raises("zzz.npz", FileNotFoundError, "zzz.npz")
    assert_raises(tmp_path / "nowhere", FileNotFoundError, str(tmp_path / "nowhere"))
    (tmp_path / "a.txt").write_text("no image")
    assert_raises(tmp_path / "a.txt", ValueError, str(tmp_path / "a.txt"), ".npz")


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-mini").mkdir()
    assert len(data.load("mnist-mini").train) == 10_000
    assert_raises("./mnist-mini", FileNotFoundError)


# tensors


def images(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    "fields",
    [
        {"train": images(3, 1, 5, 4).float()},
        {"train": images(3, 5, 4), "test": images(3, 5, 4)},
        {"test": images(3, 1, 4, 5)},
        {"train": images(0, 1, 5, 4)},
        {"test": images(0, 1, 5, 4)},
        {"train_labels": torch.zeros(3)},
        {"train_labels": torch.zeros(2, dtype=torch.int64)},
        {"test_labels": torch.zeros(2, 1, dtype=torch.int64)},
    ],
)
def test_dataset_checks_its_fields(fields: dict[str, torch.Tensor]) -> None:
    good = {"train": images(3, 1, 5, 4), "test": images(2, 1, 5, 4)}
    assert Dataset("good", **good).image_shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"^bad: expected .*; got .*$"):
        Dataset("bad", **good | fields)


def test_fingerprint() -> None:
    tensor = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    mark = fingerprint(tensor)
    assert mark == hashlib.sha256(b"torch.uint8[2, 3, 4]" + bytes(range(24))).hexdigest()[:16]
    assert fingerprint(tensor.transpose(0, 2).contiguous().transpose(0, 2)) == mark
    changed = tensor.clone()
    changed[1, 2, 3] += 1
    others = [(changed,), (tensor.reshape(3, 2, 4),), (tensor.char(),), (tensor, tensor), tensor.unbind(), ()]
    assert len({mark, *(fingerprint(*other) for other in others)}) == 1 + len(others)
    assert fingerprint(torch.tensor(1.0, requires_grad=True)) == fingerprint(torch.tensor(1.0))
    assert fingerprint(torch.zeros(0), tensor.bool(), torch.zeros(2, dtype=torch.bfloat16))


def test_split_is_seeded_and_disjoint() -> None:
    train, validation = split(100, 20, seed=1)
    assert (train.shape, validation.shape) == ((80,), (20,))
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(100))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(validation, validation.sort().values)
    assert torch.equal(validation, split(100, 20, seed=1)[1])
    assert not torch.equal(validation, split(100, 20, seed=2)[1])
    assert validation.tolist() != list(range(80, 100))


@pytest.mark.parametrize("num_validation", [-1, 0, 10, 11])
def test_split_leaves_neither_part_empty(num_validation: int) -> None:
    assert len(split(10, 9, seed=0)[0]) == 1
    with pytest.raises(ValueError, match=f"^expected num_validation from 1 to .*9; got {num_validation}$"):
        split(10, num_validation, seed=0)


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(12, 5, 4))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    split(10, 3, seed=0)
    data.load(str(tmp_path / "a.npy"))
    data.load("mnist-mini")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=False)) == str(numpy_state)  # noqa: NPY002


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.arange(60, dtype=np.uint16).reshape(12, 5), torch.int64),
        (np.arange(60).reshape(12, 5) % 2 == 0, torch.int64),
        (np.linspace(-1, 1, 60).reshape(12, 5), torch.float32),
    ],
)
def test_vectors(tmp_path: Path, array: np.ndarray, dtype: torch.dtype) -> None:
    np.savez(tmp_path / "own.npz", images=array, labels=np.arange(12))
    dataset = data.load(str(tmp_path / "own.npz"))
    assert dataset.event_shape == (5,)
    assert not dataset.is_images
    assert dataset.train.dtype == dataset.test.dtype == dtype
    rows = torch.cat([dataset.train_labels, dataset.test_labels])
    assert torch.equal(torch.cat([dataset.train, dataset.test]), torch.from_numpy(array.astype(float))[rows].to(dtype))
    assert repr(dataset) == "Dataset('own', 10 train, 2 test, 5)"
    with pytest.raises(ValueError, match="own: expected images; got vectors of 5 numbers"):
        _ = dataset.image_shape
    np.savez(tmp_path / "own.npz", train=array, test=array.astype(int) if dtype == torch.float32 else array / 3)
    with pytest.raises(ValueError, match="expected train and test images of one shape"):
        data.load(str(tmp_path / "own.npz"))
