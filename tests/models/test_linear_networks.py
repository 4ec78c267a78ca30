"""Models built of linear networks, whose log p(x) is known exactly."""

import math
from itertools import pairwise

import pyro
import pytest
import torch
from linear_models import (
    CASES,
    CLASSES,
    EVENT,
    ROUNDING,
    SCALE,
    D,
    classes,
    conditional,
    hierarchical,
    labelled_data,
    ladder,
    linear_gaussian,
    marginalised,
    semi_supervised,
)

from ppl_vae.components import choices, create
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.objectives import ClosedFormKL, Elbo, ImportanceWeighted, Objective
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO
from ppl_vae.training.fitting import fit
from ppl_vae.training.monitoring import elbo_parts


@pytest.mark.parametrize("make", CASES)
def test_under_the_exact_posterior_each_weight_is_p_of_x(make):
    case = make()
    assert check_model(*case.pair, *case.data).ok
    with seeded(0):
        log_w = log_weights(*case.pair, *case.data, num_samples=7)
    torch.testing.assert_close(log_w.float(), case.exact.expand(7, -1), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(
        elbo_parts(*case.pair, *case.data, num_samples=500).elbo.float(), case.exact, atol=0.5, rtol=0
    )  # a closed-form KL and a reconstruction that is drawn


@pytest.mark.parametrize("make", CASES)
def test_under_another_guide_log_p_is_within_its_error(make):
    case = make(width=1.2)
    result = log_likelihood(*case.pair, *case.data, num_samples=5000)
    assert result.khat.max() < 0.7
    error = (result.log_p - case.exact).abs()
    assert result.mc_se.max() < 0.05
    assert bool((error < 5 * result.mc_se + ROUNDING).all())
    assert not bool((error < ROUNDING).all())  # there is something to weigh


def test_the_class_that_is_summed_out_weighs_less():
    drawn, summed = semi_supervised(width=1.2), marginalised(width=1.2)
    assert torch.equal(drawn.exact, summed.exact)
    errors = [log_likelihood(*case.pair, *case.data, num_samples=2000).mc_se.mean() for case in (drawn, summed)]
    assert errors[1] < errors[0]
    annealed = annealed_log_likelihood(*summed.pair, *summed.data, num_chains=16, num_steps=10)  # no discrete site
    error = (annealed.log_p - summed.exact).abs()
    assert bool((error < 5 * annealed.mc_se + ROUNDING).all())


def test_a_marginal_pair_against_quadrature():
    case = semi_supervised(marginal=True, latent_size=1)
    by_quadrature = log_p_by_quadrature(case.pair[0], *case.data)
    torch.testing.assert_close(by_quadrature, case.exact.double(), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("make", [hierarchical, ladder, conditional, linear_gaussian])
def test_gradients_are_those_of_every_path(make):
    """Against differences of the loss on the same noise, in which a path that is cut off would show."""
    case = make()
    case.module.double()
    data = tuple(t.double() if t.is_floating_point() else t for t in case.data)
    params = [*case.module.parameters()]
    with seeded(0):
        for p in params:
            p.data += 0.1 * torch.randn_like(p)
        directions = [torch.randn_like(p) for p in params]

    def loss(step):
        for p, v in zip(params, directions, strict=True):
            p.data += step * v
        with seeded(1), pyro.get_param_store().scope():
            value = Elbo().differentiable_loss(*case.pair, *data)
        gradients = torch.autograd.grad(value, params)
        for p, v in zip(params, directions, strict=True):
            p.data -= step * v
        return value.item(), sum((g * v).sum() for g, v in zip(gradients, directions, strict=True)).item()

    difference = (loss(1e-5)[0] - loss(-1e-5)[0]) / 2e-5
    assert loss(0.0)[1] == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("objective", [*choices(Objective)])
def test_objectives_of_a_hierarchy(objective):
    """At the exact posterior, where each bound is log p(x), by each draw or on average."""
    case = hierarchical(latent1=1, family=DiagonalNormal)
    elbo = create(Objective, "free-bits:nats=0" if objective == "free-bits" else objective)
    with seeded(0), pyro.get_param_store().scope():
        losses = torch.tensor([elbo.loss(*case.pair, *case.data) for _ in range(200)])
        elbo.loss_and_grads(*case.pair, *case.data)
    error = 5 * losses.std() / math.sqrt(len(losses)) + ROUNDING * len(case.exact)
    assert abs(losses.mean() + case.exact.sum()) < error
    assert (losses.std() < ROUNDING * len(case.exact)) != isinstance(elbo, ClosedFormKL)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in case.module.parameters())


def test_the_bound_of_a_hierarchy_rises_with_its_particles():
    case = hierarchical(width=2.0)
    bounds = []
    with seeded(0), pyro.get_param_store().scope(), torch.no_grad():
        for K in (1, 8, 64):
            losses = torch.tensor([ImportanceWeighted(K).loss(*case.pair, *case.data) for _ in range(200)])
            bounds.append((-losses.mean(), losses.std() / math.sqrt(len(losses))))
    for (low, low_se), (high, high_se) in pairwise(bounds):
        assert high - low > 5 * (low_se**2 + high_se**2).sqrt()
    assert bounds[-1][0] < case.exact.sum() + 5 * bounds[-1][1]


@pytest.mark.parametrize("make", [hierarchical, ladder, conditional, linear_gaussian])
def test_a_graph_is_the_program(make, monkeypatch):
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph, **kwargs: graphs.append(graph) or graph)
    weights = []
    for compiled in (False, True):
        case = make()
        history = fit(*case.pair, *case.data, epochs=4, batch_size=6, compiled=compiled, show_progress=False)
        assert history["loss"][-1] < 50
        weights.append(case.module.state_dict())
    torch.testing.assert_close(weights[0], weights[1])
    graphs.clear()
    case, loss = make(), CompiledTrace_ELBO()
    with pyro.get_param_store().scope(), seeded(0):
        for _ in range(3):
            loss.loss_and_grads(*case.pair, *case.data)
    assert len(graphs) == 1


