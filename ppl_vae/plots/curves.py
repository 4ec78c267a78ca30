"""Curves: the ELBO and its parts by epoch, and log p(x) by the number of importance samples."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.plots.figures import OKABE_ITO, Array, axes_of


class Columns(Protocol):
    """What `training_curves` reads: `columns[name]` is a list of numbers, an epoch each, or a KeyError."""

    def __getitem__(self, column: str, /) -> Sequence[float]: ...


def training_curves(axes: Any, history: Columns) -> None:
    """ELBO, reconstruction and KL by epoch on three Axes, in nats per datum: training solid, validation
    dashed. `history`, a `training.History` or a mapping, has columns `epoch`, `train_elbo`,
    `train_reconstruction`, `train_kl` and perhaps the same with `validation_`. Where the first epoch would
    take over half of an axis, its values are written below instead. Raises ValueError for other than three
    Axes or no epochs, KeyError for a missing column."""
    for ax, part in zip(axes_of(axes, 3), ("elbo", "reconstruction", "kl"), strict=True):
        _curves(ax, history, part, part if part == "reconstruction" else part.upper())


def loss_curve(ax: Axes, history: Columns) -> None:
    """The loss of a model without latents by epoch, in nats per datum, as `training_curves` draws an ELBO."""
    _curves(ax, history, "elbo", "loss", sign=-1)


def _curves(ax: Axes, history: Columns, part: str, title: str, *, sign: int = 1) -> None:
    epoch = history["epoch"]
    if not len(epoch):
        raise ValueError("expected at least one epoch; got none")
    curves = [sign * np.asarray(history[f"train_{part}"])]
    with contextlib.suppress(KeyError):
        curves.append(sign * np.asarray(history[f"validation_{part}"]))
    styles = (("training", "-", "blue"), ("validation", "--", "vermilion"))
    for curve, (name, style, colour) in zip(curves, styles, strict=False):
        marker = "o" if len(epoch) == 1 else ""
        ax.plot(epoch, curve, style, color=OKABE_ITO[colour], marker=marker, label=name)
    note = _leave_out_first(ax, np.stack(curves))
    ax.set(title=title, ylabel="nats per datum")
    ax.set_xlabel(f"epoch{note}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)


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


def error_lines(ax: Axes, curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]]) -> None:
    """A line through points with error bars for each name: x, means and standard errors, shape (points,) each, of
    which two are drawn; NaN has no bar. Raises ValueError for other shapes."""
    colours = [colour for name, colour in OKABE_ITO.items() if name != "black"]
    for (name, values), colour in zip(curves.items(), itertools.cycle(colours)):
        x, mean, error = (np.asarray(t, dtype=float) for t in values)
        if not x.shape == mean.shape == error.shape or x.ndim != 1:
            raise ValueError(f"expected x, means and errors (points,); got {x.shape}, {mean.shape} and {error.shape}")
        ax.errorbar(x, mean, 2 * error, fmt="o-", color=colour, ms=4, lw=1.2, capsize=2, label=name)
    ax.grid(alpha=0.3)
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize=8)


def _leave_out_first(ax: Axes, curves: Array) -> str:
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
