import math

import pytest
import torch
from torch.distributions import constraints

from ppl_vae.components import choices
from ppl_vae.encodings import Binarize, Dequantize, Encoding, Levels, Scale, Threshold, default_encoding

IMAGES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def seed(n=0):
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("name", choices(Encoding))
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
