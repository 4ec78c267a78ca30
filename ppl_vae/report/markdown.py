"""Markdown: a table, and blocks that are rendered into a text between markers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

BEGIN, END = "<!-- rendered: {} -->", "<!-- end -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right.

    >>> print(table(["model", "MSE"], [["PCA", "0.02"]]))
    | model | MSE |
    |---|---:|
    | PCA | 0.02 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("|" + "|".join(line if line[:3] == "---" else f" {line} " for line in row) + "|" for row in lines)


def fill(text: str, blocks: dict[str, str]) -> str:
    """`text` with each block between its two markers replaced. Raises `ValueError` for a missing marker."""
    for name, block in blocks.items():
        begin = BEGIN.format(name)
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(END)
        if not (found and closed):
            raise ValueError(f"expected the markers {begin!r} and {END!r}; got a text without them")
        text = f"{before}{begin}\n{block}\n{END}{after}"
    return text


def number(value: float | None, digits: int = 2) -> str:
    """A number as it is shown; in JSON files null is one that is not known, or not finite.

    >>> number(0.125), number(None)
    ('0.12', 'unknown')
    """
    return "unknown" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def unreliable(row: dict[str, Any]) -> str:
    """How many images of an evaluation have k̂ > 0.7, of how many."""
    over = row["khat_over_limit"]
    return "unknown" if over is None else f"{over}/{row['num_images']}"
