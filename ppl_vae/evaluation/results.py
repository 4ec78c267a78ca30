"""What is known of log p(x): the estimate for each datum, with its errors, limits and warnings."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation.diagnostics import KHAT_LIMIT, MIN_SAMPLES_FOR_KHAT, pareto_khat, tail_size

VALUES = {"levels": "levels", "dequantize": "dequantized levels", "scale": "scaled"}


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each datum, in nats. Tensors have shape (data,), on the CPU, in double precision.

    Attributes:
        log_p: the estimate.
        mc_se: its Monte Carlo standard error, by the delta method: at most 1, and too small where k-hat > 0.7. NaN for
            one sample.
        ess: effective sample size, 1..K.
        khat: Pareto k-hat of the weights: over 0.7, neither estimate nor error can be believed. NaN for K < 25.
        num_samples: K.
        measure: "mass" or "density", from the support of the likelihood.
        encoding: how x was made from images, "" where nobody said.
        fingerprint: of x.
        bound: what the estimate is in expectation.
        source: fingerprint of what x was made from (8-bit images), "" where nobody said.
        space: the support of the observed sites and how many dimensions they have, "boolean^784".
        decoder_rows: rows (samples x data) that the model was evaluated on, for what it cost.
        complete: whether each datum has all the samples that were asked for; not where the work was interrupted.
    """

    log_p: Tensor
    mc_se: Tensor
    ess: Tensor
    khat: Tensor
    num_samples: Tensor
    measure: str
    encoding: str
    fingerprint: str
    bound: str
    source: str = ""
    decoder_rows: int = 0
    space: str = ""
    complete: bool = True

    def __len__(self) -> int:
        return len(self.log_p)

    @property
    def values(self) -> str:
        """What x has as values, by the name that its encoding begins with: "levels" (0..255), "dequantized levels", or
        "scaled" to [0, 1], of which there is a reconstruction loss and no likelihood; "" for anything else."""
        encoding = re.match(r"\w*", self.encoding)
        return VALUES.get(encoding[0].lower() if encoding else "", "")

    @property
    def done(self) -> Tensor:
        """Which data have an estimate: all of them, unless the work was interrupted. Means are over these."""
        return self.num_samples > 0

    @property
    def mean(self) -> float:
        """Mean log p(x), nats per datum."""
        return self.log_p[self.done].mean().item()

    @property
    def mc_se_of_mean(self) -> float:
        """Standard error of the mean from the samples of z, for these data: sqrt(sum mc_se^2) / N."""
        mc_se = self.mc_se[self.done]
        return mc_se.square().sum().sqrt().item() / max(len(mc_se), 1)

    @property
    def data_se_of_mean(self) -> float:
        """Standard error of the mean from the choice of data, sd / sqrt(N); NaN for one datum."""
        log_p = self.log_p[self.done]
        return log_p.std().item() / math.sqrt(len(log_p)) if len(log_p) > 1 else math.nan

    @property
    def num_unreliable(self) -> int:
        """How many data have a k-hat over 0.7."""
        return int((self.khat > KHAT_LIMIT).sum())

    @property
    def num_unreliable_or_none(self) -> int | None:
        """The same, or None where K < 25 leaves a k-hat unknown."""
        return num_unreliable_or_none(self.khat)

    def __str__(self) -> str:
        samples, num_data = self.num_samples[self.done], int(self.done.sum())
        if not num_data:
            return f"log p(x): interrupted before any of {len(self)} data was done"
        K = f"{int(samples.min())}"
        if samples.max() > samples.min():
            K += f"..{int(samples.max())}"
        measure = f"{self.measure} on {self.space}" if self.space else self.measure
        text = (
            f"log p(x) = {self.mean:.3f} nats per datum ({measure}; {self.bound}), "
            f"Monte Carlo s.e. {self.mc_se_of_mean:.3f}, s.e. over {num_data} data {self.data_se_of_mean:.3f}; "
            f"K = {K}, median ESS {self.ess[self.done].median().item():.1f}; "
            f"data {self.encoding or 'as given'} [{self.fingerprint}]"
        )
        if not self.complete:
            what = (
                f"with {num_data} of {len(self)} data done" if num_data < len(self) else "before all samples were drawn"
            )
            text += f"\nwarning: interrupted {what}"
        return text + khat_warnings(self.khat[self.done], len(self))


def num_unreliable_or_none(khat: Tensor) -> int | None:
    """How many of the k-hats, shape (data,), are over 0.7, or None where K < 25 leaves one unknown."""
    return None if khat.isnan().any() else int((khat > KHAT_LIMIT).sum())


def khat_warnings(khat: Tensor, num_data: int) -> str:
    """What k-hats, shape (data,), say against the estimates of `num_data` data, each in a line of its own."""
    text = ""
    if unknown := int(khat.isnan().sum()):
        few = f"K < {MIN_SAMPLES_FOR_KHAT}"
        text += f"\nwarning: k-hat unknown for {unknown} of {num_data} data ({few}): do not trust their error"
    if unreliable := int((khat > KHAT_LIMIT).sum()):
        text += f"\nwarning: k-hat > {KHAT_LIMIT} for {unreliable} of {num_data} data: do not trust these"
    return text


@dataclass(frozen=True, eq=False)
class PerDatum:
    """An estimate for each datum and its Monte Carlo standard error, shape (data,). `a - b` is paired by datum, with
    the Monte Carlo errors of the two taken as independent."""

    values: Tensor
    mc_se: Tensor

    @classmethod
    def of(cls, result: LogLikelihood) -> PerDatum:
        """log p(x), in nats."""
        return cls(result.log_p, result.mc_se)

    @classmethod
    def of_samples(cls, samples: Tensor) -> PerDatum:
        """The mean over samples (samples, data), in double precision and on the CPU. Raises `ValueError` for one."""
        if len(samples) < 2:
            raise ValueError(f"num_samples: expected at least 2, for a standard error; got {len(samples)}")
        samples = samples.double().cpu()
        return cls(samples.mean(0), samples.std(0) / math.sqrt(len(samples)))

    def __sub__(self, other: PerDatum) -> PerDatum:
        return PerDatum(self.values - other.values, (self.mc_se.square() + other.mc_se.square()).sqrt())

    def __mul__(self, factor: float) -> PerDatum:
        return PerDatum(self.values * factor, self.mc_se * abs(factor))

    @property
    def mean(self) -> float:
        """Mean over the data."""
        return self.values.mean().item()

    @property
    def mc_se_of_mean(self) -> float:
        """Standard error of the mean from the samples, for these data: sqrt(sum mc_se^2) / N."""
        return self.mc_se.square().sum().sqrt().item() / len(self.mc_se)

    @property
    def data_se_of_mean(self) -> float:
        """Standard error of the mean from the choice of data, sd / sqrt(N); NaN for one datum."""
        num_data = len(self.values)
        return self.values.std().item() / math.sqrt(num_data) if num_data > 1 else math.nan


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

    def estimates(self) -> dict[str, Any]:
        """The fields of a `LogLikelihood` that are of each datum, on the CPU: `log_p` is the log-mean."""
        return {
            "log_p": self.log_mean().cpu(),
            "mc_se": self.standard_error().cpu(),
            "ess": self.ess().cpu(),
            "khat": self.khat(),
            "num_samples": self.count.cpu(),
        }
