"""Encodings (binarise, dequantise, ...): from 8-bit images to x, which decides what log p(x) means.

An encoding turns images of levels 0..255 (uint8, any shape) into x (float32, the same shape); `Identity` is for data
that are not images. Random encodings use the generator that they are given, so that a seed fixes them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.components import Component, kebab


class Encoding(Component, ABC):
    """`encoding(images, generator)` is x. `support` is the set of its values; `grey(x)` their brightness in [0, 1].

    `log_p_is` says what log p(x) of a likelihood on this support means; `white` is x of the brightest level.
    """

    support: ClassVar[Constraint]
    log_p_is: ClassVar[str]
    white: ClassVar[float] = 1.0  # x of the brightest level

    @abstractmethod
    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor: ...

    def grey(self, x: Tensor) -> Tensor:
        """Brightness in [0, 1], from x or from an expectation of x."""
        return self.brightness(x).clamp(0, 1)

    def brightness(self, x: Tensor) -> Tensor:
        """The same without limits, so that it has a gradient everywhere: a linear function of x."""
        return x


@dataclass(frozen=True)
class Binarize(Encoding):
    """x ~ Bernoulli(level / 255): sampled anew at each use in training (dynamic), once under a seed for evaluation.

    Ruslan Salakhutdinov, Iain Murray: On the Quantitative Analysis of Deep Belief Networks, 2008.
    """

    support = constraints.boolean
    log_p_is = "mass on {0, 1}^D (binarised at random)"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        u = torch.rand(images.shape, generator=generator, device=images.device)
        return u.mul_(255).lt_(images)  # in place: 0 or 1, in half the time


@dataclass(frozen=True)
class StaticBinarize(Encoding):
    """x ~ Bernoulli(level / 255), sampled once: an image has the same x at each use, in training as well.

    The samples are a hash of the whole image, the pixel's position and `seed`: they depend neither on the batch nor on
    its order, and need no storage. They differ from the binarised MNIST that much of the literature uses:
    Hugo Larochelle, Iain Murray: The Neural Autoregressive Distribution Estimator, 2011.
    """

    seed: int = 0
    support = constraints.boolean
    log_p_is = "mass on {0, 1}^D (binarised at random, once)"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"encoding static-binarize: expected a seed in 0..2^31 - 1; got {self.seed}")

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        levels = images.flatten(1).long()
        place = _splitmix64(torch.arange(levels.shape[1], device=levels.device) + (self.seed << 32))
        image = (levels * place).sum(1, keepdim=True)
        u = (_splitmix64(image + place) >> 40 & 0xFFFFFF) / 2**24
        return (u * 255 < levels).float().reshape(images.shape)


def _splitmix64(z: Tensor) -> Tensor:
    """A hash of int64 numbers, modulo 2^64. Guy L. Steele, Doug Lea, Christine H. Flood: Fast Splittable Pseudorandom
    Number Generators, 2014."""

    def shifted(z: Tensor, bits: int) -> Tensor:
        return z >> bits & (1 << 64 - bits) - 1  # of an unsigned number

    z = (z + 1) * -0x61C8864680B583EB
    z = (z ^ shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ shifted(z, 31)


@dataclass(frozen=True)
class Threshold(Encoding):
    """x = 1 where the pixel's level > `level`, else 0. Raises `ValueError` unless `level` is in 0..254."""

    level: int = 127
    support = constraints.boolean
    log_p_is = "mass on {0, 1}^D (binarised by threshold)"

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 254:
            raise ValueError(f"encoding threshold: expected a level in 0..254; got {self.level}")

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return (images > self.level).float()


@dataclass(frozen=True)
class Levels(Encoding):
    """x = level, 0..255."""

    support = constraints.integer_interval(0, 255)
    log_p_is = "mass on {0..255}^D"
    white = 255.0

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return images.float()

    def brightness(self, x: Tensor) -> Tensor:
        return x / 255


@dataclass(frozen=True)
class Dequantize(Encoding):
    """x = (level + u) / 256 with u ~ U[0, 1): a density on (0, 1)^D.

    By Jensen's inequality E_u log p(x) - D log 256 is a lower bound on the log-mass of the levels, in nats.
    Lucas Theis, Aaron van den Oord, Matthias Bethge: A note on the evaluation of generative models, 2015,
    arXiv:1511.01844.
    """

    support = constraints.unit_interval
    log_p_is = "density on (0, 1)^D (dequantised uniformly)"
    log_256: ClassVar[float] = math.log(256)

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        # torch.rand is a multiple of 2^-24, and a level + u rounds up to the next level at worst
        return torch.rand(images.shape, generator=generator, device=images.device).add_(images).div_(256)

    def brightness(self, x: Tensor) -> Tensor:
        return (x * 256 - 0.5) / 255


@dataclass(frozen=True)
class Scale(Encoding):
    """x = level / 255. Its log p(x) is a reconstruction loss, and not comparable."""

    support = constraints.unit_interval
    log_p_is = "reconstruction loss on grey values"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return images / 255


@dataclass(frozen=True)
class Identity(Encoding):
    """x unchanged: for vectors or counts, not 8-bit images. The support is the likelihood's.

    Raises `ValueError` for 8-bit images.
    """

    support = constraints.real
    log_p_is = "mass or density, as the likelihood's support says"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        if images.dtype == torch.uint8:
            raise ValueError("encoding identity: expected vectors or counts; got 8-bit images (see levels)")
        return images.float()


def default_encoding(support: Constraint) -> Encoding:
    """The encoding of images under which log p(x) of a likelihood with this support is comparable.

    >>> from ppl_vae.likelihoods import Gaussian
    >>> default_encoding(Gaussian.support)
    Dequantize()
    """
    if support is constraints.boolean:
        return Binarize()
    if support.is_discrete:
        return Levels()
    return Dequantize()


def check_observable(encoding: Encoding, support: Constraint, likelihood: str) -> None:
    """Raises `ValueError` if the encoding is invalid for `likelihood`, of this support: x lies outside of the support,
    or x is discrete and the likelihood is a density, which is unbounded on single points.

    `Scale` is valid for a Bernoulli: the cross entropy on pixel values is a common loss.
    """
    name, default = kebab(type(encoding)), kebab(type(default_encoding(support)))
    if support is constraints.boolean and isinstance(encoding, Scale):
        return
    x = encoding(torch.arange(256, dtype=torch.uint8)[:, None], Generator().manual_seed(0))
    if not bool(support.check(x).all()):
        raise ValueError(
            f"encoding {name}: expected x in the support of the likelihood {likelihood}, as of {default}; "
            f"got {x.min().item():.3g}..{x.max().item():.3g}"
        )
    if encoding.support.is_discrete and not support.is_discrete:
        raise ValueError(
            f"encoding {name}: expected continuous x for the density of the likelihood {likelihood}, as of {default}; "
            "got discrete x"
        )
