from collections.abc import Callable

import pytest
from drawing import assert_refused_in_one_line, history, ticks
from matplotlib.axes import Axes

from ppl_vae import plots
from ppl_vae.training.history import History


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


def test_a_missing_training_column_is_an_error() -> None:
    columns = history(3)
    del columns["train_kl"]
    with pytest.raises(KeyError, match="train_kl"):
        plots.training_curves(plots.figure(9, 3, ncols=3)[1], columns)


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


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.training_curves(ax, history(3)), "expected 3 Axes; got 1"),
        (lambda ax: plots.training_curves([ax] * 3, History()), "expected at least one epoch; got none"),
    ],
)
def test_errors_are_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    assert_refused_in_one_line(ax, draw, message)


def test_lines_have_bars_of_two_errors() -> None:
    ax = plots.figure(4, 3)[1]
    plots.error_lines(ax, {"a": ([1, 2], [3.0, 4.0], [0.5, float("nan")]), "b": ([1], [2], [1])})
    line, _, (bars,) = ax.containers[0].lines
    assert list(line.get_ydata()) == [3.0, 4.0]
    assert bars.get_segments()[0][:, 1].tolist() == [2.0, 4.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    with pytest.raises(ValueError, match="expected x, means and errors"):
        plots.error_lines(ax, {"a": ([1, 2], [1], [1])})
