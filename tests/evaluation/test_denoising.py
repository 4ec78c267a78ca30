import math

import pytest
import torch
from skimage.metrics import structural_similarity

from ppl_vae.evaluation.denoising import PCA, Wiener, image_quality, linear_baselines, mean_and_se


def images(n=6, seed=0):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def test_figures_per_image_against_their_formulas_and_another_library():
    clean = images()
    restored = (clean + 0.1 * images(seed=1)).clamp(0, 1)
    quality = image_quality(restored, clean)
    for i in range(6):
        mse = float(((restored[i] - clean[i]) ** 2).mean())
        assert quality["mse"][i].item() == pytest.approx(mse, rel=1e-5)
        assert quality["psnr"][i].item() == pytest.approx(10 * math.log10(1 / mse), rel=1e-5)
        ssim = structural_similarity(
            restored[i, 0].numpy(),
            clean[i, 0].numpy(),
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert quality["ssim"][i].item() == pytest.approx(float(ssim), abs=0.01)  # the two treat borders differently


def test_a_perfect_restoration():
    clean = images()
    quality = image_quality(clean, clean)
    assert quality["mse"].max() == 0
    assert quality["psnr"].min() == math.inf
    torch.testing.assert_close(quality["ssim"], torch.ones(6))


def test_mean_and_standard_error():
    assert mean_and_se(torch.tensor([1.0, 2.0, 4.0])) == pytest.approx((7 / 3, math.sqrt(7 / 3) / math.sqrt(3)))
    assert math.isnan(mean_and_se(torch.tensor([1.0]))[1])


def test_bad_images_are_refused():
    with pytest.raises(ValueError, match="of one shape"):
        image_quality(images(), images(5))
    with pytest.raises(ValueError, match=r"restored images: expected values in \[0, 1\]; got 0\."):
        image_quality(images() + 0.5, images())
    with pytest.raises(ValueError, match="clean images"):
        image_quality(images(), images() * math.nan)


def test_pca_is_the_best_linear_map_and_its_last_component_restores_all():
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(50, 3, generator=generator) @ torch.rand(3, 64, generator=generator) / 3
    x = flat.reshape(50, 1, 8, 8)
    torch.testing.assert_close(PCA(x, 3)(x), x, atol=1e-4, rtol=0)
    U, S, V = torch.linalg.svd((flat - flat.mean(0)).double(), full_matrices=False)
    best = (U[:, :1] * S[:1]) @ V[:1] + flat.mean(0)
    torch.testing.assert_close(PCA(x, 1)(x).flatten(1), best.float().clamp(0, 1), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="num_components: expected 1 to 50; got 51"):
        PCA(x, 51)


def test_pca_is_tuned_on_validation_images_for_the_noise():
    """Rank-8 images: with little noise it keeps all 8 components, with much noise fewer."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 8, generator=generator)).Q.T * torch.tensor([2.0] * 4 + [0.05] * 4)[:, None]

    def draw(n):
        return (torch.randn(n, 8, generator=generator) @ basis / 8 + 0.5).clamp(0, 1).reshape(n, 1, 8, 8)

    train, clean = draw(200), draw(100)
    noise = torch.randn(clean.shape, generator=generator)
    assert PCA.tuned(train, clean + 1e-4 * noise, clean).num_components >= 8
    assert PCA.tuned(train, clean + 0.2 * noise, clean).num_components == 4


def test_the_wiener_filter_is_the_posterior_mean_of_a_normal():
    draw, N, D, scale = torch.Generator().manual_seed(0), 40_000, 4, 0.1
    L = 0.02 * torch.randn(D, D, generator=draw).tril() + 0.08 * torch.eye(D)
    x = 0.5 + torch.randn(N, D, generator=draw) @ L.T
    y = 0.8 * x + scale * torch.randn(N, D, generator=draw)  # so that the means differ
    C = L @ L.T
    gain = 0.8 * C @ torch.linalg.inv(0.64 * C + scale**2 * torch.eye(D))
    exact = 0.5 + (y - 0.4) @ gain.T
    # the gain's error is that of a regression, scale / (sd of y) / sqrt(N) by element, of which y has D
    torch.testing.assert_close(Wiener(x, y)(y), exact, atol=6 * D / math.sqrt(N), rtol=0)
    worse = (exact - x).square().mean() * 1.001
    assert (Wiener(x, y)(y) - x).square().mean() < worse
    black = torch.cat([y, torch.zeros(N, 1)], 1)
    assert Wiener(torch.cat([x, torch.zeros(N, 1)], 1), black)(black)[:, -1].abs().max() < 1e-6
    with pytest.raises(ValueError, match="expected pairs of one shape"):
        Wiener(x, y[:, :2])


def test_linear_baselines_by_name():
    draw = torch.Generator().manual_seed(0)
    basis, parts = torch.rand(3, 1, 16, 16, generator=draw), torch.rand(500, 3, generator=draw) / 3
    images, clean = torch.einsum("nk,kchw->nchw", parts, basis).split([400, 100])

    def add(x, generator):
        return (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)

    noisy = add(clean, torch.Generator().manual_seed(0))
    restored = linear_baselines(images, clean, noisy, add, seed=0)
    assert [*restored] == ["noisy", "PCA (4 components)", "Wiener filter"]
    error = {name: (x - clean).square().mean() for name, x in restored.items()}
    assert max(error["Wiener filter"], error["PCA (4 components)"]) < 0.2 * error["noisy"]
