"""Streaming statistics of log-weights: what is said of log p(x) from K samples, in memory that K does not fill."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.evaluation.diagnostics import pareto_khat, tail_size


class LogMeanExp:
    """log-mean of weights for each datum, its standard error, ESS and Pareto k-hat, from chunks of log-weights.

    Chunks come in any order and cut, and some data may have more samples than others, up to `max_samples`:
    `add(log_w, rows)` takes log_w (samples, data) of the data at `rows`, a slice, an index, or the first row's number.
    Sums are in double precision. For the k-hat the largest weights alone are kept, 3 sqrt(K) for each datum.

    Attributes: `count`, samples so far, shape (data,); `rows`, samples of all data together.
    """

    def __init__(self, num_data: int, max_samples: int, *, device: torch.device | None = None):
        new = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self.log_sum, self.log_sum_squares = new, new.clone()
        self.tail = new.expand(tail_size(max_samples), num_data).clone()
        self.count = torch.zeros(num_data, dtype=torch.int64, device=device)

    def add(self, log_w: Tensor, rows: int | slice | Tensor = 0) -> None:
        """Raises `ValueError` for a weight that is NaN or infinite."""
        if isinstance(rows, int):
            rows = slice(rows, rows + log_w.shape[1])
        log_w = log_w.double()
        bad = (log_w.isnan() | (log_w == math.inf)).any(0)
        if bad.any():
            datum = int(torch.arange(len(self.count), device=bad.device)[rows][bad][0])
            raise ValueError(f"log-weights: expected finite ones; got NaN or infinity at datum {datum}")
        log_sum = torch.logaddexp(self.log_sum[rows], log_w.logsumexp(0))
        log_sum_squares = torch.logaddexp(self.log_sum_squares[rows], (2 * log_w).logsumexp(0))
        tail = torch.cat([self.tail[:, rows], log_w]).topk(len(self.tail), dim=0).values
        # together at last, so that an interrupt hardly finds sums and count of different samples
        self.log_sum[rows], self.log_sum_squares[rows], self.tail[:, rows] = log_sum, log_sum_squares, tail
        self.count[rows] += len(log_w)

    def log_mean(self) -> Tensor:
        """log 1/K sum_k w_k, shape (data,); NaN for no samples."""
        return self.log_sum - self.count.log()

    def ess(self) -> Tensor:
        """(sum w)^2 / sum w^2, in 1..K, shape (data,); 0 where no weight is above 0."""
        return (2 * self.log_sum - self.log_sum_squares).exp().nan_to_num(nan=0.0)

    def standard_error(self) -> Tensor:
        """Of the log-mean, by the delta method: sd(w) / (mean(w) sqrt(K)), shape (data,); NaN for K = 1."""
        K = self.count.double()
        return ((K / self.ess() - 1).clamp(min=0) / (K - 1)).sqrt().where(K > 1, math.nan)

    def khat(self) -> Tensor:
        """Pareto k-hat of each datum's weights, shape (data,)."""
        return torch.from_numpy(pareto_khat(self.tail.cpu().numpy(), self.count.cpu().numpy()))
