import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.text import Text
from PIL import Image

from ppl_vae import plots
from ppl_vae.plots import figures
from ppl_vae.training.history import History

Array = np.ndarray[Any, Any]
NAMES = ["plain", "flow", "ladder"]


@pytest.fixture
def ax() -> Axes:
    return plots.figure(4, 3)[1]


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


@pytest.mark.parametrize("names", [None, ["zero", "one", "two", "three"]])
def test_scatter_colours_and_names_the_labels(ax: Axes, names: list[str] | None) -> None:
    z, labels = pixels(6, 2), torch.tensor([3, 0, 3, 1, 0, 3])
    plots.latent_scatter(ax, torch.from_numpy(z), labels, names)
    (points,) = ax.collections
    assert np.allclose(points.get_offsets(), z)
    wanted = [mpl.colors.to_hex(plots.LABEL_COLOURS[k]) for k in labels]
    assert [mpl.colors.to_hex(c) for c in points.get_facecolors()] == wanted  # type: ignore[attr-defined]
    legend = ax.get_legend()
    assert legend is not None
    keys = {t.get_text(): h.get_color() for t, h in zip(legend.texts, legend.legend_handles, strict=True)}  # type: ignore[union-attr]
    assert keys == {f"{k}: {names[k]}" if names else str(k): plots.LABEL_COLOURS[k] for k in (0, 1, 3)}
    assert [(t.get_text(), *t.get_position()) for t in ax.texts] == [
        (str(k), *np.median(z[labels.numpy() == k], axis=0)) for k in (0, 1, 3)
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mean of $q(z_1|x)$", "mean of $q(z_2|x)$")


def test_scatter_says_what_its_points_are(ax: Axes) -> None:
    plots.latent_scatter(ax, pixels(6, 2), [0] * 6, of="draw from")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("draw from $q(z_1|x)$", "draw from $q(z_2|x)$")
    assert "q(z_2|x)" in ax.get_ylabel()


def test_ten_labels_have_ten_colours() -> None:
    assert len(set(plots.LABEL_COLOURS)) == 10


def test_training_curves_draw_each_column_on_its_axes() -> None:
    columns = history(6)
    axes = plots.figure(9, 3, ncols=3)[1]
    plots.training_curves(axes, columns)
    for ax, part, title in zip(axes, ("elbo", "reconstruction", "kl"), ("ELBO", "reconstruction", "KL"), strict=True):
        train, validation = ax.lines
        assert (train.get_label(), train.get_linestyle()) == ("training", "-")
        assert (validation.get_label(), validation.get_linestyle()) == ("validation", "--")
        assert list(train.get_xdata()) == columns["epoch"]
        assert list(train.get_ydata()) == columns[f"train_{part}"]
        assert list(validation.get_ydata()) == columns[f"validation_{part}"]
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (title, "epoch", "nats per datum")


def test_training_curves_draw_a_history_without_validation() -> None:
    columns = history(1, validation=False)
    figure, axes = plots.figure(9, 3, ncols=3)
    plots.training_curves(axes, History([{name: values[0] for name, values in columns.items()}]))
    figure.draw_without_rendering()
    for ax in axes:
        (line,) = ax.lines
        assert line.get_marker() == "o"  # a line of one point is not seen
        assert all(label.isdigit() for label in ticks(ax.xaxis))


def test_an_outlying_first_epoch_is_written_and_not_drawn() -> None:
    elbo, reconstruction, kl = axes = plots.figure(9, 3, ncols=3)[1]
    plots.training_curves(axes, history(6, first=-400))
    low, high = reconstruction.get_ylim()
    assert -65 < low < -60 < -55 < high < -50
    assert reconstruction.get_xlabel() == "epoch\n(first epoch off the axis: −461.0, −462.0)"  # noqa: RUF001
    assert "off the axis" in elbo.get_xlabel()
    assert kl.get_xlabel() == "epoch"
    assert kl.get_ylim()[0] < 20


@pytest.mark.parametrize("values", [[5.0, 1, 1, 1, 1, 1], [5.0, float("nan"), 1, 2, 1, 2], [1.0] * 6])
def test_odd_curves_are_drawn_whole(values: list[float]) -> None:
    axes = plots.figure(9, 3, ncols=3)[1]
    plots.training_curves(axes, history(6, validation=False) | {"train_kl": values})
    low, high = axes[2].get_ylim()
    assert low < 1 <= values[0] < high
    assert axes[2].get_xlabel() == "epoch"


def test_log_likelihoods_are_dots_with_errors_from_the_top(ax: Axes) -> None:
    errors = torch.tensor([1, 0.5, torch.nan])
    plots.log_likelihood_bars(ax, NAMES, [-98, -96, -95], errors, unit="bits")
    (container,) = ax.containers
    dots, _, (bars,) = container
    assert list(dots.get_xdata()) == [-98, -96, -95]
    assert list(dots.get_ydata()) == [0, 1, 2]
    assert bars.get_segments()[0].tolist() == [[-99, 0], [-97, 0]]
    assert ticks(ax.yaxis) == {"plain": 0, "flow": 1, "ladder": 2}
    assert ax.get_ylim() == (2.5, -0.5)
    assert ax.get_xlim()[1] < -90  # not bars from zero
    assert ax.get_xlabel() == "mean log p(x) ± 1 s.e. [bits]"


def test_an_error_that_is_not_known_is_not_drawn() -> None:
    fig, ax = plots.figure(4, 3)
    plots.log_likelihood_bars(ax, ["plain"], [-90.0], [None])  # null, from a file
    fig.canvas.draw()
    assert list(ax.lines[0].get_xdata()) == [-90.0]


@pytest.mark.parametrize("sharey", [False, True])
def test_denoising_has_an_axes_a_metric(sharey: bool) -> None:
    means = {"MSE": [1, 2, 3], "psnr": [20, 19, 18], "LPIPS": [0, 1, 0]}
    axes = plots.figure(9, 3, ncols=3, sharey=sharey)[1]
    plots.denoising_dots(axes, NAMES, {metric: (values, [1, 1, 1]) for metric, values in means.items()})
    for ax, values in zip(axes, means.values(), strict=True):
        assert list(ax.lines[0].get_xdata()) == values
        assert ax.get_ylim() == (2.5, -0.5)
    labels = [ax.get_xlabel() for ax in axes]
    assert labels == ["MSE (lower is better)", "PSNR [dB] (higher is better)", "LPIPS"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == NAMES
    assert [ax.yaxis.get_tick_params()["labelleft"] for ax in axes] == [True, False, False]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.images(ax, pixels(3, 4, 4)), r"images \(N, C, H, W\).*got shape \(3, 4, 4\)"),
        (lambda ax: plots.images(ax, pixels(2, 2, 4, 4)), r"C 1 or 3; got shape \(2, 2, 4, 4\)"),
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
        (lambda ax: plots.latent_scatter(ax, pixels(4, 3), [0] * 4), r"z \(N, 2\).*got \(4, 3\) and \(4,\)"),
        (lambda ax: plots.latent_scatter(ax, pixels(4, 2), [0] * 3), r"got \(4, 2\) and \(3,\)"),
        (lambda ax: plots.latent_scatter(ax, pixels(2, 2), [0, 10]), r"labels in 0..9; got \[0, 10\]"),
        (lambda ax: plots.latent_scatter(ax, pixels(2, 2), [0, -1]), r"labels in 0..9; got \[-1, 0\]"),
        (lambda ax: plots.latent_scatter(ax, pixels(2, 2), [0, 2], ["a", "b"]), "up to 2; got 2 names"),
        (lambda ax: plots.training_curves(ax, history(3)), "expected 3 Axes; got 1"),
        (lambda ax: plots.training_curves([ax] * 3, History()), "expected at least one epoch; got none"),
        (lambda ax: plots.log_likelihood_bars(ax, NAMES, [1, 2], [1, 2]), r"\(3,\); got \(2,\) and \(2,\)"),
        (lambda ax: plots.log_likelihood_bars(ax, NAMES, [1] * 3, [-1] * 3), "negative"),
        (lambda ax: plots.denoising_dots([ax, ax], ["a"], {"MSE": ([1], [1])}), "1 Axes; got 2"),
        (lambda ax: plots.rate_distortion(ax, NAMES, [1, 2], [1, 2]), r"\(3,\); got \(2,\) and \(2,\)"),
        (lambda ax: plots.rate_distortion(ax, ["a"], [np.nan], [1]), r"finite .*; got \[nan\] and \[1.0\]"),
        (lambda ax: plots.khat_by_image([ax] * 2, [1, 2], pixels(3, 1, 4, 4)), r"each of 3 images; got \(2,\)"),
        (lambda ax: plots.khat_by_image([ax] * 2, [1], pixels(1, 1, 4, 4), worst=0), "expected worst >= 1; got 0"),
        (lambda ax: plots.khat_by_image(ax, [1], pixels(1, 1, 4, 4)), "expected 2 Axes; got 1"),
        (lambda ax: plots.calibration(ax, pixels(3, 4), pixels(3, 5)), r"got \(3, 4\) and \(3, 5\)"),
        (lambda ax: plots.calibration(ax, pixels(3, 4), 2 + pixels(3, 4)), r"observed: .*\[0, 1\]; got \[2"),
        (lambda ax: plots.calibration(ax, pixels(3, 4), pixels(3, 4), bins=0), "expected bins >= 1; got 0"),
        (lambda ax: plots.save(ax.figure, "figure.pdf"), "that ends in .png; got 'figure.pdf'"),
    ],
)
def test_errors_are_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        draw(ax)
    assert "\n" not in str(caught.value)


