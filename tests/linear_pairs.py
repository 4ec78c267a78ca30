"""Linear-Gaussian pairs with closed forms of gaps and information, and other pairs with one latent site."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Generator, Tensor, nn

from ppl_vae.evaluation.results import LogLikelihood, PerDatum
from ppl_vae.system.hashing import fingerprint

SCALE = 0.5


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


ORTHOGONAL = torch.linalg.qr(randn(4, 2, seed=0)).Q * torch.tensor([1.0, 0.3])  # whose posterior is diagonal


OBLIQUE = torch.tensor([[1.0, 0.9], [0.0, 0.4], [0.5, 0.5], [0.2, 0.0]])


@dataclasses.dataclass
class Linear:
    """z ~ N(0, I), x = W z + 0.5 e, with a guide whose mean is off by `shift`, up or down by the sign of x_1, and
    whose sd is `width` times that of the exact posterior's margins."""

    W: Tensor
    shift: float = 0.0
    width: float = 1.0

    @property
    def precision(self) -> Tensor:
        return torch.eye(self.W.shape[1]) + self.W.T @ self.W / SCALE**2

    def posterior(self, x: Tensor) -> torch.distributions.MultivariateNormal:
        mean = torch.linalg.solve(self.precision, self.W.T @ x.T / SCALE**2).T
        return torch.distributions.MultivariateNormal(mean, precision_matrix=self.precision)

    def log_p(self, x: Tensor) -> LogLikelihood:
        covariance = self.W @ self.W.T + SCALE**2 * torch.eye(len(self.W))
        log_p = torch.distributions.MultivariateNormal(torch.zeros(len(self.W)), covariance).log_prob(x).double()
        return exact(log_p, fingerprint(x))

    def q(self, x: Tensor) -> Any:
        p = self.posterior(x)
        return dist.Normal(p.mean + self.shift * x[:, :1].sign(), self.width * p.stddev).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.W.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T, SCALE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


def exact(log_p: Tensor, of: str = "f00d", mc_se: float = 0.0, **fields: str) -> LogLikelihood:
    same = torch.ones_like(log_p)
    defaults = {"measure": "density", "encoding": "", "fingerprint": of, "bound": "exact"}
    return LogLikelihood(log_p, mc_se * same, same, same * -math.inf, same, **(defaults | fields))


X = 1.3 * randn(10, 4, seed=1)


def within(estimate: PerDatum, truth: Tensor, floor: float = 1e-4) -> bool:
    """Each datum within 5 standard errors."""
    return bool(((estimate.values - truth).abs() < 5 * estimate.mc_se + floor).all())


class Net(nn.Module):
    """A pair of modules with parameters, dropout, a further argument, and a posterior without a formula's moments."""

    def __init__(self, *, flow: bool):
        super().__init__()
        self.encoder, self.decoder, self.dropout, self.flow = nn.Linear(4, 4), nn.Linear(2, 4), nn.Dropout(), flow

    def model(self, x: Tensor, given: Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(self.dropout(z)), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, given: Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            loc, s = self.encoder(given).chunk(2, -1)
            q = dist.Normal(loc, s.exp())
            if self.flow:
                q = dist.TransformedDistribution(q, [dist.transforms.AffineTransform(1.0, 2.0)])
            pyro.sample("code", q.to_event(1))


def program(*sites: tuple[str, Callable[[Tensor], Any]]) -> Callable[[Tensor], None]:
    def run(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name, fn in sites:
                pyro.sample(name, fn(x))

    return run


def standard(size: int) -> Callable[[Tensor], Any]:
    return lambda x: dist.Normal(torch.zeros(size), 1.0).to_event(1)
