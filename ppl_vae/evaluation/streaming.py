"""Streaming statistics of log-weights: what is said of log p(x) from K samples, in memory that K does not fill."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.evaluation.diagnostics import pareto_khat


class LogMeanExp:
    """log-mean of weights for each datum, its standard error, ESS and Pareto k-hat, from chunks of log-weights.

    Chunks come in any order and cut: `add(log_w, start)` takes log_w (samples, data) of data from row `start`.
    Sums are in double precision. For the k-hat the largest weights alone are kept, 3 sqrt(K) for each datum.
    """

    def __init__(self, num_data: int, num_samples: int, *, device: torch.device | None = None):
        self.num_samples = num_samples
        # what PSIS calls the tail, and the weight that is its threshold
        self.tail_size = min(num_samples, math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples))) + 1)
        new = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum, self.log_sum_squares = new, new.clone()
        self.tail = new.expand(self.tail_size, num_data).clone()

    def add(self, log_w: Tensor, start: int = 0) -> None:
        """Raises `ValueError` for a weight that is NaN or infinite."""
        log_w = log_w.double()
        bad = log_w.isnan() | (log_w == math.inf)
        if bad.any():
            datum = start + int(bad.any(0).nonzero()[0])
            raise ValueError(f"log-weights: expected finite ones; got NaN or infinity at datum {datum}")
        data = slice(start, start + log_w.shape[1])
        self.log_sum[data] = torch.logaddexp(self.log_sum[data], log_w.logsumexp(0))
        self.log_sum_squares[data] = torch.logaddexp(self.log_sum_squares[data], (2 * log_w).logsumexp(0))
        self.tail[:, data] = torch.cat([self.tail[:, data], log_w]).topk(self.tail_size, dim=0).values

    def log_mean(self) -> Tensor:
        """log 1/K sum_k w_k, shape (data,)."""
        return self.log_sum - math.log(self.num_samples)

    def ess(self) -> Tensor:
        """(sum w)^2 / sum w^2, in 1..K, shape (data,)."""
        return (2 * self.log_sum - self.log_sum_squares).exp().nan_to_num(nan=0.0)

    def standard_error(self) -> Tensor:
        """Of the log-mean, by the delta method: sd(w) / (mean(w) sqrt(K)), shape (data,); NaN for K = 1."""
        K = self.num_samples
        if K == 1:
            return torch.full_like(self.log_sum, math.nan)
        return ((K / self.ess() - 1).clamp(min=0) / (K - 1)).sqrt()

    def khat(self) -> Tensor:
        """Pareto k-hat of each datum's weights, shape (data,)."""
        return pareto_khat(self.tail.cpu(), self.num_samples)
