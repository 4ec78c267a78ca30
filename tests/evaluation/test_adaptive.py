import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation import adaptive
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.importance import log_likelihood


def test_a_tolerance_spends_samples_where_they_are_needed(ppca):
    """Half of the data are given to a guide that fits, half to one that is twice as wide."""
    pair, x = ppca(D=6, L=2, N=40)
    wide = torch.arange(40) % 2

    def guide(x, wide):
        with pyro.plate("data", len(x)):
            mean = x @ pair.W @ pair.covariance / pair.scale**2
            width = torch.where(wide == 1, 4.0, 1.2)[:, None]
            pyro.sample("z", dist.Normal(mean, width * pair.covariance.diag().sqrt()).to_event(1))

    def model(x, wide):
        pair.model(x)

    result = log_likelihood_within(model, guide, x, wide, tolerance=0.05, num_samples=50)
    assert result.mc_se.max() <= 0.05
    few, many = result.num_samples[wide == 0].double().mean(), result.num_samples[wide == 1].double().mean()
    assert many > 2 * few
    assert result.decoder_rows == result.num_samples.sum()
    fixed = log_likelihood(model, guide, x, wide, num_samples=int(result.num_samples.max()))
    assert result.decoder_rows < fixed.decoder_rows / 1.5
    error = result.log_p - pair.exact.log_prob(x).double()
    assert abs(error.mean()) < 5 * result.mc_se_of_mean
    for memory in (2000, 10**8):  # the chunks do not matter here either
        again = log_likelihood_within(model, guide, x, wide, tolerance=0.05, num_samples=50, memory=memory)
        assert torch.equal(again.num_samples, result.num_samples)
        torch.testing.assert_close(again.log_p, result.log_p, atol=1e-5, rtol=0)


def test_what_stays_unreliable_is_annealed(ppca):
    pair, x = ppca(D=10, L=10, N=4, width=0.4)
    exact = pair.exact.log_prob(x).double()
    plain = log_likelihood(pair.model, pair.guide, x, num_samples=400)
    result = log_likelihood_within(pair.model, pair.guide, x, num_samples=100, tolerance=0.1, max_samples=400)
    assert "4 of 4 data annealed" in result.bound
    assert result.mc_se.max() <= 0.1
    assert (result.log_p - exact).abs().mean() < (plain.log_p - exact).abs().mean() / 2
    assert result.decoder_rows > plain.decoder_rows


def test_to_stop_when_the_error_seems_small_is_no_bound():
    """x is unlikely under 1 in 100 draws of z. Most of the data stop before they have seen one, and lie too high."""
    p_z, p_x, N = 0.01, torch.tensor([0.9, 1e-4]), 4000

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(probs=torch.where(z > p_z, *p_x)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(0.0, 1.0))

    exact = math.log((1 - p_z) * 0.9 + p_z * 1e-4)

    def error(estimate, **options):
        result = estimate(model, guide, torch.ones(N), num_samples=50, **options)
        errors = result.log_p - exact
        return result.bound, errors.mean().item(), errors.std().item() / N**0.5

    bound, bias, se = error(log_likelihood)
    assert bound == "lower (importance-weighted, in expectation)"
    assert bias < 4 * se
    bound, bias, se = error(log_likelihood_within, tolerance=0.01)
    assert bound.startswith("no bound (importance-weighted, ")
    assert bias > 4 * se


def test_an_unknown_khat_is_not_a_good_one(ppca):
    pair, x = ppca(N=3, width=1.0)
    result = log_likelihood_within(pair.model, pair.guide, x, tolerance=10.0, num_samples=10)
    assert result.num_samples.min() >= 25


def test_an_interrupt_between_doublings_says_that_the_tolerance_was_not_met(ppca, interrupt_after):
    pair, x = ppca(D=10, L=10, N=4, width=0.4)
    few = log_likelihood(pair.model, pair.guide, x, num_samples=100)
    interrupt_after(1)
    result = log_likelihood_within(pair.model, pair.guide, x, tolerance=0.1, num_samples=100, max_samples=200)
    assert torch.equal(result.log_p, few.log_p)
    assert not result.complete
    assert "interrupted before all samples were drawn" in str(result)


def test_an_interrupt_of_annealing_leaves_what_each_datum_has_by_then(ppca, monkeypatch, interrupt_after):
    pair, x = ppca(D=10, L=10, N=4, width=0.4)
    monkeypatch.setattr(adaptive, "ANNEALING_STEPS", (5, 10))

    def within():
        return log_likelihood_within(pair.model, pair.guide, x, tolerance=1e-9, num_samples=100, max_samples=200)

    more = within()
    interrupt_after(3)  # two doublings and a round of annealing
    result = within()
    assert not result.complete
    assert "4 of 4 data annealed" in result.bound
    assert bool((result.num_samples == adaptive.ANNEALING_CHAINS).all())
    assert not torch.equal(result.log_p, more.log_p)  # which is of the second round
    interrupt_after(2)
    result = within()
    assert not result.complete
    assert "0 of 4 data annealed" in result.bound
    assert result.num_samples.tolist() == [200] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance: expected nats above 0"),
        ({"tolerance": 0.1, "max_samples": 5}, "max_samples: expected at least num_samples = 1000; got 5"),
        ({"tolerance": 0.1, "num_samples": 0}, "num_samples: expected at least 1; got 0"),
        ({"tolerance": 0.1, "memory": 0}, "memory: expected bytes above 0; got 0"),
    ],
)
def test_bad_options_are_refused(ppca, options, message):
    pair, x = ppca(N=2)
    with pytest.raises(ValueError, match=message):
        log_likelihood_within(pair.model, pair.guide, x, **options)
