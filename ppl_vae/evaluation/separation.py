"""How well a score tells two sets of data apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def auroc(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """The probability that a datum of one set has a higher score than one of the other, ties counted half, and its
    standard error: the area under the curve of true against false positives. Scores have shape (data,).

    Of log p(x) it is no test of what is like the training data: a model may find other data likelier, as one of
    clothes does digits (Eric Nalisnick, Akihiro Matsukawa, Yee Whye Teh, Dilan Gorur, Balaji Lakshminarayanan: Do Deep
    Generative Models Know What They Don't Know?, 2019, arXiv:1810.09136).

    The error is by placements: Elizabeth DeLong, David DeLong, Daniel Clarke-Pearson: Comparing the Areas under Two or
    More Correlated Receiver Operating Characteristic Curves, Biometrics 44(3), 1988; NaN for sets of one. Raises
    `ValueError` for empty sets.

    >>> auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0]))[0]
    0.75
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"scores: expected some of each set; got {len(inside)} and {len(outside)}")
    placements = [_share_below(a, b) for a, b in ((inside, outside), (outside, inside))]
    variance = sum((share.var() / len(share)).item() if len(share) > 1 else math.nan for share in placements)
    return placements[0].mean().item(), math.sqrt(variance)


def _share_below(a: Tensor, b: Tensor) -> Tensor:
    """Of each of a, which share of b is below it, (len(a),)."""
    ordered = b.double().sort().values
    sides = [torch.searchsorted(ordered, a.double(), right=right) for right in (False, True)]
    return (sides[0] + sides[1]).double() / (2 * len(b))
