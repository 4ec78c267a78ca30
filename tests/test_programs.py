import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_vae.programs import (
    evaluating,
    guide_trace_of,
    log_prob_per_datum,
    mode,
    model_trace_of,
    own_param_store,
    part_of,
    sample_sites,
    seeded,
    trace_of,
    traced,
)


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dropout()

    def model(self, x): ...


def test_seeded_gives_the_same_draws_and_restores_the_state():
    with seeded(3):
        a = torch.rand(4)
    with seeded(3):
        assert torch.equal(torch.rand(4), a)


@pytest.mark.parametrize("raised", [ValueError("x: expected 1\nline"), RuntimeError("of torch"), KeyError("z")])
def test_what_a_program_raises_comes_without_the_shapes_of_its_sites(raised):
    def program(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            raise raised

    for trace in (traced, functools.partial(guide_trace_of, num_samples=2)):
        with seeded(0), pytest.raises(type(raised)) as caught:
            trace(program, torch.zeros(3))
        assert caught.value is raised


def test_mode_is_restored_submodule_by_submodule():
    owner = Owner()
    owner.layer.eval()

    def interrupted():
        with mode(owner.model, training=False):
            assert not owner.training
            assert not owner.layer.training
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert owner.training
    assert not owner.layer.training


def test_a_param_in_the_store_is_seen_and_a_new_one_leaves_no_trace():
    with pyro.get_param_store().scope():
        pyro.param("old", torch.tensor(2.0))
        with own_param_store():
            assert pyro.param("old").item() == 2
            pyro.param("new", torch.tensor(1.0))
        assert set(pyro.get_param_store().keys()) == {"old"}


def test_evaluating_is_without_gradients_and_validation():
    owner = Owner()
    with evaluating(owner.model):
        assert not torch.is_grad_enabled()
        assert not owner.layer.training
        assert not torch.distributions.Distribution._validate_args


def test_traces_are_per_datum_and_a_part_is_that_part(ppca):
    pair, x = ppca()
    with seeded(0), evaluating():
        q = guide_trace_of(pair.guide, x, num_samples=7)
        whole = log_prob_per_datum(model_trace_of(pair.model, q, x, num_samples=7), (7, 50))
        assert set(whole) == {"z", "x"}
        part = part_of(q, slice(2, 5), slice(10, 30))
        some = log_prob_per_datum(model_trace_of(pair.model, part, x[10:30], num_samples=3), (3, 20))
        for name in whole:
            torch.testing.assert_close(some[name], whole[name][2:5, 10:30])
        assert q.nodes["z"]["value"].shape == (7, 50, 3)  # the part is a copy
    assert list(sample_sites(q, observed=False)) == ["z"]


def test_scaling_does_not_leak_into_log_probs(ppca):
    pair, x = ppca()

    def scaled(x):
        with poutine.scale(scale=0.1):
            pair.model(x)

    with seeded(0), evaluating():
        q = guide_trace_of(pair.guide, x, num_samples=2)
        a = log_prob_per_datum(model_trace_of(scaled, q, x, num_samples=2), (2, 50))
        b = log_prob_per_datum(model_trace_of(pair.model, q, x, num_samples=2), (2, 50))
    assert torch.equal(a["x"], b["x"])


def test_a_deterministic_site_is_neither_observed_nor_scored():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with seeded(0), evaluating():
        trace = guide_trace_of(model, torch.zeros(3), num_samples=2)
    assert list(sample_sites(trace, observed=True)) == ["x"]
    assert set(log_prob_per_datum(trace, (2, 3))) == {"z", "x"}


def masked(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def global_latent(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def two_plates(x):
    with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 2, dim=-3):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.T[:, None])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (masked, "site 'x': expected a site without a mask"),
        (global_latent, "site 'z': expected one log-prob a datum"),
        (two_plates, "site 'x': expected one log-prob a datum"),
    ],
)
def test_what_is_not_one_number_per_datum_is_named(program, message):
    x = torch.ones(4, 2)
    with seeded(0), evaluating(), pytest.raises(ValueError, match=message):
        log_prob_per_datum(guide_trace_of(program, x, num_samples=1), (1, 4))


def test_differences_between_samples_keep_their_digits_over_many_dimensions():
    """12,288 dimensions of some 7 nats each, of which float32 holds a sum to 0.008."""
    with seeded(0):
        x, loc = 30 + torch.randn(4, 3, 64, 64), 0.1 * torch.randn(2, 4, 3, 64, 64)
    trace = trace_of({"x": x.expand(2, 4, 3, 64, 64)})
    trace.nodes["x"] |= {"fn": dist.Normal(loc, 10.0).to_event(3), "mask": None, "args": (), "kwargs": {}}
    exact = dist.Normal(loc.double(), 10.0).to_event(3).log_prob(x.double()).diff(dim=0)
    assert exact.abs().max() > 0.1
    log_p = log_prob_per_datum(trace, (2, 4))["x"]
    assert log_p.abs().min() > 80_000
    assert (log_p.diff(dim=0) - exact).abs().max() < 1e-3
