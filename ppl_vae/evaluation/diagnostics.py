"""Diagnoses of importance weights."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

MIN_SAMPLES_FOR_KHAT = 25
EQUAL = 1e-4  # nats: what float32 rounds off log-weights of some hundreds; below it the tail is rounding


def pareto_khat(tail: Tensor, num_samples: int) -> Tensor:
    """Pareto k-hat per datum from the largest log-weights, shape (tail, data) -> (data,).

    It diagnoses: over 0.7 the weights have so heavy a tail that neither estimate nor error can be believed.
    It never smooths. The tail alone decides, so the other K - tail weights need not be kept.
    NaN for fewer than 25 samples, whose tail is too short to fit; -inf where all weights of the tail are equal.

    Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao, Jonah Gabry: Pareto Smoothed Importance Sampling,
    2015, arXiv:1507.02646.
    """
    khat = torch.full((tail.shape[1],), math.nan, dtype=torch.float64)
    if num_samples < MIN_SAMPLES_FOR_KHAT:
        return khat
    psislw = _psislw()
    values = tail.double().numpy()
    body = np.empty(num_samples)
    for i in range(tail.shape[1]):
        column = values[:, i]
        if not np.isfinite(column).all():
            khat[i] = math.inf  # too few samples landed where p(x, z) > 0
        elif np.ptp(column) < EQUAL:
            khat[i] = -math.inf
        else:
            body.fill(column.min() - 1)
            body[: len(column)] = column
            with np.errstate(all="ignore"):
                khat[i] = float(psislw(body)[1])
    return khat


def _psislw():  # type: ignore[no-untyped-def]
    """ArviZ's Pareto-smoothed importance sampling: (log_weights) -> (smoothed, k-hat), in ArviZ 0.x or 1.x."""
    # Imported on use: it takes seconds, and 0.x announces 1.x at each import.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from arviz import psislw

            return psislw
        except ImportError:
            from arviz_stats.base.array_stats import array_stats  # ArviZ 1.x

            return array_stats.psislw
