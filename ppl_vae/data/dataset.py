"""A dataset: tensors of 8-bit images or of vectors, in memory or, for a large `.npy` file, memory-mapped.

Pixels stay uint8, so that a dataset takes one byte a pixel and its `fingerprint` is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Rows(Tensor):
    """The rows `index` (N,) of a tensor `source` (M, ...), read lazily: `rows[i]` and `rows[i:j]` are plain tensors of
    just those rows, and any other operation reads all rows. So a split of a memory-mapped file is not a copy.
    """

    source: Tensor
    at: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl  # operations go straight to __torch_dispatch__

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
    """`data[index]` along dim 0, without a copy if the data are memory-mapped."""
    return Rows(data.source, data.at[index]) if isinstance(data, Rows) else data[index]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images, uint8 `(N, C, H, W)`, or vectors, float32 or int64 `(N, D)`, and perhaps their labels,
    int64 `(N,)`.

    Raises ValueError for other dtypes or shapes, for train and test that differ in them, and for an empty part.
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
                remedy = ". Give float images as vectors: x.flatten(1).float()" * images.is_floating_point()
                raise ValueError(
                    f"{self.name}: expected {part} images uint8 (N, C, H, W), or vectors float32 or int64 (N, D), "
                    f"not empty; got {images.dtype} {tuple(images.shape)}{remedy}"
                )
            if labels is not None and (labels.dtype != torch.int64 or labels.shape != images.shape[:1]):
                raise ValueError(
                    f"{self.name}: expected {part} labels int64 ({len(images)},), one for each image; "
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
        """The shape of one observation: `(C, H, W)` of an image, `(D,)` of a vector."""
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