@pytest.mark.parametrize("make", [hierarchical, ladder])
def test_what_a_hierarchy_generates_and_reconstructs(make):
    """x ~ p(x), so that z1 is drawn and not its mean; and E[W z + b | x] = m + (S - scale^2 I) S^-1 (x - m), p(x) =
    N(m, S), so that z1 is the posterior's and not the prior's."""
    case = make()
    p, n = case.p_x, 20_000
    with torch.no_grad(), seeded(0):
        x = case.module.generate(n).sample().flatten(1)
        S = p.covariance_matrix
        assert bool(((x.mean(0) - p.loc).abs() < 5 * (S.diag() / n).sqrt()).all())
        # the standard error of a covariance is sqrt((S_ii S_jj + S_ij^2) / n)
        error = ((S.diag()[:, None] * S.diag() + S.square()) / n).sqrt()
        assert bool(((x.T.cov() - S).abs() < 5 * error).all())
        (data,) = case.data
        signal = S - SCALE**2 * torch.eye(D)
        expected = p.loc + (data.flatten(1) - p.loc) @ torch.linalg.solve(S, signal)
        torch.testing.assert_close(case.module.reconstruct(data).flatten(1), expected, atol=1e-4, rtol=0)


def test_a_condition_may_be_a_vector():
    """Unit vectors are labels; and x | c ~ N(C c, W W^T + scale^2 I) for others, C the classes' means."""
    vae, p_x = classes()
    x, y = labelled_data(p_x, 6)
    x = x.reshape(6, *EVENT)
    c = torch.eye(CLASSES)[y]
    by_label, by_vector = (log_likelihood(vae.model, vae.guide, x, t, num_samples=5).log_p for t in (y, c))
    assert torch.equal(by_label, by_vector)
    c = 0.5 * c + 0.25
    p = torch.distributions.MultivariateNormal(c @ p_x.loc, p_x.covariance_matrix[:1].expand(6, -1, -1))
    result = log_likelihood(vae.model, vae.guide, x, c, num_samples=5)
    torch.testing.assert_close(result.log_p, p.log_prob(x.flatten(1)).to(result.log_p), atol=ROUNDING, rtol=0)
    with seeded(0), torch.no_grad():
        assert vae.generate(c).sample().shape == (6, *EVENT)
        assert vae.reconstruct(x, c).shape == x.shape
