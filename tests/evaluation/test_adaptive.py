import math
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation import adaptive
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.results import LogLikelihood, PerDatum, over_limit


def test_each_datum_stands_on_the_first_rung_that_will_do(ppca):
    """Half of the data are given to a guide that fits, half to one that is twice as wide."""
    pair, x = ppca(D=6, L=2, N=16)
    wide = torch.arange(16) % 2

    def guide(x, wide):
        with pyro.plate("data", len(x)):
            mean = x @ pair.W @ pair.covariance / pair.scale**2
            width = torch.where(wide == 1, 4.0, 1.2)[:, None]
            pyro.sample("z", dist.Normal(mean, width * pair.covariance.diag().sqrt()).to_event(1))

    def model(x, wide):
        pair.model(x)

    options = {"tolerance": 0.06, "num_samples": 200}
    result = log_likelihood_within(model, guide, x, wide, **options)
    assert result.mc_se.median() <= 0.06
    assert 2 * result.num_samples.sum() < result.decoder_rows < 4 * result.num_samples.sum()  # with the pilots
    assert result.bound == "lower (by rung of a ladder: 8 from the guide, 8 refined; in expectation)"
    assert torch.equal(result.rung, wide)
    error = result.log_p - pair.exact.log_prob(x).double()
    assert abs(error.mean()) < 5 * result.mc_se_of_mean
    # the chunks do not matter here either
    again = log_likelihood_within(model, guide, x, wide, **options, memory=20_000)
    assert torch.equal(again.num_samples, result.num_samples)
    torch.testing.assert_close(again.log_p, result.log_p, atol=1e-5, rtol=0)


def test_no_datum_stays_on_a_guide_that_is_too_narrow_for_many(ppca):
    """Pilots that miss the large weights have a small k-hat: their data would be too low by 0.4 nats on the guide."""
    pair, x = ppca(D=20, L=5, N=60, width=0.6)
    exact = pair.exact.log_prob(x).double()
    sampled = log_likelihood(pair.model, pair.guide, x, num_samples=200)
    lucky = ~over_limit(sampled.khat, sampled.num_samples)
    assert 10 < lucky.sum() < 30
    assert (sampled.log_p - exact)[lucky].mean() < -0.3
    result = log_likelihood_within(pair.model, pair.guide, x, num_samples=200)
    assert (result.rung == 1).all()
    assert abs((result.log_p - exact).mean()) < 4 * result.mc_se_of_mean


def test_a_khat_at_its_limit_is_not_below_it():
    """Of pilots at the limit every second run of other samples would be over it. At K = 1,000 it is 0.67, and the error
    of a k-hat 0.15."""
    khat = torch.tensor([-math.inf, 0.3, 0.5, 0.54, 0.66, math.nan]).double()
    num_samples, zeros = torch.full((6,), 1000), torch.zeros(6).double()

    def rung(x, *, seed):
        fields = (zeros, zeros, zeros, khat, num_samples, "mass", "", "", "")
        return replace(LogLikelihood(*fields), **{name: f[x] for name, f in per_datum.items()})

    per_datum = {"log_p": zeros, "mc_se": zeros, "ess": zeros, "khat": khat, "num_samples": num_samples}
    chosen, _, _ = adaptive.choose([rung, rung], (torch.arange(6),), math.inf, seed=0, max_share=1.0)
    assert chosen.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_stays_unreliable_is_annealed(ppca, monkeypatch):
    monkeypatch.setattr(adaptive, "ANNEALING_STEPS", (12,))
    pair, x = ppca(D=10, L=10, N=2, width=0.4)
    exact = pair.exact.log_prob(x).double()
    plain = log_likelihood(pair.model, pair.guide, x, num_samples=400)
    result = log_likelihood_within(pair.model, pair.guide, x, num_samples=100, tolerance=0.01, max_samples=100)
    assert "2 annealed" in result.bound
    assert result.num_samples.tolist() == [adaptive.ANNEALING_CHAINS] * 2
    assert (result.log_p - exact).abs().mean() < (plain.log_p - exact).abs().mean() / 2
    assert result.decoder_rows > plain.decoder_rows


