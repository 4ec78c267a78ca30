"""Blocks of data that are done apart, in any order: the estimates are those of all in one process, bit for bit."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from apart_calls import Elsewhere
from tiny import tiny_vae

from ppl_vae.evaluation import chunks, refinement
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.certificate import certify
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.refinement import refine

FIELDS = ("log_p", "mc_se", "ess", "khat", "num_samples")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunks, "BLOCK_DATA", 4)
    monkeypatch.setattr(chunks, "BLOCK_ROWS", 64)
    monkeypatch.setattr(refinement, "BLOCK_FITS", 24)


@pytest.fixture
def pair():
    vae = tiny_vae(noise=0.5)
    x = torch.bernoulli(torch.full((10, 1, 4, 4), 0.5), generator=torch.Generator().manual_seed(0))
    return *vae.programs, x


def same(a, b):
    return all(torch.equal(getattr(a, name).nan_to_num(), getattr(b, name).nan_to_num()) for name in FIELDS)


@pytest.mark.usefixtures("small_blocks")
def test_importance_sampling(pair):
    executor = Elsewhere(pyro.get_param_store().scope)
    here = log_likelihood(*pair, num_samples=50, compiled=False)
    assert same(log_likelihood(*pair, num_samples=50, executor=executor), here)
    assert executor.num_calls == 3
    assert not same(log_likelihood(*pair, num_samples=50, compiled=False, seed=1), here)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_starts", [1, None])
def test_refined_posteriors_and_samples_of_them(pair, num_starts, monkeypatch):
    monkeypatch.setattr(refinement, "PILOT_KHAT", 0.0)  # so that some are fitted again
    executor, sizes = Elsewhere(pyro.get_param_store().scope), {"num_steps": 4, "num_starts": num_starts}
    here = refine(*pair, **sizes, compiled=False)
    apart = refine(*pair, **sizes, executor=executor)
    assert len(here) == len(apart) == 10
    for name in ("keys", "loc", "log_weights", "share"):
        assert torch.equal(getattr(here, name), getattr(apart, name))
    assert torch.equal(*(refined.factors[0] for refined in (here, apart)))
    assert executor.num_calls > 3
    model, _, x = pair
    of_apart = log_likelihood(model, apart, x, num_samples=50, executor=executor)
    assert same(of_apart, log_likelihood(model, here, x, num_samples=50, compiled=False))
    part = apart.only(x[2:5])
    assert len(part) == 3
    assert torch.equal(part.spread(x[2:5]), apart.spread(x[2:5]))


@pytest.mark.usefixtures("small_blocks")
def test_the_ladder_and_what_it_misses(pair, monkeypatch):
    monkeypatch.setattr("ppl_vae.evaluation.adaptive.ANNEALING_STEPS", ())
    monkeypatch.setattr("ppl_vae.evaluation.adaptive.MAX_FACTOR", 4)
    monkeypatch.setattr("ppl_vae.evaluation.adaptive.refine", partial(refine, num_steps=4))
    monkeypatch.setattr(refinement, "UPHILL_STEPS", 4)
    monkeypatch.setattr("ppl_vae.evaluation.adaptive.MAX_SHARE", 0.0)
    executor = Elsewhere(pyro.get_param_store().scope)
    here, apart = (log_likelihood_within(*pair, num_samples=50, **options) for options in ({}, {"executor": executor}))
    assert same(here, apart)
    assert here.bound == apart.bound
    sizes = {"num_data": 6, "num_samples": 30}
    assert certify(*pair, **sizes).gap == certify(*pair, **sizes, executor=executor).gap


class Params:
    """A pair whose guide has its parameter in Pyro's store."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))


@pytest.mark.usefixtures("small_blocks")
def test_parameters_outside_of_modules_go_along():
    pair, executor = Params(), Elsewhere(pyro.get_param_store().scope)
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
        sizes = {"num_samples": 50, "compiled": False}
        here = log_likelihood(pair.model, pair.guide, torch.arange(6.0), **sizes)
        assert same(log_likelihood(pair.model, pair.guide, torch.arange(6.0), **sizes, executor=executor), here)
        pyro.get_param_store().clear()
        assert not same(log_likelihood(pair.model, pair.guide, torch.arange(6.0), **sizes), here)
