"""Diagnoses of importance weights."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

MIN_SAMPLES_FOR_KHAT = 25
EQUAL = 1e-4  # nats: what float32 rounds off log-weights of some hundreds; below it the tail is rounding


def tail_size(num_samples: int) -> int:
    """How many of K weights PSIS calls the tail, min(K / 5, 3 sqrt(K)), and the weight that is its threshold."""
    return min(num_samples, math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples))) + 1)


def pareto_khat(tail: Tensor, num_samples: Tensor) -> Tensor:
    """Pareto k-hat per datum, shape (data,), from its largest log-weights, in descending order, (tail, data).

    It diagnoses: over 0.7 the weights have so heavy a tail that neither estimate nor error can be believed.
    It never smooths. The tail alone decides, so the other of the `num_samples` (data,) weights need not be kept.
    NaN for fewer than 25 samples, whose tail is too short to fit; -inf where all weights of the tail are equal.

    Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao, Jonah Gabry: Pareto Smoothed Importance Sampling,
    2015, arXiv:1507.02646.
    """
    khat = torch.full((tail.shape[1],), math.nan, dtype=torch.float64)
    if not len(num_samples) or num_samples.max() < MIN_SAMPLES_FOR_KHAT:
        return khat
    psislw = _psislw()
    values = tail.double().numpy()
    for i, K in enumerate(num_samples.tolist()):
        if K < MIN_SAMPLES_FOR_KHAT:
            continue
        column = values[: tail_size(K), i]
        if not np.isfinite(column).all():
            khat[i] = math.inf  # too few samples landed where p(x, z) > 0
        elif np.ptp(column) < EQUAL:
            khat[i] = -math.inf
        else:
            weights = np.full(K, column.min() - 1)
            weights[: len(column)] = column
            with np.errstate(all="ignore"):
                khat[i] = float(psislw(weights)[1])
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
