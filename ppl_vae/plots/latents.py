"""Latents in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from ppl_vae.plots.figures import LABEL_COLOURS, OKABE_ITO


def latent_scatter(
    ax: Axes, z: ArrayLike, labels: ArrayLike, names: Sequence[str] | None = None, *, of: str = "mean of"
) -> None:
    """Latents z (N, 2), coloured by `labels` (N,), integers 0..9, with a legend outside that gives `names[label]`. They
    are means of q(z|x), or what `of` says in the labels of the axes: "sample of". Each label also stands at the median
    of its points, for those who do not see all colours. Points are drawn in the order given, so shuffled data hide no
    label under another. Raises ValueError for another shape, other labels or too few names."""
    points, label = np.asarray(z), np.asarray(labels)
    if points.shape != (label.size, 2) or label.ndim != 1 or not label.size:
        raise ValueError(f"expected z (N, 2) and labels (N,); got {points.shape} and {label.shape}")
    present = np.unique(label)
    if not np.isin(present, range(len(LABEL_COLOURS))).all():
        raise ValueError(f"expected labels in 0..{len(LABEL_COLOURS) - 1}; got {present.tolist()}")
    if names is not None and len(names) <= present[-1]:
        raise ValueError(f"expected a name for each label up to {present[-1]}; got {len(names)} names")
    ax.scatter(points[:, 0], points[:, 1], s=9, c=[LABEL_COLOURS[k] for k in label], alpha=0.8, linewidths=0)
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
    keys = []
    for k in present:
        x, y = np.median(points[label == k], axis=0)
        ax.text(x, y, str(k), ha="center", va="center", weight="bold", bbox=box)
        name = f"{k}: {names[k]}" if names else str(k)
        keys.append(Line2D([], [], ls="", marker="o", color=LABEL_COLOURS[k], label=name))
    ax.legend(handles=keys, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, handletextpad=0)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel=f"{of} $q(z_1|x)$", ylabel=f"{of} $q(z_2|x)$")


def prior_and_posterior(ax: Axes, prior: ArrayLike, posterior: ArrayLike) -> None:
    """Samples of a prior and of the aggregate posterior 1/N sum_i q(z|x_i), each (samples, 2). Where only the prior
    has points, samples decode to what no image was encoded as; where only the posterior has, the prior finds images
    unlikely. Raises ValueError for another shape."""
    samples = {"aggregate posterior": np.asarray(posterior), "prior": np.asarray(prior)}
    for (name, z), colour in zip(samples.items(), ("sky blue", "vermilion"), strict=True):
        if z.ndim != 2 or z.shape[1] != 2:
            raise ValueError(f"{name}: expected samples of shape (N, 2); got {z.shape}")
        ax.scatter(z[:, 0], z[:, 1], s=3, alpha=0.5, linewidths=0, color=OKABE_ITO[colour], label=name)
    ax.set(aspect="equal", xlabel="z1", ylabel="z2")
    ax.legend(fontsize=7, markerscale=3, loc="upper right")
