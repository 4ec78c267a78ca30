"""On linear-Gaussian pairs, where p(x | y) is a normal, and on bits, where it is a sum over a grid."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_images import EVENT, FAST, S_X, S_Y, D, Linear, images
from torch import nn
from torch.distributions import MultivariateNormal

from ppl_vae.data.encodings import Levels
from ppl_vae.data.noise import GaussianNoise, Noise, NoNoise, SaltAndPepper
from ppl_vae.data.operators import Blur, Downsampling, Missing, Then
from ppl_vae.evaluation import weighing
from ppl_vae.evaluation.restoration import restore
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VAE, Autoencoder
from ppl_vae.networks import DenseDecoder, DenseEncoder
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.programs import seeded
from ppl_vae.system.files import to_json


@dataclass
class Exact:
    """p(y), and the moments of x | y, for y = A (x or its mean) + S_Y e."""

    log_p: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


def exact(pair, y, A, drawn):
    W, y = pair.W.detach().double(), y.double().flatten(1)
    S = W @ W.T + drawn * S_X**2 * torch.eye(D)
    C = A @ S @ A.T + S_Y**2 * torch.eye(len(A))
    gain = S @ A.T @ C.inverse()
    mean = 0.5 + (y - A.sum(1) / 2) @ gain.T
    std = (S - gain @ A @ S).diagonal().sqrt().expand(len(y), -1)
    return Exact(MultivariateNormal(A.sum(1) / 2, C).log_prob(y), *(t.reshape(-1, *EVENT) for t in (mean, std)))


def matrix_of(operator):
    return operator(torch.eye(D).reshape(D, *EVENT)).flatten(1).T.double()


def check(result, expected):
    """Within five Monte Carlo errors of K weights that are nearly equal."""
    scale = expected.std.clamp(min=1e-4)
    assert ((result.log_p.values - expected.log_p).abs() <= 5 * result.log_p.mc_se + 1e-4).all()
    assert ((result.mean - expected.mean).abs() <= 5 * scale / result.ess.min().sqrt()).all()
    assert ((result.std / scale - 1).abs() <= 5 / result.ess.min().sqrt()).all()
    error = scale * math.sqrt(1 / len(result.samples) + 1 / result.ess.min())
    assert ((result.samples.mean(0) - expected.mean).abs() <= 5 * error).all()


@pytest.mark.parametrize("clean", ["mean", "drawn"])
@pytest.mark.parametrize("operator", [None, Missing("left", 0.5)])
def test_pixels_and_their_uncertainty_are_those_of_a_normal(clean, operator):
    pair = Linear()
    noise = GaussianNoise(S_Y) if operator is None else Then(operator, GaussianNoise(S_Y))
    y = noise(images(pair), torch.Generator().manual_seed(2))
    seen = ~y[0].isnan().flatten()
    expected = exact(pair, y.flatten(1)[:, seen], torch.eye(D, dtype=torch.float64)[seen], clean == "drawn")
    result = restore(pair.model, pair.guide, y, corruption=noise, clean=clean, num_draws=400, **FAST)
    check(result, expected)
    assert result.num_unreliable == 0
    assert str(result).startswith("5 images restored (5 refined); median ESS")


@pytest.mark.parametrize("operator", [Blur(0.7), Downsampling(2)])
def test_operators_are_inverted(operator):
    pair = Linear()
    corruption = Then(operator, GaussianNoise(S_Y))
    y = corruption(images(pair), torch.Generator().manual_seed(2))
    result = restore(pair.model, pair.guide, y, corruption=corruption, num_draws=400, **FAST)
    check(result, exact(pair, y, matrix_of(operator), False))
    assert result.num_unreliable == 0


def narrow_for_some(pair, widths):
    """A guide with the exact posterior given y, times a width for each image."""
    W = pair.W.detach()
    covariance = (torch.eye(2) + W.T @ W / S_Y**2).inverse()

    def guide(y, width):
        with pyro.plate("data", len(y), dim=-1):
            mean = (y.flatten(1) - 0.5) @ W @ covariance / S_Y**2
            scale = width[:, None, None] * torch.linalg.cholesky(covariance)
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=scale))

    return guide


def test_images_whose_khat_is_over_its_limit_are_annealed(monkeypatch):
    """Samples of posteriors that are too narrow miss large weights, however many: chains from there do not."""
    pair, widths = Linear(), torch.tensor([0.3, 1.1, 1.1, 0.3, 1.1])
    monkeypatch.setattr(weighing, "refine_modes", lambda *pair, **options: narrow_for_some(Linear(), widths))
    monkeypatch.setattr(weighing, "ANNEALING_STEPS", (15,))

    def model(x, width):
        return pair.model(x)

    def guide(x, width):
        return pair.guide(x)

    y = GaussianNoise(S_Y)(images(pair), torch.Generator().manual_seed(2))
    options = {"corruption": GaussianNoise(S_Y), "num_samples": 400, "num_draws": 400}
    alone = restore(model, guide, y, widths, **options, climb=False)
    assert alone.num_unreliable == 2
    assert "warning: k-hat over its limit for 2 of 5 images" in str(alone)
    result = restore(model, guide, y, widths, **options)
    assert result.rung.tolist() == [2, 1, 1, 2, 1]
    assert result.num_samples.tolist() == [128, 400, 400, 128, 400]
    assert "5 images restored (3 refined, 2 annealed)" in str(result)
    expected = exact(pair, y, torch.eye(D, dtype=torch.float64), False)
    check(result, expected)
    too_small = alone.std[::3] / expected.std[::3]
    assert too_small.mean() < 0.8
    assert (result.std / expected.std)[::3].mean() > 0.85


def test_an_unknown_khat_is_no_small_one():
    pair = Linear()
    y = GaussianNoise(S_Y)(images(pair), torch.Generator().manual_seed(2))
    options = {"corruption": GaussianNoise(S_Y), **FAST, "num_samples": 20}
    alone = restore(pair.model, pair.guide, y, **options, climb=False)
    assert alone.khat.isnan().all()
    assert alone.num_unreliable is None
    assert "warning: k-hat unknown for 5 of 5 images" in str(alone)
    assert restore(pair.model, pair.guide, y, **options).num_samples.tolist() == [80] * 5


def test_images_that_the_model_sees_as_levels_are_in_their_units():
    y = GaussianNoise(S_Y)(images(Linear()), torch.Generator().manual_seed(2))
    of_grey, of_levels = (
        restore(pair.model, pair.guide, y, corruption=GaussianNoise(S_Y), encoding=e, clean="drawn", **FAST)
        for pair, e in ((Linear(), None), (Linear(255.0), Levels()))
    )
    torch.testing.assert_close(of_levels.mean, of_grey.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(of_levels.log_p.values, of_grey.log_p.values, rtol=0, atol=1e-2)


def test_a_misfit_is_noise_of_the_clean_image():
    """Pixels that a likelihood has with a standard deviation are those of a misfit of as much."""
    pair = Linear()
    y = GaussianNoise(S_Y)(images(pair), torch.Generator().manual_seed(2))
    options = {"corruption": GaussianNoise(S_Y), "clean": "drawn", **FAST}
    own = restore(pair.model, pair.guide, y, **options)
    for misfit in (S_X, torch.full(EVENT, S_X)):
        told = restore(pair.model, pair.guide, y, misfit=misfit, **options)
        torch.testing.assert_close(told.mean, own.mean)
        torch.testing.assert_close(told.std, own.std, rtol=1e-3, atol=1e-6)


class Bits(nn.Module):
    """z ~ N(0, 1), four pixels of 0 or 1."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([2.0, -1.0, 0.5, -3.0]))

    def model(self, x):
        pyro.module("bits", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            logits = (z * self.a + 0.3).unflatten(-1, (1, 2, 2))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))