def test_a_missing_training_column_is_an_error() -> None:
    columns = history(3)
    del columns["train_kl"]
    with pytest.raises(KeyError, match="train_kl"):
        plots.training_curves(plots.figure(9, 3, ncols=3)[1], columns)


def test_values_off_by_rounding_are_clipped(ax: Axes) -> None:
    plots.images(ax, np.array([[[[-1e-6, 1 + 1e-6]]]]))
    assert np.asarray(ax.images[0].get_array()).tolist() == [[0, 1]]


def every_figure() -> Figure:
    """One figure with each kind of plot."""
    figure, axes = plots.figure(10, 10, nrows=4, ncols=4)
    x = pixels(2, 3, 1, 4, 4)
    plots.images(axes[0, 0], x[0])
    plots.rows_of_images(axes[0, 1], {"a": x[0], "b": x[1]})
    plots.interpolations(axes[0, 2], x)
    plots.latent_grid(axes[0, 3], x, [-1, 0, 1], [-1, 1])
    plots.training_curves(axes[1, :3], history(6, first=-400))
    plots.latent_scatter(axes[1, 3], pixels(10, 2), np.arange(10))
    plots.log_likelihood_bars(axes[2, 0], NAMES, [1, 2, 3], [1, 1, 1])
    plots.denoising_dots(axes[2, 1:], NAMES, {k: ([1, 2, 3], [1, 1, 1]) for k in ("MSE", "PSNR", "SSIM")})
    plots.rate_distortion(axes[3, 0], NAMES, [20, 25, 30], [70, 60, 59])
    plots.khat_by_image(axes[3, 1:3], [0.2, 0.9, np.inf], pixels(3, 1, 4, 4))
    plots.calibration(axes[3, 3], pixels(5, 9), pixels(5, 9, seed=1) < 0.5)
    return figure


