"""Encodings: what the likelihood observes of an 8-bit image, and with it what log p(x) means.

An encoding turns images of levels 0..255 (uint8, any shape) into x (float32, the same shape); `Identity` is for data
that are no images. Random encodings
draw from the generator that they are given, so that a seed freezes them.
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


class Encoding(ABC):
    """`encoding(images, generator)` is x. `support` is the set of its values; `grey(x)` their brightness in [0, 1].

    `log_p_is` says what log p(x) of a likelihood on this support means.
    """

    support: ClassVar[Constraint]
    log_p_is: ClassVar[str]

    @abstractmethod
    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor: ...

    def grey(self, x: Tensor) -> Tensor:
        """Brightness in [0, 1], from x or from an expectation of x."""
        return x.clamp(0, 1)


@dataclass(frozen=True)
class Binarize(Encoding):
    """x ~ Bernoulli(level / 255): drawn anew at each use in training (dynamic), once under a seed for the rest.

    Ruslan Salakhutdinov, Iain Murray: On the Quantitative Analysis of Deep Belief Networks, 2008.
    """

    support = constraints.boolean
    log_p_is = "mass on {0, 1}^D (binarised at random)"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        u = torch.rand(images.shape, generator=generator)
        return (u * 255 < images).float()


@dataclass(frozen=True)
class Threshold(Encoding):
    """x = 1 where level > `level`, else 0."""

    level: int = 127
    support = constraints.boolean
    log_p_is = "mass on {0, 1}^D (binarised by threshold)"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return (images > self.level).float()


@dataclass(frozen=True)
class Levels(Encoding):
    """x = level, 0..255."""

    support = constraints.integer_interval(0, 255)
    log_p_is = "mass on {0..255}^D"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return images.float()

    def grey(self, x: Tensor) -> Tensor:
        return (x / 255).clamp(0, 1)


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
        return (images + torch.rand(images.shape, generator=generator)) / 256

    def grey(self, x: Tensor) -> Tensor:
        return ((x * 256 - 0.5) / 255).clamp(0, 1)


@dataclass(frozen=True)
class Scale(Encoding):
    """x = level / 255. No likelihood to compare: log p(x) of these is a reconstruction loss."""

    support = constraints.unit_interval
    log_p_is = "reconstruction loss on grey values"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return images / 255


@dataclass(frozen=True)
class Identity(Encoding):
    """x as it is: for vectors and counts, and not for images. What log p(x) is, the likelihood's support says."""

    support = constraints.real
    log_p_is = "mass or density on the support of the likelihood"

    def __call__(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        return images.float()


def default_encoding(support: Constraint) -> Encoding:
    """The encoding of images under which a likelihood with this support has a log p(x) worth comparing.

    >>> from ppl_vae.likelihoods import Gaussian
    >>> default_encoding(Gaussian.support)
    Dequantize()
    """
    if support is constraints.boolean:
        return Binarize()
    if support.is_discrete:
        return Levels()
    return Dequantize()
