"""Images side by side. Arrays have values in [0, 1] and one channel (grey) or three (RGB)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter
from numpy.typing import ArrayLike

from ppl_vae.plots.figures import Array


def images(ax: Axes, images: ArrayLike, *, columns: int | None = None) -> None:
    """Images (N, C, H, W) in a grid, row by row from the top left, in `columns` columns (by default about as
    many as rows), one pixel apart. Raises ValueError for another shape, values outside [0, 1] or `columns`
    under 1."""
    show(ax, grid(images, columns=columns))


def grid(images: ArrayLike, *, columns: int | None = None) -> Array:
    """The pixels of that grid, (H, W) or (H, W, 3), in [0, 1]. Raises ValueError as `images` does."""
    tiles = checked_images(images, "N, C, H, W")
    if columns is None:
        columns = math.ceil(math.sqrt(len(tiles)))
    if columns < 1:
        raise ValueError(f"expected columns >= 1; got {columns}")
    rows = math.ceil(len(tiles) / columns)
    white = np.ones((rows * columns - len(tiles), *tiles.shape[1:]), tiles.dtype)
    return pixels_of(np.concatenate([tiles, white]).reshape(rows, columns, *tiles.shape[1:]))


def rows_of_images(ax: Axes, rows: Mapping[str, ArrayLike]) -> None:
    """One row of images (N, C, H, W) for each label, from the top, with the label at its left: originals
    over noisy over denoised, say. Raises ValueError for no rows, rows of unequal shape or values outside [0,
    1]."""
    tiles = [checked_images(row, "N, C, H, W") for row in rows.values()]
    shapes = {row.shape for row in tiles}
    if len(shapes) != 1:
        raise ValueError(f"expected rows of images of one shape; got {sorted(shapes) or 'no rows'}")
    mosaic(ax, np.stack(tiles))
    ax.set_yticks(middles(len(tiles), tiles[0].shape[-2]), list(rows))


def interpolations(ax: Axes, images: ArrayLike) -> None:
    """Images (pairs, steps, C, H, W): from one image of a pair to the other, a row a pair, from left to
    right. Raises ValueError for another shape or values outside [0, 1]."""
    mosaic(ax, checked_images(images, "pairs, steps, C, H, W"))


def latent_grid(ax: Axes, images: ArrayLike, z1: ArrayLike, z2: ArrayLike) -> None:
    """Images (len(z2), len(z1), C, H, W) decoded on a grid of two latent values, as `np.meshgrid(z1, z2)`
    lays it out: `images[i, j]` stands at `z1[j]` to the right and `z2[i]` upwards, the same way round as in
    `latent_scatter`. Ticks show the values; of more than eight, every second or so. Raises ValueError for
    another shape or values outside [0, 1]."""
    tiles, right, up = checked_images(images, "len(z2), len(z1), C, H, W"), np.asarray(z1), np.asarray(z2)
    if (*up.shape, *right.shape) != tiles.shape[:2]:
        raise ValueError(
            f"expected z1 {tiles.shape[1:2]} and z2 {tiles.shape[:1]} for images {tiles.shape}; "
            f"got {right.shape} and {up.shape}"
        )
    mosaic(ax, tiles[::-1])
    for axis, z, size in ((ax.xaxis, right, tiles.shape[-1]), (ax.yaxis, up[::-1], tiles.shape[-2])):
        some = slice(None, None, math.ceil(len(z) / 8))
        labels = [Formatter.fix_minus(f"{value:z.2f}") for value in z[some]]
        axis.set_ticks(middles(len(z), size)[some], labels, size="small")
    ax.set(xlabel="$z_1$", ylabel="$z_2$")


def checked_images(images: ArrayLike, shape: str) -> Array:
    """The images as an array of the shape that `shape` names, clipped to [0, 1]. Those that have neither 1 nor 3
    channels are shown in grey, by the mean of their channels."""
    array = np.asarray(images, dtype=np.float32)
    if array.ndim != shape.count(",") + 1 or not array.size:
        raise ValueError(f"expected images ({shape}); got shape {array.shape}")
    if array.shape[-3] not in (1, 3):
        array = array.mean(-3, keepdims=True)
    low, high = array.min(), array.max()
    # Means of values in [0, 1] may leave it by rounding; levels 0..255 must not pass.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"expected images with values in [0, 1]; got values in [{low:g}, {high:g}]")
    return array.clip(0, 1)


def mosaic(ax: Axes, tiles: Array) -> None:
    """Draws tiles (rows, columns, C, H, W)."""
    show(ax, pixels_of(tiles))


def pixels_of(tiles: Array) -> Array:
    """Tiles (rows, columns, C, H, W) one pixel apart, as (H, W) or (H, W, 3)."""
    rows, columns, channels, height, width = tiles.shape
    gapped = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
    pixels = gapped.transpose(0, 3, 1, 4, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    # imshow takes (H, W) or (H, W, 3); the last row and column are gaps with nothing behind them.
    return pixels[:-1, :-1, 0] if channels == 1 else pixels[:-1, :-1]


def show(ax: Axes, pixels: Array) -> None:
    """Draws pixels (H, W) or (H, W, 3), without axes."""
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def middles(count: int, size: int) -> Array:
    """Pixel coordinates of the middles of `count` tiles of `size` pixels."""
    return np.arange(count) * (size + 1) + (size - 1) / 2