def test_saved_files_are_identical_and_state_is_untouched(tmp_path: Path) -> None:
    with mpl.rc_context():
        mpl.rcdefaults()  # what an earlier test did to them would hide what this one does
        # Not mpl.rcParams[key], which would choose a backend.
        before = {key: dict.__getitem__(mpl.rcParams, key) for key in mpl.rcParams}
        for name in ("a.png", "b.png"):
            plots.save(every_figure(), str(tmp_path / name), title="every figure")
        assert {key: dict.__getitem__(mpl.rcParams, key) for key in mpl.rcParams} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pyplot = sys.modules.get("matplotlib.pyplot")  # others may have imported it
    assert pyplot is None or not pyplot.get_fignums()


def test_saved_at_144_dpi_with_title_and_without_software(tmp_path: Path) -> None:
    figure, ax = plots.figure(4, 3)
    plots.images(ax, pixels(4, 1, 4, 4))
    plots.save(figure, tmp_path / "untitled.PNG")
    assert figure.get_suptitle() == ""
    plots.save(figure, tmp_path / "titled.png", title="digits")
    once = (tmp_path / "titled.png").read_bytes()
    plots.save(figure, tmp_path / "titled.png", title="digits")
    assert (tmp_path / "titled.png").read_bytes() == once
    assert figure.get_suptitle() == "digits"
    with Image.open(tmp_path / "titled.png") as image:
        assert image.format == "PNG"
        assert "Software" not in image.info
        assert image.info["dpi"] == pytest.approx((144, 144), abs=0.1)


@pytest.mark.parametrize("fails", ["savefig", "replace"])
def test_a_failing_save_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    figure, _ = plots.figure(1, 1)

    def fail(*args: Any, **kwargs: Any) -> None:
        if fails == "savefig":
            args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure if fails == "savefig" else os, fails, fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, path)
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == b"old"


def test_figure_has_constrained_layout_and_its_size() -> None:
    figure, axes = plots.figure(6, 2, nrows=2, ncols=3)
    assert axes.shape == (2, 3)
    assert figure.get_size_inches().tolist() == [6, 2]
    assert figure.get_constrained_layout()
    assert isinstance(plots.figure(1, 1)[1], Axes)


