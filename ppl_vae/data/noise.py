"""What spoils images with values in [0, 1], which stay in [0, 1]: it samples, and is a likelihood p(y | clean)."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor

from ppl_vae.components import Component, kebab
from ppl_vae.data.censored import CensoredNormal, Counted, Point, Replaced, Rounded

EXACT = 1e-6  # the standard deviation of what is known


class Noise(Component, ABC):
    """`noise(x, generator)` is a corrupted copy of images x (*, C, H, W) in [0, 1]. To add one, subclass it as a frozen
    dataclass, whose fields are its arguments on the command line, and write

    - `likelihood(clean, spread)`: p(y | clean), the distribution of each pixel of y, independent, given the clean
      image: of `clean`'s batch shape, event shape (). A clean pixel may itself be normal around `clean` with standard
      deviation `spread`; refuse that where it can't be integrated out. It is what `restore` needs;
    - `__call__`, where samples of that distribution won't do.
    """

    hides: ClassVar[bool] = False
    """Whether NaN in y is a pixel that is missing."""

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        device = None if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.likelihood(x).sample()

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution:
        raise NotImplementedError(
            f"{type(self).__name__}: expected a method likelihood(clean, spread), the distribution of the corrupted "
            "pixels given clean ones; got none"
        )

    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution:
        """p(x | y) of each clean pixel x ~ N(clean, spread^2)."""
        raise NotImplementedError(
            f"clean: expected 'mean', for {kebab(type(self))} does not say what a pixel was before; got 'drawn'"
        )

    def guess(self, y: Tensor) -> Tensor:
        """An image of the clean one's shape, for an encoder to see: y itself."""
        return y


def _around(clean: Tensor, scale: Any) -> TorchDistribution:
    if isinstance(scale, Tensor) or scale > 0:
        return CensoredNormal(clean, scale, validate_args=False)
    return Point(clean, validate_args=False)


def _hypot(a: float, spread: Any) -> Any:
    return (spread.square() + a**2).sqrt() if isinstance(spread, Tensor) else math.hypot(a, spread)


def _kept(y: Tensor, clean: Tensor, spread: Any, replaced: Replaced) -> TorchDistribution:
    """y where it was kept, N(clean, spread^2) where it was replaced."""
    share = (replaced.kept(y) - replaced.log_prob(y)).exp()
    spread = (0 * clean + spread).clamp(min=EXACT)
    parts = dist.Normal(
        torch.stack([y.expand(clean.shape), clean], -1), torch.stack([torch.full_like(spread, EXACT), spread], -1)
    )
    return dist.MixtureSameFamily(dist.Categorical(torch.stack([share, 1 - share], -1).clamp(0, 1)), parts)


@dataclass(frozen=True)
class NoNoise(Noise):
    """The image itself."""

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return x

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution:
        return _around(clean, spread)

    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution:
        return dist.Normal(y.expand(clean.shape), EXACT)


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """x + scale N(0, 1), clipped to [0, 1]: a normal that is censored, with masses at 0 and 1."""

    scale: float = 0.4

    def __post_init__(self) -> None:
        _check_scale("gaussian-noise", self.scale)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return (x + self.scale * torch.randn(x.shape, generator=generator, device=x.device)).clamp_(0, 1)

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution:
        return _around(clean, _hypot(self.scale, spread))

    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution:
        """N(m, v) with m = clean + k (E[x + noise | y] - clean), k = spread^2 / (spread^2 + scale^2): exact but for
        the shape, where y is 0 or 1."""
        p = self.likelihood(clean, spread)
        if isinstance(p, Point):
            return dist.Normal(y.expand(clean.shape), EXACT)
        assert isinstance(p, CensoredNormal)
        k = spread**2 / p.scale.square()
        mean, variance = p.uncensored(y)
        return dist.Normal(clean + k * (mean - clean), (k * self.scale**2 + k.square() * variance).sqrt() + EXACT)


@dataclass(frozen=True)
class SaltAndPepper(Noise):
    """With probability `fraction`, a pixel becomes 0 or 1, with equal probability."""

    fraction: float = 0.3

    def __post_init__(self) -> None:
        _check_fraction("salt-and-pepper", self.fraction)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        u = torch.rand(x.shape, generator=generator, device=x.device)
        x = torch.where(u < self.fraction / 2, 0.0, x)
        return torch.where(u > 1 - self.fraction / 2, 1.0, x)

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> Replaced:
        return Replaced(_around(clean, spread), self.fraction / 2, self.fraction / 2)

    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution:
        return _kept(y, clean, spread, self.likelihood(clean, spread))


@dataclass(frozen=True)
class Masking(Noise):
    """With probability `fraction`, a pixel becomes 0."""

    fraction: float = 0.5

    def __post_init__(self) -> None:
        _check_fraction("masking", self.fraction)

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return torch.where(torch.rand(x.shape, generator=generator, device=x.device) < self.fraction, 0.0, x)

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> Replaced:
        return Replaced(_around(clean, spread), self.fraction, 0.0)

    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution:
        return _kept(y, clean, spread, self.likelihood(clean, spread))


@dataclass(frozen=True)
class Quantization(Noise):
    """x + scale N(0, 1), rounded to the nearest of `levels` values from 0 to 1."""

    levels: int = 4
    scale: float = 0.1

    def __post_init__(self) -> None:
        _check_scale("quantization", self.scale)
        if self.levels < 2:
            raise ValueError(f"noise quantization: expected levels >= 2; got {self.levels}")

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution:
        scale = _hypot(max(self.scale, 1e-4), spread)
        return Rounded(clean, scale, self.levels, validate_args=False)


@dataclass(frozen=True)
class PhotonCounts(Noise):
    """min(n / photons, 1) of a count n ~ Poisson(photons x + dark), which is saturated at `photons`."""

    photons: int = 30
    dark: float = 0.5

    def __post_init__(self) -> None:
        if self.photons < 1:
            raise ValueError(f"noise photon-counts: expected photons >= 1; got {self.photons}")
        if not (self.dark > 0 and math.isfinite(self.dark)):
            raise ValueError(f"noise photon-counts: expected dark > 0; got {self.dark}")

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution:
        if isinstance(spread, Tensor) or spread != 0:
            raise ValueError("noise photon-counts: expected a misfit of 0; got one, which can't be integrated out")
        return Counted(self.photons * clean.clamp(min=0) + self.dark, self.photons, validate_args=False)


def _check_scale(name: str, scale: float) -> None:
    if not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"noise {name}: expected scale >= 0; got {scale}")


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ValueError(f"noise {name}: expected a fraction in [0, 1]; got {fraction}")
