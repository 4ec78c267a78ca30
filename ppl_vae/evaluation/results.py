"""What is known of log p(x): the estimate for each datum, with its errors, limits and warnings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

KHAT_LIMIT = 0.7


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each datum, in nats. Tensors have shape (data,), on the CPU, in double precision.

    Attributes:
        log_p: the estimate.
        mc_se: its Monte Carlo standard error: what another seed would change. NaN for one sample.
        ess: effective sample size, 1..K.
        khat: Pareto k-hat of the weights: over 0.7, neither estimate nor error can be believed. NaN for K < 25.
        num_samples: K.
        measure: "mass" or "density", from the support of the likelihood.
        encoding: how x was made from images, "" where nobody said.
        fingerprint: of x.
        bound: what the estimate is in expectation.
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

    def __len__(self) -> int:
        return len(self.log_p)

    @property
    def mean(self) -> float:
        """Mean log p(x), nats per datum."""
        return self.log_p.mean().item()

    @property
    def mc_se_of_mean(self) -> float:
        """Standard error of the mean from the samples of z, for these data: sqrt(sum mc_se^2) / N."""
        return self.mc_se.square().sum().sqrt().item() / len(self)

    @property
    def data_se_of_mean(self) -> float:
        """Standard error of the mean from the choice of data, sd / sqrt(N); NaN for one datum."""
        return self.log_p.std().item() / math.sqrt(len(self)) if len(self) > 1 else math.nan

    @property
    def num_unreliable(self) -> int:
        """How many data have a k-hat over 0.7."""
        return int((self.khat > KHAT_LIMIT).sum())

    def __str__(self) -> str:
        K = f"{int(self.num_samples.min())}"
        if self.num_samples.max() > self.num_samples.min():
            K += f"..{int(self.num_samples.max())}"
        text = (
            f"log p(x) = {self.mean:.3f} nats per datum ({self.measure}; {self.bound}), "
            f"Monte Carlo s.e. {self.mc_se_of_mean:.3f}, s.e. over {len(self)} data {self.data_se_of_mean:.3f}; "
            f"K = {K}, median ESS {self.ess.median().item():.1f}; "
            f"data {self.encoding or 'as given'} [{self.fingerprint}]"
        )
        if self.num_unreliable:
            text += f"\nwarning: k-hat > {KHAT_LIMIT} for {self.num_unreliable} of {len(self)} data: do not trust these"
        return text
