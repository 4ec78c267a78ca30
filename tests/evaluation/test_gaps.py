"""Gaps and information against closed forms of linear-Gaussian pairs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.distributions import kl_divergence

from ppl_vae.evaluation.gaps import gap_decomposition, generalisation_gap, refine
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.information import active_units, aggregate_posterior
from ppl_vae.evaluation.results import LogLikelihood, PerDatum
from ppl_vae.system.hashing import fingerprint

SCALE = 0.5


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


ORTHOGONAL = torch.linalg.qr(randn(4, 2, seed=0)).Q * torch.tensor([1.0, 0.3])  # whose posterior is diagonal
OBLIQUE = torch.tensor([[1.0, 0.9], [0.0, 0.4], [0.5, 0.5], [0.2, 0.0]])


@dataclasses.dataclass
class Linear:
    """z ~ N(0, I), x = W z + 0.5 e, with a guide whose mean is off by `shift`, up or down by the sign of x_1, and
    whose sd is `width` times that of the exact posterior's margins."""

    W: Tensor
    shift: float = 0.0
    width: float = 1.0

    @property
    def precision(self) -> Tensor:
        return torch.eye(self.W.shape[1]) + self.W.T @ self.W / SCALE**2

    def posterior(self, x: Tensor) -> torch.distributions.MultivariateNormal:
        mean = torch.linalg.solve(self.precision, self.W.T @ x.T / SCALE**2).T
        return torch.distributions.MultivariateNormal(mean, precision_matrix=self.precision)

    def log_p(self, x: Tensor) -> LogLikelihood:
        covariance = self.W @ self.W.T + SCALE**2 * torch.eye(len(self.W))
        log_p = torch.distributions.MultivariateNormal(torch.zeros(len(self.W)), covariance).log_prob(x).double()
        return exact(log_p, fingerprint(x))

    def q(self, x: Tensor) -> Any:
        p = self.posterior(x)
        return dist.Normal(p.mean + self.shift * x[:, :1].sign(), self.width * p.stddev).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.W.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T, SCALE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


def exact(log_p: Tensor, of: str = "f00d", mc_se: float = 0.0, **fields: str) -> LogLikelihood:
    same = torch.ones_like(log_p)
    defaults = {"measure": "density", "encoding": "", "fingerprint": of, "bound": "exact"}
    return LogLikelihood(log_p, mc_se * same, same, same * -math.inf, same, **(defaults | fields))


X = 1.3 * randn(10, 4, seed=1)


def within(estimate: PerDatum, truth: Tensor, floor: float = 1e-4) -> bool:
    """Each datum within 5 standard errors."""
    return bool(((estimate.values - truth).abs() < 5 * estimate.mc_se + floor).all())


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


class Net(nn.Module):
    """A pair of modules with parameters, dropout, a further argument, and a posterior without a formula's moments."""

    def __init__(self, *, flow: bool):
        super().__init__()
        self.encoder, self.decoder, self.dropout, self.flow = nn.Linear(4, 4), nn.Linear(2, 4), nn.Dropout(), flow

    def model(self, x: Tensor, given: Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(self.dropout(z)), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, given: Tensor) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            loc, s = self.encoder(given).chunk(2, -1)
            q = dist.Normal(loc, s.exp())
            if self.flow:
                q = dist.TransformedDistribution(q, [dist.transforms.AffineTransform(1.0, 2.0)])
            pyro.sample("code", q.to_event(1))


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
    units = active_units(net.guide, X, X)
    means = net.encoder(X).chunk(2, -1)[0].detach() * (2 if flow else 1)
    torch.testing.assert_close(units.variances, means.double().var(0), rtol=0.1 if flow else 1e-5, atol=0)
    information = aggregate_posterior(net.model, net.guide, X, X)
    assert 0 < information.mutual_information.mean <= math.log(10)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


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


# What a code tells of its datum