@pytest.mark.parametrize("noise", [SaltAndPepper(0.3), GaussianNoise(0.5), Then(Missing("top", 0.5), NoNoise())])
def test_flipped_bits_are_integrated_out(noise):
    pair = Bits()
    x = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).reshape(3, 1, 2, 2)
    y = noise(x, torch.Generator().manual_seed(0))
    result = restore(
        pair.model, pair.guide, y, corruption=noise, clean="drawn", num_draws=2000, **FAST | {"num_modes": 2}
    )
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = (z[:, None] * pair.a.detach() + 0.3).sigmoid()  # (grid, pixels)
    shown = y.flatten(1).double().nan_to_num(nan=0.0)[:, None]
    seen = ~y.flatten(1).isnan()[:, None]
    at = [noise.likelihood(torch.full((4,), float(b), dtype=torch.float64)).log_prob(shown).exp() for b in (0, 1)]
    at = [torch.where(seen, t, 1.0) for t in at]
    each = (1 - p) * at[0] + p * at[1]  # (data, grid, pixels)
    weights = each.prod(-1) * (-(z**2) / 2).exp() / math.sqrt(2 * math.pi) * (z[1] - z[0])
    mean = ((weights[..., None] * p * at[1] / each).sum(1) / weights.sum(1)[:, None]).clamp(0, 1).reshape(3, 1, 2, 2)
    assert ((result.log_p.values - weights.sum(1).log()).abs() <= 5 * result.log_p.mc_se).all()
    error = (mean * (1 - mean)).sqrt() / result.ess.min().sqrt()
    assert ((result.mean - mean).abs() <= 5 * error + 1e-4).all()
    torch.testing.assert_close(result.std, (mean * (1 - mean)).sqrt().float(), rtol=0.15, atol=0.02)
    assert ((result.samples.mean(0) - mean).abs() <= 0.06).all()
    assert {*result.samples.unique().tolist()} <= {0.0, 1.0}


