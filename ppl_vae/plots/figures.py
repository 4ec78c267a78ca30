"""Figures made and saved, and their colours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_vae.system.files import write_whole

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

Array = np.ndarray[Any, Any]


def figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches with constrained layout, and what `Figure.subplots(**subplots)`
    returns: one Axes, or an array of them for `nrows` or `ncols` over 1. pyplot does not know the figure."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(**subplots)


def save(figure: Figure, path: str | Path, *, title: str | None = None) -> None:
    """Writes the figure to `path` as PNG at 144 dpi, cut to its contents, under `title` if there is one. The
    same calls give the same bytes, and `path` is only ever replaced by a whole file. Raises ValueError if `path` does
    not end in .png and OSError if it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a path that ends in .png; got {str(path)!r}")
    if title is not None:
        figure.suptitle(title, parse_math=False)  # a name with dollars is no formula
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
    write_whole(path, png.getvalue())


def axes_of(axes: Any, count: int) -> list[Axes]:
    """`count` Axes as a list. Raises ValueError for another number."""
    flat = list(np.ravel(axes))
    if len(flat) != count:
        raise ValueError(f"expected {count} Axes; got {len(flat)}")
    return flat
