"""What tests of plots share: arrays to draw, and what of them is on an Axes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]
NAMES = ["plain", "flow", "ladder"]


def pixels(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def tile(ax: Axes, row: int, column: int, image: Array) -> Array:
    """The tile drawn at `row` and `column`, counted from the top left, as (C, H, W)."""
    drawn = np.asarray(ax.images[0].get_array())
    drawn = drawn.reshape(*drawn.shape[:2], -1)
    _, h, w = image.shape
    top, left = row * (h + 1), column * (w + 1)
    return drawn[top : top + h, left : left + w].transpose(2, 0, 1)


def ticks(axis: Any) -> dict[str, float]:
    return dict(zip((t.get_text() for t in axis.get_ticklabels()), axis.get_ticklocs(), strict=True))


def history(epochs: int, *, validation: bool = True, first: float = 0.0) -> dict[str, list[float]]:
    columns = {"epoch": [float(e) for e in range(1, epochs + 1)]}
    for name, offset in [("train", 0), ("validation", -1)][: 1 + validation]:
        columns[f"{name}_reconstruction"] = [first - 61 + offset, *np.arange(-59.0, epochs - 60) + offset]
        columns[f"{name}_kl"] = [20 + e / 2 for e in range(epochs)]
        parts = zip(columns[f"{name}_reconstruction"], columns[f"{name}_kl"], strict=True)
        columns[f"{name}_elbo"] = [reconstruction - kl for reconstruction, kl in parts]
    return columns


def assert_refused_in_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        draw(ax)
    assert "\n" not in str(caught.value)