def tiny(kind=VAE):
    with seeded(0):
        if kind is Autoencoder:
            return Autoencoder(DenseEncoder(EVENT, 2, (4,)), DenseDecoder(2, EVENT, 1, (4,)), likelihood=Bernoulli())
        q = DiagonalNormal(2)
        parts = {"prior": StandardNormal(2), "likelihood": Gaussian(0.1), "posterior": q}
        return VAE(DenseEncoder(EVENT, q.num_params, (4,)), DenseDecoder(2, EVENT, 1, (4,)), **parts)


class NoDensity(Noise, by_name=False):
    def __call__(self, x, generator=None):
        return x


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (torch.full((2, *EVENT), 1.5), {}, r"y: expected values in \[0, 1\]; got 1.5 to 1.5"),
        (torch.zeros(2, *EVENT, dtype=torch.uint8), {}, "give y / 255"),
        (
            torch.full((2, *EVENT), torch.nan),
            {},
            r"got NaN in 2 images. Where .* corruption=Then\(Missing\(\), noise\)",
        ),
        (torch.zeros(2, 1, 3, 4), {}, r"images of the model's shape, \(1, 2, 4\); got \(1, 3, 4\)"),
        (torch.zeros(2, *EVENT), {"corruption": NoDensity()}, "corruption: NoDensity: expected a method likelihood"),
        (torch.zeros(2, *EVENT), {"corruption": SaltAndPepper()}, "Say how far images are from it, misfit=0.1"),
        (torch.zeros(2, *EVENT), {"clean": "x"}, r"clean: expected one of \('mean', 'drawn'\); got 'x'"),
        (torch.zeros(2, *EVENT), {"num_samples": 0}, "num_samples: expected at least 1; got 0"),
        (torch.zeros(2, *EVENT), {"num_steps": 0}, "num_steps: expected at least 1; got 0"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_a_line(y, options, message):
    vae = tiny()
    with pytest.raises(ValueError, match=message) as error:
        restore(vae.model, vae.guide, y, **{"corruption": GaussianNoise(0.1), **options})
    assert "\n" not in str(error.value)


def test_an_autoencoder_has_no_prior_of_images():
    ae = tiny(Autoencoder)
    with pytest.raises(ValueError, match=r"expected a latent site; got none\. An autoencoder"):
        restore(ae.model, ae.guide, torch.zeros(2, *EVENT), corruption=GaussianNoise(0.1))


def test_the_same_seed_gives_the_same_images():
    vae = tiny()
    y = torch.rand(2, *EVENT, generator=torch.Generator().manual_seed(0))
    options = {"corruption": GaussianNoise(0.2), "num_steps": 5, "num_samples": 64, "climb": False}
    one, same, other = (restore(vae.model, vae.guide, y, seed=seed, **options) for seed in (3, 3, 4))
    assert torch.equal(one.mean, same.mean)
    assert torch.equal(one.samples, same.samples)
    assert not torch.equal(one.mean, other.mean)
    assert to_json({"khat": one.num_unreliable})
