"""The ELBO and its parts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator
from numpy.typing import ArrayLike

from ppl_vae.plots.figures import LABEL_COLOURS, OKABE_ITO, Array, axes_of

_MARKERS = "os^Dv<>Pph"


class Columns(Protocol):
    """What `training_curves` reads: `columns[name]` is a list of numbers, an epoch each, or a KeyError."""

    def __getitem__(self, column: str, /) -> Sequence[float]: ...


def training_curves(axes: Any, history: Columns) -> None:
    """ELBO, reconstruction and KL by epoch on three Axes, in nats per datum: training solid, validation
    dashed. `history`, a `training.History` or a mapping, has columns `epoch`, `train_elbo`,
    `train_reconstruction`, `train_kl` and perhaps the same with `validation_`. Where the first epoch would
    take over half of an axis, its values are written below instead. Raises ValueError for other than three
    Axes or no epochs, KeyError for a missing column."""
    epoch = history["epoch"]
    if not len(epoch):
        raise ValueError("expected at least one epoch; got none")
    for ax, part in zip(axes_of(axes, 3), ("elbo", "reconstruction", "kl"), strict=True):
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


def rate_distortion(
    ax: Axes, names: Sequence[str], rates: ArrayLike, distortions: ArrayLike, unit: str = "nats"
) -> None:
    """Each named model in the plane of rate, E KL(q(z|x) || p(z)), and distortion, -E log p(x|z), in `unit` per datum,
    shapes (len(names),): what a code costs, and what it leaves to say of x. The grey lines are of equal -ELBO, their
    sum, so that models on one line have one ELBO and spend it differently. Raises ValueError for another shape or
    values that are not finite.

    Alexander A. Alemi, Ben Poole, Ian Fischer, Joshua V. Dillon, Rif A. Saurous, Kevin Murphy: Fixing a Broken ELBO,
    2018, arXiv:1711.00464.
    """
    rate, distortion = np.asarray(rates, dtype=float), np.asarray(distortions, dtype=float)
    if not rate.shape == distortion.shape == (len(names),) or not len(names):
        raise ValueError(f"expected rates and distortions ({len(names)},); got {rate.shape} and {distortion.shape}")
    if not (np.isfinite(rate).all() and np.isfinite(distortion).all()):
        raise ValueError(f"expected finite rates and distortions; got {rate.tolist()} and {distortion.tolist()}")
    limits = []
    for values in (rate, distortion):
        margin = 0.15 * np.ptp(values) or max(0.05 * abs(values[0]), 1.0)
        limits.append((values.min() - margin, values.max() + margin))
    (left, right), (low, high) = limits
    for level in MaxNLocator(6).tick_values(left + low, right + high):
        ends = max(left, level - high), min(right, level - low)  # where the line enters and leaves
        if ends[0] < ends[1]:
            middle = sum(ends) / 2
            ax.axline((middle, level - middle), slope=-1, color="0.7", linewidth=0.8, zorder=0)
            text = Formatter.fix_minus(f"{level:g}")
            box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "linewidth": 0}
            ax.text(middle, level - middle, text, ha="center", va="center", size=7, color="0.4", bbox=box, zorder=1)
    for i, (name, r, d) in enumerate(zip(names, rate, distortion, strict=True)):
        ax.plot(r, d, _MARKERS[i % len(_MARKERS)], color=LABEL_COLOURS[i % len(LABEL_COLOURS)], label=name)
    ax.set(
        xlabel=f"rate: KL [{unit}]", ylabel=f"distortion: $-$reconstruction [{unit}]", xlim=limits[0], ylim=limits[1]
    )
    ax.set_title(f"grey: equal $-$ELBO [{unit}]", fontsize=9)
    ax.legend(fontsize=7, framealpha=0.9, edgecolor="none")


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
