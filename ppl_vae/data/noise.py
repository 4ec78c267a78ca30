"""Noise for denoising: corruptions of images with values in [0, 1], which stay in [0, 1]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ppl_vae.components import Component


class Noise(Component, ABC):
    """`noise(x, generator)` is a corrupted copy of x in [0, 1]^D, of the same shape. A frozen dataclass each."""

    @abstractmethod
    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor: ...


@dataclass(frozen=True)
class NoNoise(Noise):
    """The image itself."""

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """x + scale N(0, 1), clipped to [0, 1]."""

    scale: float = 0.4

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"noise gaussian-noise: expected scale >= 0; got {self.scale}")

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return (x + self.scale * torch.randn(x.shape, generator=generator)).clamp_(0, 1)


@dataclass(frozen=True)
class SaltAndPepper(Noise):
    """With probability `fraction`, a pixel becomes 0 or 1, with equal probability."""

    fraction: float = 0.3

    def __post_init__(self) -> None:
        _check_fraction("salt-and-pepper", self.fraction)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        u = torch.rand(x.shape, generator=generator)
        x = torch.where(u < self.fraction / 2, 0.0, x)
        return torch.where(u > 1 - self.fraction / 2, 1.0, x)


@dataclass(frozen=True)
class Masking(Noise):
    """With probability `fraction`, a pixel becomes 0."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_fraction("masking", self.fraction)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.where(torch.rand(x.shape, generator=generator) < self.fraction, 0.0, x)


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"noise {name}: expected a fraction in [0, 1]; got {fraction}")
