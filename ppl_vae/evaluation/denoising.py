"""How well noise was removed: figures per image, and the baseline that a network has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor


def image_quality(restored: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Figures for each image, shape (data,), of restored against clean images (data, C, H, W) in [0, 1].

    - `mse`: mean squared error per pixel, 0 at best;
    - `psnr`: peak signal-to-noise ratio, -10 log10 mse, in decibels, infinite at best;
    - `ssim`: structural similarity, in -1..1, 1 at best, with a Gaussian window of sigma 1.5. Zhou Wang, Alan
      Bovik, Hamid Sheikh, Eero Simoncelli: Image Quality Assessment, 2004, doi:10.1109/TIP.2003.819861.

    Raises `ValueError` for differing shapes or values outside of [0, 1].
    """
    if restored.shape != clean.shape or clean.dim() != 4:
        raise ValueError(
            f"expected restored and clean images of one shape (data, C, H, W); got {tuple(restored.shape)} "
            f"and {tuple(clean.shape)}"
        )
    for name, images in (("restored", restored), ("clean", clean)):
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError(
                f"{name} images: expected values in [0, 1]; got {images.min().item():.4g} to {images.max().item():.4g}"
            )
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds, for every command

    mse = (restored - clean).square().flatten(1).mean(1)
    ssim = structural_similarity_index_measure(restored, clean, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {"mse": mse, "psnr": -10 * mse.log10(), "ssim": ssim}


def mean_and_se(values: Tensor) -> tuple[float, float]:
    """Mean over the images and its standard error, sd / sqrt(N); NaN for one image."""
    values = values.double()
    se = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), se


def quality_summary(restored: Tensor, clean: Tensor) -> dict[str, dict[str, float]]:
    """`image_quality` as mean and standard error over the images, for JSON: {metric: {"mean": ..., "se": ...}}."""
    quality = {metric: mean_and_se(values) for metric, values in image_quality(restored, clean).items()}
    return {metric: {"mean": mean, "se": se} for metric, (mean, se) in quality.items()}


class PCA:
    """Principal components of training images: the best linear autoencoder for squared error.

    `pca(x)` projects images (data, *event) on the first `num_components` components, clipped to [0, 1].

    Raises `ValueError` unless 1 <= num_components <= min(data, pixels).
    """

    def __init__(self, images: Tensor, num_components: int):
        flat = images.flatten(1).double()
        if not 1 <= num_components <= min(flat.shape):
            raise ValueError(f"num_components: expected 1 to {min(flat.shape)}; got {num_components}")
        self.num_components = num_components
        self.mean = flat.mean(0)
        covariance = (flat - self.mean).T @ (flat - self.mean)
        self._components = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # largest eigenvalue first

    def __call__(self, x: Tensor) -> Tensor:
        V = self._components[:, : self.num_components]
        flat = (x.flatten(1).double() - self.mean) @ V @ V.T + self.mean
        return flat.reshape(x.shape).to(x.dtype).clamp(0, 1)

    @classmethod
    def tuned(cls, images: Tensor, noisy: Tensor, clean: Tensor) -> PCA:
        """The PCA of `images` with the number of components that restores `clean` from `noisy` (validation)
        images with the least squared error. (A projection on components of clean images, and no regression.)"""
        pca = cls(images, 1)
        candidates = [k for k in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256) if k <= min(pca._components.shape)]

        def error(k: int) -> float:
            pca.num_components = k
            return (pca(noisy) - clean).square().mean().item()

        pca.num_components = min(candidates or [1], key=error)
        return pca


class Wiener:
    """The best linear estimate of clean images x from noisy ones y, for squared error: the Wiener filter of pairs of
    training images (data, *event),

        x' = E[x] + Cov(x, y) Cov(y)^-1 (y - E[y]),    clipped to [0, 1].

    Norbert Wiener: Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949; here without the
    stationarity. Raises `ValueError` for pairs that differ in shape.
    """

    def __init__(self, clean: Tensor, noisy: Tensor):
        if clean.shape != noisy.shape:
            raise ValueError(f"expected pairs of one shape; got {tuple(clean.shape)} and {tuple(noisy.shape)}")
        x, y = clean.flatten(1).double(), noisy.flatten(1).double()
        self.mean_x, self.mean_y = x.mean(0), y.mean(0)
        y = y - self.mean_y
        covariance = torch.linalg.pinv(y.T @ y, hermitian=True)  # a pixel that is always black has no variance
        self._filter = covariance @ (y.T @ (x - self.mean_x))

    def __call__(self, y: Tensor) -> Tensor:
        flat = (y.flatten(1).double() - self.mean_y) @ self._filter + self.mean_x
        return flat.reshape(y.shape).to(y.dtype).clamp(0, 1)


def linear_baselines(
    images: Tensor, validation: Tensor, noisy: Tensor, add: Callable[[Tensor, Generator], Tensor], *, seed: int
) -> dict[str, Tensor]:
    """Noisy images, and what linear methods make of them that are fitted to clean images (data, *event) and to noise
    that `add` adds, by name: a projection on as many principal components as serve best on validation images, which
    sees clean images alone, and the Wiener filter, which sees pairs."""
    pca = PCA.tuned(images, add(validation, Generator().manual_seed(seed + 1)), validation)
    wiener = Wiener(images, add(images, Generator().manual_seed(seed + 2)))
    return {"noisy": noisy, f"PCA ({pca.num_components} components)": pca(noisy), "Wiener filter": wiener(noisy)}
