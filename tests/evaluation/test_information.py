"""What a latent tells of its datum, against closed forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from linear_pairs import OBLIQUE, ORTHOGONAL, Linear, Net, X, program, standard, within

from ppl_vae.evaluation.information import active_units, aggregate_posterior


def test_a_dead_dimension_is_not_active():
    scale, sd = torch.tensor([1.0, 0.0, 0.3, 0.05, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0])
    guide = program(("z", lambda x: dist.Normal(x[:, [0, 1, 2, 3, 0]] * scale + 5, sd).to_event(1)))
    units = active_units(guide, X, chunk=3)
    ratios = (X[:, [0, 1, 2, 3, 0]] * scale).double().var(0) / sd.square()
    torch.testing.assert_close(units.ratios, ratios, rtol=1e-4, atol=1e-10)
    assert units.num_active == 2
    assert active_units(guide, X, threshold=0.001).num_active == 3


def test_a_dimension_is_active_by_its_precision_and_not_by_its_scale():
    """Means that move by 0.001 with a posterior of 0.0001 tell 2.3 nats; by 1 with one of 100, nothing."""
    scale, sd = torch.tensor([1e-3, 1.0]), torch.tensor([1e-4, 100.0])
    units = active_units(program(("z", lambda x: dist.Normal(x[:, :2] * scale, sd).to_event(1))), X)
    assert units.num_active == 1
    assert units.ratios[0] > 50


def test_a_latent_that_is_the_prior_tells_nothing():
    information = aggregate_posterior(program(("z", standard(3))), program(("z", standard(3))), X)
    for term in (information.kl, information.mutual_information, information.marginal_kl):
        assert term.values.abs().max() < 1e-5
        assert term.mc_se.max() < 1e-5


def test_a_latent_off_the_prior_that_ignores_x_has_marginal_kl_alone():
    guide = program(("z", lambda x: dist.Normal(torch.ones(3), 1.0).to_event(1).expand([len(x)])))
    information = aggregate_posterior(program(("z", standard(3))), guide, X, num_samples=200)
    assert information.mutual_information.values.abs().max() < 1e-5
    assert information.marginal_kl.mean == pytest.approx(1.5, abs=4 * information.marginal_kl.mc_se_of_mean)
    assert information.marginal_kl.mc_se_of_mean == pytest.approx(math.sqrt(3 / 2000), rel=0.1)


def test_latents_well_apart_tell_log_n():
    x = torch.arange(12.0)[:, None]
    guide = program(("z", lambda x: dist.Normal(x, 0.01).to_event(1)))
    information = aggregate_posterior(program(("z", standard(1))), guide, x, num_samples=50, chunk=5)
    assert (information.mutual_information.values - math.log(12)).abs().max() < 1e-5
    kl = (-math.log(0.01) - 0.5 + (0.01**2 + x.double() ** 2) / 2)[:, 0]
    assert within(information.kl, kl)
    assert within(information.marginal_kl, kl - math.log(12))


def test_two_latents_that_overlap_against_quadrature():
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


@pytest.mark.parametrize("flow", [False, True])
def test_any_pair_of_modules_is_left_as_it_was(flow: bool):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(flow=flow)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    units = active_units(net.guide, X, X)
    means = net.encoder(X).chunk(2, -1)[0].detach() * (2 if flow else 1)
    variances = (net.encoder(X).chunk(2, -1)[1].detach().exp() * (2 if flow else 1)).double().square().mean(0)
    torch.testing.assert_close(units.ratios, means.double().var(0) / variances, rtol=0.2 if flow else 1e-5, atol=0)
    information = aggregate_posterior(net.model, net.guide, X, X)
    assert 0 < information.mutual_information.mean <= math.log(10)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: aggregate_posterior(p.model, p.guide, X, num_samples=1), "num_samples: expected at least 2"),
        (lambda p: active_units(p.guide, X[:1]), "x: expected at least 2 data, for a variance; got 1"),
        (lambda p: aggregate_posterior(program(("y", standard(2))), p.guide, X), "site 'y': expected it in both"),
    ],
)
def test_refuses_one_sample_one_datum_and_what_does_not_fit(call: Callable[[Linear], object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call(Linear(ORTHOGONAL))
    assert "\n" not in str(error.value)