def test_it_is_a_lower_bound_whatever_the_pilots_saw():
    """x is unlikely under 1 in 100 draws of z. Most pilots stop before they have seen one: of their own weights the
    mean of log p(x) is 0.006 nats too high."""
    p_z, p_x, N = 0.01, torch.tensor([0.9, 1e-4]), 1000

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(probs=torch.where(z > p_z, *p_x)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(0.0, 1.0))

    exact = math.log((1 - p_z) * 0.9 + p_z * 1e-4)
    with pytest.warns(
        RuntimeWarning, match="not refined, samples are of the guide: site 'x': expected a log-prob with"
    ):
        result = log_likelihood_within(model, guide, torch.ones(N), num_samples=50, tolerance=0.01)
    assert result.num_samples.min() == 50
    errors = (result.log_p - exact).exp() - 1
    assert abs(errors.mean()) < 4 * errors.std() / N**0.5  # E[w] = p(x)


@pytest.mark.parametrize("width", [0.7, 1.5])
def test_its_errors_are_within_their_bars(ppca, width, monkeypatch):
    """Of 120 repeats: the mean of w is p(x), and intervals of 95 % cover, though pilots choose K from 50 to 400."""
    monkeypatch.setattr(adaptive, "ANNEALING_STEPS", ())
    pair, x = ppca(D=4, L=2, N=1, width=width)
    exact = pair.exact.log_prob(x).double()
    x = x.expand(120, -1)
    result = log_likelihood_within(pair.model, pair.guide, x, tolerance=0.1, num_samples=50, max_samples=400)
    error = result.log_p - exact
    ratio = error.exp()
    assert len(result.num_samples.unique()) > 1
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 120**0.5
    assert error.mean() < 3 * error.std() / 120**0.5
    covered = (error.abs() < 1.96 * PerDatum.of(result).mc_se).double().mean()
    assert covered > 0.95 - 4 * (0.95 * 0.05 / 120) ** 0.5


def test_its_intervals_cover_in_ten_dimensions(ppca):
    """Of 200 data, each with a fit and samples of its own. results/calibration has more of them."""
    pair, x = ppca(D=20, L=10, N=200, width=0.6)
    exact = pair.exact.log_prob(x).double()
    result = log_likelihood_within(pair.model, pair.guide, x, num_samples=400)
    error = result.log_p - exact
    assert abs(error.mean()) < 3 * result.mc_se_of_mean + 1e-5  # float32
    assert (error.abs() < 1.96 * result.mc_se + 1e-5).double().mean() >= 0.92


def test_an_unknown_khat_is_not_a_good_one(ppca):
    pair, x = ppca(N=3, width=1.0)
    result = log_likelihood_within(pair.model, pair.guide, x, tolerance=10.0, num_samples=10)
    assert result.num_samples.min() >= 25


def test_an_interrupt_between_doublings_says_that_the_tolerance_was_not_met(ppca, interrupt_after):
    pair, x = ppca(D=10, L=10, N=4, width=0.4)
    interrupt_after(1)
    result = log_likelihood_within(pair.model, pair.guide, x, tolerance=0.1, num_samples=100, max_samples=200)
    assert result.num_samples.tolist() == [100] * 4
    assert not result.complete
    assert "interrupted before all samples were drawn" in str(result)


def test_an_interrupt_leaves_what_each_datum_has_by_then(ppca, monkeypatch, interrupt_after):
    """Pilots of K = 100, K = 200 and 2 and 3 steps of annealing, then fresh chains."""
    pair, x = ppca(D=10, L=10, N=4, width=0.4)
    monkeypatch.setattr(adaptive, "ANNEALING_STEPS", (2, 3))
    monkeypatch.setattr(adaptive, "refine", partial(adaptive.refine, num_steps=2))

    def within():
        return log_likelihood_within(pair.model, pair.guide, x, tolerance=1e-9, num_samples=100, max_samples=200)

    whole = within()
    assert whole.complete
    assert "4 annealed" in whole.bound
    for num_blocks, num_samples in ((1, 100), (4, adaptive.ANNEALING_CHAINS), (5, adaptive.ANNEALING_CHAINS)):
        interrupt_after(num_blocks)
        result = within()
        assert not result.complete
        assert result.num_samples.tolist() == [num_samples] * 4
        assert not torch.equal(result.log_p, whole.log_p)


def test_a_rung_that_refuses_leaves_the_data_on_the_one_before():
    """Annealing needs continuous latents."""
    x = torch.tensor([0.0, 4.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.warns(RuntimeWarning, match="not refined, samples are of the guide: site 'z': expected a continuous"):
        result = log_likelihood_within(model, guide, x, tolerance=1e-6, num_samples=50, max_samples=200)
    assert result.complete
    assert result.num_samples.tolist() == [200, 200]
    assert "2 from the guide;" in result.bound


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
