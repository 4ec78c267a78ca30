import math
import warnings

import numpy as np
import pytest
import torch

from ppl_vae.evaluation.diagnostics import khat_error, khat_limit, pareto_khat, tail_size
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.results import LogMeanExp
from ppl_vae.models import PPCA
from ppl_vae.programs import seeded

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz


def pareto(k, K, seed):
    """Weights u^-k have a tail of exponent k."""
    u = torch.rand(K, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return -k * u.log()


@pytest.mark.parametrize("K", [30, 400, 5000])
def test_the_tail_alone_gives_the_khat_of_all_weights(K):
    log_w = pareto(0.8, K, 0)
    statistics = LogMeanExp(1, K)
    statistics.add(log_w)
    expected = float(arviz.psislw(log_w[:, 0].numpy().copy())[1])
    assert statistics.khat().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_khat_is_the_exponent_of_the_tail(k):
    K = 20_000
    estimates = []
    for seed in range(5):
        statistics = LogMeanExp(1, K)
        statistics.add(pareto(k, K, seed))
        estimates.append(statistics.khat().item())
    # the maximum likelihood error of a Pareto exponent from m tail weights is (1 + k) / sqrt(m)
    error = (1 + k) / math.sqrt(3 * math.sqrt(K)) / math.sqrt(5)
    assert np.mean(estimates) == pytest.approx(k, abs=4 * error)


@pytest.mark.parametrize("k", [0.1, 0.5])
def test_the_error_of_khat_is_how_far_it_spreads(k):
    """Of Pareto weights, and but for the prior of k-hat, which draws it to 1/2: it spreads less by M / (M + 10)."""
    K, repeats = 1000, 400
    M = tail_size(K) - 1
    u = np.random.default_rng(0).random((K, repeats))
    tail = -k * np.log(np.sort(u, 0)[: tail_size(K)])
    khat = pareto_khat(tail, np.full(repeats, K))
    expected = khat_error(k, K) * M / (M + 10)
    assert abs(khat.std() / expected - 1) < 4 / np.sqrt(2 * repeats)


def test_what_has_no_khat():
    hundred = np.array([100])
    assert math.isnan(pareto_khat(np.zeros((5, 1)), np.array([20])).item())
    assert pareto_khat(np.zeros((21, 1)), hundred).item() == -math.inf
    tail = np.zeros((21, 1))
    tail[3:] = -math.inf
    assert pareto_khat(tail, hundred).item() == math.inf


@pytest.mark.parametrize(
    ("K", "limit"), [(1, -math.inf), (10, 0), (100, 0.5), (1000, 2 / 3), (2154, 0.69999), (2155, 0.7), (10**6, 0.7)]
)
def test_the_limit_of_khat_depends_on_the_number_of_samples(K, limit):
    assert khat_limit(K) == pytest.approx(limit, abs=1e-4)
    assert khat_limit(np.array([K, 100])).tolist() == pytest.approx([limit, 0.5], abs=1e-4)


@pytest.mark.parametrize(("log_w", "spread"), [(-500.0, 1e-3), (-60_000.0, 1e-2)])
def test_what_rounding_explains_has_no_khat(log_w, spread):
    """Log-weights that float32 rounds to a grid, of about the size of a datum's log p(x)."""
    u = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = LogMeanExp(1, 1000)
    s.add(log_w + spread * u)
    assert s.khat().item() == -math.inf
    s = LogMeanExp(1, 1000)
    s.add(log_w - 100 * spread * u.log())
    assert math.isfinite(s.khat().item())


def test_an_exact_posterior_has_no_khat_in_float32():
    """All weights are p(x), but for the rounding of sums over 784 dimensions."""
    with seeded(0):
        pair = PPCA((784,), 5)
        pair.W.data.normal_()
        x = pair.generate(30).sample().detach()
    result = log_likelihood(pair.model, pair.guide, x, num_samples=200)
    assert bool((result.khat == -math.inf).all())
    assert (result.log_p - pair.log_prob(x)).abs().max() < 2e-3
