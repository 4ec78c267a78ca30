"""Markdown: tables, and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right.

    >>> print(table(["model", "MSE"], [["PCA", "0.02"]]))
    | model | MSE |
    |---|---:|
    | PCA | 0.02 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("|" + "|".join(line if line[:3] == "---" else f" {line} " for line in row) + "|" for row in lines)


def number(value: float | None, digits: int = 2) -> str:
    """A number as it is shown; in JSON files null is one that is not known, or not finite.

    >>> number(0.125), number(None)
    ('0.12', 'unknown')
    """
    return "unknown" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def to_its_error(value: float, se: float) -> str:
    """A number of any size, to two digits of its standard error.

    >>> to_its_error(126.12, 3.64), to_its_error(999.4, 61.2), to_its_error(0.0123, 0.00211)
    ('126.1 ± 3.6', '999 ± 61', '0.0123 ± 0.0021')
    """
    digits = max(0, 1 - math.floor(math.log10(se))) if se > 0 else 2
    return f"{number(value, digits)} ± {number(se, digits)}"


def is_exact(row: dict[str, Any]) -> bool:
    """Whether an evaluation has no Monte Carlo error."""
    return row.get("bound", "").startswith("exact")


def over_limit(row: dict[str, Any]) -> str:
    """How many images of an evaluation have k̂ over its limit; null for too few samples to tell.

    >>> over_limit({"khat_over_limit": 3}), over_limit({"khat_over_limit": None})
    ('3', 'unknown')
    """
    return "unknown" if row["khat_over_limit"] is None else str(row["khat_over_limit"])


def unreliable(row: dict[str, Any]) -> str:
    """... and of how many, as in 3/100."""
    return over_limit(row) if row["khat_over_limit"] is None else f"{over_limit(row)}/{row['num_images']}"