def test_convergence_shows_every_method(ax: Axes) -> None:
    plots.convergence(ax, [10, 100], [-95.0, -93.0], [0.5, 0.1], elbo=-100.0, annealed=-92.0)
    (line, annealed, elbo) = ax.lines
    assert line.get_xydata().tolist() == [[10, -95], [100, -93]]
    assert set(annealed.get_ydata()) == {-92}
    assert set(elbo.get_ydata()) == {-100}
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-96, -92.8)
    assert ax.get_xscale() == "log"
    assert "nats" in ax.get_ylabel()
    with pytest.raises(ValueError, match="expected K, means and errors"):
        plots.convergence(ax, [10, 100], [-95.0], [0.5], elbo=0, annealed=0)


def test_differences_stand_beside_zero(ax: Axes) -> None:
    plots.differences(ax, ["best", "other"], [0.0, -2.0], [0.0, 0.5], unit="bits")
    assert [0, 0] in [list(line.get_xdata()) for line in ax.lines]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["best", "other"]
    assert "bits" in ax.get_xlabel()


def test_prior_and_posterior_are_told_apart(ax: Axes) -> None:
    prior, posterior = np.zeros((3, 2)), np.ones((5, 2))
    plots.prior_and_posterior(ax, prior, posterior)
    drawn = {c.get_label(): c.get_offsets().tolist() for c in ax.collections}
    assert drawn == {"prior": prior.tolist(), "aggregate posterior": posterior.tolist()}
    with pytest.raises(ValueError, match=r"prior: expected draws of shape \(N, 2\); got \(3, 3\)"):
        plots.prior_and_posterior(ax, np.zeros((3, 3)), posterior)


def test_per_datum_differences_rise_and_say_who_is_better(ax: Axes) -> None:
    plots.per_datum_differences(ax, [1.0, -3.0, 2.0, 4.0], ("a", "b"))
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-3, 4)
    assert "a is the better one for 75%" in ax.get_xlabel()
    assert ax.lines[1].get_ydata()[0] == 1
    assert "nats" in ax.get_ylabel()
    with pytest.raises(ValueError, match="expected shape"):
        plots.per_datum_differences(ax, np.zeros((2, 2)), ("a", "b"))


def test_the_rate_distortion_plane_has_lines_of_one_elbo(ax: Axes) -> None:
    rates, distortions = [20, 30.0, 25.0], [80, 72.0, 71.0]
    plots.rate_distortion(ax, NAMES, rates, distortions, unit="bits")
    models = [line for line in ax.lines if line.get_label() in NAMES]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in models}
    assert drawn == {name: [[r, d]] for name, r, d in zip(NAMES, rates, distortions, strict=True)}
    assert len({(line.get_marker(), line.get_color()) for line in models}) == 3
    lines = [line for line in ax.lines if isinstance(line, AxLine)]
    assert len(lines) == len(ax.texts) >= 3
    for line, text in zip(lines, ax.texts, strict=True):
        assert line.get_slope() == -1
        assert sum(line.get_xy1()) == pytest.approx(float(text.get_text()))
        assert text.get_position() == line.get_xy1()
        for value, limits in zip(text.get_position(), (ax.get_xlim(), ax.get_ylim()), strict=True):
            assert limits[0] < value < limits[1]
    assert ax.get_xlim()[0] < 20 < 30 < ax.get_xlim()[1]
    assert "bits" in ax.get_xlabel()
    assert "bits" in ax.get_ylabel()
    assert "bits" in ax.get_title()


def test_one_model_has_a_place_in_the_plane() -> None:
    figure, ax = plots.figure(3, 3)
    plots.rate_distortion(ax, ["a"], [0.0], [100.0])
    figure.draw_without_rendering()
    assert ax.get_xlim()[0] < 0 < ax.get_xlim()[1]


def test_khat_shows_who_is_over_the_limit_and_the_worst_images() -> None:
    above, below = axes = plots.figure(5, 4, nrows=2)[1]
    x = pixels(7, 1, 4, 4)
    khat = [0.1, 0.8, np.nan, np.inf, 1.5, -np.inf, 0.7]
    plots.khat_by_image(axes, torch.tensor(khat, dtype=torch.float64), x, worst=3)
    trusted, over, _ = above.lines
    assert trusted.get_xydata() == pytest.approx(np.array([[0, 0.1], [6, 0.7]]))
    assert over.get_xydata() == pytest.approx(np.array([[1, 0.8], [4, 1.5]]))
    assert (trusted.get_label(), over.get_label()) == ("trusted: 2", "over 0.7: 2")
    assert trusted.get_marker() != over.get_marker()
    label = above.get_xlabel()
    assert "+inf: 1" in label
    assert "-inf (equal weights): 1" in label
    assert "unknown (K < 25): 1" in label
    for column, image in enumerate((3, 4, 1)):
        assert (tile(below, 0, column, x[image]) == x[image]).all()
    assert list(ticks(below.xaxis)) == ["3\ninf", "4\n1.50", "1\n0.80"]


