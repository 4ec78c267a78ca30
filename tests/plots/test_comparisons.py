from collections.abc import Callable

import numpy as np
import pytest
import torch
from drawing import NAMES, assert_refused_in_one_line, ticks
from matplotlib.axes import Axes

from ppl_vae import plots


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


def test_differences_stand_beside_zero(ax: Axes) -> None:
    plots.differences(ax, ["best", "other"], [0.0, -2.0], [0.0, 0.5], unit="bits")
    assert [0, 0] in [list(line.get_xdata()) for line in ax.lines]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["best", "other"]
    assert "bits" in ax.get_xlabel()


def test_values_of_a_setting_have_a_mean_of_seeds_each(ax: Axes) -> None:
    first = ([-90.0, -80.0], [1.0, 0.0], [[-91.0, -89.0], [-80.0, np.nan]])
    plots.by_setting(ax, "latent-size", [10, 40], {"a": first, "b": ([np.nan, -85.0], [0, 0], [[np.nan], [-85.0]])})
    assert list(ax.lines[0].get_ydata()) == [-90, -80]
    assert ax.lines[0].get_linestyle() == "-"
    assert ax.containers[0][2][0].get_segments()[0][:, 1].tolist() == [-92, -88]
    seeds = next(line for line in ax.lines if line.get_marker() == ".")
    assert list(seeds.get_ydata())[:3] == [-91, -89, -80]
    assert list(seeds.get_xdata())[:2] == [ax.lines[0].get_xdata()[0]] * 2
    assert ticks(ax.xaxis) == {"10": 0, "40": 1}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_values_that_are_no_numbers_have_no_line_between(ax: Axes) -> None:
    plots.by_setting(ax, "prior", ["normal", "flow"], {"": ([-90.0, -80.0], [1.0, 0.0], [[-90.0], [-80.0]])})
    assert ax.lines[0].get_linestyle() == "None"
    assert ax.get_legend() is None
    with pytest.raises(ValueError, match=r"expected means, errors \(1,\) and seeds \(1, \*\); got \(2,\)"):
        plots.by_setting(ax, "prior", ["normal"], {"": ([-90.0, -80.0], [1.0, 0.0], [[-90.0], [-80.0]])})


def test_per_datum_differences_rise_and_say_who_is_better(ax: Axes) -> None:
    plots.per_datum_differences(ax, [1.0, -3.0, 2.0, 4.0], ("a", "b"))
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (-3, 4)
    assert "a is the better one for 75%" in ax.get_xlabel()
    assert ax.lines[1].get_ydata()[0] == 1
    assert "nats" in ax.get_ylabel()
    with pytest.raises(ValueError, match="expected shape"):
        plots.per_datum_differences(ax, np.zeros((2, 2)), ("a", "b"))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.log_likelihood_bars(ax, NAMES, [1, 2], [1, 2]), r"\(3,\); got \(2,\) and \(2,\)"),
        (lambda ax: plots.log_likelihood_bars(ax, NAMES, [1] * 3, [-1] * 3), "negative"),
        (lambda ax: plots.denoising_dots([ax, ax], ["a"], {"MSE": ([1], [1])}), "1 Axes; got 2"),
    ],
)
def test_errors_are_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    assert_refused_in_one_line(ax, draw, message)


def test_histograms_have_common_bins_and_shares() -> None:
    ax = plots.figure(4, 3)[1]
    plots.histograms(ax, {"a": [0.0, 1.0], "b": np.linspace(0, 4, 50)})
    edges = [[patch.get_x() for patch in bars] for bars in ax.containers]
    assert edges[0] == edges[1]
    assert sum(patch.get_height() for patch in ax.containers[1]) == pytest.approx(1)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_values_side_by_side_are_offset_and_have_two_errors() -> None:
    ax = plots.figure(4, 3)[1]
    values = {"published": ([1.0, np.nan], [0.1, np.nan]), "ours": ([2.0, 3.0], [np.nan, 0.5])}
    plots.side_by_side(ax, ["a", "b"], values, "nats")
    published, ours = (container.lines[0] for container in ax.containers)
    assert list(ours.get_xdata()) == [2.0, 3.0]
    assert (ours.get_ydata() > published.get_ydata()).all()
    assert ax.containers[1].lines[2][0].get_segments()[1][:, 0].tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match="expected means and errors"):
        plots.side_by_side(ax, ["a", "b"], {"ours": ([1.0], [1.0])}, "nats")
