"""How far to trust an estimate or a prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter
from numpy.typing import ArrayLike

from ppl_vae.plots.figures import OKABE_ITO, axes_of
from ppl_vae.plots.mosaics import checked_images, middles, mosaic


def convergence(
    ax: Axes, num_samples: ArrayLike, means: ArrayLike, errors: ArrayLike, *, elbo: float, annealed: float
) -> None:
    """Mean log p(x) by importance sampling against K, with a band of two Monte Carlo standard errors, between the
    ELBO and the annealed value, in nats per datum. `num_samples`, `means` and `errors` have shape (points,);
    other shapes raise ValueError."""
    K, mean, error = (np.asarray(values, dtype=float) for values in (num_samples, means, errors))
    if not K.shape == mean.shape == error.shape or K.ndim != 1 or not K.size:
        raise ValueError(f"expected K, means and errors (points,); got {K.shape}, {mean.shape} and {error.shape}")
    ax.fill_between(K, mean - 2 * error, mean + 2 * error, color=OKABE_ITO["blue"], alpha=0.25, lw=0)
    ax.plot(K, mean, "o-", color=OKABE_ITO["blue"], ms=4, label="importance sampling")
    ax.axhline(annealed, color=OKABE_ITO["vermilion"], ls="--", lw=1.2, label="annealed")
    ax.axhline(elbo, color=OKABE_ITO["black"], ls=":", lw=1.2, label="ELBO")
    ax.set_xscale("log")
    ax.set_xlabel("K")
    ax.set_ylabel("log p(x) [nats]")
    ax.legend(fontsize=7, framealpha=0.9, edgecolor="none", loc="lower right")


def khat_by_image(axes: Any, khat: ArrayLike, images: ArrayLike, *, worst: int = 8, limit: float = 0.7) -> None:
    """On the first of two Axes the Pareto k-hat (N,) of each image's weights by its number, with a triangle where it is
    over `limit` and log p(x) is not to be trusted; on the second the `worst` images of images (N, C, H, W), the worst
    first, under their number and k-hat. What is infinite or NaN is counted and not drawn as a point; of the two, +inf
    is among the worst. Raises ValueError for other shapes, another number of Axes, or `worst` under 1."""
    k, tiles = np.asarray(khat, dtype=float), checked_images(images, "N, C, H, W")
    if k.shape != tiles.shape[:1]:
        raise ValueError(f"expected a k-hat for each of {len(tiles)} images; got {k.shape}")
    if worst < 1:
        raise ValueError(f"expected worst >= 1; got {worst}")
    ax, below = axes_of(axes, 2)
    number, over, finite = np.arange(len(k)), k > limit, np.isfinite(k)
    kinds = (("trusted", ~over & finite, "o", "blue"), (f"over {limit:g}", over & finite, "^", "vermilion"))
    for name, some, marker, colour in kinds:
        ax.plot(number[some], k[some], marker, ls="", ms=4, color=OKABE_ITO[colour], label=f"{name}: {some.sum()}")
    ax.axhline(limit, color="0.4", ls="--", lw=0.8)
    counts = {"+inf": np.isposinf(k), "-inf (equal weights)": np.isneginf(k), "unknown (K < 25)": np.isnan(k)}
    rest = "; ".join(f"{name}: {some.sum()}" for name, some in counts.items() if some.any())
    ax.set(xlabel=f"image\nnot drawn: {rest}" if rest else "image", ylabel="Pareto k-hat of the weights")
    ax.legend(fontsize=7, framealpha=0.9, edgecolor="none")
    first = np.argsort(-k, kind="stable")[:worst]  # NaN is last
    mosaic(below, tiles[None, first])
    labels = [f"{i}\n{Formatter.fix_minus(f'{k[i]:.2f}')}" for i in first]
    below.set_xticks(middles(len(first), tiles.shape[-1]), labels, size="small")
    below.set_title("the worst: number and k-hat", fontsize=9)


def calibration(ax: Axes, predicted: ArrayLike, observed: ArrayLike, *, bins: int = 10) -> None:
    """The mean of x by pixel as predicted, E[x|z] for z from the posterior, say, against what was observed, both in
    [0, 1] and of shape (N, ...): of the pixels that are predicted to be white with probability 0.3, 0.3 should be.
    Pixels are taken together in `bins` of equal width; bars are two standard errors over the N images, as the pixels of
    an image are not independent. The grey steps are the share of all pixels in a bin. Draws of a binary x are no
    prediction of it: their mean over few draws is noise, which looks like over-confidence. Raises ValueError for
    unequal shapes, values outside [0, 1] or `bins` under 1."""
    p, x = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    if p.shape != x.shape or p.ndim < 2 or not p.size:
        raise ValueError(f"expected predicted and observed (N, ...) of one shape; got {p.shape} and {x.shape}")
    if bins < 1:
        raise ValueError(f"expected bins >= 1; got {bins}")
    for name, values in (("predicted", p), ("observed", x)):
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"{name}: expected values in [0, 1]; got [{values.min():g}, {values.max():g}]")
    N = len(p)
    index = np.minimum((p * bins).astype(int), bins - 1) + bins * np.arange(N).reshape(-1, *[1] * (p.ndim - 1))
    # of each image and bin (N, bins): how many pixels, and the sums over them
    count, sum_p, sum_x = (
        np.bincount(index.ravel(), w, minlength=N * bins).reshape(N, bins) for w in (None, p.ravel(), x.ravel())
    )
    total = count.sum(0)
    some = total > 0
    mean_p, mean_x = (sums.sum(0)[some] / total[some] for sums in (sum_p, sum_x))
    residual = (sum_x[:, some] - mean_x * count[:, some]) / total[some]  # of a ratio of sums over images
    error = np.sqrt(np.square(residual).sum(0) * (N / (N - 1) if N > 1 else np.nan))
    ax.stairs(total / total.sum(), np.linspace(0, 1, bins + 1), fill=True, color="0.85", label="share of pixels")
    ax.plot([0, 1], [0, 1], color="0.4", ls="--", lw=0.8, label="calibrated")
    ax.errorbar(mean_p, mean_x, 2 * error, fmt="o", ms=4, capsize=3, color=OKABE_ITO["blue"], label="± 2 s.e.")
    ax.set(xlabel="predicted mean of a pixel", ylabel="observed mean", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(fontsize=7, framealpha=0.9, edgecolor="none", loc="upper left")
