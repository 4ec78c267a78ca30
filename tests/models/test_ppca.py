"""Probabilistic PCA: its log p(x), its maximum likelihood, and SVI."""

import math

import pytest
import torch
from linear_models import (
    ROUNDING,
)
from torch.distributions import MultivariateNormal

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.models import PPCA
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit


def test_ppcas_log_prob_is_the_dense_gaussians():
    with seeded(0):
        ppca = PPCA((2, 3), 4)
        ppca.mean.data.normal_()
        ppca.log_scale.data.fill_(-4.0)  # float32 would cancel
        x = ppca.generate(50).sample()
    W, mean = ppca.W.detach().double(), ppca.mean.detach().double()
    dense = MultivariateNormal(mean, W @ W.T + math.exp(-8) * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(ppca.log_prob(x), dense.log_prob(x.double().flatten(1)), rtol=1e-6, atol=1e-6)
    assert ppca.log_prob(x[0]).shape == ()


def test_the_posterior_s_precision_is_symmetric_where_rounding_is_not():
    with seeded(0):
        ppca, x = PPCA((28, 28), 10), torch.randn(1, 28, 28)
        ppca.W.data.normal_()
    q = ppca.encode(x)  # torch refuses a matrix that is not
    M = ppca.W.T @ ppca.W + torch.eye(10)
    torch.testing.assert_close(q.precision_matrix[0], M, rtol=1e-4, atol=1e-3)


def test_the_maximum_likelihood_is_one():
    with seeded(0):
        true = PPCA((5, 2), 3)
        true.log_scale.data.fill_(-0.7)
        x = true.generate(4000).sample().detach()
    ppca = PPCA.maximum_likelihood(x.double(), 3)
    assert ppca.W.is_contiguous()
    assert (ppca.W.dtype, ppca.zeros.dtype) == (torch.float64, torch.float64)
    log_p = ppca.log_prob(x).mean()
    for gradient in torch.autograd.grad(log_p, [*ppca.parameters()]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)
    assert log_p > true.log_prob(x).mean()
    # 2 N (log p of the fit - of the truth) ~ chi^2 with 30 - 3 (rotations) + 10 + 1 degrees of freedom
    assert 2 * len(x) * (log_p - true.log_prob(x).mean()) < 38 + 5 * math.sqrt(2 * 38)
    for eigenvalue, of_truth in zip(
        *(torch.linalg.eigvalsh((p.W.T @ p.W).double()) for p in (ppca, true)), strict=True
    ):
        assert eigenvalue.item() == pytest.approx(of_truth.item(), rel=0.2)


@pytest.mark.parametrize("D", [4, 10, 30])
def test_the_maximum_likelihood_of_data_alike_in_all_directions_is_a_sphere(D):
    """The mean of equal eigenvalues may round to more than the largest."""
    x = torch.cat([torch.eye(D), -torch.eye(D)]) * 0.7
    ppca = PPCA.maximum_likelihood(x, 1)
    torch.testing.assert_close(ppca.W.detach(), torch.zeros(D, 1), atol=1e-6, rtol=0)
    assert ppca.log_scale.exp().item() == pytest.approx(0.7 / D**0.5)


def test_ppca_as_the_oracle_and_under_svi():
    with seeded(0):
        x = PPCA((4,), 2).generate(400).sample().detach() + 1.0
    best = PPCA.maximum_likelihood(x, 2)
    result = log_likelihood(best.model, best.guide, x, num_samples=5)
    torch.testing.assert_close(result.log_p, best.log_prob(x), atol=ROUNDING, rtol=0)
    with seeded(1):
        ppca = PPCA((4,), 2)
    fit(ppca.model, ppca.guide, x, epochs=60, batch_size=100, learning_rate=3e-2, show_progress=False)
    gap = (best.log_prob(x) - ppca.log_prob(x)).mean()
    assert 0 <= gap < 0.05
    z = best.encode(x).mean
    torch.testing.assert_close(best.reconstruct(x), best.decode(z))
    assert (x - best.reconstruct(x)).square().mean() < x.var()


def test_sizes_and_data_without_a_solution_are_refused():
    with pytest.raises(ValueError, match="latent_size: expected at least 1; got 0"):
        PPCA((3,), 0)
    with pytest.raises(ValueError, match="latent_size: expected less than the 4 dimensions of x; got 4"):
        PPCA.maximum_likelihood(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 4)
    with pytest.raises(ValueError, match="x: expected data that spread over more than 2 dimensions"):
        PPCA.maximum_likelihood(torch.eye(2).repeat(3, 1) @ torch.ones(2, 4), 2)
