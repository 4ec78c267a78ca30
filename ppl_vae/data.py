"""Data sets: 8-bit images, or vectors, as one tensor: in memory, or, of a large `.npy` file, in the file.

`load` reads a bundled set, a torchvision set or the user's own images or vectors; pixels stay uint8, so that a data
set takes one byte a pixel and its `fingerprint` is exact.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_vae.arrays import Array, one_line, read_npy, read_npz
from ppl_vae.components import UsageError, unknown

_Arrays = dict[str, Array]


class DataError(OSError):
    """The files of a data set are missing and could not be downloaded."""


class Rows(Tensor):
    """The rows `index` (N,) of a tensor `source` (M, ...), which are read when they are used: `rows[i]` and `rows[i:j]`
    are plain tensors of just those rows, and any other operation reads them all. So a split of a file is not a copy.
    """

    source: Tensor
    at: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl  # what is not indexing comes to the dispatch

    @staticmethod
    def __new__(cls, source: Tensor, index: Tensor) -> Rows:
        shape = (len(index), *source.shape[1:])
        rows = Tensor._make_wrapper_subclass(cls, shape, dtype=source.dtype, device=source.device)
        rows.source, rows.at = source, index
        return rows

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Rows({self.dtype}, {tuple(self.shape)})"

    def rows(self, index: Tensor | slice) -> Tensor:
        return self.source[self.at[index]].contiguous()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        match func, args:
            case torch.ops.aten.index.Tensor, (Rows() as x, [Tensor() as index]):
                return x.rows(index)
            case torch.ops.aten.index_select.default, (Rows() as x, 0, Tensor() as index):
                return x.rows(index)
            case torch.ops.aten.slice.Tensor, (Rows() as x, 0, int() as start, int() as end):
                return x.rows(slice(start, end))
            case torch.ops.aten.select.int, (Rows() as x, 0, int() as i):
                return x.source[x.at[i]]
        args, kwargs = pytree.tree_map_only(Rows, lambda x: x.rows(slice(None)), (args, kwargs or {}))
        return func(*args, **kwargs)


def select(data: Tensor, index: Tensor) -> Tensor:
    """`data[index]` along dim 0, without a copy of data that are in a file."""
    return Rows(data.source, data.at[index]) if isinstance(data, Rows) else data[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 `(N, C, H, W)`, or vectors float32 or, of whole numbers, int64 `(N, D)`, in a training and a test
    part, with labels int64 `(N,)` if there are any.

    Raises ValueError if a dtype, a shape or a length differs from that, or a part has no image.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, part), getattr(self, f"{part}_labels")
            kind = images.dtype, images.ndim
            if kind not in ((torch.uint8, 4), (torch.float32, 2), (torch.int64, 2)) or images.numel() == 0:
                raise ValueError(
                    f"{self.name}: expected {part} images uint8 (N, C, H, W), or vectors float32 or int64 (N, D), "
                    "none of them 0; "
                    f"got {images.dtype} {tuple(images.shape)}"
                )
            if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
                raise ValueError(
                    f"{self.name}: expected {part} labels int64 ({len(images)},), one an image; "
                    f"got {labels.dtype} {tuple(labels.shape)}"
                )
        if self.train.shape[1:] != self.test.shape[1:] or self.train.dtype != self.test.dtype:
            raise ValueError(
                f"{self.name}: expected train and test images of one shape; "
                f"got {self.train.dtype} {tuple(self.train.shape[1:])} and "
                f"{self.test.dtype} {tuple(self.test.shape[1:])}"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one datum: `(C, H, W)` of an image, `(D,)` of a vector."""
        return tuple(self.train.shape[1:])

    @property
    def is_images(self) -> bool:
        return self.train.ndim == 4

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape `(C, H, W)` of one image. Raises ValueError for vectors."""
        if not self.is_images:
            raise ValueError(f"{self.name}: expected images; got vectors of {self.train.shape[1]} numbers")
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.event_shape))
        return f"Dataset({self.name!r}, {len(self.train)} train, {len(self.test)} test, {shape})"


class _Source(NamedTuple):
    torchvision: str  # name of the class, and of the folder torchvision keeps its files in
    about: str
    files: tuple[str, str] = ("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")
    parts: tuple[str, str] = ("train", "t10k")
    options: tuple[tuple[str, str], ...] = ()


def _emnist(split: str, train: int, test: int, classes: str) -> _Source:
    files = (f"emnist-{split}-{{}}-images-idx3-ubyte", f"emnist-{split}-{{}}-labels-idx1-ubyte")
    about = f"{train:,} + {test:,} {classes} 1x28x28, NIST SD 19, cite arXiv:1702.05373; downloaded (560 MB)"
    return _Source("EMNIST", about, files, ("train", "test"), (("split", split),))


_BUNDLED = {
    "mnist-mini": "10,000 + 2,000 digits 1x28x28, CC BY-SA 3.0; bundled",
    "fashion-mnist-mini": "10,000 + 2,000 clothes 1x28x28, MIT; bundled",
}
_TORCHVISION = {
    "mnist": _Source("MNIST", "60,000 + 10,000 digits 1x28x28, CC BY-SA 3.0; downloaded (12 MB)"),
    "fashion-mnist": _Source("FashionMNIST", "60,000 + 10,000 clothes 1x28x28, MIT; downloaded (31 MB)"),
    "kmnist": _Source("KMNIST", "60,000 + 10,000 hiragana 1x28x28, CC BY-SA 4.0; downloaded (21 MB)"),
    "qmnist": _Source(
        "QMNIST",
        "60,000 + 60,000 digits 1x28x28, BSD; downloaded (20 MB)",
        ("qmnist-{}-images-idx3-ubyte", "qmnist-{}-labels-idx2-int"),
        ("train", "test"),
    ),
    "emnist-byclass": _emnist("byclass", 697_932, 116_323, "letters and digits"),
    "emnist-bymerge": _emnist("bymerge", 697_932, 116_323, "letters and digits"),
    "emnist-balanced": _emnist("balanced", 112_800, 18_800, "letters and digits"),
    "emnist-letters": _emnist("letters", 124_800, 20_800, "letters"),
    "emnist-digits": _emnist("digits", 240_000, 40_000, "digits"),
    "emnist-mnist": _emnist("mnist", 60_000, 10_000, "digits"),
}
_FEWEST = 10
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAPPED_FROM = 2**26  # bytes of a .npy file: smaller ones are read
_CHUNK = 2**20  # bytes
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def names() -> dict[str, str]:
    """Every name that `load` knows, with its size, its licence and whether it is bundled or downloaded."""
    return _BUNDLED | {name: source.about for name, source in _TORCHVISION.items()}


def load(name: str, data_dir: Path | None = None, *, download: bool = True) -> Dataset:
    """Load the data set `name`: one of `names()`, or else the path of your own images or vectors.

    A torchvision set is read from the folder `data_dir`, else the environment variable `PPL_VAE_DATA`, else
    the user's cache folder; files that are not there are downloaded to it if `download`.

    Your own images (all of one size, at least 10) are one of

    - a `.npz` file of uint8 arrays `train` and `test`, perhaps `train_labels` and `test_labels`; or of one
      array `images`, perhaps `labels`; or a `.npy` file of one array. An array of images is `(N, H, W)`,
      `(N, C, H, W)` or `(N, H, W, C)` with 1 or 3 channels (if both fit, channels first); labels are integers
      `(N,)`. Arrays `(N, D)` of floats, or of whole numbers that are not uint8, are vectors in the same way;
    - a folder of png, jpg, bmp, gif, tif or webp files, in the order of their names; hidden files are left
      out. If all of them are grey they have 1 channel, otherwise 3 (RGB); an alpha channel is dropped, and an
      animation gives its first frame. If all files are in immediate subfolders, these, sorted, are the labels
      0, 1, ...; but subfolders named `train` and `test` are the parts, and their own subfolders the labels.

    A `.npy` file of 64 MB or more stays where it is: its images are read from it when they are used. Arrays in a
    `.npz` file may take 1 GB or 50 times its size.

    Images without a test part are split: the last sixth of them after a shuffle (always of seed 0) is the
    test part. Both parts keep the order of the file.

    Returns images uint8 `(N, C, H, W)`, or vectors float32 or int64 `(N, D)`, and labels int64 `(N,)` or None.

    Raises DataError if files are missing that were not downloaded; FileNotFoundError if the path does not
    exist or has no images; UsageError, a ValueError, if the name is unknown; ValueError if a file is not as
    described here.
    """
    if name in _BUNDLED:
        with resources.as_file(resources.files("ppl_vae") / "datasets" / f"{name}.npz") as file:
            return _from_file(name, file)
    if name in _TORCHVISION:
        root = data_dir or os.environ.get("PPL_VAE_DATA") or platformdirs.user_cache_dir("ppl-vae")
        return _from_torchvision(name, Path(root).expanduser(), download)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() in {".npy", ".npz"}:
        return _from_file(path.stem, path)
    if name and path.exists():
        raise ValueError(f"{path}: expected a .npz or .npy file or a folder of images; got another file")
    if len(path.parts) > 1:
        raise FileNotFoundError(f"{path}: expected a .npz or .npy file or a folder of images; got nothing there")
    raise UsageError(unknown("data set", name, [*names(), "a path"]))


def fingerprint(*tensors: Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the tensors' dtypes, shapes and bytes.

    >>> fingerprint(torch.zeros(2, 3)) == fingerprint(torch.zeros(3, 2).T)
    True
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        for part in chunks(tensor.reshape(1) if tensor.ndim == 0 else tensor):
            digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def chunks(data: Tensor) -> Iterator[Tensor]:
    """The rows of a tensor, a megabyte at a time."""
    size = max(1, _CHUNK // max(1, data[:1].numel() * data.element_size()))
    for start in range(0, len(data), size):
        yield data[start : start + size]


def split(num_data: int, num_validation: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of `num_data` images at random into training and validation, each sorted.

    Returns int64 `(num_data - num_validation,)` and `(num_validation,)`.

    Raises ValueError if either is empty.

    >>> [len(indices) for indices in split(10, 3, seed=0)]
    [7, 3]
    """
    if not 1 <= num_validation < num_data:
        raise ValueError(f"expected num_validation from 1 to num_data - 1 = {num_data - 1}; got {num_validation}")
    order = torch.randperm(num_data, generator=torch.Generator().manual_seed(seed))
    return order[:-num_validation].sort().values, order[-num_validation:].sort().values


