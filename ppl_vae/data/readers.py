"""Readers of your own images and vectors, from arrays in files and from folders; see `ppl_vae.data.loading.load`."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppl_vae.data.arrays import StoredArray, data_of, vectors_of
from ppl_vae.data.dataset import Dataset, select, split
from ppl_vae.system.arrays import LARGEST_ARCHIVE, Array, read_npy, read_npz
from ppl_vae.system.errors import needed, one_line
from ppl_vae.system.files import read_json

FEWEST = 10
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAPPED_FROM = 2**26  # bytes of a .npy file: smaller ones are read into memory
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_TURNED = {5, 6, 7, 8}  # orientations of a photograph that exchange its height and width
_ORIENTATION = 0x0112
# Zarr's codecs that are read: one of them, "pickle", would run what is in a file
_CODECS = {"blosc", "bz2", "bytes", "crc32c", "gzip", "lz4", "sharding_indexed", "shuffle", "transpose", "zlib", "zstd"}


def from_file(name: str, path: Path) -> Dataset:
    """The dataset in a `.npz` or `.npy` file; raises what `ppl_vae.data.loading.load` says."""
    try:
        if path.suffix.lower() == ".npy":
            arrays = {"images": read_npy(path, mapped=path.stat().st_size >= MAPPED_FROM)}
        else:
            arrays = read_npz(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a .npz or .npy file; got nothing there") from None
    return _from_arrays(name, path, arrays)


def _from_arrays(name: str, path: Path, arrays: Mapping[str, Array | StoredArray]) -> Dataset:
    needs = {"images"} if "images" in arrays else {"train", "test"}
    allowed = needs | ({"labels"} if "images" in arrays else {"train_labels", "test_labels"})
    if not needs <= arrays.keys() <= allowed:
        raise ValueError(
            f"{path}: expected arrays train, test[, train_labels, test_labels] or images[, labels]; "
            f"got {', '.join(arrays) or 'none'}"
        )
    images = {key: data_of(arrays[key], f"{path}: {key}") for key in needs}
    num_images = sum(map(len, images.values()))
    if num_images < FEWEST:
        raise ValueError(f"{path}: expected at least {FEWEST} images; got {num_images}")
    if "images" in images:
        return divide(name, images["images"], _labels(arrays, "labels", num_images, path))
    train_labels = _labels(arrays, "train_labels", len(images["train"]), path)
    test_labels = _labels(arrays, "test_labels", len(images["test"]), path)
    try:
        return Dataset(name, images["train"], images["test"], train_labels, test_labels)
    except ValueError as error:  # train and test differ
        raise ValueError(f"{path}: {error}") from None


def _labels(arrays: Mapping[str, Array | StoredArray], key: str, num_images: int, path: Path) -> Tensor | None:
    if key not in arrays:
        return None
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.shape != (num_images,):
        raise ValueError(
            f"{path}: {key}: expected integers ({num_images},), one for each image; got {array.dtype} {array.shape}"
        )
    return vectors_of(array[:][:, None], f"{path}: {key}")[:, 0]


def divide(name: str, data: Tensor, labels: Tensor | None, **names: Any) -> Dataset:
    """A dataset of data without a test part: the last sixth after a shuffle. `names` are further fields."""
    train, test = split(len(data), len(data) // 6, seed=0)
    divided = (None, None) if labels is None else (labels[train], labels[test])
    return Dataset(name, select(data, train), select(data, test), *divided, **names)


class _Chunked:
    """Zarr's array as a `StoredArray`."""

    def __init__(self, array: Any):
        self.array, self.shape, self.dtype, self.ndim, self.size = (
            array,
            array.shape,
            array.dtype,
            array.ndim,
            array.size,
        )

    def __getitem__(self, index: Any) -> Array:
        return np.asarray(self.array[index] if isinstance(index, slice) else self.array.oindex[index])


