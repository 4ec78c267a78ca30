"""A pair of clean images as one of corrupted images: the corruption is the likelihood of what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.contract import is_observation
from ppl_vae.distributions import Seen
from ppl_vae.programs import Program, innermost

Clean = Literal["mean", "drawn"]


class Corruption(Protocol):
    """What is needed of it, as `ppl_vae.data.noise.Noise` has it."""

    @property
    def hides(self) -> bool: ...
    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution: ...
    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution: ...
    def guess(self, y: Tensor) -> Tensor: ...


class Units(Protocol):
    """From x to brightness in [0, 1], and back: an encoding."""

    @property
    def white(self) -> float: ...

    def brightness(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Observation:
    """How a corrupted image y is observed. See `restore` for the fields."""

    corruption: Corruption
    clean: Clean = "mean"
    misfit: Any = 0.0
    units: Units | None = None

    def guess(self, y: Tensor) -> Tensor:
        """A guess at x, for the guide to encode: missing pixels are black."""
        guess = self.corruption.guess(y).nan_to_num(nan=0.0)
        return guess if self.units is None else guess * self.units.white


@dataclass(frozen=True, eq=False)
class CorruptedModel:
    """p(y, z) = p(z) p(y|z), of a model p(z) p(x|z). Its result says what is known of x."""

    model: Program
    how: Observation

    def __call__(self, y: Tensor, *args: Tensor) -> Pixels:
        with _Observe(self.how, y) as handler:
            self.model(self.how.guess(y), *args)
        return handler.pixels


@dataclass(frozen=True, eq=False)
class CorruptedGuide:
    """q(z | x) at a guess at x."""

    guide: Program
    how: Observation

    def __call__(self, y: Tensor, *args: Tensor) -> None:
        self.guide(self.how.guess(y), *args)


@dataclass(frozen=True, eq=False)
class Pixels:
    """What is known of the pixels x given z and y. `mean` and `spread` are those given z alone, (*, C, H, W), in
    brightness; where `are_bits`, x is 1 with probability `mean`, else 0."""

    how: Observation
    y: Tensor
    mean: Tensor
    spread: Any
    are_bits: bool

    @property
    def p_y(self) -> TorchDistribution:
        """p(y | z) of each pixel."""
        fn = self._over_bits() if self.are_bits else self.how.corruption.likelihood(self.mean, self.spread)
        return Seen(fn) if self.how.corruption.hides else fn

    def _over_bits(self) -> dist.MixtureSameFamily:
        p = self.mean.clamp(1e-6, 1 - 1e-6)
        bits = torch.stack([torch.zeros_like(p), torch.ones_like(p)], -1)
        return dist.MixtureSameFamily(
            dist.Categorical(torch.stack([1 - p, p], -1), validate_args=False),
            self.how.corruption.likelihood(bits),
            validate_args=False,
        )

    def moments(self) -> tuple[Tensor, Tensor]:
        """E[x | y, z] and its variance."""
        if self.how.clean == "mean":
            return self.mean, torch.zeros_like(self.mean)
        given = self._given()
        seen = ~self.y.isnan() if self.how.corruption.hides else torch.ones_like(self.y, dtype=torch.bool)
        variance = self.mean * (1 - self.mean) if self.are_bits else 0 * self.mean + self.spread**2
        return torch.where(seen, given.mean, self.mean), torch.where(seen, given.variance, variance)

    def averaged(self) -> tuple[Tensor, Tensor]:
        """E[x | y, z] and E[x^2 | y, z]."""
        mean, variance = self.moments()
        return mean, variance + mean.square()

    def sample(self) -> Tensor:
        """x ~ p(x | y, z)."""
        if self.how.clean == "mean":
            return self.mean
        free = dist.Bernoulli(self.mean) if self.are_bits else dist.Normal(self.mean, self.spread + 1e-6)
        return torch.where(self.y.isnan(), free.sample(), self._given().sample())

    def _given(self) -> TorchDistribution:
        shown = self.y.nan_to_num(nan=0.0)
        if not self.are_bits:
            return self.how.corruption.clean_given(shown, self.mean, self.spread)
        p = self._over_bits()
        log_p = p.component_distribution.log_prob(shown[..., None]) + p.mixture_distribution.logits
        return dist.Bernoulli(log_p.softmax(-1)[..., 1], validate_args=False)


class _Observe(Messenger):
    """Has the observed site score y, under the corruption's likelihood."""

    pixels: Pixels

    def __init__(self, how: Observation, y: Tensor):
        super().__init__()
        self.how, self.y = how, y

    def _pyro_sample(self, msg: Any) -> None:
        if not is_observation(msg):
            return
        p_x, how = msg["fn"], self.how
        event = how.corruption.guess(self.y).shape[1:]
        if p_x.event_shape.numel() != event.numel():
            raise ValueError(f"y: expected images of the model's shape, {tuple(p_x.event_shape)}; got {tuple(event)}")
        shape = (*p_x.batch_shape, *event)
        mean = p_x.mean.reshape(shape)
        if how.units is not None:
            mean = how.units.brightness(mean)
        spread, are_bits = how.misfit, False
        if how.clean == "drawn" and not isinstance(spread, Tensor) and spread == 0:
            inner = innermost(p_x)
            are_bits = isinstance(inner, dist.Bernoulli)
            if isinstance(inner, dist.Normal):
                spread = p_x.stddev.reshape(shape)
                if how.units is not None:
                    spread = how.units.brightness(spread) - how.units.brightness(0 * spread)
            elif not are_bits:
                raise ValueError(
                    "clean: expected 'mean', or a misfit above 0, for a likelihood that is neither Gaussian nor "
                    f"Bernoulli; got 'drawn', and {type(inner).__name__}"
                )
        self.pixels = Pixels(how, self.y, mean, spread, are_bits)
        msg["fn"], msg["value"] = self.pixels.p_y.to_event(self.y.dim() - 1), self.y
