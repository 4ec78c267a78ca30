"""Gaps against closed forms of linear-Gaussian pairs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_pairs import OBLIQUE, ORTHOGONAL, Linear, Net, X, exact, program, randn, standard, within
from torch.distributions import kl_divergence

from ppl_vae.evaluation.gaps import Gaps, gap_decomposition, generalisation_gap
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.system.hashing import fingerprint


def test_exact_posterior_leaves_no_gap_and_refinement_stays_there():
    pair = Linear(OBLIQUE)

    def posterior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(pair.posterior(x).mean, pair.posterior(x).covariance_matrix))

    gaps = gap_decomposition(pair.model, posterior, X, log_p=pair.log_p(X))
    # an exact posterior's weights do not vary: no error but rounding, and the steps of Adam that rounding sets off
    assert gaps.total.values.abs().max() < 2e-5
    assert gaps.total.mc_se.max() < 2e-5
    for gap in (gaps.approximation, gaps.amortisation):
        assert gap.values.abs().max() < 2e-3


def test_overconfident_guide_has_an_amortisation_gap_of_its_kl_alone():
    pair = Linear(ORTHOGONAL, shift=0.2, width=0.4)
    q = pair.q(X)
    posterior = torch.distributions.Independent(
        torch.distributions.Normal(pair.posterior(X).mean, pair.posterior(X).stddev), 1
    )
    kl = kl_divergence(q, posterior).double()
    assert kl.min() > 0.9
    gaps = gap_decomposition(pair.model, pair.guide, X, log_p=pair.log_p(X), num_samples=400)
    assert within(gaps.total, kl)
    assert within(gaps.amortisation, kl, 1e-3)
    assert within(gaps.approximation, torch.zeros(10), 1e-3)
    assert gaps.approximation.mc_se.max() < 0.01
    assert abs(gaps.total.mean - kl.mean().item()) < 4 * gaps.total.mc_se_of_mean
    assert gaps.total.mc_se_of_mean < 0.05


def test_a_diagonal_guide_of_an_oblique_posterior_loses_by_amortisation_alone():
    """A normal with full covariance has no approximation gap to a normal posterior."""
    pair = Linear(OBLIQUE, shift=0.1)
    gaps = gap_decomposition(pair.model, pair.guide, X, log_p=pair.log_p(X), num_samples=400, seed=1)
    q = torch.distributions.MultivariateNormal(pair.q(X).mean, torch.diag_embed(pair.q(X).variance))
    assert within(gaps.total, kl_divergence(q, pair.posterior(X)).double())
    assert within(gaps.approximation, torch.zeros(10), 2e-3)
    torch.testing.assert_close(
        gaps.total.values, gaps.approximation.values + gaps.amortisation.values, rtol=0, atol=1e-12
    )


def test_a_skew_posterior_has_the_approximation_gap_of_the_best_normal():
    """z ~ N(0, 1), x ~ Poisson(e^z): of N(m, s^2) the ELBO is x m - e^(m + s^2 / 2) - log x! - KL, and its best m and
    s are found on a grid."""
    x = torch.tensor([0.0, 1.0, 4.0])

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Normal(0.0, 1.0)).exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.5))

    m, s = torch.meshgrid(torch.linspace(-2, 2, 1001), torch.linspace(0.2, 1.2, 501), indexing="ij")
    kl = (m**2 + s**2 - 1) / 2 - s.log()
    elbos = [x_i * m - (m + s**2 / 2).exp() - torch.lgamma(x_i + 1) - kl for x_i in x]
    exact_log_p = log_p_by_quadrature(model, x)
    lacking = exact_log_p - torch.stack([elbo.max() for elbo in elbos]).double()
    assert lacking.min() > 0.005
    gaps = gap_decomposition(model, guide, x, log_p=exact(exact_log_p, fingerprint(x)), num_samples=10_000)
    assert within(gaps.approximation, lacking, 1e-3)


def test_errors_of_the_gaps_are_those_of_their_parts_and_what_other_samples_change():
    pair = Linear(ORTHOGONAL, width=0.5)
    known = dataclasses.replace(pair.log_p(X), mc_se=torch.full((10,), 3.0).double())
    gaps, unsure = (gap_decomposition(pair.model, pair.guide, X, log_p=p) for p in (pair.log_p(X), known))
    for name in ("total", "approximation"):
        with_error = (9 + getattr(gaps, name).mc_se ** 2).sqrt()
        torch.testing.assert_close(getattr(unsure, name).mc_se, with_error)
    parts = (gaps.total.mc_se**2 + gaps.approximation.mc_se**2).sqrt()
    torch.testing.assert_close(gaps.amortisation.mc_se, parts)
    x = X.repeat(16, 1)  # each has samples of its own
    total = gap_decomposition(pair.model, pair.guide, x, log_p=pair.log_p(x), num_samples=20, num_steps=1).total
    spread = total.values.view(16, 10).std(0).mean().item()
    assert spread == pytest.approx(total.mc_se.mean().item(), rel=0.2)  # 3.5 standard errors of the spread


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
    gaps = gap_decomposition(net.model, net.guide, X, X, log_p=log_p, num_steps=50)
    assert gaps.amortisation.mean > 4 * gaps.amortisation.mc_se_of_mean > 0
    again = gap_decomposition(net.model, net.guide, X, X, log_p=log_p, num_steps=50)
    assert torch.equal(gaps.total.values, again.total.values)
    other = gap_decomposition(net.model, net.guide, X, X, log_p=log_p, num_steps=50, seed=1)
    assert not torch.equal(gaps.total.values, other.total.values)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def gap(pair: Linear, **options: int) -> Gaps:
    return gap_decomposition(pair.model, pair.guide, X, log_p=pair.log_p(X), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: gap(p, num_samples=1), "num_samples: expected at least 2"),
        (lambda p: gap_decomposition(p.model, p.guide, X, X[1:], log_p=p.log_p(X)), "argument 1: expected 10 rows"),
        (
            lambda p: gap_decomposition(program(("y", standard(2))), p.guide, X, log_p=p.log_p(X)),
            "site 'y': expected it in both",
        ),
        (lambda p: gap_decomposition(p.model, p.guide, X, log_p=p.log_p(X[1:])), "log_p: expected that of x, with fin"),
    ],
)
def test_refuses_one_sample_and_what_does_not_fit(call: Callable[[Linear], object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call(Linear(ORTHOGONAL))
    assert "\n" not in str(error.value)
