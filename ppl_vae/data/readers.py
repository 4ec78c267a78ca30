"""Readers of your own images and vectors, from files and folders; see `ppl_vae.data.loading.load`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppl_vae.data.dataset import Dataset, Rows, split
from ppl_vae.system.arrays import Array, read_npy, read_npz
from ppl_vae.system.errors import one_line
from ppl_vae.system.hashing import chunks

_Arrays = dict[str, Array]

_FEWEST = 10
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
_MOST_CHANNELS = 16
ROUNDING = 1e-3  # of a pixel that was divided by 255 in float32
MAPPED_FROM = 2**26  # bytes of a .npy file: smaller ones are read into memory
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def from_file(name: str, path: Path) -> Dataset:
    """The dataset in a `.npz` or `.npy` file; raises what `ppl_vae.data.loading.load` says."""
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


def _vectors(array: Array, where: str, *, gaps: bool = False) -> Tensor:
    """With `gaps`, NaN may be a value that is missing."""
    if array.dtype.kind != "f":
        return _int64(array, where)
    with np.errstate(over="ignore"):
        vectors = torch.from_numpy(array.astype(np.float32, copy=False))
    for part in chunks(vectors):
        if not bool((part.isfinite() | part.isnan() if gaps else part.isfinite()).all()):
            nan = "" if gaps else "NaN, "
            raise ValueError(f"{where}: expected finite numbers in float32; got {nan}infinity or larger ones")
    return vectors


def _int64(array: Array, where: str) -> Tensor:
    if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() >= 2**63:
        raise ValueError(f"{where}: expected whole numbers below 2^63; got {array.max()}")
    return torch.from_numpy(array.astype(np.int64, copy=False))


def _images(array: Array, where: str) -> Tensor:
    if array.ndim == 2 and array.size and array.dtype.kind in "fiub" and array.dtype != np.uint8:
        return _vectors(array, where, gaps=True)
    if array.ndim == 2 and array.size and array.dtype == np.uint8:
        raise ValueError(f"{where}: expected images; got uint8 {array.shape} (store vectors as uint16 or float32)")
    if array.ndim not in (3, 4) or array.size == 0:
        raise ValueError(
            f"{where}: expected vectors (N, D), or images (N, H, W), (N, C, H, W) or (N, H, W, C), not empty; got "
            f"shape {array.shape}"
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: expected numbers; got {array.dtype}")
    if (levels := array if array.dtype == np.uint8 else _levels(array)) is None:
        vectors = _vectors(array.reshape(len(array), -1), where)
        warnings.warn(
            f"{where}: expected pixels from 0 to 255, or those divided by 255; got {array.dtype} from {array.min()} to "
            f"{array.max()}. Each image is taken as a vector of {vectors.shape[1]} numbers: its shape is lost",
            UserWarning,
            stacklevel=2,
        )
        return vectors
    array = levels
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    elif _channels_last(shape[1], shape[3]):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] > _MOST_CHANNELS:
        raise ValueError(
            f"{where}: expected images (N, H, W), (N, C, H, W) or (N, H, W, C) with C at most {_MOST_CHANNELS}; got "
            f"shape {shape}"
        )
    if isinstance(array, np.memmap):
        return torch.from_numpy(array)
    return torch.from_numpy(np.ascontiguousarray(array))


def _levels(array: Array) -> Array | None:
    """Images as 8-bit pixels, where their numbers are such, or such divided by 255; else None."""
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):
        return None
    levels, white = np.empty(array.shape, np.uint8), 255.0 if high <= 1 else 1.0
    for i, image in enumerate(array):  # one by one, for they may be memory-mapped
        scaled = image * white
        levels[i] = np.rint(scaled)
        if np.abs(levels[i] - scaled).max() > ROUNDING:
            return None
    return levels


def _channels_last(first: int, last: int) -> bool:
    """Of two sizes, which is that of the channels: 1 or 3, the first if both are; else the smaller one."""
    if first in (1, 3) or last in (1, 3):
        return first not in (1, 3)
    return last < first


def _labels(arrays: _Arrays, key: str, num_images: int, path: Path) -> Tensor | None:
    if key not in arrays:
        return None
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.shape != (num_images,):
        raise ValueError(
            f"{path}: {key}: expected integers ({num_images},), one for each image; got {array.dtype} {array.shape}"
        )
    return _int64(array, f"{path}: {key}")


def _divide(name: str, images: Tensor, labels: Tensor | None, *, is_mapped: bool = False) -> Dataset:
    train, test = split(len(images), len(images) // 6, seed=0)
    parts = [Rows(images, index) if is_mapped else images[index] for index in (train, test)]
    divided = (None, None) if labels is None else (labels[train], labels[test])
    return Dataset(name, parts[0], parts[1], *divided)


def from_folder(path: Path) -> Dataset:
    """The dataset in a folder of images; raises what `ppl_vae.data.loading.load` says."""
    files = _image_files(path)
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
        return _read_images(_image_files(path)) / 255
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


def _folder_labels(inside: Sequence[tuple[str, ...]]) -> Tensor | None:
    if any(len(folders) != 1 for folders in inside):
        return None
    classes = {folders: label for label, folders in enumerate(sorted(set(inside)))}
    return torch.tensor([classes[folders] for folders in inside])


def _read_images(files: Sequence[Path]) -> Tensor:
    arrays: list[Array] = []
    for file in files:
        try:
            # too many pixels are an error, not a warning; other formats (PostScript) may start other programs
            with warnings.catch_warnings(), Image.open(file, formats=_FORMATS) as opened:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                mode = opened.mode
                # a palette's transparency has to pass through RGBA, or Pillow warns
                see_through = mode in ("P", "PA", "LA", "RGBA") or "transparency" in opened.info
                picture = ImageOps.exif_transpose(opened.convert("RGBA") if see_through else opened)
                if see_through:
                    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        except Exception as error:  # Pillow has many for a damaged file
            raise ValueError(f"{file}: expected an image; got {one_line(error, foreign=True)}") from error
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
