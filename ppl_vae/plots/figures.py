"""Figures made and saved, and their colours."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.text import Text

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

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue light
Array = np.ndarray[Any, Any]


def figure(width: float, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches with constrained layout, and what `Figure.subplots(**subplots)`
    returns: one Axes, or an array of them for `nrows` or `ncols` over 1. pyplot does not know the figure."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(**subplots)


def save(figure: Figure, path: str | Path, *, title: str | None = None, dark: bool = False) -> None:
    """Writes the figure to `path` as PNG at 144 dpi, cut to its contents, under `title` if there is one. The
    same calls give the same bytes, and `path` is only ever replaced by a whole file. With `dark`, for a
    dark page, what is black or grey is light, what is white is black, the darkest colours are lighter, and images are
    as they were. Raises ValueError if `path` does not end in .png and OSError if it cannot be written."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"expected a path that ends in .png; got {str(path)!r}")
    if title is not None:
        figure.suptitle(title, parse_math=False)  # a name with dollars is no formula
    png = io.BytesIO()
    with _inverted(figure) if dark else contextlib.nullcontext():
        figure.savefig(png, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
    write_whole(path, png.getvalue())


def axes_of(axes: Any, count: int) -> list[Axes]:
    """`count` Axes as a list. Raises ValueError for another number."""
    flat = list(np.ravel(axes))
    if len(flat) != count:
        raise ValueError(f"expected {count} Axes; got {len(flat)}")
    return flat


@contextlib.contextmanager
def _inverted(figure: Figure) -> Iterator[None]:
    """The figure with its black, white and grey inverted inside, and colours that black would swallow lightened."""
    figure.draw_without_rendering()  # which makes the ticks
    changes = []  # all found before any is made: an Axes has its patch's colour, a marker perhaps its line's
    for artist in (part for found in figure.findobj() for part in _with_box(found)):
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            colour, put = getattr(artist, f"get_{name}", lambda: "auto")(), getattr(artist, f"set_{name}", None)
            if put is None or (isinstance(colour, str) and colour in ("auto", "face", "none")):
                continue
            rgba = to_rgba_array(colour)
            shown = rgba[:, 3] > 0
            neutral = shown & (np.ptp(rgba[:, :3], axis=1) < 1e-6)
            deep = shown & ~neutral & (rgba[:, :3] ** 2.2 @ _LUMINANCE < 0.1)
            if (neutral | deep).any():
                rgba[neutral, :3] = 1 - rgba[neutral, :3]
                rgba[deep, :3] += 0.45 * (1 - rgba[deep, :3])
                changes.append((put, colour, tuple(rgba[0]) if len(rgba) == 1 else rgba))
    for put, _, inverted in changes:
        put(inverted)
    try:
        yield
    finally:
        for put, colour, _ in changes:
            put(colour)


def _with_box(artist: Artist) -> list[Artist]:
    box = artist.get_bbox_patch() if isinstance(artist, Text) else None
    return [artist] if box is None else [artist, box]
