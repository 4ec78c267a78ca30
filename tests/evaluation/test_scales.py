import math

import pytest
import torch
from linear_images import EVENT, FAST, S_X, Linear, N, images

from ppl_vae.data.noise import GaussianNoise
from ppl_vae.evaluation import scales as module
from ppl_vae.evaluation.restoration import restore
from ppl_vae.evaluation.scales import ScaleEstimate, estimate_scale

SCALES = (0.02, 0.025, 0.03, 0.036, 0.045)


def test_the_likelihood_of_a_scale_is_that_of_a_normal():
    pair = Linear()
    y = GaussianNoise(0.03)(images(pair), torch.Generator().manual_seed(3))
    options = {"clean": "drawn", "num_halvings": 0, **FAST | {"num_samples": 500}}
    found = estimate_scale(pair.model, pair.guide, y, scales=SCALES[::-1], corruption=GaussianNoise, **options)
    assert torch.equal(found.scales, torch.tensor(SCALES, dtype=torch.float64))
    W = pair.W.detach().double()
    for scale, log_p, se in zip(SCALES, found.log_p, found.mc_se, strict=True):
        C = W @ W.T + (S_X**2 + scale**2) * torch.eye(math.prod(EVENT))
        p = torch.distributions.MultivariateNormal(torch.full((math.prod(EVENT),), 0.5).double(), C)
        assert ((log_p - p.log_prob(y.double().flatten(1))).abs() <= 5 * se + 1e-3).all()
    assert found.by_image.shape == (N,)


def test_the_highest_point_is_that_of_a_parabola_in_log_scale():
    t = torch.tensor([-1.0, -0.4, 0.1, 0.8], dtype=torch.float64)
    curve = -3.0 * (t - 0.05) ** 2
    found = ScaleEstimate(t.exp(), torch.stack([curve, curve], 1), torch.zeros(4, 2))
    best, error = found.of_all
    assert best == pytest.approx(math.exp(0.05))
    assert error == pytest.approx(math.exp(0.05) / math.sqrt(12))
    assert found.by_image.tolist() == pytest.approx([math.exp(0.05)] * 2)
    at_the_end = ScaleEstimate(t.exp(), t[:, None], torch.zeros(4, 1)).of_all
    assert at_the_end == (pytest.approx(math.exp(0.8)), math.inf)


@pytest.mark.parametrize("asked", [{}, {"climb": True}])
def test_images_climb_no_ladder_unless_asked(asked, monkeypatch):
    pair, seen = Linear(), []
    alone = {"climb": False}
    monkeypatch.setattr(module, "restore", lambda *y, **o: seen.append(o["climb"]) or restore(*y, **o | alone))
    y = GaussianNoise(0.03)(images(pair), torch.Generator().manual_seed(3))
    options = asked | FAST | {"num_steps": 2, "num_samples": 64}
    estimate_scale(pair.model, pair.guide, y, scales=SCALES[:3], corruption=GaussianNoise, **options)
    assert {*seen} == {bool(asked)}


def test_halved_steps_find_the_highest_likelihood_from_a_coarse_grid():
    """By the exact likelihood of each scale, whose parabola over a coarse grid lies beside its highest point."""
    pair = Linear()
    W, D = pair.W.detach().double(), math.prod(EVENT)
    y = GaussianNoise(0.03)(images(pair), torch.Generator().manual_seed(3))

    def log_p(scale):
        C = W @ W.T + (S_X**2 + scale**2) * torch.eye(D)
        normal = torch.distributions.MultivariateNormal(torch.full((D,), 0.5).double(), C)
        return normal.log_prob(y.double().flatten(1)).sum().item()

    fine = torch.linspace(0.01, 0.05, 4001).tolist()
    best = max(fine, key=log_p)
    options = {"clean": "drawn", **FAST | {"num_samples": 300}}
    grid = {"scales": (0.0075, 0.015, 0.03 * 1.2, 0.09), "corruption": GaussianNoise}
    estimates = [estimate_scale(pair.model, pair.guide, y, num_halvings=n, **grid, **options).of_all[0] for n in (0, 3)]
    errors = [abs(estimate / best - 1) for estimate in estimates]
    assert errors[1] < 0.02 < 0.1 < errors[0]


def test_too_few_scales_are_refused():
    pair = Linear()
    for scales in ((0.1, 0.2), (0.0, 0.1, 0.2)):
        with pytest.raises(ValueError, match="scales: expected three or more, above 0; got"):
            estimate_scale(pair.model, pair.guide, torch.zeros(1, *EVENT), scales=scales, corruption=GaussianNoise)