def program(*sites: tuple[str, Callable[[Tensor], Any]]) -> Callable[[Tensor], None]:
    def run(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name, fn in sites:
                pyro.sample(name, fn(x))

    return run


def standard(size: int) -> Callable[[Tensor], Any]:
    return lambda x: dist.Normal(torch.zeros(size), 1.0).to_event(1)


def test_a_dead_dimension_is_not_active():
    scale = torch.tensor([1.0, 0.0, 0.3, 0.05])
    guide = program(("z", lambda x: dist.Normal(x * scale + 5, 1.0).to_event(1)))
    units = active_units(guide, X, chunk=3)
    torch.testing.assert_close(units.variances, (X * scale).double().var(0), rtol=1e-4, atol=1e-10)
    assert units.num_active == 2
    assert active_units(guide, X, threshold=0.001).num_active == 3


def test_a_code_that_is_the_prior_tells_nothing():
    information = aggregate_posterior(program(("z", standard(3))), program(("z", standard(3))), X)
    for term in (information.kl, information.mutual_information, information.marginal_kl):
        assert term.values.abs().max() < 1e-5
        assert term.mc_se.max() < 1e-5


def test_a_code_off_the_prior_that_ignores_x_has_marginal_kl_alone():
    guide = program(("z", lambda x: dist.Normal(torch.ones(3), 1.0).to_event(1).expand([len(x)])))
    information = aggregate_posterior(program(("z", standard(3))), guide, X, num_samples=200)
    assert information.mutual_information.values.abs().max() < 1e-5
    assert information.marginal_kl.mean == pytest.approx(1.5, abs=4 * information.marginal_kl.mc_se_of_mean)
    assert information.marginal_kl.mc_se_of_mean == pytest.approx(math.sqrt(3 / 2000), rel=0.1)


def test_codes_well_apart_tell_log_n():
    x = torch.arange(12.0)[:, None]
    guide = program(("z", lambda x: dist.Normal(x, 0.01).to_event(1)))
    information = aggregate_posterior(program(("z", standard(1))), guide, x, num_samples=50, chunk=5)
    assert (information.mutual_information.values - math.log(12)).abs().max() < 1e-5
    kl = (-math.log(0.01) - 0.5 + (0.01**2 + x.double() ** 2) / 2)[:, 0]
    assert within(information.kl, kl)
    assert within(information.marginal_kl, kl - math.log(12))


def test_two_codes_that_overlap_against_quadrature():
    # q(z) = (N(z; -1, 1) + N(z; 1, 1)) / 2: I = entropy of the mixture - entropy of N(., 1)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    log_q = torch.stack([torch.distributions.Normal(m, 1.0).log_prob(z) for m in (-1.0, 1.0)]).logsumexp(0)
    log_q -= math.log(2)
    entropy = -(log_q.exp() * log_q).sum().item() * (24 / 20_000)
    truth = entropy - 0.5 * math.log(2 * math.pi * math.e)
    assert 0.3 < truth < 0.4
    guide = program(("z", lambda x: dist.Normal(x, 1.0).to_event(1)))
    x = torch.tensor([[-1.0], [1.0]])
    information = aggregate_posterior(program(("z", standard(1))), guide, x, num_samples=4000)
    mutual, marginal, kl = information.mutual_information, information.marginal_kl, information.kl
    assert mutual.mean == pytest.approx(truth, abs=4 * mutual.mc_se_of_mean)
    assert marginal.mean == pytest.approx(0.5 - truth, abs=4 * marginal.mc_se_of_mean)
    assert mutual.mc_se_of_mean < 0.01
    torch.testing.assert_close(kl.values, mutual.values + marginal.values, rtol=0, atol=1e-12)


def test_chunks_do_not_change_the_mixture():
    pair = Linear(OBLIQUE)
    whole, cut = (
        aggregate_posterior(pair.model, pair.guide, X, num_samples=500, chunk=chunk).mutual_information
        for chunk in (10, 3)
    )
    assert whole.mean == pytest.approx(cut.mean, abs=5 * math.hypot(whole.mc_se_of_mean, cut.mc_se_of_mean))


# Refusals

NORMAL = standard(2)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (program(("a", NORMAL), ("b", NORMAL)), "the guide: expected one latent site; got 'a', 'b'"),
        (program(), "the guide: expected one latent site; got none"),
        (program(("z", lambda x: dist.Poisson(torch.ones(2)).to_event(1))), "site 'z': expected a reparameterised"),
        (program(("z", lambda x: dist.LogNormal(torch.ones(2), 1.0).to_event(1))), "distribution on the reals; got"),
    ],
)
def test_refuses_guides_without_one_real_latent_site(guide: Callable[..., None], message: str):
    model = program(("z", NORMAL))
    for call in (
        lambda: refine(model, guide, X),
        lambda: active_units(guide, X),
        lambda: aggregate_posterior(model, guide, X),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: refine(p.model, p.guide, X, num_steps=0, num_samples=1), "num_samples: expected at least 2"),
        (lambda p: aggregate_posterior(p.model, p.guide, X, num_samples=1), "num_samples: expected at least 2"),
        (lambda p: refine(p.model, p.guide, X, X[1:]), "argument 1: expected 10 rows; got 9"),
        (lambda p: active_units(p.guide, X[:1]), "x: expected at least 2 data, for a variance; got 1"),
        (lambda p: aggregate_posterior(program(("y", NORMAL)), p.guide, X), "site 'y': expected it in both"),
        (lambda p: refine(program(("y", NORMAL)), p.guide, X), "site 'y': expected it in both"),
        (lambda p: gap_decomposition(p.model, p.guide, X, log_p=p.log_p(X[1:])), "log_p: expected that of x, with fin"),
    ],
)
def test_refuses_one_sample_one_datum_and_what_does_not_fit(call: Callable[[Linear], object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call(Linear(ORTHOGONAL))
    assert "\n" not in str(error.value)
