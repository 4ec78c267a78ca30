"""Discrete latents against the sum over all their codes: log p(x), the ELBO, and gradients."""

import itertools
import math

import pyro
import pytest
import torch
from small_runs import quiet_train
from tiny import tiny_images
from torch.nn.functional import one_hot

from ppl_vae.data.dataset import Dataset
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble, build
from ppl_vae.experiments.runs import load_run
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import DiscreteVAE
from ppl_vae.objectives import AnalyticKL, Elbo, GumbelSoftmax, LeaveOneOut
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit
from ppl_vae.training.monitoring import elbo_parts

L, K, SHAPE = 2, 3, (1, 2, 2)
CODES = one_hot(torch.tensor([*itertools.product(range(K), repeat=L)]), K).double()  # (K^L, L, K)


def small(**settings):
    config = TrainConfig(model=f"dense-dvae:hidden=8,categories={K}", latent_size=L, **settings)
    vae = build(config, SHAPE).double()
    with seeded(1), torch.no_grad():
        vae.prior_logits.normal_()
        vae.encoder.net[-1].weight.mul_(2)
        x = vae.generate(4).sample()
    return vae, x


def of_all_codes(vae, x):
    """log p(x, z) and log q(z|x), each (codes, data)."""
    log_p_x = vae.likelihood(vae.decoder(CODES.flatten(-2))[:, None]).log_prob(x).flatten(2).sum(-1)
    log_p = vae.prior_logits.log_softmax(-1).mul(CODES).sum((-1, -2))
    log_q = vae.encoder(x).unflatten(-1, (L, K)).log_softmax(-1).mul(CODES[:, None]).sum((-1, -2))
    return log_p_x + log_p[:, None], log_q


def elbo_of(vae, x):
    log_joint, log_q = of_all_codes(vae, x)
    return (log_q.exp() * (log_joint - log_q)).sum(0)


def gradients(objective, vae, x, num_draws, copies=100):
    """The loss and all gradients in a row for one datum, (num_draws,) and (num_draws, parameters): each the mean over
    copies of the datum."""
    losses, rows = [], []
    with pyro.get_param_store().scope(), seeded(0):
        for _ in range(num_draws):
            loss = objective.differentiable_loss(vae.model, vae.guide, x.expand(copies, *SHAPE)) / copies
            grads = torch.autograd.grad(loss, [*vae.parameters()])
            losses.append(loss.detach())
            rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(losses), torch.stack(rows)


def assert_mean(draws, expected):
    error = 5 * draws.std(0) / math.sqrt(len(draws)) + 1e-9
    assert bool(((draws.mean(0) - expected).abs() < error).all())


def test_log_p_is_the_sum_over_all_codes():
    vae, x = small()
    exact = of_all_codes(vae, x)[0].logsumexp(0).detach()
    result = log_likelihood(vae.model, vae.guide, x, num_samples=4000)
    assert 0 < result.mc_se.max() < 0.05
    assert bool(((result.log_p - exact).abs() < 5 * result.mc_se).all())
    all_x = torch.tensor([*itertools.product((0.0, 1.0), repeat=4)]).double().reshape(-1, *SHAPE)
    assert of_all_codes(vae, all_x)[0].exp().sum().item() == pytest.approx(1.0)
    parts = elbo_parts(vae.model, vae.guide, x, num_samples=2000)
    torch.testing.assert_close(parts.elbo, elbo_of(vae, x).detach(), atol=0.1, rtol=0)
    with torch.no_grad():
        log_q = of_all_codes(vae, x)[1]
        log_p = vae.prior_logits.log_softmax(-1).mul(CODES).sum((-1, -2))
    torch.testing.assert_close(parts.kl, (log_q.exp() * (log_q - log_p[:, None])).sum(0))


@pytest.mark.parametrize("objective", [Elbo(), LeaveOneOut(2), LeaveOneOut(5)], ids=["elbo", "two", "five"])
def test_the_score_function_has_the_gradient_of_the_elbo(objective):
    vae, x = small()
    loss = -elbo_of(vae, x[:1]).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*vae.parameters()])])
    losses, draws = gradients(objective, vae, x[:1], 40)
    assert_mean(losses, loss.detach())
    assert_mean(draws, expected)


def test_what_is_left_out_is_variance():
    vae, x = small()
    plain, centred = (gradients(objective, vae, x[:1], 40)[1].var(0).sum() for objective in (Elbo(4), LeaveOneOut(4)))
    assert centred < plain / 4


def test_straight_through_the_loss_is_the_elbos_and_relaxed_it_tends_to_it():
    vae, x = small()
    exact = -elbo_of(vae, x[:1]).sum().detach()
    losses, _ = gradients(GumbelSoftmax(straight_through=True, num_particles=2), vae, x[:1], 40)
    assert_mean(losses, exact)
    assert losses.std() > 0
    biases = [gradients(GumbelSoftmax(t), vae, x[:1], 40)[0].mean() - exact for t in (5.0, 0.5, 0.02)]
    assert abs(biases[2]) < abs(biases[0]) / 5


