"""What is known of log p(x): the estimate for each datum, with its errors, limits and warnings."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ppl_vae.evaluation.diagnostics import KHAT_LIMIT, MIN_SAMPLES_FOR_KHAT


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
