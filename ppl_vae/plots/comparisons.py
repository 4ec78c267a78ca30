"""Models side by side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ppl_vae.plots.figures import OKABE_ITO, axes_of

_METRICS = {
    "mse": "MSE (lower is better)",
    "psnr": "PSNR [dB] (higher is better)",
    "ssim": "SSIM (higher is better)",
}


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


def side_by_side(
    ax: Axes, names: Sequence[str], values: Mapping[str, tuple[ArrayLike, ArrayLike]], xlabel: str
) -> None:
    """Several values of each name, one below the other, by kind: means and standard errors, shape (len(names),) each,
    of which two are drawn; NaN is left out. Other shapes raise ValueError."""
    colours = ("vermilion", "blue", "green", "orange")
    for i, ((kind, (means, errors)), colour) in enumerate(zip(values.items(), colours, strict=False)):
        offset = 0.22 * (i - (len(values) - 1) / 2)
        _dots(ax, names, means, errors, num_errors=2, offset=offset, color=OKABE_ITO[colour], label=kind)
    ax.set_xlabel(xlabel)
    ax.legend(frameon=False, fontsize=8)


def by_setting(
    ax: Axes, setting: str, values: Sequence[Any], curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]]
) -> None:
    """Mean log p(x) by the values of a setting, evenly spaced, for each name, with a line where they are numbers: means
    and standard errors, shape (values,), of which two are drawn, and what single seeds have, shape (values, seeds), as
    faint dots. NaN is left out. Other shapes raise ValueError."""
    is_number = all(isinstance(value, int | float) for value in values)
    colours = [colour for name, colour in OKABE_ITO.items() if name != "black"]
    for i, ((name, of_name), colour) in enumerate(zip(curves.items(), itertools.cycle(colours))):
        mean, error, of_seeds = (np.asarray(t, dtype=float) for t in of_name)
        if not mean.shape == error.shape == of_seeds.shape[:1] == (len(values),) or of_seeds.ndim != 2:
            shapes = f"{mean.shape}, {error.shape} and {of_seeds.shape}"
            raise ValueError(f"expected means, errors ({len(values)},) and seeds ({len(values)}, *); got {shapes}")
        x = np.arange(len(values)) + 0.1 * (i - (len(curves) - 1) / 2) / max(len(curves) - 1, 1)
        line = "o-" if is_number else "o"
        ax.errorbar(x, mean, 2 * error, fmt=line, color=colour, ms=4, lw=1.2, capsize=2, label=name)
        ax.plot(np.repeat(x, of_seeds.shape[1]), of_seeds.ravel(), ".", color=colour, alpha=0.4, ms=4)
    ax.set_xticks(range(len(values)), [str(value) for value in values], fontsize=8)
    ax.set_xlabel(setting)
    ax.grid(axis="y", alpha=0.3)
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize=8)


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
    ax.set_title(f"log p(x): {names[0]} less {names[1]}", fontsize=9)
    ax.legend(fontsize=7, loc="upper left")


def histograms(ax: Axes, values: Mapping[str, ArrayLike], xlabel: str = "log p(x) [nats]") -> None:
    """Overlaid histograms of named values, shape (data,) each, on common bins, as shares of each set."""
    arrays = {name: np.asarray(v, dtype=float) for name, v in values.items()}
    bins = np.histogram_bin_edges(np.concatenate([*arrays.values()]), bins=40).tolist()
    for (name, array), colour in zip(arrays.items(), ("blue", "vermilion", "green", "orange"), strict=False):
        share = np.full(len(array), 1 / len(array))
        ax.hist(array, bins, weights=share, color=OKABE_ITO[colour], alpha=0.5, label=name)
    ax.set(xlabel=xlabel, ylabel="share of the data")
    ax.legend(frameon=False, fontsize=8)


def denoising_dots(axes: Any, names: Sequence[str], metrics: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """One Axes a metric, with one row a model as in `log_likelihood_bars`, named on the first Axes. Means
    and errors have shape (len(names),). MSE, PSNR (in dB) and SSIM say which way is better; other metrics
    are only named. Raises ValueError for other shapes or another number of Axes than of metrics."""
    flat = axes_of(axes, len(metrics))
    for ax, (metric, (means, errors)) in zip(flat, metrics.items(), strict=True):
        _dots(ax, names, means, errors)
        ax.set_xlabel(_METRICS.get(metric.lower(), metric))
        ax.tick_params(labelleft=ax is flat[0])


def _dots(
    ax: Axes,
    names: Sequence[str],
    means: ArrayLike,
    errors: ArrayLike,
    *,
    num_errors: int = 1,
    offset: float = 0.0,
    color: str = OKABE_ITO["blue"],
    label: str | None = None,
) -> None:
    x, error = (np.asarray(values, dtype=float) for values in (means, errors))  # of what is not known, null is NaN
    if not x.shape == error.shape == (len(names),):
        raise ValueError(f"expected means and errors ({len(names)},); got {x.shape} and {error.shape}")
    rows = np.arange(len(names))
    ax.errorbar(x, rows + offset, xerr=num_errors * error, fmt="o", color=color, capsize=3, label=label)
    ax.set_yticks(rows, names)
    # Not invert_yaxis, which would turn axes that share y once for each of them.
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="x", alpha=0.3)
