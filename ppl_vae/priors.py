"""Priors p(z)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn


class Prior(nn.Module, ABC):
    """p(z). `forward()` returns a distribution with batch shape () and event shape (latent_size,).

    Subclass it to add one. `__init__` takes latent_size first, then keyword arguments with a type and a default.
    Raises `ValueError` unless latent_size >= 1.
    """

    def __init__(self, latent_size: int):
        super().__init__()
        if latent_size < 1:
            raise ValueError(f"prior: expected latent_size >= 1; got {latent_size}")
        self.latent_size = latent_size

    @abstractmethod
    def forward(self) -> TorchDistribution: ...

    def extra_repr(self) -> str:
        return f"latent_size={self.latent_size}"


class StandardNormal(Prior):
    """z ~ N(0, I)."""

    zeros: torch.Tensor

    def __init__(self, latent_size: int):
        super().__init__(latent_size)
        # a buffer follows the module from device to device, and holds nothing that has to be saved
        self.register_buffer("zeros", torch.zeros(latent_size), persistent=False)

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.zeros, 1.0).to_event(1)
