"""How strong a corruption was, from the corrupted images alone: log p(y) as a function of its scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation.corrupted import Corruption
from ppl_vae.evaluation.restoration import restore
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.programs import Program


@dataclass(frozen=True, eq=False)
class ScaleEstimate:
    """log p(y | scale) on a grid of scales, ascending.

    Attributes:
        scales: shape (scales,).
        log_p, mc_se: log p(y) of each image, in nats, and its Monte Carlo error, shape (scales, data).
    """

    scales: Tensor
    log_p: Tensor
    mc_se: Tensor

    @property
    def of_all(self) -> tuple[float, float]:
        """The scale of the highest likelihood if all images have one, and its standard error, from the curvature."""
        return _peak(self.scales.log(), self.log_p.sum(1))

    @property
    def by_image(self) -> Tensor:
        """The scale of the highest likelihood of each image, shape (data,)."""
        return torch.tensor([_peak(self.scales.log(), column)[0] for column in self.log_p.T])


def estimate_scale(
    model: Program,
    guide: Program,
    y: Tensor,
    *args: Tensor,
    scales: Sequence[float],
    corruption: Callable[[float], Corruption],
    num_halvings: int = 2,
    climb: bool = False,
    **options: Any,
) -> ScaleEstimate:
    """log p(y | scale) of corrupted images, by `restore` at each scale of a grid: its highest point is the scale that
    made them, within the error, where clean images are like those of the model. By how much they differ counts as
    noise, unless `misfit` says it: a misfit of 0.2 makes 0.28 of a noise of 0.2.

    Arguments:
        scales: three at least, above 0.
        num_halvings: so many times, the two steps of the grid around its highest point for all images are halved.
        corruption: from a scale to a corruption: `GaussianNoise`, or `lambda sigma: Then(Blur(sigma), noise)`.
        climb: as `restore` has it, at each scale. Without it log p(y) is too low where k-hats are over their limit.
        options: the others of `restore`.

    Raises `ValueError` for fewer scales, or some not above 0, and as `restore` does.

    >>> estimate_scale(*run.programs, y, scales=(0.2, 0.3, 0.45), corruption=GaussianNoise).of_all  # doctest: +SKIP
    """
    scales = sorted({*scales})
    if len(scales) < 3 or not scales[0] > 0 or not scales[-1] < math.inf:
        raise ValueError(f"scales: expected three or more, above 0; got {scales}")
    options |= {"num_draws": 1, "climb": climb}
    log_p: dict[float, PerDatum] = {}
    for halving in range(num_halvings + 1):
        new = scales if halving == 0 else _halfway(log_p)
        log_p |= {s: restore(model, guide, y, *args, corruption=corruption(s), **options).log_p for s in new}
        log_p = dict(sorted(log_p.items()))
    values, mc_se = (torch.stack([getattr(p, name) for p in log_p.values()]) for name in ("values", "mc_se"))
    return ScaleEstimate(torch.tensor([*log_p], dtype=torch.float64), values, mc_se)


def _halfway(log_p: dict[float, PerDatum]) -> list[float]:
    """Scales halfway, in logarithms, from the best one to its neighbours."""
    scales, totals = [*log_p], [p.mean for p in log_p.values()]
    at = totals.index(max(totals))
    return [math.sqrt(scales[at] * scales[i]) for i in (at - 1, at + 1) if 0 <= i < len(scales)]


def _peak(t: Tensor, log_p: Tensor) -> tuple[float, float]:
    """exp of where the parabola through the highest point and its neighbours has its own, and the standard error
    that its curvature gives: infinite at the ends of the grid."""
    at = int(log_p.argmax())
    if at in (0, len(t) - 1):
        return t[at].exp().item(), math.inf
    x, f = t[at - 1 : at + 2].tolist(), log_p[at - 1 : at + 2].tolist()
    left, right = (f[1] - f[0]) / (x[1] - x[0]), (f[2] - f[1]) / (x[2] - x[1])
    curvature = 2 * (right - left) / (x[2] - x[0])
    best = (x[0] + x[1]) / 2 - left / curvature
    return math.exp(best), math.exp(best) / math.sqrt(-curvature)
