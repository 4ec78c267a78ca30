import pytest
import torch

from ppl_vae.data.encodings import Binarize
from ppl_vae.data.noise import Masking, NoNoise
from ppl_vae.data.observation import Observe

IMAGES = torch.arange(48, dtype=torch.uint8).reshape(3, 1, 4, 4) * 5
LABELS = torch.tensor([2, 0, 1])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_x_is_the_same_with_and_without_noise() -> None:
    """The noisy image, for the guide, is between x and the labels."""
    x, labels = Observe(Binarize(), NoNoise())(IMAGES, LABELS, generator=seeded())
    again, noisy, same = Observe(Binarize(), Masking(0.5))(IMAGES, LABELS, generator=seeded())
    assert torch.equal(x, Binarize()(IMAGES, seeded()))
    assert torch.equal(x, again)
    assert labels is same is LABELS
    kept = noisy != 0
    assert torch.equal(noisy[kept], (IMAGES / 255)[kept])
    assert 0 < kept.float().mean() < 1


@pytest.mark.parametrize("noise", [NoNoise(), Masking(0.5)])
def test_frozen_is_observed_once_under_a_seed(noise) -> None:
    observe = Observe(Binarize(), noise)
    frozen, again, drawn = (observe.frozen(IMAGES, 7), observe.frozen(IMAGES, 7), observe(IMAGES, generator=seeded()))
    for a, b, c in zip(frozen, again, drawn, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not torch.equal(frozen[0], observe.frozen(IMAGES, 8)[0])
