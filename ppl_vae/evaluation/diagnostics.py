"""Diagnoses of importance weights, in NumPy and ArviZ alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

MIN_SAMPLES_FOR_KHAT = 25
# Log-weights of which the tail spans no more than this are equal: what remains is rounding, of the terms of a
# log-prob, and of the log-prob itself in float32.
EQUAL, EQUAL_PER_NAT = 1e-3, 2.4e-7

_Array = np.ndarray[Any, Any]


def khat_limit(num_samples: Any) -> Any:
    """The largest k-hat at which K weights can be believed, min(0.7, 1 - 1 / log10 K), of a number K or an array.

    Seen from the other side, a k-hat below 0.7 needs K >= 10^(1 / (1 - k)): 100 for 0.5, 2,155 for 0.7.
    Aki Vehtari, Daniel Simpson, Andrew Gelman, Yuling Yao, Jonah Gabry: Pareto Smoothed Importance Sampling,
    2015, arXiv:1507.02646.

    >>> [round(float(khat_limit(K)), 3) for K in (100, 1000, 10_000)]
    [0.5, 0.667, 0.7]
    """
    with np.errstate(divide="ignore"):
        return np.minimum(0.7, 1 - 1 / np.log10(np.asarray(num_samples, dtype=np.float64)))


def tail_size(num_samples: int) -> int:
    """How many of K weights PSIS calls the tail, min(K / 5, 3 sqrt(K)), and the weight that is its threshold."""
    return min(num_samples, math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples))) + 1)


def khat_error(khat: Any, num_samples: Any) -> Any:
    """The standard error of k-hats (data,) of K weights, (1 + k) / sqrt(M) for a tail of M = min(K / 5, 3 sqrt(K)):
    that of maximum likelihood for a generalised Pareto tail, of k >= 0.

    Richard L. Smith: Maximum likelihood estimation in a class of nonregular cases, Biometrika 72, 1985.

    >>> [round(float(khat_error(0.5, K)), 2) for K in (100, 1000, 16_000)]
    [0.34, 0.15, 0.08]
    """
    K = np.asarray(num_samples, dtype=np.float64)
    return (1 + np.maximum(np.asarray(khat), 0.0)) / np.sqrt(np.minimum(K / 5, 3 * np.sqrt(K)))


def pareto_khat(tail: _Array, num_samples: _Array) -> _Array:
    """Pareto k-hat per datum, shape (data,), from its largest log-weights, in descending order, (tail, data).

    It diagnoses: over `khat_limit` the weights have so heavy a tail that neither estimate nor error can be believed.
    A k-hat below it is no pass for that datum: where the largest weights were missed, the estimate is low and the
    k-hat small. So the share of data over the limit is the verdict on all of them. It never smooths.
    The tail alone decides, so the other of the `num_samples` (data,) weights need not be kept. NaN for fewer than 25
    samples, whose tail is too short to fit; -inf where all weights of the tail are equal, but for rounding.
    ArviZ 0.x and 1.x round the size of the tail up and down, so that their k-hats differ by some hundredths.

    Vehtari and others, arXiv:1507.02646.
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
        elif np.ptp(column) <= EQUAL + EQUAL_PER_NAT * abs(column[0]):
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
