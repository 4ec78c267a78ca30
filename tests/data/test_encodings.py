import math

import pytest
import torch
from torch.distributions import constraints

from ppl_vae.components import choices
from ppl_vae.data.encodings import (
    Binarize,
    Dequantize,
    Encoding,
    Identity,
    Levels,
    Scale,
    StaticBinarize,
    Threshold,
    check_observable,
    default_encoding,
)
from ppl_vae.likelihoods import Likelihood

IMAGES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def seed(n=0):
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("name", [name for name in choices(Encoding) if name != "identity"])
def test_values_lie_in_the_support_and_are_seeded(name):
    encoding = choices(Encoding)[name]()
    x = encoding(IMAGES, seed())
    assert x.shape == IMAGES.shape
    assert x.dtype == torch.float32
    assert encoding.support.check(x).all()
    assert torch.equal(x, encoding(IMAGES, seed()))
    grey = encoding.grey(x)
    assert float(grey.min()) >= 0
    assert float(grey.max()) <= 1
    assert encoding.log_p_is


def test_binarize_is_a_fair_coin_of_each_level():
    n = 4000
    x = Binarize()(IMAGES.expand(n, 1, 16, 16), seed())
    p = IMAGES[0] / 255
    standard_error = (p * (1 - p) / n).sqrt()
    assert bool(((x.mean(0) - p).abs() <= 5 * standard_error).all())
    assert bool((x[:, 0, 0, 0] == 0).all())
    assert bool((x[:, 0, 15, 15] == 1).all())


def test_binarize_draws_anew_without_a_frozen_seed():
    generator = seed()
    assert not torch.equal(Binarize()(IMAGES, generator), Binarize()(IMAGES, generator))


def test_static_binarisation_is_a_fair_coin_of_each_level_and_the_same_at_each_use():
    """4,000 images that differ in one pixel, each with draws of its own."""
    n = 4000
    images = IMAGES.repeat(n, 1, 1, 1)
    images[:, 0, 7, :2] = torch.cartesian_prod(torch.arange(80), torch.arange(50)).to(torch.uint8)
    x = StaticBinarize()(images, seed(0))
    assert torch.equal(x, StaticBinarize()(images, seed(1)))
    order = torch.randperm(n, generator=seed())
    assert torch.equal(torch.cat([StaticBinarize()(part) for part in images[order].split(700)]), x[order])
    other = StaticBinarize(seed=1)(images)
    p = torch.cat([IMAGES.flatten()[:112], IMAGES.flatten()[114:]]) / 255
    standard_error = (p * (1 - p) / n).sqrt()
    draws, others = (torch.cat([t.flatten(1)[:, :112], t.flatten(1)[:, 114:]], 1) for t in (x, other))
    assert bool(((draws.mean(0) - p).abs() <= 5 * standard_error).all())
    # neighbours, and the draws of two seeds, are independent: products of standardised ones have mean 0, variance 1
    inner = (p > 0.1) & (p < 0.9)
    e, f = ((t[:, inner] - p[inner]) / (p * (1 - p)).sqrt()[inner] for t in (draws, others))
    for products in (e[:, 1:] * e[:, :-1], e[1:] * e[:-1], e * f):
        assert bool((products.mean(0).abs() <= 5 / math.sqrt(n - 1)).all())


def test_identity_takes_no_images():
    x = torch.randn(3, 4, generator=seed())
    assert Identity()(x) is x
    with pytest.raises(ValueError, match="encoding identity: expected vectors or counts; got 8-bit images"):
        Identity()(IMAGES)


@pytest.mark.parametrize("level", [-1, 255, 300])
def test_a_threshold_that_no_level_crosses_is_refused(level):
    with pytest.raises(ValueError, match=rf"encoding threshold: expected a level in 0..254; got {level}"):
        Threshold(level)
    assert Threshold(0)(IMAGES).sum() == 255
    assert Threshold(254)(IMAGES).sum() == 1


def test_dequantize_keeps_the_level():
    x = Dequantize()(IMAGES, seed())
    assert torch.equal((x * 256).floor(), IMAGES.float())
    assert Dequantize.log_256 == pytest.approx(math.log(256))
    assert 784 * Dequantize.log_256 == pytest.approx(4347, abs=1)
    # the expected brightness of a dequantised level is the level's
    torch.testing.assert_close(Dequantize().grey((IMAGES + 0.5) / 256), IMAGES / 255)


def test_threshold_levels_and_scale():
    assert Threshold(127)(IMAGES).sum() == 128
    assert torch.equal(Levels()(IMAGES), IMAGES.float())
    assert Scale()(IMAGES).max() == 1


def test_the_default_encoding_follows_from_the_support():
    assert default_encoding(constraints.boolean) == Binarize()
    assert default_encoding(constraints.integer_interval(0, 255)) == Levels()
    assert default_encoding(constraints.unit_interval) == Dequantize()
    assert default_encoding(constraints.real) == Dequantize()


@pytest.mark.parametrize("likelihood", choices(Likelihood))
def test_the_default_encoding_can_be_observed(likelihood):
    support = choices(Likelihood)[likelihood].support
    check_observable(default_encoding(support), support, likelihood)


@pytest.mark.parametrize(
    ("encoding", "likelihood"),
    [
        *((Scale(), name) for name in ("bernoulli", "gaussian", "beta", "continuous-bernoulli")),  # losses
        *((Threshold(), name) for name in ("bernoulli", "categorical", "poisson")),
        *((Levels(), name) for name in ("discretized-logistic", "negative-binomial")),
        *((StaticBinarize(), name) for name in ("bernoulli", "categorical")),
    ],
)
def test_what_lies_in_the_support_can_be_observed(encoding, likelihood):
    check_observable(encoding, choices(Likelihood)[likelihood].support, likelihood)


@pytest.mark.parametrize(
    ("encoding", "likelihood", "message"),
    [
        (
            Dequantize(),
            "bernoulli",
            "dequantize: expected x in the support of the likelihood bernoulli, as of binarize",
        ),
        (Levels(), "bernoulli", "levels: expected x in the support of the likelihood bernoulli.*; got 0..255"),
        (
            Scale(),
            "categorical",
            "scale: expected x in the support of the likelihood categorical, as of levels; got 0..1",
        ),
        (Dequantize(), "poisson", "dequantize: expected x in the support"),
        (Levels(), "beta", "levels: expected x in the support"),
        (
            Levels(),
            "gaussian",
            "levels: expected continuous x for the density of the likelihood gaussian, as of dequan",
        ),
        (Binarize(), "gaussian", "binarize: expected continuous x"),
        (Threshold(), "continuous-bernoulli", "threshold: expected continuous x"),
        (Identity(), "gaussian", "identity: expected vectors or counts"),
    ],
)
def test_what_a_likelihood_says_nothing_of_is_refused(encoding, likelihood, message):
    with pytest.raises(ValueError, match=f"^encoding {message}"):
        check_observable(encoding, choices(Likelihood)[likelihood].support, likelihood)
