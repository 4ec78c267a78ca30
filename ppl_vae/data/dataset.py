"""A dataset: tensors of 8-bit images or of vectors, in memory or, for a large `.npy` file, memory-mapped.

Pixels stay uint8, so that a dataset takes one byte a pixel and its `fingerprint` is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl_vae.system.rows import Rows as Rows
from ppl_vae.system.rows import select as select


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images, uint8 `(N, C, H, W)`, or vectors, float32 or int64 `(N, D)`, and perhaps their labels,
    int64 `(N,)`. Where they have names, `columns` are those of the D numbers, and `classes` those of the labels
    0, 1, ...

    Raises ValueError for other dtypes or shapes, for train and test that differ in them, and for an empty part.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    columns: tuple[str, ...] = field(default=(), kw_only=True)
    classes: tuple[str, ...] = field(default=(), kw_only=True)

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
