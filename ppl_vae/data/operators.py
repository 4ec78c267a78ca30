"""What happens to an image before noise does: blur, fewer pixels, missing regions. *Operator, then noise* is a
corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Tensor

from ppl_vae.components import Component, UnknownComponentError, choices, create, unknown
from ppl_vae.data.noise import Noise, NoNoise


class Operator(Component):
    """`operator(clean)` of images (*, C, H, W), known and with a gradient. To add one, subclass it as a frozen
    dataclass, whose fields are its arguments on the command line, and write `__call__`; and `guess`, where the result
    has another shape."""

    hides: ClassVar[bool] = False  # whether NaN in y is a missing pixel
    of_pixels: ClassVar[bool] = False  # whether each pixel of the result is that of the image

    def __call__(self, clean: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: expected a method __call__(clean); got none")

    def hide(self, y: Tensor, generator: Generator | None) -> Tensor:
        """What is left of y to see, with NaN where nothing is."""
        return y

    def guess(self, y: Tensor) -> Tensor:
        """An image of the clean one's shape, for an encoder to see: y itself."""
        return y


@dataclass(frozen=True)
class Blur(Operator):
    """Convolved with a normal of `sigma` pixels, whose weights add up to 1 at the edges too."""

    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma < 1000:
            raise ValueError(f"operator blur: expected sigma > 0, in pixels; got {self.sigma}")

    def __call__(self, clean: Tensor) -> Tensor:
        rows, columns = (self._weights(n).to(clean) for n in clean.shape[-2:])
        return rows @ clean @ columns.T

    def _weights(self, size: int) -> Tensor:
        place = torch.arange(size)
        return (-0.5 * ((place - place[:, None]) / self.sigma).square()).softmax(-1)


@dataclass(frozen=True)
class Downsampling(Operator):
    """The mean of each square of factor x factor pixels."""

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"operator downsampling: expected factor >= 1; got {self.factor}")

    def __call__(self, clean: Tensor) -> Tensor:
        if any(n % self.factor for n in clean.shape[-2:]):
            raise ValueError(
                f"operator downsampling: expected height and width divisible by {self.factor}; got "
                f"{tuple(clean.shape[-2:])}"
            )
        height, width = (n // self.factor for n in clean.shape[-2:])
        return clean.reshape(*clean.shape[:-2], height, self.factor, width, self.factor).mean((-3, -1))

    def guess(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


Part = Literal["top", "bottom", "left", "right", "random", "nan"]


@dataclass(frozen=True)
class Missing(Operator):
    """A part of the image is not there (NaN): a side of it, pixels at random, or those that are NaN already."""

    part: Part = "nan"
    fraction: float = 0.5
    hides = of_pixels = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"operator missing: expected a fraction between 0 and 1; got {self.fraction}")

    def __call__(self, clean: Tensor) -> Tensor:
        return clean

    def hide(self, y: Tensor, generator: Generator | None) -> Tensor:
        return y.masked_fill(~self.seen(y, generator), torch.nan)

    def seen(self, images: Tensor, generator: Generator | None) -> Tensor:
        """Where pixels are seen, bool, as images (data, C, H, W): the channels of a pixel are missing together."""
        if self.part == "nan":
            return ~images.isnan()
        if self.part == "random":
            u = torch.rand(images[:, :1].shape, generator=generator, device=images.device)
            return (u >= self.fraction).expand(images.shape)
        dim = 2 if self.part in ("top", "bottom") else 3
        size = images.shape[dim]
        place = torch.arange(size, device=images.device)
        if self.part in ("bottom", "right"):
            place = place.flip(0)
        kept = place >= round(self.fraction * size)
        return (kept[:, None] if dim == 2 else kept).expand(images.shape)


@dataclass(frozen=True)
class Then(Noise, by_name=False):
    """An operator, then noise."""

    operator: Operator
    noise: Noise

    @property
    def hides(self) -> bool:  # type: ignore[override]
        return self.operator.hides or self.noise.hides

    def __call__(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        return self.operator.hide(self.noise(self.operator(x), generator), generator)

    def likelihood(self, clean: Tensor, spread: Any = 0.0) -> TorchDistribution:
        return self.noise.likelihood(self.operator(clean), spread)

    def clean_given(self, y: Tensor, clean: Tensor, spread: Any) -> TorchDistribution:
        if not self.operator.of_pixels:
            raise ValueError(f"clean: expected 'mean', for {self.operator} mixes pixels; got 'drawn'")
        return self.noise.clean_given(y, clean, spread)

    def guess(self, y: Tensor) -> Tensor:
        return self.operator.guess(self.noise.guess(y))


def corruption(parts: Sequence[str]) -> Noise:
    """The corruption of these parts, by name: operators in their order, then a noise, or none.

    >>> corruption(["blur:sigma=2", "gaussian-noise:scale=0.1"])
    Then(operator=Blur(sigma=2.0), noise=GaussianNoise(scale=0.1))

    Raises `UsageError` as `create` does, and for anything after a noise.
    """
    *before, last = parts
    operators: list[Operator] = []
    for part in before if _name(last) in choices(Noise) else parts:
        if _name(part) not in choices(Operator):
            known = [*choices(Operator), *choices(Noise)]
            raise UnknownComponentError(unknown("corruption", _name(part), known, "operators, then one noise"))
        operators.append(create(Operator, part))
    result: Noise = create(Noise, last) if _name(last) in choices(Noise) else NoNoise()
    for operator in reversed(operators):
        result = Then(operator, result)
    return result


def _name(spec: str) -> str:
    return spec.partition(":")[0]
