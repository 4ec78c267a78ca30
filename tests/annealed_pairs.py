"""Pairs that the tests of annealing, of bounds from both sides and of refinement share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.programs import Program, seeded

Build = Callable[..., tuple[Any, Tensor]]  # conftest's `ppca`


def normal(loc: Tensor, scale: float | Tensor) -> dist.TorchDistribution:
    return dist.Normal(loc, scale).to_event(1)


class Learnt(nn.Module):
    """A pair with parameters, a bare one, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.decoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5))

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("learnt", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(torch.zeros(2), 1.0))
            pyro.sample("x", normal(self.decoder(z) + y[:, None], 1.0), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(torch.zeros(2), scale))


def single(latent: Callable[[Tensor], object], observed: Callable[[Tensor, Tensor], object]) -> Program:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            observed(latent(x), x)

    return program


def sample_z(fn: dist.TorchDistribution) -> Callable[[Tensor], Tensor]:
    return lambda x: pyro.sample("z", fn)


def observe(z: Tensor, x: Tensor) -> Tensor:
    return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nothing(z: object, x: Tensor) -> None: ...


STANDARD = sample_z(dist.Normal(0.0, 1.0))
MODEL, GUIDE = single(STANDARD, observe), single(STANDARD, nothing)


def two_modes(x: Tensor) -> None:
    """z ~ N(1, 1), x ~ N(z^2, 0.2): near 4 there is a mode at z = 2, and one at -2 of e^-4 times its mass."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(1.0, 1.0))
        pyro.sample("x", dist.Normal(z.square(), 0.2), obs=x)


def the_lesser_mode(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(-x.sqrt(), 0.05))
