"""Fingerprints of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 2**20


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
    """The rows of a tensor, a megabyte at a time, so that a memory-mapped one is never read whole."""
    size = max(1, CHUNK_BYTES // max(1, data[:1].numel() * data.element_size()))
    for start in range(0, len(data), size):
        yield data[start : start + size]
