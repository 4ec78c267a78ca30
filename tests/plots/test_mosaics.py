from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from drawing import Array, assert_refused_in_one_line, pixels, ticks, tile
from matplotlib.axes import Axes

from ppl_vae import plots


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("as_array", [np.asarray, torch.from_numpy])
def test_images_stand_row_by_row_a_pixel_apart(ax: Axes, channels: int, as_array: Callable[[Array], Any]) -> None:
    x = pixels(5, channels, 4, 6)
    plots.images(ax, as_array(x), columns=3)
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn.shape == ((9, 20) if channels == 1 else (9, 20, 3))
    for k in range(5):
        assert (tile(ax, k // 3, k % 3, x[k]) == x[k]).all()
    assert (drawn[4] == 1).all()
    assert (drawn[:, [6, 13]] == 1).all()
    assert (tile(ax, 1, 2, x[0]) == 1).all()


def test_two_channels_are_shown_by_their_mean(ax: Axes) -> None:
    x = pixels(1, 2, 4, 6)
    plots.images(ax, x)
    assert np.asarray(ax.images[0].get_array()) == pytest.approx(x.mean(1)[0])


def test_images_are_drawn_as_they_are(ax: Axes) -> None:
    plots.images(ax, np.full((1, 1, 2, 2), 0.5))  # alone, it must not be stretched to black or white
    (image,) = ax.images
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "gray"
    assert image.get_interpolation() == "none"
    assert not ticks(ax.xaxis)
    assert not ticks(ax.yaxis)


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3))])
def test_images_choose_about_a_square(ax: Axes, count: int, shape: tuple[int, int]) -> None:
    plots.images(ax, pixels(count, 1, 4, 6))
    assert np.asarray(ax.images[0].get_array()).shape == (shape[0] * 5 - 1, shape[1] * 7 - 1)


def test_rows_are_labelled_at_their_middles(ax: Axes) -> None:
    rows: dict[str, Any] = {"original": pixels(3, 1, 5, 4), "noisy": torch.from_numpy(pixels(3, 1, 5, 4, seed=1))}
    plots.rows_of_images(ax, rows)
    for i, row in enumerate(rows.values()):
        for j in range(3):
            assert (tile(ax, i, j, np.asarray(row[j])) == np.asarray(row[j])).all()
    assert ticks(ax.yaxis) == {"original": 2, "noisy": 8}


def test_a_pair_of_interpolations_is_a_row(ax: Axes) -> None:
    x = pixels(2, 4, 3, 3, 5)
    plots.interpolations(ax, x)
    for i, j in np.ndindex(2, 4):
        assert (tile(ax, i, j, x[i, j]) == x[i, j]).all()


def test_latent_grid_has_z1_to_the_right_and_z2_upwards(ax: Axes) -> None:
    x, z1, z2 = pixels(2, 3, 1, 4, 6), [-1.5, -1e-9, 1.5], [-2, 2]
    plots.latent_grid(ax, x, z1, z2)
    for i, j in np.ndindex(2, 3):
        assert (tile(ax, 1 - i, j, x[i, j]) == x[i, j]).all()
    assert ticks(ax.xaxis) == {"−1.50": 2.5, "0.00": 9.5, "1.50": 16.5}  # noqa: RUF001
    assert ticks(ax.yaxis) == {"2.00": 1.5, "−2.00": 6.5}  # noqa: RUF001
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")


def test_latent_grid_thins_its_ticks(ax: Axes) -> None:
    plots.latent_grid(ax, pixels(20, 20, 1, 2, 2), np.arange(20), np.arange(20))
    assert list(ticks(ax.xaxis).items())[:2] == [("0.00", 0.5), ("3.00", 9.5)]
    assert list(ticks(ax.yaxis).items())[:2] == [("19.00", 0.5), ("16.00", 9.5)]


def test_values_off_by_rounding_are_clipped(ax: Axes) -> None:
    plots.images(ax, np.array([[[[-1e-6, 1 + 1e-6]]]]))
    assert np.asarray(ax.images[0].get_array()).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.images(ax, pixels(3, 4, 4)), r"images \(N, C, H, W\).*got shape \(3, 4, 4\)"),
        (lambda ax: plots.images(ax, pixels(2, 4, 4)), r"images \(N, C, H, W\); got shape \(2, 4, 4\)"),
        (lambda ax: plots.images(ax, pixels(0, 1, 4, 4)), r"got shape \(0, 1, 4, 4\)"),
        (lambda ax: plots.images(ax, pixels(1, 1, 4, 4), columns=0), "expected columns >= 1; got 0"),
        (lambda ax: plots.images(ax, np.full((1, 1, 2, 2), 255)), r"in \[0, 1\]; got values in \[255, 255\]"),
        (lambda ax: plots.images(ax, np.full((1, 1, 2, 2), np.nan)), r"got values in \[nan, nan\]"),
        (lambda ax: plots.rows_of_images(ax, {}), "expected rows of images of one shape; got no rows"),
        (
            lambda ax: plots.rows_of_images(ax, {"a": pixels(2, 1, 4, 4), "b": pixels(3, 1, 4, 4)}),
            r"one shape; got \[\(2, 1, 4, 4\), \(3, 1, 4, 4\)\]",
        ),
        (lambda ax: plots.interpolations(ax, pixels(2, 1, 4, 4)), r"images \(pairs, steps, C, H, W\)"),
        (
            lambda ax: plots.latent_grid(ax, pixels(2, 3, 1, 4, 4), [0, 1], [0, 1, 2]),
            r"expected z1 \(3,\) and z2 \(2,\) .*; got \(2,\) and \(3,\)",
        ),
    ],
)
def test_errors_are_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    assert_refused_in_one_line(ax, draw, message)
