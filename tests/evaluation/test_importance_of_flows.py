"""log p(x) of every prior with every posterior, flows among them, against quadrature in two dimensions."""

import functools
import math

import pytest
import torch
from torch import nn

from ppl_vae.components import choices, create
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import ExemplarPrior, Prior
from ppl_vae.programs import evaluating, seeded
from ppl_vae.training.monitoring import elbo_parts

SIZES = {
    "vamp-prior": "vamp-prior:num_components=6",
    "exemplar-prior": "exemplar-prior:num_exemplars=3",
    "normalizing-flow": "normalizing-flow:hidden_size=16",
    "inverse-autoregressive-flow": "inverse-autoregressive-flow:hidden_size=16,context_size=3",
    "neural-spline-flow": "neural-spline-flow:hidden_size=16,context_size=3",
}
X = torch.tensor([[0.5, 0.2, 0.6], [-0.4, 0.5, 0.3], [0.1, -0.7, -0.2]])
PAIRS = [(prior, posterior) for prior in choices(Prior) for posterior in choices(Posterior)]


@functools.cache
def vae(prior, posterior, noise=0.05):
    """z in R^2, x in R^3, with noise added to the weights of prior and posterior: neither is what it began as. The
    posterior is wide, and the likelihood narrow, so that importance weights have a variance."""
    with seeded(0):
        posterior = create(Posterior, SIZES.get(posterior, posterior), latent_size=2)
        encoder = nn.Linear(3, posterior.num_params)
        with torch.no_grad():
            encoder.weight *= 0.25
            encoder.bias *= 0.25
        given = {"encoder": encoder, "posterior": posterior, "event_shape": (3,)}
        prior = create(Prior, SIZES.get(prior, prior), latent_size=2, **given)
        if isinstance(prior, ExemplarPrior):
            prior.initialise(X)
        with torch.no_grad():
            for parameter in (*prior.parameters(), *posterior.parameters()):
                parameter += noise * torch.randn_like(parameter)
        decoder = nn.Sequential(nn.Linear(2, 3), nn.Unflatten(-1, (3, 1)))
        with torch.no_grad():
            decoder[0].weight *= 3
        return VAE(encoder, decoder, prior=prior, likelihood=Gaussian(1.0), posterior=posterior).eval()


@functools.cache
def exact(*pair):
    """log p(x) = log of the integral of p(z) p(x|z) over the plane."""
    model = vae(*pair)
    axis = torch.linspace(-8, 8, 161)
    z = torch.cartesian_prod(axis, axis)
    with evaluating(model.model):
        log_p = model.prior().log_prob(z).double()[:, None]
        log_p = log_p + model.likelihood(model.decoder(z)[:, None]).to_event(1).log_prob(X).double()
    return log_p.logsumexp(0) + 2 * math.log(16 / 160)


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_every_prior_with_every_posterior(prior, posterior):
    """A flow's Jacobian is part of its density."""
    model = vae(prior, posterior)
    result = log_likelihood(model.model, model.guide, X, num_samples=2000)
    assert result.num_unreliable == 0  # else the error says little
    assert bool(((result.log_p - exact(prior, posterior)).abs() < 5 * result.mc_se + 2e-3).all())


@pytest.mark.parametrize(("prior", "posterior"), PAIRS)
def test_the_kl_is_that_of_the_samples(prior, posterior):
    """In closed form or not, by the distributions' types."""
    model = vae(prior, posterior)
    with seeded(0):
        log_w = log_weights(model.model, model.guide, X, num_samples=1000)
    elbo = elbo_parts(model.model, model.guide, X, num_samples=1000, seed=1).elbo
    se = 2**0.5 * log_w.std(0) / 1000**0.5  # of either, if nothing were in closed form
    assert bool(((log_w.mean(0) - elbo).abs() < 5 * se).all())


@pytest.mark.parametrize("posterior", ["inverse-autoregressive-flow", "neural-spline-flow"])
def test_a_flow_is_scored_with_its_own_samples_determinant(posterior, monkeypatch):
    """Right, far from a normal, and without an inverse."""

    def inverse(self, y):
        raise AssertionError("a draw was inverted")

    pair = "standard-normal", posterior, 0.2
    model = vae(*pair)
    monkeypatch.setattr("zuko.transforms.AutoregressiveTransform._inverse", inverse)
    result = log_likelihood(model.model, model.guide, X, num_samples=10_000)
    assert result.num_unreliable == 0
    assert bool(((result.log_p - exact(*pair)).abs() < 5 * result.mc_se).all())
    with seeded(0):
        _, log_det = model.encode(X).transform.call_and_ladj(torch.randn(1000, 3, 2))
    assert log_det.std() > 0.1