@pytest.mark.parametrize("straight_through", [False, True])
def test_the_gradient_of_a_relaxed_draw(straight_through):
    """Relaxed it is that of the loss on the same noise, by differences. Straight through it is not, for the loss is
    flat but for jumps; the decoder's is."""
    vae, x = small()
    objective, params = GumbelSoftmax(0.7, straight_through), dict(vae.named_parameters())

    def loss():
        with seeded(0), pyro.get_param_store().scope():
            return objective.differentiable_loss(vae.model, vae.guide, x)

    names = ["decoder.net.0.weight", "prior_logits"] + ["encoder.net.1.weight"] * (not straight_through)
    grads = torch.autograd.grad(loss(), [params[name] for name in names])
    for name, grad in zip(names, grads, strict=True):
        with torch.no_grad(), seeded(2):
            step = 1e-6 * torch.randn_like(params[name])
            params[name] += step
            above = loss()
            params[name] -= 2 * step
            below = loss()
            params[name] += step
        torch.testing.assert_close((above - below) / 2, (grad * step).sum(), rtol=1e-4, atol=1e-12)
    assert torch.autograd.grad(loss(), params["encoder.net.1.weight"])[0].abs().max() > 0


def test_without_a_stand_in_discrete_latents_are_refused():
    vae, x = small()
    with seeded(0), pyro.get_param_store().scope(), pytest.raises(ValueError, match="a reparameterised distribution"):
        AnalyticKL().differentiable_loss(vae.model, vae.guide, x)


OBJECTIVES = [LeaveOneOut, GumbelSoftmax, lambda: GumbelSoftmax(straight_through=True)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["leave-one-out", "relaxed", "straight-through"])
def test_it_learns_and_a_graph_is_the_program(objective, graphs):
    x = torch.eye(4).repeat(6, 1).reshape(24, *SHAPE)
    weights = []
    for compiled in (False, True):
        vae, _ = small()
        settings = {"epochs": 10, "batch_size": 12, "learning_rate": 0.05, "compiled": compiled}
        history = fit(vae.model, vae.guide, x.double(), elbo=objective(), show_progress=False, **settings)
        weights.append(vae.state_dict())
    torch.testing.assert_close(*weights)
    assert len(graphs) == 1
    assert history["train_elbo"][-1] > history["train_elbo"][0] + 0.3


def test_the_ladder_of_evaluation_says_that_it_stays_with_the_guide():
    vae, x = small()
    message = "not refined, samples are of the guide: site 'z': expected a continuous latent site; got one on onehot"
    with pytest.warns(RuntimeWarning, match=message):
        result = log_likelihood_within(vae.model, vae.guide, x, tolerance=1e-3, num_samples=50, max_samples=200)
    assert not result.rung.any()
    exact = of_all_codes(vae, x)[0].logsumexp(0).detach()
    assert bool(((result.log_p - exact).abs() < 5 * result.mc_se + 1e-3).all())
    with pytest.raises(ValueError, match="site 'z': expected a continuous latent site; got one on onehot"):
        annealed_log_likelihood(vae.model, vae.guide, x, num_chains=2, num_steps=2)


def test_a_run_folder_holds_discrete_latents(tmp_path):
    dataset = Dataset("toy", tiny_images(60), tiny_images(12))
    config = TrainConfig(model="dense-dvae:hidden=8,categories=4", latent_size=3, epochs=1, batch_size=16)
    run = quiet_train(config, tmp_path / "run", dataset)
    again = load_run(tmp_path / "run", dataset=dataset)
    assert again.config.objective == "leave-one-out"
    x = dataset.test[:4]
    assert torch.equal(run.reconstruct(x), again.reconstruct(x))
    assert torch.equal(run.sample(3), again.sample(3))
    z = again.encode(x)
    torch.testing.assert_close(z.sum(-1), torch.ones(4, 3))
    assert again.decode(z).shape == (4, 1, 6, 6)
    for settings, objective in ({}, "leave-one-out"), ({"objective": "gumbel-softmax"}, "gumbel-softmax"):
        assert assemble(TrainConfig(model="dense-dvae", **settings)).config.objective == objective
    with pytest.raises(ValueError, match="num_categories: expected at least 2; got 1"):
        build(TrainConfig(model="dense-dvae:categories=1"), (1, 4, 4))
    with pytest.raises(ValueError, match="num_latents: expected at least 1; got 0"):
        DiscreteVAE(torch.nn.Identity(), torch.nn.Identity(), num_latents=0, num_categories=2, likelihood=Bernoulli())