def make_mini(root: Path, output: Path) -> None:
    """Write the bundled sets to the folder `output`: the first images of MNIST and Fashion-MNIST.

    `root` is torchvision's folder with their raw files. Raises what `load` raises.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in ("mnist", "fashion-mnist"):
        full = load(name, root, download=False)
        assert full.train_labels is not None
        assert full.test_labels is not None
        np.savez_compressed(
            output / f"{name}-mini.npz",
            train=full.train[:10_000].numpy(),
            test=full.test[:2_000].numpy(),
            train_labels=full.train_labels[:10_000].byte().numpy(),
            test_labels=full.test_labels[:2_000].byte().numpy(),
        )


def _from_torchvision(name: str, root: Path, download: bool) -> Dataset:
    # torchvision takes seconds to import, and no other set needs it
    from torchvision import datasets

    source = _TORCHVISION[name]
    folder = root / source.torchvision / "raw"
    files = [folder / file.format(part) for part in source.parts for file in source.files]
    reason = "download is off"
    if download and not all(file.is_file() for file in files):
        try:
            download_to = getattr(datasets, source.torchvision)
            for is_train in (True, False):
                download_to(root, train=is_train, download=True, **dict(source.options))
        except Exception as error:  # whatever keeps a download from its end, the remedy is the same
            reason = one_line(error)
        else:
            reason = "torchvision left them out"
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{name}: expected {', '.join(file.name for file in files)} in {folder}; "
            f"got no {', '.join(missing)} ({reason}); {' and '.join(_BUNDLED)} need no download"
        )
    train, train_labels, test, test_labels = (_read_idx(file) for file in files)
    if source.torchvision == "EMNIST":  # stored with rows and columns exchanged
        train, test = (images.transpose(1, 2).contiguous() for images in (train, test))
    if source.torchvision == "QMNIST":  # the class, then the writer and six other numbers
        train_labels, test_labels = train_labels[:, 0], test_labels[:, 0]
    return Dataset(name, train[:, None], test[:, None], train_labels.long(), test_labels.long())


def _read_idx(path: Path) -> Tensor:
    from torchvision.datasets import mnist

    # the end of the name tells what the header must be: idx3-ubyte, idx1-ubyte or idx2-int
    ndim, dtype = int(path.name.rsplit("-", 2)[1][-1]), path.name.rsplit("-", 1)[1]
    code, itemsize = {"ubyte": (8, 1), "int": (12, 4)}[dtype]
    with path.open("rb") as file:
        header = file.read(4 + 4 * ndim)
    size = path.stat().st_size
    if len(header) < 4 + 4 * ndim:
        raise ValueError(f"{path}: expected an IDX file of at least {4 + 4 * ndim} bytes; got {size} bytes")
    magic, *shape = struct.unpack(f">{1 + ndim}I", header)
    if magic != code * 256 + ndim:
        raise ValueError(f"{path}: expected an IDX file, magic number {code * 256 + ndim}; got {magic}")
    expected = len(header) + itemsize * math.prod(shape)
    if size != expected or 0 in shape:
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {tuple(shape)}, not empty; got {size} bytes "
            "(remove it to download it again)"
        )
    # not the data set's class: it would rather read the unchecked *.pt of an old version than these files
    return mnist.read_sn3_pascalvincent_tensor(path)


def _from_file(name: str, path: Path) -> Dataset:
    is_mapped = False
    try:
        if path.suffix.lower() == ".npy":
            is_mapped = path.stat().st_size >= MAPPED_FROM
            arrays = {"images": read_npy(path, mapped=is_mapped)}
        else:
            arrays = read_npz(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a .npz or .npy file; got nothing there") from None
    needed = {"images"} if "images" in arrays else {"train", "test"}
    allowed = needed | ({"labels"} if "images" in arrays else {"train_labels", "test_labels"})
    if not needed <= arrays.keys() <= allowed:
        raise ValueError(
            f"{path}: expected arrays train, test[, train_labels, test_labels] or images[, labels]; "
            f"got {', '.join(arrays) or 'none'}"
        )
    images = {key: _images(arrays[key], f"{path}: {key}") for key in needed}
    num_images = sum(map(len, images.values()))
    if num_images < _FEWEST:
        raise ValueError(f"{path}: expected at least {_FEWEST} images; got {num_images}")
    if "images" in images:
        labels = _labels(arrays, "labels", num_images, path)
        return _divide(name, images["images"], labels, is_mapped=is_mapped)
    train_labels = _labels(arrays, "train_labels", len(images["train"]), path)
    test_labels = _labels(arrays, "test_labels", len(images["test"]), path)
    try:
        return Dataset(name, images["train"], images["test"], train_labels, test_labels)
    except ValueError as error:  # train and test differ
        raise ValueError(f"{path}: {error}") from None


def _vectors(array: Array, where: str) -> Tensor:
    if array.dtype.kind != "f":
        return _int64(array, where)
    with np.errstate(over="ignore"):
        vectors = torch.from_numpy(array.astype(np.float32, copy=False))
    for part in chunks(vectors):
        if not bool(part.isfinite().all()):
            raise ValueError(f"{where}: expected finite numbers in float32; got NaN, infinity or larger ones")
    return vectors


def _int64(array: Array, where: str) -> Tensor:
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() >= 2**63:
        raise ValueError(f"{where}: expected whole numbers below 2^63; got {array.max()}")
    return torch.from_numpy(array.astype(np.int64, copy=False))


def _images(array: Array, where: str) -> Tensor:
    if array.ndim == 2 and array.size and array.dtype.kind in "fiub" and array.dtype != np.uint8:
        return _vectors(array, where)
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ValueError(
            f"{where}: expected vectors (N, D), or images (N, H, W), (N, C, H, W) or (N, H, W, C), none 0; got shape "
            f"{array.shape}"
        )
    if array.dtype != np.uint8:
        seen, remedy = "", "multiply by 255 if they are in [0, 1], round, and store as uint8"
        if array.size and array.dtype.kind in "biuf":
            seen = f" from {np.fmin.reduce(array, axis=None)} to {np.fmax.reduce(array, axis=None)}"
            seen += " with NaN" if np.isnan(array).any() else ""
            if 1 < np.fmax.reduce(array, axis=None) <= 255 and np.fmin.reduce(array, axis=None) >= 0:
                remedy = "round, and store as uint8"
        raise ValueError(f"{where}: expected uint8 pixels from 0 to 255; got {array.dtype}{seen} ({remedy})")
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise ValueError(
            f"{where}: expected images (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3, none 0; got shape {shape}"
        )
    if isinstance(array, np.memmap):
        return torch.from_numpy(array)
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(arrays: _Arrays, key: str, num_images: int, path: Path) -> Tensor | None:
    if key not in arrays:
        return None
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.shape != (num_images,):
        raise ValueError(
            f"{path}: {key}: expected integers ({num_images},), one an image; got {array.dtype} {array.shape}"
        )
    return _int64(array, f"{path}: {key}")


def _divide(name: str, images: Tensor, labels: Tensor | None, *, is_mapped: bool = False) -> Dataset:
    train, test = split(len(images), len(images) // 6, seed=0)
    parts = [Rows(images, index) if is_mapped else images[index] for index in (train, test)]
    divided = (None, None) if labels is None else (labels[train], labels[test])
    return Dataset(name, parts[0], parts[1], *divided)


def _from_folder(path: Path) -> Dataset:
    found = (
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = sorted(found, key=Path.as_posix)  # paths themselves sort in another order on Windows
    if not files:
        raise FileNotFoundError(f"{path}: expected images ({', '.join(sorted(_SUFFIXES))}); got none of them")
    if len(files) < _FEWEST:
        raise ValueError(f"{path}: expected at least {_FEWEST} images; got {len(files)}")
    images = _read_images(files)
    name = path.resolve().name
    inside = [file.relative_to(path).parts[:-1] for file in files]
    if {folders[:1] for folders in inside} == {("train",), ("test",)}:
        labels = _folder_labels([folders[1:] for folders in inside])
        is_test = torch.tensor([folders[0] == "test" for folders in inside])
        if labels is None:
            return Dataset(name, images[~is_test], images[is_test])
        return Dataset(name, images[~is_test], images[is_test], labels[~is_test], labels[is_test])
    return _divide(name, images, _folder_labels(inside))


def _folder_labels(inside: Sequence[tuple[str, ...]]) -> Tensor | None:
    if any(len(folders) != 1 for folders in inside):
        return None
    classes = {folders: label for label, folders in enumerate(sorted(set(inside)))}
    return torch.tensor([classes[folders] for folders in inside])


def _read_images(files: Sequence[Path]) -> Tensor:
    arrays: list[Array] = []
    for file in files:
        try:
            # one that claims more pixels than Pillow thinks safe is an error; other formats may start other programs
            with warnings.catch_warnings(), Image.open(file, formats=_FORMATS) as opened:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                mode = opened.mode
                # a palette's transparency has to pass through RGBA, or Pillow warns
                picture = opened.convert("RGBA") if mode in ("P", "PA") else ImageOps.exif_transpose(opened)
        except Exception as error:  # Pillow has many for a damaged file
            raise ValueError(f"{file}: expected an image; got {one_line(error)}") from error
        if mode not in _GREY | _COLOUR:  # Pillow would clip 16 bits to 8, not scale them
            raise ValueError(f"{file}: expected 8-bit grey or RGB pixels; got Pillow's mode {mode!r}")
        array = np.asarray(picture.convert("L" if mode in _GREY else "RGB"))
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            (height, width), size = array.shape[:2], "x".join(map(str, arrays[0].shape[:2]))
            raise ValueError(f"{file}: expected height x width {size} as in {files[0]}; got {height}x{width}")
        arrays.append(array)
    colour = any(array.ndim == 3 for array in arrays)
    if colour:
        arrays = [array if array.ndim == 3 else np.stack([array] * 3, axis=-1) for array in arrays]
    images = torch.from_numpy(np.stack(arrays))
    return images.permute(0, 3, 1, 2).contiguous() if colour else images[:, None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the bundled sets from torchvision's raw files.")
    parser.add_argument("root", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    make_mini(arguments.root, arguments.output)
