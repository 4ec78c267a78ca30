import itertools
import math

import pytest
import torch

from ppl_vae.components import choices, create
from ppl_vae.data.noise import GaussianNoise, Masking, Noise, NoNoise, PhotonCounts, Quantization, SaltAndPepper
from ppl_vae.programs import seeded

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


LATTICES = {"quantization": torch.linspace(0, 1, 4), "photon-counts": torch.arange(31) / 30}
BINS = torch.tensor([0.0, 0.2, 0.35, 0.5, 0.8, 1.0])


def masses(p, lattice):
    """Of y = 0, the bins between, and y = 1, for the one pixel of p."""
    if lattice is None:
        inside = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        weights = p.log_prob(inside).exp() / 10_000
    else:
        inside, weights = lattice[1:-1].double(), p.log_prob(lattice[1:-1].double()).exp()
    ends = p.log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64)).exp()
    bins = [weights[(inside > a) & (inside <= b)].sum() for a, b in itertools.pairwise(BINS)]
    return torch.stack([ends[0], *bins, ends[1]])


@pytest.mark.parametrize("clean", [0.05, 0.4])
@pytest.mark.parametrize("name", [name for name in choices(Noise) if name != "no-noise"])
def test_the_density_of_each_noise_is_that_of_its_samples(name, clean):
    """Pixels that noise may leave as they are, are spread around `clean` first, as the likelihood is told."""
    noise, spread = choices(Noise)[name](), 0.0 if name in ("photon-counts", "gaussian-noise") else 0.15
    x = torch.full((200_000,), clean)
    if spread:
        x = (x + spread * torch.randn(x.shape, generator=seed(1))).clamp(0, 1)
        if name == "quantization":  # it is before limits that spread and noise add up
            x = torch.full((200_000,), clean) + spread * torch.randn(x.shape, generator=seed(1))
    y = noise(x, seed(2))
    p = noise.likelihood(torch.tensor([clean], dtype=torch.float64), spread)
    expected = masses(p, LATTICES.get(name))
    assert expected.sum().item() == pytest.approx(1, abs=1e-3)
    inside = (y > 0) & (y < 1)
    counts = [(y <= 0).sum(), *((inside & (y > a) & (y <= b)).sum() for a, b in itertools.pairwise(BINS))]
    found = torch.stack([*counts, (y >= 1).sum()]) / len(y)
    error = (expected * (1 - expected) / len(y)).sqrt()
    assert ((found - expected).abs() <= 5 * error + 2e-4).all()


@pytest.mark.parametrize("name", ["gaussian-noise", "salt-and-pepper", "masking"])
def test_what_a_pixel_was_before_noise_has_the_moments_of_clean_ones(name):
    """By the laws of total expectation and variance, over samples, within five standard errors."""
    noise, spread = choices(Noise)[name](), 0.1
    x = 0.5 + spread * torch.randn(100_000, generator=seed())
    given = noise.clean_given(noise(x, seed(1)), torch.full_like(x, 0.5), spread)
    square = (given.mean - 0.5) ** 2 + given.variance
    assert (given.mean.mean() - 0.5).abs().item() <= 5 * given.mean.std().item() / math.sqrt(len(x))
    assert (square.mean() - spread**2).abs().item() <= 5 * square.std().item() / math.sqrt(len(x)) + 1e-5
    with seeded(2):
        assert given.sample().std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * len(x)))


def test_what_has_no_density_says_what_to_write():
    class Odd(Noise, by_name=False):
        def __call__(self, x, generator=None):
            return x

    with pytest.raises(NotImplementedError, match=r"Odd: expected a method likelihood\(clean, spread\)"):
        Odd().likelihood(X)
    with pytest.raises(ValueError, match="expected a misfit of 0"):
        PhotonCounts().likelihood(X, 0.1)
    with pytest.raises(NotImplementedError, match="clean: expected 'mean', for quantization"):
        Quantization().clean_given(X, X, 0.1)
    for bad in ("levels=1", "scale=-1"):
        with pytest.raises(ValueError, match="noise quantization: expected"):
            create(Noise, f"quantization:{bad}")
    for bad in ("photons=0", "dark=0"):
        with pytest.raises(ValueError, match="noise photon-counts: expected"):
            create(Noise, f"photon-counts:{bad}")
