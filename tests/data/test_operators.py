import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d

from ppl_vae.components import UsageError
from ppl_vae.data.noise import GaussianNoise, NoNoise
from ppl_vae.data.operators import Blur, Downsampling, Missing, Then, corruption

X = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))


def test_blur_is_a_convolution_that_keeps_what_is_constant():
    blur = Blur(0.8)
    torch.testing.assert_close(blur(torch.full_like(X, 0.3)), torch.full_like(X, 0.3))
    image = torch.zeros(1, 1, 21, 21)
    image[..., 10, 10] = 1
    place = torch.arange(-10, 11)
    kernel = (-(place**2) / (2 * 0.8**2)).exp()
    kernel = kernel[:, None] * kernel / kernel.sum() ** 2
    torch.testing.assert_close(blur(image), conv2d(image, kernel[None, None], padding=10))


def test_downsampling_is_the_mean_of_squares_and_guesses_back():
    small = Downsampling(2)(X)
    torch.testing.assert_close(small, avg_pool2d(X, 2))
    assert Downsampling(2).guess(small).shape == X.shape
    torch.testing.assert_close(Downsampling(2)(Downsampling(2).guess(small)), small)
    with pytest.raises(ValueError, match=r"divisible by 4; got \(6, 8\)"):
        Downsampling(4)(X)


def test_what_is_missing_is_nan_in_all_channels():
    y = Then(Missing("bottom", 0.5), NoNoise())(X)
    assert torch.equal(y[..., :3, :], X[..., :3, :])
    assert y[..., 3:, :].isnan().all()
    y = Then(Missing("random", 0.3), NoNoise())(X, torch.Generator().manual_seed(0))
    assert torch.equal(y[:, 0].isnan(), y[:, 1].isnan())
    assert 0 < y.isnan().float().mean() < 0.6
    assert torch.equal(Then(Missing(), NoNoise())(y).isnan(), y.isnan())
    assert Then(Blur(), Then(Missing("left"), NoNoise())).hides
    assert not Then(Blur(), NoNoise()).hides


def test_a_corruption_is_operators_and_then_noise():
    assert corruption(["blur:sigma=2"]) == Then(Blur(2.0), NoNoise())
    assert corruption(["gaussian-noise:scale=0.2"]) == GaussianNoise(0.2)
    both = corruption(["blur", "downsampling:factor=2", "gaussian-noise:scale=0.2"])
    assert both == Then(Blur(), Then(Downsampling(2), GaussianNoise(0.2)))
    y = both(X, torch.Generator().manual_seed(1))
    assert torch.equal(y, GaussianNoise(0.2)(Downsampling(2)(Blur()(X)), torch.Generator().manual_seed(1)))
    assert torch.equal(both.likelihood(X).loc, Downsampling(2)(Blur()(X)))
    assert both.guess(y).shape == X.shape
    with pytest.raises(UsageError, match="expected one of operators, then one noise"):
        corruption(["gaussian-noise", "blur"])
    with pytest.raises(UsageError, match="did you mean 'blur'"):
        corruption(["blurr"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(0), "sigma > 0"),
        (lambda: Downsampling(0), "factor >= 1"),
        (lambda: Missing("top", 1.0), "between 0 and 1"),
        (lambda: Then(Blur(), GaussianNoise()).clean_given(X, X, 0.1), "mixes pixels"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
