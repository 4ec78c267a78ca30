"""What is said in a terminal: lines, tables that cut no number, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ppl_vae.data.catalogue import names
from ppl_vae.report.markdown import is_exact, number, unreliable

SHORTEST_NAME = 12


def say(text: str) -> None:
    Console(highlight=False).print(text, markup=False, soft_wrap=True)


def show_table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1, caption: str = ""
) -> None:
    """Prints a table: the first so many columns are texts, the others numbers. In a narrow terminal the texts of the
    first column are shortened, and numbers never: where they don't fit, lines are longer than the terminal is wide."""
    console = Console(highlight=False)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    numbers = sum(widths[1:]) + 2 * len(widths) + 1  # each has a space after it, and one beside
    first = min(widths[0], max(SHORTEST_NAME, console.width - numbers))
    grid = Table(title=escape(title), caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_style="bold")
    grid.width = max(console.width, first + numbers) if first + numbers > console.width else None
    for i, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        at_least = width if i else first
        grid.add_column(
            heading, no_wrap=True, min_width=at_least, max_width=at_least, justify="left" if i < texts else "right"
        )
    for row in rows:
        grid.add_row(*map(escape, row))
    console.width = max(console.width, first + numbers)
    console.print(grid)


def show_denoising(title: str, rows: dict[str, Any]) -> None:
    metrics = (("mse", 5), ("psnr", 2), ("ssim", 4))
    cells = [
        [name, *(f"{number(row[m]['mean'], d)} ± {number(row[m]['se'], d)}" for m, d in metrics)]
        for name, row in rows.items()
    ]
    show_table(title, ["model", "MSE", "PSNR (dB)", "SSIM"], cells)


def show_log_likelihoods(title: str, rows: dict[str, Any]) -> None:
    first = next(iter(rows.values()))
    cells = [
        [
            name,
            row["measure"],
            number(row["log_p"]),
            "exact" if is_exact(row) else number(row["mc_se"]),
            *(number(row[key]) for key in ("data_se", "elbo")),
            "—" if is_exact(row) else unreliable(row),
        ]
        for name, row in rows.items()
    ]
    show_table(
        f"{title}: log p(x), nats per image, {first['num_images']} test images, K = {first['num_samples']}",
        ["model", "kind", "log p(x)", "± MC", "± data", "ELBO", "k̂ over limit"],
        cells,
        texts=2,
        caption="± MC: Monte Carlo error, too small where k̂ is over its limit; log p(x) is a lower bound there. "
        "± data: sd / √N over the images. A mass (probability) and a density are not comparable.",
    )


def show_datasets() -> None:
    own = ("PATH", "your own: .npz, .npy or a folder of images; arrays (N, D) are vectors")
    for name, about in (*names().items(), own):
        say(f"{name:<20}{about}")
