import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from drawing import NAMES, assert_refused_in_one_line, history, pixels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ppl_vae import plots


def test_ten_labels_have_ten_colours() -> None:
    assert len(set(plots.LABEL_COLOURS)) == 10


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


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.save(ax.figure, "figure.pdf"), "that ends in .png; got 'figure.pdf'"),
    ],
)
def test_errors_are_one_line(ax: Axes, draw: Callable[[Axes], None], message: str) -> None:
    assert_refused_in_one_line(ax, draw, message)
