import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import assert_raises, pixels, write_images
from PIL import Image

from ppl_vae.components import UsageError
from ppl_vae.data.dataset import Rows, select, split
from ppl_vae.data.loading import load
from ppl_vae.system.hashing import fingerprint


def together(train: torch.Tensor, test: torch.Tensor, num_data: int) -> torch.Tensor:
    """Undo the division of images without a test part."""
    indices = torch.cat(split(num_data, len(test), seed=0))
    return torch.cat([train, test])[indices.argsort()]


def test_npz_with_parts(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"train": pixels(9, 5, 4, 3), "test": pixels(3, 5, 4, 3, seed=1)}
    labels: dict[str, Any] = {"train_labels": np.arange(9, dtype=np.int16), "test_labels": np.arange(3, dtype=">i4")}
    np.savez(tmp_path / "mine.npz", **arrays, **labels)
    dataset = load(str(tmp_path / "mine.npz"))
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
    dataset, again = load(str(tmp_path / "a.npz")), load(str(tmp_path / "b.npy"))
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
        ((12, 5, 4, 2), (2, 5, 4)),
        ((12, 2, 5, 4), (2, 5, 4)),
        ((12, 4, 5, 6), (4, 5, 6)),
        ((12, 6, 7, 5), (5, 6, 7)),
        ((12, 4, 7, 4), (4, 7, 4)),
        ((12, 5, 2, 1), (1, 5, 2)),
    ],
)
def test_array_layouts(tmp_path: Path, shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> None:
    array = pixels(*shape)
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    dataset = load(str(tmp_path / "a.npy"))
    assert dataset.image_shape == image_shape
    whole = together(dataset.train, dataset.test, 12).numpy()
    last = len(shape) == 4 and shape[1:] != image_shape
    assert np.array_equal(whole, array.transpose(0, 3, 1, 2) if last else array.reshape(12, *image_shape))


@pytest.mark.parametrize(
    ("array", "fragments"),
    [
        (np.where(np.eye(12, 20) == 1, np.nan, 0.5).reshape(12, 5, 4), ("finite numbers in float32; got NaN",)),
        (np.full((12, 5, 4), "a"), ("<U1",)),
        (np.zeros((12, 5, 4), complex), ("complex128",)),
        (np.zeros((0, 5, 4)), ("(0, 5, 4)",)),
        (pixels(0, 5, 4), ("(0, 5, 4)",)),
        (pixels(12, 0, 4), ("(12, 0, 4)",)),
        (pixels(12, 20), ("uint8 (12, 20) (store vectors as uint16 or float32)",)),
        (np.uint8(3), ("shape ()",)),
        (pixels(12, 1, 5, 4, 1), ("(12, 1, 5, 4, 1)",)),
        (pixels(12, 17, 20, 18), ("C at most 16; got shape (12, 17, 20, 18)",)),
        (pixels(9, 5, 4), ("at least 10", "got 9")),
        (np.full((12, 5), 2**63, np.uint64), ("whole numbers below 2^63; got 9223372036854775808",)),
    ],
)
def test_bad_arrays(tmp_path: Path, array: Any, fragments: tuple[str, ...]) -> None:
    np.save(tmp_path / "a.npy", array)
    assert_raises(tmp_path / "a.npy", ValueError, str(tmp_path / "a.npy"), *fragments)


@pytest.mark.parametrize(
    "as_stored",
    [np.uint16, np.float64, lambda x: x / 255, lambda x: (x / 255).astype(np.float32), lambda x: x / np.float32(255)],
)
def test_pixels_of_other_types_are_the_same_pixels(tmp_path: Path, as_stored: Any) -> None:
    images = pixels(12, 5, 4, 3)
    np.savez(tmp_path / "a.npz", train=images, test=as_stored(images))
    dataset = load(str(tmp_path / "a.npz"))
    assert torch.equal(dataset.train, dataset.test)


def test_binary_images_are_black_and_white(tmp_path: Path) -> None:
    is_white = pixels(12, 5, 4) > 99
    for array in (is_white, is_white.astype(np.int64), is_white.astype(np.float32)):
        np.save(tmp_path / "a.npy", array)
        dataset = load(str(tmp_path / "a.npy"))
        whole = together(dataset.train, dataset.test, 12)
        assert np.array_equal(whole[:, 0], is_white * np.uint8(255))


@pytest.mark.parametrize(
    "array",
    [np.linspace(0, 1, 240).reshape(12, 1, 5, 4), np.arange(-2.0, 238).reshape(12, 5, 4), pixels(12, 5, 4) * 300.0],
)
def test_images_that_are_no_pixels_are_vectors(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.warns(UserWarning, match=rf"got {array.dtype} from .* to .*a vector of 20 numbers: its shape is lost"):
        dataset = load(str(tmp_path / "a.npy"))
    assert not dataset.is_images
    whole = together(dataset.train, dataset.test, 12)
    assert np.array_equal(whole, array.reshape(12, 20).astype(whole.numpy().dtype))


@pytest.mark.parametrize(
    ("arrays", "fragments"),
    [
        ({"train": pixels(12, 5, 4)}, ("got train",)),
        ({"x": pixels(12, 5, 4), "y": pixels(12)}, ("got x, y",)),
        ({}, ("got none",)),
        ({"images": pixels(12, 5, 4), "label": np.arange(12)}, ("got images, label",)),
        ({"train": pixels(5, 5, 4), "test": pixels(4, 5, 4)}, ("got 9",)),
        ({"train": pixels(12, 5, 4), "test": pixels(3, 4, 5)}, ("(1, 5, 4)", "(1, 4, 5)")),
        ({"images": pixels(12, 5, 4), "labels": np.arange(11)}, ("labels: ", "(12,)", "(11,)")),
        ({"images": pixels(12, 5, 4), "labels": np.zeros(12)}, ("labels: ", "float64")),
        (
            {"train": pixels(12, 5, 4), "test": pixels(3, 5, 4), "test_labels": np.zeros((3, 10), int)},
            ("test_labels: ", "(3, 10)"),
        ),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], fragments: tuple[str, ...]) -> None:
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
    read = load(str(path))
    monkeypatch.setattr("ppl_vae.data.readers.MAPPED_FROM", path.stat().st_size)
    mapped = load(str(path))
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


def test_folder_of_grey_images(tmp_path: Path) -> None:
    array = pixels(12, 5, 4)
    names = [f"{i:02}.{suffix}" for i, suffix in enumerate(["png", "bmp", "tif", "PNG"] * 3)]
    write_images(tmp_path / "faces", names[::-1], array[::-1])
    (tmp_path / "faces/notes.txt").write_text("no image")
    write_images(tmp_path / "faces", [".hidden.png", ".cache/a.png"], pixels(2, 9, 9))
    dataset = load(str(tmp_path / "faces"))
    assert dataset.name == "faces"
    assert dataset.train_labels is None
    assert (len(dataset.train), len(dataset.test)) == (10, 2)
    assert np.array_equal(together(dataset.train, dataset.test, 12), array[:, None])


def test_one_colour_image_makes_all_of_them_rgb(tmp_path: Path) -> None:
    grey, colour = pixels(11, 5, 4), pixels(5, 4, 3, seed=1)
    write_images(tmp_path, [f"{i:02}.png" for i in range(11)], grey)
    write_images(tmp_path, ["11.png"], colour[None])
    with pytest.warns(UserWarning, match=r"11\.png: in colour, where 11 of 12 images are grey.*--channels 1"):
        dataset = load(str(tmp_path))
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
    colour.quantize().save(tmp_path / "5.png", transparency=b"\xff\x80")  # Pillow's warning must not surface
    for i in range(6, 12):
        colour.save(tmp_path / f"{i}.jpeg", quality=100)
    dataset = load(str(tmp_path))
    whole = torch.cat([dataset.train, dataset.test]).int()
    assert dataset.image_shape == (3, 5, 4)
    assert (whole - torch.tensor([10, 200, 30])[:, None, None]).abs().max() < 16


@pytest.mark.parametrize(("mode", "pixel"), [("RGBA", (10, 200, 30)), ("LA", (40,)), ("P", ())])
def test_what_is_transparent_is_shown_on_white(tmp_path: Path, mode: str, pixel: tuple[int, ...]) -> None:
    """At alpha 0, 51 and 255: level + (255 - level) (1 - alpha / 255)."""
    for i in range(10):
        if mode == "P":  # the colour of the palette that is seen through
            image = Image.fromarray(np.array([[0, 0, 1]], np.uint8))
            image.putpalette([10, 200, 30, 7, 8, 9])
            image.save(tmp_path / f"{i}.png", transparency=0)
            continue
        image = Image.new("LA" if mode == "LA" else "RGBA", (3, 1))
        image.putdata([(*pixel, alpha) for alpha in (0, 51, 255)])
        image.save(tmp_path / f"{i}.png")
    seen = load(str(tmp_path)).train[0, :, 0].T.tolist()
    if mode == "P":
        assert seen == [[255] * 3, [255] * 3, [7, 8, 9]]
    else:
        assert seen == [[255] * len(pixel), [round(255 - 0.2 * (255 - level)) for level in pixel], list(pixel)]


def test_photographs_are_put_upright(tmp_path: Path) -> None:
    for i in range(10):
        image = Image.fromarray(np.arange(2, dtype=np.uint8)[:, None] * np.full((1, 3), 255, np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6  # the camera lay on its side
        image.save(tmp_path / f"{i}.png", exif=exif)
    train = load(str(tmp_path)).train
    assert train.shape == (9, 1, 3, 2)
    assert train[0, 0, 0].tolist() == [255, 0]


def test_subfolders_are_labels(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((5, 4), np.uint8)
    write_images(tmp_path, [f"{'dog' if i % 3 else 'cat'}/{i}.png" for i in range(12)], array)
    dataset = load(str(tmp_path))
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert torch.equal(dataset.train_labels, (dataset.train[:, 0, 0, 0] % 3 > 0).long())
    assert torch.equal(dataset.test_labels, (dataset.test[:, 0, 0, 0] % 3 > 0).long())
    write_images(tmp_path, ["stray.png"], array[:1])  # not all are in subfolders now
    assert load(str(tmp_path)).train_labels is None


def test_nested_subfolders_are_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{i % 2}/{i % 3}/{i}.png" for i in range(12)], pixels(12, 5, 4))
    assert load(str(tmp_path)).train_labels is None


def test_folders_named_train_and_test_are_the_parts(tmp_path: Path) -> None:
    array = pixels(12, 5, 4)
    write_images(tmp_path / "a", [f"{'test' if i < 3 else 'train'}/{i:02}.png" for i in range(12)], array)
    dataset = load(str(tmp_path / "a"))
    assert np.array_equal(dataset.test[:, 0], array[:3])
    assert np.array_equal(dataset.train[:, 0], array[3:])
    assert dataset.train_labels is None
    names = [f"{'test' if i < 3 else 'train'}/{'x' if i == 1 or i > 9 else 'y'}/{i:02}.png" for i in range(12)]
    write_images(tmp_path / "b", names, array)
    labelled = load(str(tmp_path / "b"))
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
    expected = "5x4 as in ", "00.png and 8 others; got 4x5 of ", "09.png. To make them one size: --resize 5 4"
    assert_raises(tmp_path, ValueError, *expected)
    (tmp_path / "09.png").unlink()
    Image.fromarray(pixels(5, 4).astype(np.float32)).save(tmp_path / "09.tif")
    assert_raises(tmp_path, ValueError, str(tmp_path / "09.tif"), "got Pillow's mode 'F'")
    (tmp_path / "09.tif").unlink()
    write_images(tmp_path, ["09.png"], pixels(1, 5, 4))
    whole = (tmp_path / "09.png").read_bytes()
    size = b"IHDR" + struct.pack(">2I", 60_000, 60_000) + whole[24:29]
    bomb = whole[:12] + size + struct.pack(">I", zlib.crc32(size)) + whole[33:]
    for damaged in (b"", b"text", whole[:-30], bomb):
        (tmp_path / "09.png").write_bytes(damaged)
        assert_raises(tmp_path, ValueError, str(tmp_path / "09.png"))


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
    dataset = load(str(tmp_path / "own.npz"))
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
        load(str(tmp_path / "own.npz"))


def test_a_picture_is_no_program(tmp_path: Path) -> None:
    """PostScript under the name of a picture would be handed to an interpreter."""
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    with pytest.raises(ValueError, match=r"0\.png: expected an image; got UnidentifiedImageError"):
        load(str(tmp_path))


def test_images_are_made_one_size_and_grey(tmp_path: Path) -> None:
    """What is constant stays so, a half of black and white has its mean at half the size, and a photograph that lies
    on its side is turned before."""
    grey = np.array([[0, 100], [200, 100]], np.uint8)
    write_images(tmp_path, [f"{i:02}.png" for i in range(10)], np.stack([grey] * 10))
    write_images(tmp_path, ["10.png"], np.full((1, 9, 7, 3), (255, 0, 0), np.uint8))
    with pytest.raises(ValueError, match=r"got 9x7 of .*10\.png\. To make them one size: --resize 2 2"):
        load(str(tmp_path))
    dataset = load(str(tmp_path), resize=(1, 3), channels=1)
    whole = together(dataset.train, dataset.test, 11)
    assert whole.shape == (11, 1, 1, 3)
    assert (whole[:10, 0, 0, 1] == 100).all()
    assert (whole[10] == 76).all()  # 0.299 of red
    assert load(str(tmp_path), resize=(2, 2), channels=3).image_shape == (3, 2, 2)
    with pytest.raises(UsageError, match=r"label: expected data that take it \(table, h5ad, hugging face\); got "):
        load(str(tmp_path), label="x")
    with pytest.raises(UsageError, match=r"resize: expected data that take it .*folder\); got 'mnist-mini'"):
        load("mnist-mini", resize=(8, 8))


def test_grey_of_16_bits_is_scaled_to_8(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257, 65535 - 128, 65535]], np.uint16)
    for i in range(10):
        Image.fromarray(levels).save(tmp_path / f"{i}.{'png' if i % 2 else 'tif'}")
    whole = load(str(tmp_path)).train
    assert whole.shape[1:] == (1, 1, 6)
    assert (whole[:, 0, 0] == torch.tensor([0, 0, 1, 1, 255, 255])).all()


def test_folders_give_their_names_to_the_labels(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{'dog' if i % 3 else 'cat'}/{i}.png" for i in range(12)], pixels(12, 5, 4))
    assert load(str(tmp_path)).classes == ("cat", "dog")


def test_a_zarr_folder_is_read_by_rows(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    images = pixels(60, 5, 4)
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=images.shape, chunks=(7, 5, 4), dtype="uint8")
    array[:] = images
    group = zarr.open_group(str(tmp_path / "b.zarr"), mode="w", zarr_format=2)
    group.create_array("images", data=images.astype(np.float32) / 255, chunks=(7, 5, 4))
    group.create_array("labels", data=np.arange(60))
    np.save(tmp_path / "c.npy", images)
    expected, (one, two) = load(str(tmp_path / "c.npy")), (load(str(tmp_path / f"{n}.zarr")) for n in "ab")
    for dataset in (one, two):
        assert type(dataset.train) is Rows
        assert fingerprint(dataset.train, dataset.test) == fingerprint(expected.train, expected.test)
        assert torch.equal(dataset.train[torch.tensor([9, 2])], expected.train[[9, 2]])
    assert two.test_labels is not None
    assert torch.equal(two.test[:, 0], torch.from_numpy(images)[two.test_labels])


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("codec", "the codec 'pickle'"),
        ("inner", "the codec 'numcodecs.pickle'"),
        ("chunks", "chunks of (1000000, 1000000)"),
        ("object", "got "),
        ("damaged", "got "),
    ],
)
def test_a_zarr_folder_runs_nothing_and_claims_nothing(tmp_path: Path, change: str, fragment: str) -> None:
    zarr = pytest.importorskip("zarr")
    kind = {"zarr_format": 3, "shards": (12, 5)} if change == "inner" else {"zarr_format": 2}
    zarr.create_array(str(tmp_path / "a.zarr"), data=np.ones((12, 5)), chunks=(3, 5), **kind)
    path = tmp_path / "a.zarr" / ("zarr.json" if change == "inner" else ".zarray")
    metadata = json.loads(path.read_text())
    if change == "inner":
        metadata["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    metadata |= {
        "codec": {"filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
        "object": {"dtype": "|O"},
        "chunks": {"chunks": [10**6, 10**6], "shape": [10**6, 10**6]},
    }.get(change, {})
    path.write_text("{" if change == "damaged" else json.dumps(metadata))
    for chunk in (tmp_path / "a.zarr").glob("?.?"):
        chunk.write_bytes(pickle.dumps(Payload(tmp_path / "bait")))
    assert_raises(tmp_path / "a.zarr", ValueError, "a.zarr", fragment)
    assert not (tmp_path / "bait").exists()


class Payload:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")
