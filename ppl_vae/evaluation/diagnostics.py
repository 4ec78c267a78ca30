"""Diagnoses of importance weights, in NumPy and ArviZ alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

KHAT_LIMIT = 0.7
MIN_SAMPLES_FOR_KHAT = 25
EQUAL = 1e-4  # nats: what float32 rounds off log-weights of some hundreds; below it the tail is rounding

_Array = np.ndarray[Any, Any]


def tail_size(num_samples: int) -> int:
    """How many of K weights PSIS calls the tail, min(K / 5, 3 sqrt(K)), and the weight that is its threshold."""
    return min(num_samples, math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples))) + 1)


def pareto_khat(tail: _Array, num_samples: _Array) -> _Array:
    """Pareto k-hat per datum, shape (data,), from its largest log-weights, in descending order, (tail, data).

    It diagnoses: over 0.7 the weights have so heavy a tail that neither estimate nor error can be believed.
    It never smooths. The tail alone decides, so the other of the `num_samples` (data,) weights need not be kept.
    NaN for fewer than 25 samples, whose tail is too short to fit; -inf where all weights of the tail are equal.
    ArviZ 0.x and 1.x round the size of the tail up and down, so that their k-hats differ by some hundredths.

    Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao, Jonah Gabry: Pareto Smoothed Importance Sampling,
    2015, arXiv:1507.02646.
    """
    khat = np.full(tail.shape[1], math.nan)
    if not len(num_samples) or num_samples.max() < MIN_SAMPLES_FOR_KHAT:
        return khat
    khat_of = _khat_of()
    values = tail.astype(np.float64)
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
                khat[i] = khat_of(weights)
    return khat


def _khat_of() -> Callable[[_Array], float]:
    """ArviZ's k-hat of log-weights, in 0.x or 1.x."""
    # Imported on use: it takes seconds, and 0.x announces 1.x at each import.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from arviz import psislw
        except ImportError:  # 1.x
            from arviz_stats.base import array_stats

            # It takes the log-likelihood of what is left out, which is minus the log-weight of LOO.
            return lambda log_w: _unless_equal(array_stats.psislw, -log_w)
        return lambda log_w: float(psislw(log_w)[1])


def _unless_equal(psislw: Callable[[_Array], tuple[_Array, _Array]], log_likelihood: _Array) -> float:
    try:
        return float(psislw(log_likelihood)[1])
    except ValueError:  # "All tail values are the same"
        return -math.inf
