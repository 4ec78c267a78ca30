"""Figures of samples, against sets counted by hand, closed forms and torchmetrics."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from ppl_vae.evaluation.quality import (
    SampleQuality,
    frechet_distance,
    kernel_distances,
    sample_quality,
)
from ppl_vae.programs import seeded


def values(quality: SampleQuality) -> list[float]:
    return [estimate["value"] for estimate in dataclasses.asdict(quality).values()]


def kernel(x: Tensor, y: Tensor) -> Tensor:
    everyone = (torch.ones(len(t), 1) for t in (x, y))
    return kernel_distances(x, y, *everyone)[0]


def test_neighbours_are_counted_as_by_hand():
    """The data's balls are [-100, 0], [-1, 1], [0, 2], [1, 5], [3, 17], [10, 390] and [200, 1800]; those of the samples
    [-3, 4], [2, 6], [4, 8], [6, 54] and [30, 3970]."""
    data = torch.tensor([-50.0, 0, 1, 3, 10, 200, 1000])[:, None]
    samples = torch.tensor([0.5, 4, 6, 30, 2000])[:, None]
    found = sample_quality(data, samples, num_neighbours=1)
    precision, recall, density, coverage = values(found)[:4]
    assert (precision, recall, density) == pytest.approx((4 / 5, 6 / 7, (2 + 2 + 1 + 1) / 5))
    assert coverage == pytest.approx(5 / 7)
    # with a second neighbour the balls are [-101, 1], [-3, 3], [-1, 3], [0, 6], [1, 19], [1, 399] and [10, 1990]
    density = values(sample_quality(data, samples[:4].repeat(2, 1), num_neighbours=2))[2]
    assert density == pytest.approx((4 + 3 + 3 + 2) / (2 * 4))


def test_of_one_distribution_density_and_coverage_have_known_expectations():
    """In whatever distribution: a sample is as likely to be a datum's j-th neighbour as another datum is."""
    N, M, k = 20, 14, 3
    with seeded(0):
        sets = [(torch.randn(N, 2).exp(), torch.randn(M, 2).exp()) for _ in range(200)]
    found = torch.tensor([values(sample_quality(x, y, num_neighbours=k, num_halves=2))[2:4] for x, y in sets])
    none_of_k = math.prod((N - 1 - j) / (N - 1 + M - j) for j in range(k))
    error = found.mean(0) - torch.tensor([1.0, 1 - none_of_k])
    assert bool((error.abs() < 4 * found.std(0) / math.sqrt(len(sets))).all())


def with_moments(mean: Tensor, root: Tensor, n: int = 50) -> Tensor:
    """Points whose mean is `mean` and whose covariance is root^T root, exactly."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T @ root + mean


def test_the_frechet_distance_of_two_normals():
    with seeded(0):
        scales, means = torch.rand(2, 3, dtype=torch.float64) + 0.5, torch.randn(2, 3, dtype=torch.float64)
        x, y = (with_moments(m, s.diag()) for m, s in zip(means, scales, strict=True))
        exact = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
        torch.testing.assert_close(frechet_distance(x, y), exact)
        roots = torch.randn(2, 3, 3, dtype=torch.float64)  # whose covariances don't commute
        x, y = (with_moments(m, root, n) for m, root, n in zip(means, roots, (30, 50), strict=True))
    S_x, S_y = (root.T @ root for root in roots)
    torch.testing.assert_close(frechet_distance(x, y), _compute_fid(means[0], S_x, means[1], S_y))
    assert values(sample_quality(x, y))[4] == pytest.approx(frechet_distance(x, y).item())
    torch.testing.assert_close(frechet_distance(x, x), x.new_zeros(()), atol=1e-6, rtol=0)


def test_the_kernel_distance_is_unbiased():
    """k(a, b) = sum_p C(3, p) (ab)^p: so it is the sum of C(3, p) (E x^p - E y^p)^2, p = 1, 2, 3."""
    mean, scale = 0.5, 1.5
    moments = (mean, mean**2 + scale**2 - 1, mean**3 + 3 * mean * scale**2)  # of y less those of x
    exact = sum(math.comb(3, p) * m**2 for p, m in enumerate(moments, 1))
    with seeded(0):
        x, y = torch.randn(800, 8, 1), mean + scale * torch.randn(800, 10, 1)
        found = torch.stack([kernel(a, b) for a, b in zip(x, y, strict=True)])
        nothing = torch.stack([kernel(a, b) for a, b in zip(x[:400], x[400:], strict=True)])
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(len(found))
    assert abs(nothing.mean()) < 4 * nothing.std() / math.sqrt(len(nothing))
    assert bool((nothing < 0).any())


def test_the_kernel_distance_of_subsets():
    with seeded(0):
        x, y = torch.randn(300, 4).double(), torch.randn(270, 4).double() + 1
        in_x, in_y = torch.rand(300, 2) < 0.5, torch.rand(270, 2) < 0.5
    found = kernel_distances(x, y, in_x, in_y)
    for d, i, j in zip(found, in_x.T, in_y.T, strict=True):
        torch.testing.assert_close(d, kernel(x[i], y[j]))
    equal = poly_mmd(x[:50], y[:50], degree=3, gamma=None, coef=1.0)
    torch.testing.assert_close(kernel(x[:50], y[:50]), equal)


def test_the_errors_are_the_known_spread():
    """Of precision where half of the samples are among the data, a binomial's; of the Fréchet distance of two normals
    in one dimension, (m_x - m_y)^2 + (s_x - s_y)^2, by the delta method."""
    N, num_sets, num_halves, scale = 200, 8, 30, 2.0
    with seeded(0):
        inside = [sample_quality(torch.rand(N, 1), 2 * torch.rand(N, 1)) for _ in range(num_sets)]
        normal = [sample_quality(torch.randn(N, 1), 1 + scale * torch.randn(N, 1)) for _ in range(num_sets)]
    of_mean, of_scale = 4 * (1 + scale**2) / N, 4 * (scale - 1) ** 2 * (1 + scale**2) / (2 * N)
    for found, exact in (
        ([q.precision.se for q in inside], 0.5 / math.sqrt(N)),
        ([q.frechet.se for q in normal], math.sqrt(of_mean + of_scale)),
    ):
        rel = 4 / math.sqrt(2 * num_sets * (num_halves - 1)) + 0.05  # and what is of a higher order in 1 / N
        assert sum(found) / num_sets == pytest.approx(exact, rel=rel)


def test_seeds_and_what_is_refused():
    with seeded(0):
        x, y = torch.randn(30, 1, 2, 2), torch.randn(24, 1, 2, 2)
    assert sample_quality(x, y, seed=1) == sample_quality(x, y, seed=1)
    assert sample_quality(x, y, seed=1).recall.se != sample_quality(x, y, seed=2).recall.se
    assert str(sample_quality(x, y)).startswith("precision 0.")
    for bad, message in (
        ((x, y[:, :, :1]), "samples: expected features of the size of the data's, 4; got 2"),
        ((x[:11], y), "data: expected at least 12, for halves with 5 neighbours; got 11"),
        ((x, y / 0), "samples: expected finite features; got NaN or an infinite one"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_quality(*bad)
    with pytest.raises(ValueError, match="num_neighbours of at least 1"):
        sample_quality(x, y, num_neighbours=0)
