"""Posteriors refined for each datum, against posteriors and evidences that are known exactly."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from annealed_pairs import the_lesser_mode, two_modes
from linear_pairs import OBLIQUE, Linear, program, randn
from torch import Tensor

from ppl_vae.evaluation import refinement
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.evaluation.refined import keys_of
from ppl_vae.evaluation.refinement import refine
from ppl_vae.programs import guide_trace_of, seeded, sum_of_sites

X = 1.3 * randn(10, 4, seed=1)
W3 = torch.cat([OBLIQUE, torch.tensor([[0.3], [0.8], [-0.4], [0.6]])], 1)


@pytest.mark.parametrize("guide", [{"width": 0.1}, {"width": 10.0}, {"shift": 1.0, "width": 0.3}], ids=str)
def test_a_bad_guide_is_refined_to_the_exact_posterior(guide: dict[str, float]) -> None:
    pair = Linear(W3, **guide)
    refined = refine(pair.model, pair.guide, X)
    estimate = log_likelihood(pair.model, refined, X, num_samples=400)
    exact = pair.log_p(X)
    assert ((estimate.log_p - exact.log_p).abs() < 5 * estimate.mc_se + 1e-4).all()
    assert (estimate.khat < 0.5).all()
    assert estimate.ess.min() > 400 / 2


@pytest.mark.parametrize("guide", [{"width": 10.0}, {"shift": 1.0, "width": 0.3}], ids=str)
def test_its_normals_have_the_posterior_s_moments(guide: dict[str, float]) -> None:
    pair = Linear(W3, **guide)
    refined = refine(pair.model, pair.guide, X[:1], num_steps=200)
    posterior = pair.posterior(X[:1])
    torch.testing.assert_close(refined.loc[:, 0], posterior.mean, rtol=0, atol=2e-2)
    (tril,) = refined.factors
    torch.testing.assert_close(tril[:, 0] @ tril[:, 0].mT, posterior.covariance_matrix[None, 0], rtol=0.05, atol=2e-3)


def two_gammas(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        scale = pyro.sample("scale", dist.Gamma(3.0, 2.0))
        pyro.sample("x", dist.Normal(rate, scale), obs=x)


def of_gammas(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        rate = pyro.sample("rate", dist.LogNormal(0.3, 0.8))
        pyro.sample("scale", dist.LogNormal(0.2 * rate, 0.7))


def test_several_constrained_sites_are_refined_together() -> None:
    x = torch.tensor([0.5, 2.0, 6.0])
    refined = refine(two_gammas, of_gammas, x)
    estimate = log_likelihood(two_gammas, refined, x, num_samples=2000)
    rate, scale = torch.linspace(0.005, 25, 2500), torch.linspace(0.005, 15, 1500)[:, None]
    log_f = dist.Gamma(2.0, 1.0).log_prob(rate) + dist.Gamma(3.0, 2.0).log_prob(scale)
    cell = math.log((rate[1] - rate[0]) * (scale[1] - scale[0]))
    exact = torch.stack([(log_f + dist.Normal(rate, scale).log_prob(v)).double().flatten().logsumexp(0) for v in x])
    assert ((estimate.log_p - exact - cell).abs() < 4 * estimate.mc_se + 2e-3).all()
    assert (estimate.khat < 0.7).all()


def test_draws_and_density_agree() -> None:
    """E_q[r / q] = 1 for a normalised r that q covers, over all parts of the mixture."""
    refined = refine(two_gammas, of_gammas, torch.tensor([0.5, 2.0, 6.0]), num_steps=5, num_starts=3)
    other = program(("rate", lambda x: dist.LogNormal(0.5, 0.6)), ("scale", lambda x: dist.LogNormal(-0.1, 0.5)))
    with seeded(0):
        log_w = log_weights(_observing(other), refined, torch.tensor([0.5, 2.0, 6.0]), num_samples=20_000)
    w = log_w.exp().double()
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / math.sqrt(len(w))).all()
    assert (w.std(0) < 3).all()


def _observing(latents: Any) -> Any:
    """The latents, and an observed site whose log-prob is 0."""

    def model(x: Tensor) -> None:
        latents(x)
        with pyro.plate("observed", len(x), dim=-1):
            pyro.sample("x", dist.Uniform(x - 0.5, x + 0.5), obs=x)

    return model


def test_weights_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[w] = p(x) whatever the fit: over independent fits of few steps, each with its own draws."""
    monkeypatch.setattr(refinement, "UPHILL_STEPS", 3)
    pair = Linear(OBLIQUE, shift=0.5, width=0.5)
    exact = pair.log_p(X[:4]).log_p
    ratios = []
    for seed in range(10):
        refined = refine(pair.model, pair.guide, X[:4], num_steps=3, num_starts=1, seed=seed)
        with seeded(1000 + seed):
            log_w = log_weights(pair.model, refined, X[:4], num_samples=200)
        ratios.append((log_w.double() - exact).exp().mean())
    ratios = torch.stack(ratios)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / math.sqrt(len(ratios))


