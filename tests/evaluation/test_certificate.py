"""Bounds from both sides by importance sampling, against a log p(x) that is known."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_pairs import OBLIQUE, Linear

from ppl_vae.evaluation import adaptive, certificate
from ppl_vae.evaluation.certificate import certify
from ppl_vae.evaluation.refinement import refine
from ppl_vae.evaluation.sandwich import simulate
from ppl_vae.programs import seeded

TEMPLATE = torch.zeros(1, 4)


PAIR = Linear(torch.cat([OBLIQUE, OBLIQUE[:, :1].flip(0)], 1), shift=1.0, width=0.5)


def test_the_exact_value_is_between(monkeypatch):
    """By a posterior that is refined once, for both bounds."""
    refined = []
    monkeypatch.setattr(certificate, "refined_or_guide", lambda *a, **k: refined.append(refine(*a, **k)) or refined[-1])
    monkeypatch.setattr(adaptive, "refine", lambda *a, **k: pytest.fail("refined again"))
    sandwich = certify(PAIR.model, PAIR.guide, TEMPLATE, num_samples=200)
    exact = PAIR.log_p(simulate(PAIR.model, TEMPLATE, num_data=64)[0]).log_p
    for error in (sandwich.lower.log_p - exact, exact - sandwich.upper.log_p):
        assert error.mean() < 4 * error.std() / math.sqrt(64)
    assert sandwich.gap < 0.05
    assert len(refined) == 1
    assert sandwich.lower.rung is not None
    assert sandwich.lower.rung.max() > 0
    assert sandwich.upper.bound.startswith("upper")


def test_the_exact_draw_is_among_the_samples(monkeypatch):
    """E[p(x) / mean w] = 1 with it, whatever K; without it far above, where samples are of a guide that fits badly."""
    monkeypatch.setattr(adaptive, "ANNEALING_STEPS", ())
    monkeypatch.setattr(certificate, "refined_or_guide", lambda model, guide, *data, **options: guide)
    pair = dataclasses.replace(PAIR, shift=0.0, width=0.6)  # so narrow that 1 / w has a variance
    sandwich = certify(pair.model, pair.guide, TEMPLATE, num_data=200, num_samples=2)
    exact = pair.log_p(simulate(pair.model, TEMPLATE, num_data=200)[0]).log_p
    ratio = (exact - sandwich.upper.log_p).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(200)


def test_a_flow_without_an_inverse_is_named():
    with seeded(0):
        planar = dist.transforms.Planar(2)
    pair = Linear(OBLIQUE)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [planar]))

    with pytest.raises(ValueError, match="the guide: expected a density at any z; got a flow without an inverse"):
        certify(pair.model, guide, TEMPLATE)


def test_one_sample_is_refused():
    pair = Linear(OBLIQUE)
    with pytest.raises(ValueError, match="num_samples: expected at least 2, the exact draw and another; got 1"):
        certify(pair.model, pair.guide, TEMPLATE, num_samples=1)
