"""What is measured of a pixel: distributions on [0, 1] with a density inside and masses on single values."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.distributions import Univariate

SQRT_HALF, LOG_2, LOG_SQRT_2PI = math.sqrt(0.5), math.log(2), 0.5 * math.log(2 * math.pi)
ERFC: tuple[float, ...] = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806)
ERFC += (0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277)


def log_ndtr(t: Tensor) -> Tensor:
    """log of the normal distribution function, to 1.2e-7, without an overflow anywhere,

        log erfc(x) = log s - x^2 + P(s),   s = 1 / (1 + x/2),   x >= 0,

    with P of degree 9. William H. Press et al.: Numerical Recipes in C, 2nd ed., 1992, section 6.2. Compiled it takes a
    tenth of the time of torch's, which has functions in it that can't be vectorised.

    >>> log_ndtr(torch.tensor([-100.0, 0.0, 1.0]))
    tensor([-5.0055e+03, -6.9315e-01, -1.7275e-01])
    """
    x = torch.where(t <= 0, -t, t) * SQRT_HALF  # abs has no gradient at 0
    s = 1 / (1 + 0.5 * x)
    p = torch.full_like(s, ERFC[-1])
    for c in ERFC[-2::-1]:
        p = p * s + c
    below = s.log() - x.square() + p - LOG_2
    return torch.where(t <= 0, below, torch.log1p(-below.exp()))


class CensoredNormal(Univariate):
    """y = clip(loc + scale e, 0, 1), e ~ N(0, 1): a normal density inside, and the mass of each tail at 0 and at 1."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.unit_interval
    loc: Tensor
    scale: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = -0.5 * ((value - self.loc) / self.scale).square() - self.scale.log() - LOG_SQRT_2PI
        tail = log_ndtr(torch.where(value <= 0, -self.loc, self.loc - 1) / self.scale)
        return torch.where((value > 0) & (value < 1), inside, tail)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            e = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            return (self.loc + self.scale * e).clamp(0, 1)

    def uncensored(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of loc + scale e, given y: those of a truncated normal where y is 0 or 1."""
        t = torch.where(value <= 0, -self.loc, self.loc - 1) / self.scale
        ratio = (-0.5 * t.square() - LOG_SQRT_2PI - log_ndtr(t)).exp()  # of density to distribution function
        sign = torch.where(value <= 0, -1.0, 1.0)
        is_inside = (value > 0) & (value < 1)
        variance = (self.scale.square() * (1 - ratio * (t + ratio))).clamp(min=0)
        return torch.where(is_inside, value, self.loc + sign * self.scale * ratio), variance.masked_fill(is_inside, 0)


class Rounded(CensoredNormal):
    """A `CensoredNormal`, rounded to the nearest of `levels` values between 0 and 1: a mass."""

    def __init__(self, loc: Tensor, scale: Any, levels: int, validate_args: bool | None = None):
        self.levels = levels
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rounded:
        loc, scale = (p.expand(batch_shape) for p in self._params)
        return Rounded(loc, scale, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        half = 0.5 / (self.levels - 1)
        low = torch.where(value < half, -1e3, value - half - self.loc) / self.scale
        high = torch.where(value > 1 - half, 1e3, value + half - self.loc) / self.scale
        swap = low > 0  # the tails are those below, where nothing cancels
        at_low, at_high = (log_ndtr(torch.where(swap, -b, a)) for a, b in ((low, high), (high, low)))
        return at_high + torch.log1p(-(at_low - at_high).clamp(max=-1e-7).exp())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return (super().sample(sample_shape) * (self.levels - 1)).round() / (self.levels - 1)


class Point(Univariate):
    """y = loc: a mass."""

    arg_constraints: ClassVar = {"loc": constraints.real}
    support = constraints.unit_interval
    loc: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.where(value == self.loc, 0.0, -math.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc.expand(self._extended_shape(sample_shape)).clone()


class Replaced(TorchDistribution):
    """y is 0 with probability `black`, 1 with probability `white`, else as under `base`."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.unit_interval

    def __init__(self, base: TorchDistribution, black: float, white: float):
        self.base, self.black, self.white = base, black, white
        super().__init__(base.batch_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Replaced:
        return Replaced(self.base.expand(batch_shape), self.black, self.white)

    def kept(self, value: Tensor) -> Tensor:
        """log p(y, not replaced)."""
        return self.base.log_prob(value) + math.log(max(1 - self.black - self.white, 1e-38))

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = self.kept(value)
        for share, at in ((self.black, value <= 0), (self.white, value >= 1)):
            if share:
                log_p = torch.where(at, torch.logaddexp(log_p, torch.full_like(log_p, math.log(share))), log_p)
        return log_p

    def sample(self, sample_shape: Any = ()) -> Tensor:
        y = self.base.sample(sample_shape)
        u = torch.rand_like(y)
        return torch.where(u < self.black, 0.0, torch.where(u > 1 - self.white, 1.0, y))


class Counted(Univariate):
    """y = min(n / full, 1) of a count n ~ Poisson(rate): a mass, with that of all larger counts at 1."""

    arg_constraints: ClassVar = {"rate": constraints.positive}
    support = constraints.unit_interval
    rate: Tensor

    def __init__(self, rate: Tensor, full: int, validate_args: bool | None = None):
        self.full = full
        super().__init__(rate, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Counted:
        return Counted(self.rate.expand(batch_shape), self.full, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        n = (value * self.full).round().clamp(max=self.full)
        exactly = n * self.rate.log() - self.rate - (n + 1).lgamma()
        # P(count >= full); far in the tail it is the first term, nearly
        tail = torch.special.gammainc(torch.full_like(self.rate, self.full), self.rate)
        return torch.where(n < self.full, exactly, torch.where(tail > 1e-30, tail.clamp(min=1e-30).log(), exactly))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return (torch.poisson(self.rate.expand(self._extended_shape(sample_shape))) / self.full).clamp(max=1)
