"""Figures: functions that draw arrays on an Axes.

Arrays are NumPy's, or torch's on the CPU without gradient. Images have values in [0, 1] and one channel
(grey) or three (RGB). Nothing is global: no pyplot, no style, no rcParams. `figure` makes a figure and `save`
writes it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import Formatter, MaxNLocator
from numpy.typing import ArrayLike

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
"""Eight colours that the colour-blind can tell apart (Okabe and Ito, 2008)."""

LABEL_COLOURS = (*OKABE_ITO.values(), "#332288", "#661100")
"""A colour for each of ten labels: Okabe and Ito's, and Tol's indigo and brown, which are far from all of
these under simulated protanopia, deuteranopia and tritanopia; grey is not."""

_METRICS = {
    "mse": "MSE (lower is better)",
    "psnr": "PSNR [dB] (higher is better)",
    "ssim": "SSIM (higher is better)",
}

_Array = np.ndarray[Any, Any]


class Columns(Protocol):
    """What `training_curves` reads: `columns[name]` is a list of numbers, an epoch each, or a KeyError."""

    def __getitem__(self, column: str, /) -> Sequence[float]: ...


def figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches with constrained layout, and what `Figure.subplots(**subplots)`
    returns: one Axes, or an array of them for `nrows` or `ncols` over 1. pyplot does not know the figure."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(**subplots)


def save(figure: Figure, path: str | Path, *, title: str | None = None) -> None:
    """Writes the figure to `path` as PNG at 144 dpi, cut to its contents, under `title` if there is one. The
    same calls give the same bytes, and `path` is only ever replaced by a whole file. Raises ValueError if
    `path` does not end in .png and OSError if it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a path that ends in .png; got {str(path)!r}")
    if title is not None:
        figure.suptitle(title, parse_math=False)  # a name with dollars is no formula
    # In the same folder, as a rename is atomic only within a file system.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def images(ax: Axes, images: ArrayLike, *, columns: int | None = None) -> None:
    """Images (N, C, H, W) in a grid, row by row from the top left, in `columns` columns (by default about as
    many as rows), one pixel apart. Raises ValueError for another shape, values outside [0, 1] or `columns`
    under 1."""
    tiles = _images(images, "N, C, H, W")
    if columns is None:
        columns = math.ceil(math.sqrt(len(tiles)))
    if columns < 1:
        raise ValueError(f"expected columns >= 1; got {columns}")
    rows = math.ceil(len(tiles) / columns)
    white = np.ones((rows * columns - len(tiles), *tiles.shape[1:]), tiles.dtype)
    _mosaic(ax, np.concatenate([tiles, white]).reshape(rows, columns, *tiles.shape[1:]))


def rows_of_images(ax: Axes, rows: Mapping[str, ArrayLike]) -> None:
    """One row of images (N, C, H, W) for each label, from the top, with the label at its left: originals
    over noisy over denoised, say. Raises ValueError for no rows, rows of unequal shape or values outside [0,
    1]."""
    tiles = [_images(row, "N, C, H, W") for row in rows.values()]
    shapes = {row.shape for row in tiles}
    if len(shapes) != 1:
        raise ValueError(f"expected rows of images of one shape; got {sorted(shapes) or 'no rows'}")
    _mosaic(ax, np.stack(tiles))
    ax.set_yticks(_middles(len(tiles), tiles[0].shape[-2]), list(rows))


def interpolations(ax: Axes, images: ArrayLike) -> None:
    """Images (pairs, steps, C, H, W): from one image of a pair to the other, a row a pair, from left to
    right. Raises ValueError for another shape or values outside [0, 1]."""
    _mosaic(ax, _images(images, "pairs, steps, C, H, W"))


def latent_grid(ax: Axes, images: ArrayLike, z1: ArrayLike, z2: ArrayLike) -> None:
    """Images (len(z2), len(z1), C, H, W) decoded on a grid of two latent values, as `np.meshgrid(z1, z2)`
    lays it out: `images[i, j]` stands at `z1[j]` to the right and `z2[i]` upwards, the same way round as in
    `latent_scatter`. Ticks show the values; of more than eight, every second or so. Raises ValueError for
    another shape or values outside [0, 1]."""
    tiles, right, up = _images(images, "len(z2), len(z1), C, H, W"), np.asarray(z1), np.asarray(z2)
    if (*up.shape, *right.shape) != tiles.shape[:2]:
        raise ValueError(
            f"expected z1 {tiles.shape[1:2]} and z2 {tiles.shape[:1]} for images {tiles.shape}; "
            f"got {right.shape} and {up.shape}"
        )
    _mosaic(ax, tiles[::-1])
    for axis, z, size in ((ax.xaxis, right, tiles.shape[-1]), (ax.yaxis, up[::-1], tiles.shape[-2])):
        some = slice(None, None, math.ceil(len(z) / 8))
        labels = [Formatter.fix_minus(f"{value:z.2f}") for value in z[some]]
        axis.set_ticks(_middles(len(z), size)[some], labels, size="small")
    ax.set(xlabel="$z_1$", ylabel="$z_2$")


