import math

import pytest
import torch

from ppl_vae.components import choices
from ppl_vae.likelihoods import Bernoulli, Gaussian, GaussianLearned, GaussianPerPixel, Likelihood

EXTREME = torch.tensor([-120.0, -5.0, -0.3, 0.0, 2.0, 60.0])


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", choices(Likelihood))
def test_one_distribution_per_dimension_with_gradients_to_its_parameters(name):
    likelihood = choices(Likelihood)[name]()
    params = torch.randn(5, 2, 3, likelihood.params_per_dim, generator=generator(), requires_grad=True)
    p = likelihood(params)
    assert p.batch_shape == (5, 2, 3)
    assert p.event_shape == ()
    assert p.mean.shape == (5, 2, 3)
    x = (p.mean.detach() > 0.5).float()
    p.log_prob(x).sum().backward()
    assert params.grad is not None
    assert bool((params.grad != 0).all())
    assert all(q.grad is not None for q in likelihood.parameters())
    assert type(likelihood).__name__ in repr(likelihood)


def test_bernoulli_is_normalised_and_does_not_saturate():
    p = Bernoulli()(EXTREME[:, None])
    total = p.log_prob(torch.zeros(6)).double().exp() + p.log_prob(torch.ones(6)).double().exp()
    torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64))
    # by way of a probability it would be -15.9 nats
    assert p.log_prob(torch.ones(6))[0].item() == pytest.approx(-120)


@pytest.mark.parametrize(
    ("likelihood", "s"),
    [(Gaussian(0.05), 0.0), (GaussianLearned(2.0), 0.0), *[(GaussianPerPixel(), s) for s in (-9, 3)]],
)
def test_gaussians_integrate_to_one(likelihood, s):
    params = torch.tensor([0.3, s][: likelihood.params_per_dim])
    with torch.no_grad():
        p = likelihood(params)
        x = torch.linspace(-40, 40, 4_000_001, dtype=torch.float64)
        density = p.log_prob(x).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-4)


def test_gaussian_has_its_constants():
    """log 2 pi and the scale, which a mean squared error leaves out."""
    x, mean, scale = 0.7, 0.2, 0.1
    expected = -0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
    assert Gaussian(scale)(torch.tensor([mean])).log_prob(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("cls", "name"), [(Gaussian, "scale"), (GaussianLearned, "initial_scale")])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_out_of_range_is_refused(cls, name, value):
    with pytest.raises(ValueError, match=rf"expected {name} > 0; got"):
        cls(value)


def test_the_scale_per_pixel_has_a_floor():
    p = GaussianPerPixel(min_scale=0.01)(torch.tensor([0.5, -100.0]))
    assert p.scale.item() == pytest.approx(0.01)
    with pytest.raises(ValueError, match="min_scale > 0"):
        GaussianPerPixel(0.0)
