"""What is said in a terminal: lines, tables that fit 80 columns, and errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ppl_vae.report.markdown import number, unreliable


def console() -> Console:
    return Console(highlight=False)


def say(text: str) -> None:
    console().print(text, markup=False, soft_wrap=True)


def fail(message: str, status: int) -> NoReturn:
    print(f"ppl-vae: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def grid_of(title: str, first: Sequence[str], numbers: Sequence[str], caption: str = "") -> Table:
    """A table that fits 80 columns: names to the left, numbers to the right."""
    grid = Table(title=escape(title), caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_style="bold")
    for heading in first:
        grid.add_column(heading, no_wrap=True)
    for heading in numbers:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def show_denoising(title: str, rows: dict[str, Any]) -> None:
    grid = grid_of(title, ["model"], ["MSE", "PSNR (dB)", "SSIM"])
    for name, row in rows.items():
        cells = (
            f"{number(row[m]['mean'], d)} ± {number(row[m]['se'], d)}"
            for m, d in (("mse", 5), ("psnr", 2), ("ssim", 4))
        )
        grid.add_row(escape(name), *cells)
    console().print(grid)


def show_log_likelihood(title: str, rows: dict[str, Any]) -> None:
    first = next(iter(rows.values()))
    grid = grid_of(
        f"{title}: log p(x), nats per image, {first['num_images']} test images, K = {first['num_samples']}",
        ["model", "kind"],
        ["log p(x)", "± MC", "± data", "ELBO", "k̂ > 0.7"],
        "± MC: from the samples, too small where k̂ > 0.7; ± data: sd / √N over the images. Masses and densities do not "
        "compare. Where k̂ > 0.7, read a lower bound.",
    )
    for name, row in rows.items():
        cells = (number(row[key]) for key in ("log_p", "mc_se", "data_se", "elbo"))
        grid.add_row(escape(name), row["measure"], *cells, unreliable(row))
    console().print(grid)