def latent_scatter(ax: Axes, z: ArrayLike, labels: ArrayLike, names: Sequence[str] | None = None) -> None:
    """Means z (N, 2) of q(z|x), coloured by `labels` (N,), integers 0..9, with a legend outside that gives
    `names[label]`. Each label also stands at the median of its points, for those who do not see all colours.
    Points are drawn in the order given, so shuffled data hide no label under another. Raises ValueError for
    another shape, other labels or too few names."""
    points, label = np.asarray(z), np.asarray(labels)
    if points.shape != (label.size, 2) or label.ndim != 1 or not label.size:
        raise ValueError(f"expected z (N, 2) and labels (N,); got {points.shape} and {label.shape}")
    present = np.unique(label)
    if not np.isin(present, range(len(LABEL_COLOURS))).all():
        raise ValueError(f"expected labels in 0..{len(LABEL_COLOURS) - 1}; got {present.tolist()}")
    if names is not None and len(names) <= present[-1]:
        raise ValueError(f"expected a name for each label up to {present[-1]}; got {len(names)} names")
    ax.scatter(points[:, 0], points[:, 1], s=9, c=[LABEL_COLOURS[k] for k in label], alpha=0.8, linewidths=0)
    halo = [withStroke(linewidth=3, foreground="white")]
    keys = []
    for k in present:
        x, y = np.median(points[label == k], axis=0)
        ax.text(x, y, str(k), ha="center", va="center", weight="bold", path_effects=halo)
        name = f"{k}: {names[k]}" if names else str(k)
        keys.append(Line2D([], [], ls="", marker="o", color=LABEL_COLOURS[k], label=name))
    ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="mean of $q(z_1|x)$", ylabel="mean of $q(z_2|x)$")


