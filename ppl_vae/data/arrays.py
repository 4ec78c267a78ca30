"""From an array of numbers, in memory or stored elsewhere, to a tensor of 8-bit images or of vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ppl_vae.system.arrays import Array
from ppl_vae.system.rows import Rows, Stored

ROUNDING = 1e-3  # of a pixel that was divided by 255 in float32
MOST_CHANNELS = 16
BLOCK_BYTES = 2**24  # that are looked at together

Convert = Callable[[Array], Array]


class StoredArray(Protocol):
    """An array that is in a file: `array[index]` and `array[i:j]` read those rows. A memory-mapped one is such."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    def __getitem__(self, index: Any) -> Array: ...


def data_of(array: Array | StoredArray, where: str) -> Tensor:
    """An array as images uint8 (N, C, H, W), or vectors float32 or int64 (N, D), in which NaN may be a missing value.
    One that is stored is looked at once, and then read by rows. Raises `ValueError`, which names `where` it is from.
    """
    if array.ndim == 2 and array.size and array.dtype.kind in "fiub" and array.dtype != np.uint8:
        return vectors_of(array, where, gaps=True)
    if array.ndim == 2 and array.size and array.dtype == np.uint8:
        raise ValueError(f"{where}: expected images; got uint8 {array.shape} (store vectors as uint16 or float32)")
    if array.ndim not in (3, 4) or array.size == 0:
        raise ValueError(
            f"{where}: expected vectors (N, D), or images (N, H, W), (N, C, H, W) or (N, H, W, C), not empty; got "
            f"shape {array.shape}"
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: expected numbers; got {array.dtype}")
    low, high = (0, 255) if array.dtype == np.uint8 else _range(array)
    if (white := _white(array, low, high)) is None:
        vectors = vectors_of(array, where)
        warnings.warn(
            f"{where}: expected pixels from 0 to 255, or those divided by 255; got {array.dtype} from {low} to "
            f"{high}. Each image is taken as a vector of {vectors.shape[1]} numbers: its shape is lost",
            UserWarning,
            stacklevel=2,
        )
        return vectors
    shape = array.shape
    last = array.ndim == 4 and _channels_last(shape[1], shape[3])
    if (channels := 1 if array.ndim == 3 else shape[3 if last else 1]) > MOST_CHANNELS:
        raise ValueError(
            f"{where}: expected images (N, H, W), (N, C, H, W) or (N, H, W, C) with C at most {MOST_CHANNELS}; got "
            f"shape {shape}, {channels} channels"
        )
    return tensor_of(array, partial(_levels, white=white, last=last), np.uint8)


def vectors_of(array: Array | StoredArray, where: str, *, gaps: bool = False) -> Tensor:
    """Numbers as float32, or whole ones as int64, (N, D). With `gaps`, NaN may be a value that is missing."""
    if array.dtype.kind != "f":
        if array.dtype.kind == "u" and array.dtype.itemsize == 8 and (high := _range(array)[1]) >= 2**63:
            raise ValueError(f"{where}: expected whole numbers below 2^63; got {high}")
        return tensor_of(array, partial(_flat, dtype=np.int64), np.int64)
    for block in blocks(array):
        part = _flat(block, np.float32)
        if not (np.isfinite(part) | np.isnan(part) if gaps else np.isfinite(part)).all():
            nan = "" if gaps else "NaN, "
            raise ValueError(f"{where}: expected finite numbers in float32; got {nan}infinity or larger ones")
    return tensor_of(array, partial(_flat, dtype=np.float32), np.float32)


def tensor_of(array: Array | StoredArray, convert: Convert, dtype: Any) -> Tensor:
    """`convert` of an array, a block after another; of a stored one the rows, converted as they are read."""
    shape = array.shape[0], *convert(array[:1]).shape[1:]
    if type(array) is not np.ndarray:
        of_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        return Rows(Stored(lambda index: convert(array[index]), torch.Size(shape), of_dtype), torch.arange(shape[0]))
    if array.dtype == dtype:
        return torch.from_numpy(
            np.require(convert(array), requirements=["C", "W"])
        )  # what may be written to, as torch wants it
    converted, start = np.empty(shape, dtype), 0
    for block in blocks(array):
        converted[start : start + len(block)] = convert(block)
        start += len(block)
    return torch.from_numpy(converted)


def blocks(array: Array | StoredArray) -> Iterator[Array]:
    """The rows of an array, some megabytes at a time."""
    size = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, array.shape[0], size):
        yield array[start : start + size]


def _range(array: Array | StoredArray) -> tuple[Any, Any]:
    """The smallest and the largest number; NaN if there is one."""
    pairs = [(block.min(), block.max()) for block in blocks(array)]
    return np.min([low for low, _ in pairs]), np.max([high for _, high in pairs])


def _flat(array: Array, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        return array.reshape(len(array), -1).astype(dtype, copy=False)


def _white(array: Array | StoredArray, low: Any, high: Any) -> float | None:
    """What makes 8-bit pixels of numbers that are such, or such divided by 255; None for others."""
    if array.dtype == np.uint8:
        return 1.0
    if not (low >= 0 and high <= 255):
        return None
    white = 255.0 if high <= 1 else 1.0
    for block in blocks(array):
        scaled = block * white
        if np.abs(np.rint(scaled) - scaled).max() > ROUNDING:
            return None
    return white


def _levels(array: Array, white: float, last: bool) -> Array:
    """Pixels as uint8 (N, C, H, W)."""
    if array.dtype != np.uint8:
        array = np.rint(array * white).astype(np.uint8)
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if last else array


def _channels_last(first: int, last: int) -> bool:
    """Of two sizes, which is that of the channels: 1 or 3, the first if both are; else the smaller one."""
    if first in (1, 3) or last in (1, 3):
        return first not in (1, 3)
    return last < first
