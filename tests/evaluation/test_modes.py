"""Fits at modes on posteriors that are known: a normal, and two that lie far apart."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_models import linear_gaussian
from tiny import Scaled

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.modes import refine_modes


def test_a_normal_posterior_is_found_from_a_guide_that_is_too_wide():
    case = linear_gaussian(width=3.0)
    model, guide = case.pair
    refined = refine_modes(model, guide, *case.data, num_starts=2, num_modes=1)
    q = case.module.encode(case.data[0])
    (tril,) = refined.factors
    order = [int((refined.loc[:, 0] - loc).square().sum(-1).argmin()) for loc in q.loc]
    torch.testing.assert_close(refined.loc[order, 0], q.loc, rtol=0, atol=1e-3)
    torch.testing.assert_close((tril @ tril.mT)[order, 0], q.covariance_matrix, rtol=1e-3, atol=1e-4)
    result = log_likelihood(model, refined, *case.data, num_samples=500)
    assert ((result.log_p - case.exact).abs() <= 5 * result.mc_se + 2e-4).all()
    assert result.num_unreliable == 0


def squares(x):
    """x = z^2 + e, so that z has two modes, and a guide that sits on one of them."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0] ** 2, 0.2), obs=x)


def one_sided(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.sqrt()[:, None], 0.1).to_event(1))


def log_p_of_squares(x):
    z = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, 0.2).log_prob(x)
    return joint.logsumexp(0) + (z[1] - z[0]).log()


def test_both_modes_are_found_where_the_guide_is_on_one():
    x = torch.tensor([1.0, 2.0, 3.0])
    result = log_likelihood(squares, refine_modes(squares, one_sided, x), x, num_samples=2000)
    assert ((result.log_p - log_p_of_squares(x)).abs() <= 5 * result.mc_se).all()
    assert result.num_unreliable == 0


def test_what_diverges_keeps_the_guide():
    def broken(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z * torch.where(x > 0, 1.0, torch.nan), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    refined = refine_modes(broken, guide, torch.tensor([1.0, -1.0]), num_starts=1, num_steps=3)
    assert refined.num_kept == 1


@pytest.mark.parametrize("name", ["num_starts", "num_steps", "num_modes", "num_newton"])
def test_sizes_below_one_are_refused(name):
    pair = Scaled()
    with pytest.raises(ValueError, match=f"{name}: expected at least 1; got 0"):
        refine_modes(pair.model, pair.guide, torch.zeros(2), **{name: 0})


def test_modes_weigh_by_their_mass_and_not_by_their_height() -> None:
    """Half of the posterior is N(-3, 0.2), and half N(3, 1), a fifth as high."""

    def model(x):
        with pyro.plate("data", len(x)):
            parts = dist.Normal(torch.tensor([-3.0, 3.0]), torch.tensor([0.2, 1.0]))
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((len(x),), 3.0), 1.0))

    refined = refine_modes(model, guide, torch.zeros(2), num_newton=8)
    loc, weights = refined.loc[:, :2, 0], refined.log_weights[:, :2].softmax(1)  # the third is as wide as the prior
    torch.testing.assert_close(loc.sort(1).values, torch.tensor([[-3.0, 3.0]] * 2), rtol=0, atol=0.1)
    assert (weights - 0.5).abs().max() < 0.1


def test_in_two_dimensions_a_mode_that_no_start_finds_is_seen() -> None:
    """A tenth of the mixture is as wide as the prior: from one start, on one of two modes, both are weighed."""
    x = torch.tensor([1.0, 2.0])
    refined = refine_modes(squares, one_sided, x, num_starts=1, num_modes=1)
    torch.testing.assert_close(refined.log_weights[:, 1].exp(), torch.full((2,), 0.1))
    torch.testing.assert_close(refined.factors[0][:, 1, 0, 0], torch.ones(2), rtol=0, atol=0.4)
    result = log_likelihood(squares, refined, x, num_samples=10_000)
    assert ((result.log_p - log_p_of_squares(x)).abs() <= 5 * result.mc_se).all()
    assert result.mc_se.max() < 0.1