def training_curves(axes: Any, history: Columns) -> None:
    """ELBO, reconstruction and KL by epoch on three Axes, in nats per datum: training solid, validation
    dashed. `history`, a `training.History` or a mapping, has columns `epoch`, `train_elbo`,
    `train_reconstruction`, `train_kl` and perhaps the same with `validation_`. Where the first epoch would
    take over half of an axis, its values are written below instead. Raises ValueError for other than three
    Axes or no epochs, KeyError for a missing column."""
    epoch = history["epoch"]
    if not len(epoch):
        raise ValueError("expected at least one epoch; got none")
    for ax, part in zip(_axes(axes, 3), ("elbo", "reconstruction", "kl"), strict=True):
        curves = [np.asarray(history[f"train_{part}"])]
        with contextlib.suppress(KeyError):
            curves.append(np.asarray(history[f"validation_{part}"]))
        styles = (("training", "-", "blue"), ("validation", "--", "vermilion"))
        for curve, (name, style, colour) in zip(curves, styles, strict=False):
            marker = "o" if len(epoch) == 1 else ""
            ax.plot(epoch, curve, style, color=OKABE_ITO[colour], marker=marker, label=name)
        note = _leave_out_first(ax, np.stack(curves))
        ax.set(title=part if part == "reconstruction" else part.upper(), ylabel="nats per datum")
        ax.set_xlabel(f"epoch{note}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)


def log_likelihood_bars(
    ax: Axes, names: Sequence[str], means: ArrayLike, errors: ArrayLike, unit: str = "nats"
) -> None:
    """Mean log p(x) of each named model, in `unit`, a row a model from the top: a dot, and a bar of one
    standard error to each side (none where it is NaN). Means and errors have shape (len(names),); other
    shapes and negative errors raise ValueError."""
    _dots(ax, names, means, errors)
    ax.set_xlabel(f"mean log p(x) ± 1 s.e. [{unit}]")


def differences(ax: Axes, names: Sequence[str], means: ArrayLike, errors: ArrayLike, unit: str = "nats") -> None:
    """Mean difference of each named model to the best one, in `unit`, as `log_likelihood_bars` draws means."""
    _dots(ax, names, means, errors)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set_xlabel(f"paired difference to the best ± 1 s.e. over images [{unit}]")


def prior_and_posterior(ax: Axes, prior: ArrayLike, posterior: ArrayLike) -> None:
    """Draws from a prior and from the aggregate posterior 1/N sum_i q(z|x_i), each (draws, 2): where the one has
    points and the other none, the prior decodes what no image was encoded to, or finds images unlikely. Raises
    ValueError for another shape."""
    draws = {"aggregate posterior": np.asarray(posterior), "prior": np.asarray(prior)}
    for (name, z), colour in zip(draws.items(), ("sky blue", "vermilion"), strict=True):
        if z.ndim != 2 or z.shape[1] != 2:
            raise ValueError(f"{name}: expected draws of shape (N, 2); got {z.shape}")
        ax.scatter(z[:, 0], z[:, 1], s=3, alpha=0.5, linewidths=0, color=OKABE_ITO[colour], label=name)
    ax.set(aspect="equal", xlabel="z1", ylabel="z2")
    ax.legend(fontsize=7, markerscale=3, loc="upper right")


def per_datum_differences(ax: Axes, differences: ArrayLike, names: tuple[str, str], unit: str = "nats") -> None:
    """Each datum's log p(x) under the first of two models less that under the second, shape (data,), in rising order,
    with their mean. Raises ValueError for another shape."""
    d = np.sort(np.asarray(differences))
    if d.ndim != 1 or not len(d):
        raise ValueError(f"differences: expected shape (data,); got {d.shape}")
    ax.fill_between(np.arange(len(d)), d, color=OKABE_ITO["sky blue"], linewidth=0)
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.axhline(d.mean(), color=OKABE_ITO["vermilion"], linestyle="--", label=f"mean {d.mean():.2f}")
    share = (d > 0).mean()
    ax.set(xlabel=f"data in order; {names[0]} is the better one for {share:.0%}", ylabel=f"difference [{unit}]")
    ax.set_title(f"log p(x): {names[0]} less {names[1]}", fontsize=9, parse_math=False)
    ax.legend(fontsize=7, loc="upper left")


def convergence(
    ax: Axes, num_samples: ArrayLike, means: ArrayLike, errors: ArrayLike, *, elbo: float, annealed: float
) -> None:
    """Mean log p(x) by importance sampling against K, with a band of two Monte Carlo standard errors, between the
    ELBO and the annealed value, in nats per datum. `num_samples`, `means` and `errors` have shape (points,);
    other shapes raise ValueError."""
    K, mean, error = np.asarray(num_samples), np.asarray(means), np.asarray(errors)
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


def denoising_dots(axes: Any, names: Sequence[str], metrics: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """One Axes a metric, with one row a model as in `log_likelihood_bars`, named on the first Axes. Means
    and errors have shape (len(names),). MSE, PSNR (in dB) and SSIM say which way is better; other metrics
    are only named. Raises ValueError for other shapes or another number of Axes than of metrics."""
    flat = _axes(axes, len(metrics))
    for ax, (metric, (means, errors)) in zip(flat, metrics.items(), strict=True):
        _dots(ax, names, means, errors)
        ax.set_xlabel(_METRICS.get(metric.lower(), metric))
        ax.tick_params(labelleft=ax is flat[0])


def _images(images: ArrayLike, shape: str) -> _Array:
    array = np.asarray(images, dtype=np.float32)
    if array.ndim != shape.count(",") + 1 or array.shape[-3] not in (1, 3) or not array.size:
        raise ValueError(f"expected images ({shape}) with C 1 or 3; got shape {array.shape}")
    low, high = array.min(), array.max()
    # Means of values in [0, 1] may leave it by rounding; levels 0..255 must not pass.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"expected images with values in [0, 1]; got values in [{low:g}, {high:g}]")
    return array.clip(0, 1)


def _mosaic(ax: Axes, tiles: _Array) -> None:
    """Draws tiles (rows, columns, C, H, W)."""
    rows, columns, channels, height, width = tiles.shape
    gapped = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
    pixels = gapped.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    # imshow takes (H, W) or (H, W, 3); the last row and column are gaps with nothing behind them.
    pixels = pixels[:-1, :-1, 0] if channels == 1 else pixels[:-1, :-1]
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _middles(count: int, size: int) -> _Array:
    """Pixel coordinates of the middles of `count` tiles of `size` pixels."""
    return np.arange(count) * (size + 1) + (size - 1) / 2


def _axes(axes: Any, count: int) -> list[Axes]:
    flat = list(np.ravel(axes))
    if len(flat) != count:
        raise ValueError(f"expected {count} Axes; got {len(flat)}")
    return flat


def _leave_out_first(ax: Axes, curves: _Array) -> str:
    """Sets limits without the first epoch of curves (curve, epoch) if it would take over half of the axis,
    and returns a note."""
    if curves.shape[1] < 5:
        return ""
    first, low, high = curves[:, 0], curves[:, 1:].min(), curves[:, 1:].max()
    if not 0 < high - low < max(low - first.min(), first.max() - high):
        return ""
    margin = 0.05 * (high - low)
    ax.set_ylim(low - margin, high + margin)
    values = ", ".join(Formatter.fix_minus(f"{value:.1f}") for value in first)
    return f"\n(first epoch off the axis: {values})"


def _dots(ax: Axes, names: Sequence[str], means: ArrayLike, errors: ArrayLike) -> None:
    x, error = np.asarray(means), np.asarray(errors)
    if not x.shape == error.shape == (len(names),):
        raise ValueError(f"expected means and errors ({len(names)},); got {x.shape} and {error.shape}")
    rows = range(len(names))
    ax.errorbar(x, rows, xerr=error, fmt="o", color=OKABE_ITO["blue"], capsize=3)
    ax.set_yticks(rows, names)
    # Not invert_yaxis, which would turn axes that share y once for each of them.
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