def from_zarr(name: str, path: Path) -> Dataset:
    """The dataset in a Zarr array, or in a group of arrays with the names of a `.npz` file: read by rows."""
    zarr = needed("zarr", "zarr", path)
    try:
        for file in sorted(path.rglob("*")):
            if file.name in (".zarray", "zarr.json"):
                _check_codecs(read_json(file))
        opened = zarr.open(str(path), mode="r", use_consolidated=False)
        arrays = {"images": opened} if isinstance(opened, zarr.Array) else dict(opened.arrays())
        for key, array in arrays.items():
            if array.dtype.kind == "O" or math.prod(array.chunks) * array.dtype.itemsize > LARGEST_ARCHIVE:
                raise ValueError(f"{key}: {array.dtype} in chunks of {array.chunks}")
    except (MemoryError, OSError):
        raise
    except Exception as error:  # zarr's own, of damaged metadata
        raise ValueError(
            f"{path}: expected a Zarr array of numbers, in chunks of at most {LARGEST_ARCHIVE:,} bytes and compressed "
            f"by one of {', '.join(sorted(_CODECS))}; got {one_line(error, foreign=True)}"
        ) from error
    try:
        return _from_arrays(name, path, {key: _Chunked(array) for key, array in arrays.items()})
    except (RuntimeError, TypeError) as error:  # a damaged chunk
        raise ValueError(f"{path}: expected whole chunks; got {one_line(error, foreign=True)}") from error


