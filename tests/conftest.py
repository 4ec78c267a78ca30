"""What several tests use: a linear-Gaussian pair, whose log p(x) is known exactly."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores; threads that wait for each other don't


import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pyro.infer.util import is_validation_enabled
from torch import Tensor

collect_ignore = ["fuzz.py"]  # a command, of an extra


def pytest_collection_finish():
    """Leaves what has been imported to the end: else each full collection looks at all of it again."""
    gc.collect()
    gc.freeze()


@dataclass
class LinearGaussian:
    """PPCA: z ~ N(0, I), x = W z + scale e. The guide has the exact posterior's mean and, for a diagonal posterior,
    `width` times its standard deviations."""

    W: Tensor
    scale: float = 0.5
    width: float = 1.0

    @property
    def exact(self) -> torch.distributions.MultivariateNormal:
        D = len(self.W)
        return torch.distributions.MultivariateNormal(torch.zeros(D), self.W @ self.W.T + self.scale**2 * torch.eye(D))

    @property
    def covariance(self) -> Tensor:
        """Of the exact posterior."""
        return torch.linalg.inv(torch.eye(self.W.shape[1]) + self.W.T @ self.W / self.scale**2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.W.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean = x @ self.W @ self.covariance / self.scale**2
            pyro.sample("z", dist.Normal(mean, self.width * self.covariance.diag().sqrt()).to_event(1))


@pytest.fixture
def ppca():
    """Builds a `LinearGaussian` of the given sizes, and data from it."""

    def build(D: int = 10, L: int = 3, N: int = 50, **kwargs: float) -> tuple[LinearGaussian, Tensor]:
        generator = torch.Generator().manual_seed(0)
        pair = LinearGaussian(torch.randn(D, L, generator=generator), **kwargs)
        z = torch.randn(N, L, generator=generator)
        return pair, z @ pair.W.T + pair.scale * torch.randn(N, D, generator=generator)

    return build


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Every test leaves the param store, the random generator, the default dtype and the thread count alone."""
    store, state = set(pyro.get_param_store().keys()), torch.random.get_rng_state()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    validation = torch.distributions.Distribution._validate_args, is_validation_enabled()
    yield
    assert set(pyro.get_param_store().keys()) == store
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (dtype, threads)
    assert (torch.distributions.Distribution._validate_args, is_validation_enabled()) == validation


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are put together, and saved as one pixel."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: Image.new("L", (1, 1)).save(file, "PNG"))


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are traced, in order; they run as they are, without inductor."""
    traced = []

    def compile(graph, **kwargs):
        traced.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", compile)
    return traced


@pytest.fixture
def compiled_graphs(monkeypatch):
    """The graphs that inductor compiles, in order."""
    traced, compile = [], torch.compile

    def spied(graph, **kwargs):
        traced.append(graph)
        return compile(graph, **kwargs)

    monkeypatch.setattr(torch, "compile", spied)
    return traced