def test_what_fills_up_a_block_keeps_its_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of six data by four is filled up with the first two, whose next round begins at their fit."""
    for name, value in {"BLOCK_FITS": 4, "ROUNDS": (40, 1), "MORE_STARTS": 1, "PILOT_KHAT": -math.inf}.items():
        monkeypatch.setattr(refinement, name, value)
    pair = Linear(W3, shift=3.0, width=0.3)
    refined = refine(pair.model, pair.guide, X[:6], num_steps=2)
    fits = refined.loc[torch.searchsorted(refined.keys, keys_of(X[:6]))]
    first, again = (fits - pair.posterior(X[:6]).mean[:, None]).abs().amax(-1).T
    assert (again < first + 0.5).all()


def test_a_mode_that_the_guide_does_not_see() -> None:
    x = torch.tensor([4.0, 4.5, 3.8])
    refined = refine(two_modes, the_lesser_mode, x)
    estimate = log_likelihood(two_modes, refined, x, num_samples=2000)
    exact = log_p_by_quadrature(two_modes, x)
    assert ((estimate.log_p - exact).abs() < 4 * estimate.mc_se).all()
    assert (estimate.mc_se < 0.05).all()


def test_data_come_in_any_order_and_others_are_refused() -> None:
    pair = Linear(OBLIQUE, width=3.0)
    refined = refine(pair.model, pair.guide, X, num_steps=50)
    whole = log_likelihood(pair.model, refined, X, num_samples=300)
    part = log_likelihood(pair.model, refined, X.flip(0)[3:5], num_samples=300)
    assert ((part.log_p - whole.log_p.flip(0)[3:5]).abs() < 5 * (part.mc_se + whole.mc_se.flip(0)[3:5])).all()
    with pytest.raises(ValueError, match="posterior was refined for; got others, first at row 1"):
        refined(torch.stack([X[0], X[1] + 1]))


OTHERS: tuple[dict[str, int], ...] = ({}, {"memory": 2000}, {"seed": 1})


def test_the_result_depends_on_the_seed_and_not_on_memory() -> None:
    pair = Linear(OBLIQUE, width=3.0)
    fits = [refine(pair.model, pair.guide, X, num_steps=5, num_starts=2, **o).loc for o in OTHERS]
    torch.testing.assert_close(fits[0], fits[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(fits[0], fits[2])


def test_compiled_it_is_the_same(graphs: list[Any]) -> None:
    pair = Linear(OBLIQUE, width=3.0)
    eager, compiled = (refine(pair.model, pair.guide, X, num_steps=20, compiled=c) for c in (False, True))
    torch.testing.assert_close(eager.loc, compiled.loc, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    estimates = [log_likelihood(pair.model, compiled, X, num_samples=5000, compiled=c).log_p for c in (False, True)]
    torch.testing.assert_close(*estimates)


def test_many_dimensions_have_a_covariance_of_low_rank() -> None:
    """Of 150, in 10 of which the posterior differs from the prior."""
    D = 150
    pair = Linear(0.05 * randn(10, D, seed=2), width=2.0)
    x = 0.7 * randn(3, 10, seed=3)
    refined = refine(pair.model, pair.guide, x)
    assert [f.shape[2:] for f in refined.factors] == [(D, 32), (D,)]
    estimate = log_likelihood(pair.model, refined, x, num_samples=1000)
    assert ((estimate.log_p - pair.log_p(x).log_p).abs() < 5 * estimate.mc_se).all()


def test_a_fit_that_diverges_keeps_the_guide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            root = torch.where(x > 0, z - z.detach(), z - z.detach() + 1).abs().sqrt()  # at 0 its gradient is NaN
            pyro.sample("x", dist.Normal(z + root - root.detach(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    x = torch.tensor([-1.0, 1.0])
    refined = refine(model, guide, x, num_steps=20)
    assert refined.num_kept == 1
    estimate = log_likelihood(model, refined, x, num_samples=1000)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).double()
    assert ((estimate.log_p - exact).abs() < 5 * estimate.mc_se + 1e-4).all()


def test_it_is_a_guide_wherever_one_goes() -> None:
    pair = Linear(OBLIQUE, shift=1.0, width=0.5)
    refined = refine(pair.model, pair.guide, X)
    assert check_model(pair.model, refined, X).ok, str(check_model(pair.model, refined, X))
    annealed = annealed_log_likelihood(pair.model, refined, X, num_steps=5, num_chains=32)
    assert ((annealed.log_p - pair.log_p(X).log_p).abs() < 5 * annealed.mc_se + 1e-3).all()
    normals = dataclasses.replace(refined, df=1000, width=1.0)
    assert log_likelihood(pair.model, normals, X).ess.median() > log_likelihood(pair.model, refined, X).ess.median()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_steps": 0}, "num_steps: expected at least 1; got 0"), ({"num_starts": 0}, "num_starts: expected at")],
)
def test_sizes_below_one_are_refused(options: dict[str, int], message: str) -> None:
    pair = Linear(OBLIQUE)
    with pytest.raises(ValueError, match=message):
        refine(pair.model, pair.guide, X, **options)


def test_discrete_latents_are_refused() -> None:
    coin = ("z", lambda x: dist.Bernoulli(torch.tensor(0.5)))
    with pytest.raises(ValueError, match="site 'z': expected a continuous latent site; got one on boolean"):
        refine(_observing(program(coin)), program(coin), X[:, 0])


def test_a_guide_that_is_off_by_many_of_its_standard_deviations():
    """z ~ N(0, I), x ~ N(z, 0.001), and a guide of the right width that is 3 off, 3,000 standard deviations."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.001).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + 3, 0.001).to_event(1))

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    exact = dist.Normal(torch.zeros(4), (1 + 1e-6) ** 0.5).to_event(1).log_prob(x).double()
    result = log_likelihood(model, refine(model, guide, x), x, num_samples=300)
    assert result.num_unreliable == 0
    assert ((result.log_p - exact).abs() < 4 * result.mc_se + 2e-3).all()  # float32


def test_its_normals_alone_are_the_best_ones_without_the_guide() -> None:
    pair = Linear(W3, width=0.1)
    refined = refine(pair.model, pair.guide, X, num_starts=2)
    with seeded(0):
        trace = guide_trace_of(refined.normals, X, num_samples=5)
    order, best = keys_of(X).sort().indices, refined.log_weights.argmax(-1)
    at = torch.arange(len(X)), best
    q = dist.MultivariateNormal(refined.loc[at], scale_tril=refined.factors[0][at])
    log_q = sum_of_sites(trace, (5, len(X)))[:, order]
    torch.testing.assert_close(log_q.float(), q.log_prob(trace.nodes["z"]["value"][:, order]), rtol=1e-4, atol=1e-3)
