"""Gaps against closed forms of linear-Gaussian pairs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import pytest
import torch
from linear_pairs import OBLIQUE, ORTHOGONAL, Linear, Net, X, exact, program, randn, standard, within
from torch.distributions import kl_divergence

from ppl_vae.evaluation.gaps import gap_decomposition, generalisation_gap, refine
from ppl_vae.evaluation.importance import log_likelihood


def test_exact_posterior_leaves_no_gap_and_refinement_stays_there():
    pair = Linear(ORTHOGONAL)
    gaps = gap_decomposition(pair.model, pair.guide, X, log_p=pair.log_p(X), num_steps=200)
    for gap in (gaps.total, gaps.approximation, gaps.amortisation):
        # an exact posterior's weights do not vary: no error but rounding
        assert gap.values.abs().max() < 2e-5
        assert gap.mc_se.max() < 2e-5
    refined = refine(pair.model, pair.guide, X, num_steps=200)
    torch.testing.assert_close(refined.mean, pair.posterior(X).mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(refined.stddev, pair.posterior(X).stddev, rtol=1e-4, atol=0)


def test_overconfident_guide_has_an_amortisation_gap_of_its_kl_alone():
    pair = Linear(ORTHOGONAL, shift=0.2, width=0.4)
    q = pair.q(X)
    posterior = torch.distributions.Independent(
        torch.distributions.Normal(pair.posterior(X).mean, pair.posterior(X).stddev), 1
    )
    kl = kl_divergence(q, posterior).double()
    assert kl.min() > 0.9
    gaps = gap_decomposition(pair.model, pair.guide, X, log_p=pair.log_p(X), num_steps=200, num_samples=400)
    assert within(gaps.total, kl)
    assert within(gaps.amortisation, kl, 1e-3)
    assert within(gaps.approximation, torch.zeros(10), 1e-3)
    assert gaps.approximation.mc_se.max() < 0.01
    assert abs(gaps.total.mean - kl.mean().item()) < 4 * gaps.total.mc_se_of_mean
    assert gaps.total.mc_se_of_mean < 0.05


def test_oblique_posterior_has_the_approximation_gap_of_the_best_diagonal_gaussian():
    pair = Linear(OBLIQUE, shift=0.1)
    # the mean is exact and the variances 1 / precision_ii: KL = (sum log precision_ii - log det precision) / 2
    truth = 0.5 * (pair.precision.diag().log().sum() - pair.precision.logdet())
    assert truth > 0.2
    refined = refine(pair.model, pair.guide, X, num_steps=200, num_samples=400, seed=1)
    torch.testing.assert_close(refined.stddev, pair.precision.diag().rsqrt().expand(10, 2), rtol=0.05, atol=0)
    gaps = gap_decomposition(
        pair.model, pair.guide, X, log_p=pair.log_p(X), num_steps=200, num_samples=400, seed=1, chunk=4
    )
    assert within(gaps.approximation, truth.expand(10), 5e-3)
    q = torch.distributions.MultivariateNormal(pair.q(X).mean, torch.diag_embed(pair.q(X).variance))
    assert within(gaps.total, kl_divergence(q, pair.posterior(X)).double())
    torch.testing.assert_close(
        gaps.total.values, gaps.approximation.values + gaps.amortisation.values, rtol=0, atol=1e-12
    )


def test_refinement_starts_from_the_guide():
    pair = Linear(OBLIQUE, shift=0.3, width=0.4)
    start = refine(pair.model, pair.guide, X, num_steps=0, chunk=3)
    torch.testing.assert_close(start.mean, pair.q(X).mean)
    torch.testing.assert_close(start.stddev, pair.q(X).stddev)


def test_errors_of_the_gaps_are_those_of_their_parts():
    pair = Linear(ORTHOGONAL, width=0.5)
    log_p = dataclasses.replace(pair.log_p(X), mc_se=torch.full((10,), 3.0).double())
    gaps = gap_decomposition(pair.model, pair.guide, X, log_p=log_p, num_steps=1)
    refined = refine(pair.model, pair.guide, X, num_steps=1)
    torch.testing.assert_close(gaps.total.mc_se, (9 + refined.guide_elbo.mc_se**2).sqrt())
    torch.testing.assert_close(gaps.approximation.mc_se, (9 + refined.elbo.mc_se**2).sqrt())
    torch.testing.assert_close(gaps.amortisation.mc_se, (refined.guide_elbo.mc_se**2 + refined.elbo.mc_se**2).sqrt())


def test_standard_error_of_the_elbo_is_what_other_seeds_change():
    pair = Linear(ORTHOGONAL, width=0.5)
    runs = [refine(pair.model, pair.guide, X[:1], num_steps=0, num_samples=20, seed=s).guide_elbo for s in range(60)]
    spread = torch.stack([run.values for run in runs]).std().item()
    assert spread == pytest.approx(torch.stack([run.mc_se for run in runs]).mean().item(), rel=0.3)


def test_generalisation_gap_is_unpaired():
    train, test = exact(randn(50, seed=2).double() + 3, "a", 0.3), exact(2 * randn(80, seed=3).double(), "b", 0.4)
    gap = generalisation_gap(train, test)
    assert gap.mean == pytest.approx(train.mean - test.mean)
    assert gap.mean > 2
    data_variance = train.log_p.var() / 50 + test.log_p.var() / 80
    assert gap.data_se == pytest.approx(math.sqrt(data_variance))
    assert gap.mc_se == pytest.approx(math.sqrt(0.09 / 50 + 0.16 / 80))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measure": "mass"}, "results 'train' and 'test': expected the same measure; got 'density' and 'mass'"),
        ({"encoding": "Levels()"}, "results 'train' and 'test': expected the same encoding; got '' and 'Levels()'"),
        ({"encoding": "Scale()"}, "result 'test': expected a likelihood; got a reconstruction loss (Scale())"),
        ({"fingerprint": "f00d"}, "results 'train' and 'test': expected different data; got f00d twice"),
    ],
)
def test_generalisation_gap_refuses_what_does_not_compare(fields: dict[str, str], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        generalisation_gap(exact(torch.zeros(2)), exact(torch.zeros(2), **({"fingerprint": "beef"} | fields)))


@pytest.mark.parametrize("flow", [False, True])
def test_any_pair_of_modules_is_left_as_it_was(flow: bool):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(flow=flow)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    log_p = log_likelihood(net.model, net.guide, X, X, num_samples=20)
    gaps = gap_decomposition(net.model, net.guide, X, X, log_p=log_p, num_steps=100)
    assert gaps.amortisation.mean > 4 * gaps.amortisation.mc_se_of_mean > 0
    again = gap_decomposition(net.model, net.guide, X, X, log_p=log_p, num_steps=100)
    assert torch.equal(gaps.total.values, again.total.values)
    other = gap_decomposition(net.model, net.guide, X, X, log_p=log_p, num_steps=100, seed=1)
    assert not torch.equal(gaps.total.values, other.total.values)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: refine(p.model, p.guide, X, num_steps=0, num_samples=1), "num_samples: expected at least 2"),
        (lambda p: refine(p.model, p.guide, X, X[1:]), "argument 1: expected 10 rows; got 9"),
        (lambda p: refine(program(("y", standard(2))), p.guide, X), "site 'y': expected it in both"),
        (lambda p: gap_decomposition(p.model, p.guide, X, log_p=p.log_p(X[1:])), "log_p: expected that of x, with fin"),
    ],
)
def test_refuses_one_sample_and_what_does_not_fit(call: Callable[[Linear], object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call(Linear(ORTHOGONAL))
    assert "\n" not in str(error.value)
