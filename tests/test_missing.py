"""Data with missing values, NaN: models are trained and scored on what is seen of each datum."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vae import TrainConfig, fit, impute, load, log_likelihood, log_likelihood_within, train
from ppl_vae.components import choices
from ppl_vae.distributions import standard_units
from ppl_vae.experiments.preparation import build
from ppl_vae.likelihoods import Gaussian, Likelihood, Seen
from ppl_vae.models import VAE
from ppl_vae.networks import Filled
from ppl_vae.objectives import Elbo
from ppl_vae.posteriors import FullNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.programs import own_param_store, seeded

D, L, SCALE = 5, 2, 0.5


@pytest.fixture
def linear():
    """x = W z + b + noise, with values missing at random: (model, data, W, b)."""
    with seeded(0):
        decoder = nn.Linear(L, D)
        encoder = nn.Sequential(Filled(), nn.Linear(D, FullNormal(L).num_params))
        vae = VAE(
            encoder,
            nn.Sequential(decoder, nn.Unflatten(-1, (D, 1))),
            prior=StandardNormal(L),
            likelihood=Seen(Gaussian(SCALE)),
            posterior=FullNormal(L),
        )
        x = torch.randn(12, L) @ decoder.weight.T + decoder.bias + SCALE * torch.randn(12, D)
        x = x.detach().masked_fill(torch.rand(12, D) < 0.4, math.nan)
    x[0, 0] = 0.3  # something of each
    return vae, x, decoder.weight.detach(), decoder.bias.detach()


def exact_log_p(x, W, b):
    """Of what is seen: N(b_s, W_s W_s^T + scale^2 I)."""
    log_p = []
    for row in x:
        s = ~row.isnan()
        covariance = W[s] @ W[s].T + SCALE**2 * torch.eye(int(s.sum()))
        log_p.append(dist.MultivariateNormal(b[s], covariance).log_prob(row[s]) if s.any() else torch.zeros(()))
    return torch.stack(log_p).double()


def test_log_p_is_that_of_what_is_seen(linear):
    vae, x, W, b = linear
    exact = exact_log_p(x, W, b)
    plain = log_likelihood(vae.model, vae.guide, x, num_samples=20_000)
    assert plain.quantity == "log p(x seen)"
    ladder = log_likelihood_within(vae.model, vae.guide, x, num_samples=1000)
    assert ((ladder.log_p - exact).abs() < 4 * ladder.mc_se + 1e-3).all()
    assert (plain.log_p - exact).mean() < 4 * plain.mc_se_of_mean


def test_missing_values_are_imputed_by_the_conditional_mean(linear):
    vae, x, W, b = linear
    found = impute(vae.model, vae.guide, x, seen=~x.isnan(), num_samples=2000)
    for row, mean in zip(x, found.mean, strict=True):
        s = ~row.isnan()
        gain = W @ W[s].T @ torch.linalg.inv(W[s] @ W[s].T + SCALE**2 * torch.eye(int(s.sum())))
        expected = b + gain @ (row[s] - b[s])
        torch.testing.assert_close(mean[~s], expected[~s], rtol=0, atol=0.1)
        assert torch.equal(mean[s], row[s])


@pytest.mark.parametrize("name", choices(Likelihood))
def test_what_is_missing_has_no_part_in_density_and_gradient(name):
    likelihood = choices(Likelihood)[name]()
    size = (4, 3)
    with seeded(0):
        params = torch.randn(*size, likelihood.params_per_dim).requires_grad_()
        value = likelihood(params).sample().float().detach()
        seen = torch.rand(size) < 0.6
    if name == "gaussian-optimal":  # its variance is that of the whole batch
        with pytest.raises(
            ValueError, match="missing: expected a likelihood of each value alone; got gaussian-optimal"
        ):
            build(TrainConfig(missing=True, likelihood=name, model="dense-vae"), (3,))
        return
    p = Seen(likelihood)(params)
    log_p = p.log_prob(value.masked_fill(~seen, math.nan))
    expected = likelihood(params).log_prob(value).where(seen, 0.0)
    torch.testing.assert_close(log_p, expected)
    (gradient,) = torch.autograd.grad(log_p.sum(), params)
    (of_seen,) = torch.autograd.grad(expected.sum(), params)
    torch.testing.assert_close(gradient, of_seen)
    assert (gradient[~seen] == 0).all()


def test_training_sees_no_difference_between_what_is_missing(linear):
    vae, x, _, _ = linear
    with own_param_store(), seeded(0):
        loss = Elbo().differentiable_loss(vae.model, vae.guide, x)
    assert loss.isfinite()
    history = fit(vae.model, vae.guide, x, epochs=60, batch_size=4, learning_rate=0.02, show_progress=False)
    assert history["train_elbo"][-1] > history["train_elbo"][0]


def test_units_are_those_of_what_is_there():
    x = torch.tensor([[1.0, math.nan, 3.0], [3.0, math.nan, math.nan]])
    mean, scale = standard_units(x)
    assert mean.tolist() == [2, 0, 3]
    assert scale.tolist() == [1, 1, 1]


def test_a_table_with_gaps_is_trained_scored_and_loaded(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(90, 4)) * [1, 10, 100, 1] + [0, 5, 0, -3]
    table[rng.random(table.shape) < 0.2] = np.nan
    table[:, 0] = rng.normal(size=90)
    np.save(tmp_path / "table.npy", table.astype(np.float32))
    config = TrainConfig(
        model="dense-vae:hidden=8", dataset=str(tmp_path / "table.npy"), likelihood="gaussian-learned", latent_size=2,
        epochs=2, batch_size=20, standardize=True, missing=True, prior="vamp-prior:num_components=5",
    )  # fmt: skip
    run = train(config, tmp_path / "run", show_progress=False)
    scored = run.score(run.dataset.test, num_samples=50)
    assert scored.log_p.isfinite().all()
    assert run.model.prior.pseudo_inputs.isfinite().all()
    with pytest.raises(ValueError, match=r"expected numbers; got NaN in \d+ of \d+ rows. .* say so: --missing"):
        train(TrainConfig(dataset=config.dataset, likelihood="gaussian-learned"), tmp_path / "other")


def test_images_have_no_missing_values(tmp_path):
    with pytest.raises(ValueError, match="missing: expected vectors, which may have NaN; got images"):
        train(TrainConfig(missing=True), tmp_path, dataset=load("mnist-mini"))
