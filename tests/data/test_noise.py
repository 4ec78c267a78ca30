import math

import pytest
import torch

from ppl_vae.components import choices
from ppl_vae.data.noise import GaussianNoise, Masking, Noise, NoNoise, SaltAndPepper

X = torch.full((200_000,), 0.4)


def seed(n=0):
    return torch.Generator().manual_seed(n)


@pytest.mark.parametrize("name", choices(Noise))
def test_noise_stays_in_range_and_is_seeded_and_leaves_the_image_alone(name):
    noise, x = choices(Noise)[name](), X.clone()
    y = noise(x, seed())
    assert y.shape == x.shape
    assert float(y.min()) >= 0
    assert float(y.max()) <= 1
    assert torch.equal(y, noise(x, seed()))
    assert torch.equal(x, X)


def share(mask, expected):
    """Within five standard errors of a share of independent pixels."""
    return abs(mask.float().mean().item() - expected) <= 5 * math.sqrt(expected * (1 - expected) / len(mask))


def test_each_noise_does_what_it_says():
    assert torch.equal(NoNoise()(X), X)
    y = GaussianNoise(0.1)(X, seed())
    assert (y - X).std().item() == pytest.approx(0.1, rel=5 / math.sqrt(2 * len(X)))
    y = SaltAndPepper(0.3)(X, seed())
    assert share(y == 0, 0.15)
    assert share(y == 1, 0.15)
    assert share(y == X, 0.7)
    y = Masking(0.25)(X, seed())
    assert share(y == 0, 0.25)
    assert share(y == X, 0.75)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_what_is_out_of_range_is_refused(bad):
    for cls in (SaltAndPepper, Masking):
        with pytest.raises(ValueError, match=r"expected a fraction in \[0, 1\]"):
            cls(bad)
    if not bad > 0:
        with pytest.raises(ValueError, match="expected scale >= 0"):
            GaussianNoise(bad)