def _check_codecs(metadata: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a codec that isn't known to be safe, in the metadata of an array, of either version."""
    used = [*(metadata.get("codecs") or ()), *(metadata.get("filters") or ()), metadata.get("compressor")]
    for codec in filter(None, used):
        if (name := codec.get("name", codec.get("id"))) not in _CODECS:
            raise ValueError(f"the codec {name!r}")
        inner = codec.get("configuration") or {}
        _check_codecs({"codecs": inner.get("codecs")})
        _check_codecs({"codecs": inner.get("index_codecs")})


def from_folder(name: str, path: Path, resize: tuple[int, int] | None = None, channels: int | None = None) -> Dataset:
    """The dataset in a folder of images; raises what `ppl_vae.data.loading.load` says."""
    files = _image_files(path)
    if len(files) < FEWEST:
        raise ValueError(f"{path}: expected at least {FEWEST} images; got {len(files)}")
    images = images_of(files, resize, channels)
    inside = [file.relative_to(path).parts[:-1] for file in files]
    if {folders[:1] for folders in inside} == {("train",), ("test",)}:
        labels, classes = _folder_labels([folders[1:] for folders in inside])
        is_test = torch.tensor([folders[0] == "test" for folders in inside])
        if labels is None:
            return Dataset(name, images[~is_test], images[is_test])
        return Dataset(name, images[~is_test], images[is_test], labels[~is_test], labels[is_test], classes=classes)
    labels, classes = _folder_labels(inside)
    return divide(name, images, labels, classes=classes)


def _image_files(path: Path) -> list[Path]:
    found = (
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = sorted(found, key=Path.as_posix)  # paths sort in another order on Windows
    if not files:
        raise FileNotFoundError(f"{path}: expected images ({', '.join(sorted(_SUFFIXES))}); got none of them")
    return files


def grey_values(path: Path) -> Tensor:
    """Images as brightness in [0, 1], (N, C, H, W), of a folder of images, or a `.npy` file (N, H, W) or (N, C, H, W)
    of 8-bit levels, or of floats, which are taken as they are: NaN may be a missing pixel.

    Raises `FileNotFoundError`, and `ValueError` for what is no such file.
    """
    if path.is_dir():
        return images_of(_image_files(path)) / 255
    try:
        array = read_npy(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a .npy file or a folder of images; got nothing there") from None
    if array.ndim not in (3, 4) or not array.size or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ValueError(
            f"{path}: expected images (N, H, W) or (N, C, H, W), uint8 or floats in [0, 1]; got {array.dtype} "
            f"{array.shape}"
        )
    images = torch.from_numpy(array.astype(np.float32)) / (255 if array.dtype == np.uint8 else 1)
    return images[:, None] if images.dim() == 3 else images


def _folder_labels(inside: Sequence[tuple[str, ...]]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Of the folders that each image is in, and their names."""
    if any(len(folders) != 1 for folders in inside):
        return None, ()
    classes = sorted({folder for (folder,) in inside})
    return torch.tensor([classes.index(folder) for (folder,) in inside]), tuple(classes)


Picture = Path | tuple[str, bytes]
"""A file, or a name and the content of one."""


def images_of(files: Sequence[Picture], resize: tuple[int, int] | None = None, channels: int | None = None) -> Tensor:
    """Images of one size, (N, C, H, W), uint8: of the size (H, W) that is asked for, or else their own. They have 1
    channel if all are grey, and otherwise 3, unless it is said how many.

    Raises `ValueError` for a file that is no image, and for images of several sizes.
    """
    if resize is None:
        _check_sizes({str(_name(file)): _size(file) for file in files})
    arrays = [_pixels(file, resize) for file in files]
    coloured = [_name(file) for file, array in zip(files, arrays, strict=True) if array.ndim == 3]
    if channels is None and 0 < len(coloured) < len(files):
        warnings.warn(
            f"{coloured[0]}: in colour, where {len(files) - len(coloured)} of {len(files)} images are grey. All get 3 "
            "channels; --channels 1 makes all of them grey",
            UserWarning,
            stacklevel=3,
        )
    if channels == 1 or not coloured:
        grey = [array if array.ndim == 2 else np.asarray(Image.fromarray(array).convert("L")) for array in arrays]
        images = torch.from_numpy(np.stack(grey))[:, None]
        return images.expand(-1, channels or 1, -1, -1).contiguous()
    arrays = [array if array.ndim == 3 else np.stack([array] * 3, axis=-1) for array in arrays]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _name(file: Picture) -> str:
    return str(file) if isinstance(file, Path) else file[0]


def _check_sizes(sizes: Mapping[str, tuple[int, int]]) -> None:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, size in sizes.items():
        by_size.setdefault(size, []).append(name)
    if len(by_size) < 2:
        return
    (most, (first, *_)), *others = sorted(by_size.items(), key=lambda item: -len(item[1]))
    others_named = "; ".join(f"{h}x{w} of {', '.join(n[:3])}{', ...' * (len(n) > 3)}" for (h, w), n in others[:5])
    height, width = most
    raise ValueError(
        f"{others[0][1][0]}: expected height x width {height}x{width} as in {first} and {len(by_size[most]) - 1} "
        f"others; got {others_named}{'; ...' * (len(others) > 5)}. To make them one size: --resize {height} {width}"
    )


def _opened(file: Picture) -> Image.Image:
    # other formats (PostScript) may start other programs
    return Image.open(file if isinstance(file, Path) else io.BytesIO(file[1]), formats=_FORMATS)


def _size(file: Picture) -> tuple[int, int]:
    """Height and width, as the header has them."""
    try:
        # too many pixels are an error, not a warning
        with warnings.catch_warnings(), _opened(file) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            width, height = opened.size
            return (width, height) if opened.getexif().get(_ORIENTATION) in _TURNED else (height, width)
    except Exception as error:  # Pillow has many for a damaged file
        raise _no_image(file, error) from error


def _pixels(file: Picture, resize: tuple[int, int] | None) -> Array:
    """Grey (H, W) or RGB (H, W, 3), uint8."""
    try:
        with warnings.catch_warnings(), _opened(file) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            mode = opened.mode
            if mode.startswith("I;16") or (mode == "I" and opened.format == "PNG"):  # 16 bits: Pillow would clip them
                deep = np.asarray(ImageOps.exif_transpose(opened)).astype(np.float64)
                picture, mode = Image.fromarray(np.rint(deep / 257).astype(np.uint8)), "L"
            else:
                # a palette's transparency has to pass through RGBA, or Pillow warns
                see_through = mode in ("P", "PA", "LA", "RGBA") or "transparency" in opened.info
                picture = ImageOps.exif_transpose(opened.convert("RGBA") if see_through else opened)
                if see_through:
                    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    except Exception as error:
        raise _no_image(file, error) from error
    if mode not in _GREY | _COLOUR:
        raise ValueError(
            f"{_name(file)}: expected 8-bit grey or RGB pixels, or 16-bit grey; got Pillow's mode {mode!r}"
        )
    picture = picture.convert("L" if mode in _GREY else "RGB")
    if resize is not None:
        picture = picture.resize(resize[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _no_image(file: Picture, error: Exception) -> ValueError:
    return ValueError(f"{_name(file)}: expected an image; got {one_line(error, foreign=True)}")