def test_calibration_is_the_mean_of_what_was_observed_by_bin(ax: Axes) -> None:
    p = np.array([[0.1, 0.1, 0.9, 1.0], [0.3, 0.3, 0.3, 0.9], [0.1, 0.9, 0.9, 0.9]])
    x = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1]])
    plots.calibration(ax, p, torch.from_numpy(x), bins=2)
    (container,) = ax.containers
    dots, _, (bars,) = container
    below, above = [0.1, 0.1, 0.3, 0.3, 0.3, 0.1], [0, 1, 0, 0, 0, 1]
    mean = np.mean(above)
    assert dots.get_xydata() == pytest.approx(np.array([[np.mean(below), mean], [5.5 / 6, 5 / 6]]))
    # two standard errors of a ratio of sums over the three images, sum x / sum 1
    residuals = np.array([1 - 2 * mean, 0 - 3 * mean, 1 - mean]) / 6
    error = 2 * np.sqrt(np.square(residuals).sum() * 3 / 2)
    assert bars.get_segments()[0][:, 1] == pytest.approx([mean - error, mean + error])
    (steps,) = ax.patches
    assert steps.get_data().values == pytest.approx([0.5, 0.5])  # type: ignore[attr-defined]
    assert any(line.get_xydata().tolist() == [[0, 0], [1, 1]] for line in ax.lines)


def test_calibration_of_the_truth_is_on_the_line_within_its_error(ax: Axes) -> None:
    """Pixels of an image share a factor, so that they are not independent."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, (400, 50))
    x = rng.random((400, 1)) < p
    plots.calibration(ax, p, x, bins=5)
    dots, _, (bars,) = ax.containers[0]
    low, high = np.transpose([segment[:, 1] for segment in bars.get_segments()])
    mean = dots.get_xdata()
    assert ((mean < low) | (mean > high)).sum() <= 1
    independent = 2 * np.sqrt(0.25 / (400 * 50 / 5))
    assert all(np.ptp(segment[:, 1]) / 2 > 1.5 * independent for segment in bars.get_segments()[1:4])


def test_a_dark_figure_has_light_words_and_the_same_colours_and_is_undone(tmp_path: Path) -> None:
    figure, axes = plots.figure(8, 3, ncols=4)
    plots.latent_scatter(axes[0], pixels(10, 2), np.arange(10))
    plots.training_curves(axes[1:], history(6))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # which moves things a little at each save
    plots.save(figure, tmp_path / "light.png")
    plots.save(figure, tmp_path / "dark.png", dark=True)
    plots.save(figure, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "light.png").read_bytes()
    with Image.open(tmp_path / "light.png") as a, Image.open(tmp_path / "dark.png") as b:
        light, dark = (np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int) for image in (a, b))
    assert light.shape == dark.shape
    assert (light[0].tolist(), dark[0].tolist()) == ([255] * 3, [0] * 3)
    deep = (light == [0x33, 0x22, 0x88]).all(1)
    assert deep.sum() > 20
    assert dark[deep].sum(1).min() > light[deep][0].sum() + 200
    for colour in ("blue", "vermilion"):
        rgb = np.round(255 * np.array(mpl.colors.to_rgb(plots.OKABE_ITO[colour])))
        at = np.abs(light - rgb).max(1) == 0
        assert at.sum() > 20
        assert np.abs(dark[at] - rgb).max() <= 1
    black, white = (light == 0).all(1), (light == 255).all(1)
    assert (dark[black] == 255).all(1).mean() > 0.5  # the black pixels of images stay
    assert (dark[white] == 0).all(1).mean() > 0.9


def test_dark_text_has_light_ticks() -> None:
    figure, ax = plots.figure(3, 2)
    plots.log_likelihood_bars(ax, NAMES, [1, 2, 3], [1, 1, 1])
    legend = ax.legend(["a"], framealpha=0.9, edgecolor="none")
    with figures._inverted(figure):
        assert legend.get_frame().get_edgecolor()[3] == 0
        words = [t for t in figure.findobj(Text) if t.get_text()]
        assert {mpl.colors.to_hex(t.get_color()) for t in words} == {"#ffffff"}
        assert {t.get_text() for t in words} >= {*NAMES, ax.get_xlabel()}
    assert {mpl.colors.to_hex(t.get_color()) for t in words} == {"#000000"}
