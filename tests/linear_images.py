"""Images of a linear-Gaussian pair, far from 0 and 1, whose posteriors are normals."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppl_vae.programs import seeded

EVENT, D, SIZE, S_X, S_Y, N = (1, 2, 4), 8, 2, 0.02, 0.03, 5
FAST = {"num_starts": 2, "num_steps": 60, "num_modes": 1, "num_samples": 2000}


class Linear(nn.Module):
    """z ~ N(0, I), x ~ N(W z + 1/2, S_X^2), far from 0 and 1, and a guide that is too wide and beside the truth."""

    def __init__(self, white=1.0):
        super().__init__()
        with seeded(0):
            self.W, self.white = nn.Parameter(0.07 * torch.randn(D, SIZE)), white

    def model(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
            mean = (z @ self.W.T + 0.5).unflatten(-1, EVENT)
            pyro.sample("x", dist.Normal(self.white * mean, self.white * S_X).to_event(3), obs=x)

    def guide(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x), dim=-1):
            loc = (x.flatten(1) / self.white - 0.5) @ self.W * 10
            pyro.sample("z", dist.Normal(loc, 1.5).to_event(1))


def images(pair):
    with seeded(1):
        return ((torch.randn(N, SIZE) @ pair.W.T + 0.5).reshape(N, *EVENT) + S_X * torch.randn(N, *EVENT)).detach()
