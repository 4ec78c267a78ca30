"""What is known of log p(x): the estimate for each datum, with its errors, limits and warnings."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation.diagnostics import (
    EQUAL,
    EQUAL_PER_NAT,
    MIN_SAMPLES_FOR_KHAT,
    khat_error,
    khat_limit,
    pareto_khat,
    tail_size,
)

GROUPS = 32  # of samples, whose log-means tell the Monte Carlo error
QUARTERS, MIN_SAMPLES_FOR_QUARTERS = 4, 16  # the groups in four parts, each with an error of its own
# Where errors hold, a quarter's 95 % interval misses the log-mean of all samples 5 % of the time. Errors are refused
# where more than twice as many miss, in more quarters than chance gives one result in a thousand.
MISSED_SHARE, FALSE_ALARMS = 0.1, 1e-3

RUNGS = ("from the guide", "refined", "annealed")  # of the ladder, by number
GUIDE, REFINED, ANNEALED = range(3)
VALUES = {"levels": "levels", "dequantize": "dequantized levels", "scale": "scaled"}


@dataclass(frozen=True, eq=False)
class LogLikelihood:
    """log p(x) of each datum, in nats. Tensors have shape (data,), on the CPU, in double precision.

    Attributes:
        log_p: the estimate.
        mc_se: its Monte Carlo standard error, by the jackknife over 32 groups of samples, too small where k-hat is over
            its limit. Wider for few groups, by Student's t: log_p +- 1.96 mc_se is a 95 % interval. NaN for one sample.
        ess: effective sample size, 1..K.
        khat: Pareto k-hat of the weights. The share of data that are over `khat_limit` of K is the verdict on all of
            them: where the largest weights were missed, the estimate is too low and the k-hat small. NaN for K < 25.
        num_samples: K.
        measure: "mass" or "density", from the support of the likelihood.
        encoding: how x was made from images, "" where nobody said.
        fingerprint: of x.
        bound: what the estimate is in expectation.
        source: fingerprint of what x was made from (8-bit images), "" where nobody said.
        space: the support of the observed sites and how many dimensions they have, "boolean^784".
        decoder_rows: rows (samples x data) that the model was evaluated on, for what it cost.
        rung: what was sampled for each datum, its number in `RUNGS`; None for one method alone.
        quantity: what was scored given what, "log p(x)" or "log p(x, y | c)", by the names of the programs' arguments.
        given: fingerprints of these other arguments.
        complete: whether each datum has all the samples that were asked for; not where the work was interrupted.
        missed: how many of the four quarters of a datum's samples have a 95 % interval of their own that log_p is not
            in; NaN for K < 16. See `errors_hold`, the verdict on all data: a datum whose quarters agree may have missed
            its large weights in all of them. None for what is not of samples, or was read from a file.
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
    quantity: str = "log p(x)"
    given: str = ""
    complete: bool = True
    rung: Tensor | None = None
    missed: Tensor | None = None

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
        """Standard error of the mean from the samples of z, for these data: sqrt(sum mc_se^2) / N, `widening` times."""
        mc_se = self.mc_se[self.done]
        return self.widening * mc_se.square().sum().sqrt().item() / max(len(mc_se), 1)

    @property
    def widening(self) -> float:
        """How many times larger errors are taken to be, 1 / (1 - share of data over the limit of k-hat): see there."""
        return widening(self.khat[self.done], self.num_samples[self.done])

    @property
    def data_se_of_mean(self) -> float:
        """Standard error of the mean from the choice of data, sd / sqrt(N); NaN for one datum."""
        log_p = self.log_p[self.done]
        return log_p.std().item() / math.sqrt(len(log_p)) if len(log_p) > 1 else math.nan

    @property
    def num_unreliable(self) -> int | None:
        """How many data have a k-hat over its limit, or None where K < 25 leaves one unknown."""
        return num_over_limit(self.khat, self.num_samples)

    @property
    def errors_hold(self) -> bool | None:
        """Whether parts of the samples are as far from log_p as they say: not where 95 % intervals of quarters miss it
        in more than a tenth of the cases, and by chance in one result of a thousand. None where K < 16 leaves it open.

        What is to be known by it is by how much errors are too small where weights have a heavy tail. On normals of 2,
        10 and 50 dimensions and guides too wide and too narrow, with K from 16 to 1,000, the share of quarters that
        miss was 5 % where `mc_se` covered 95 %, 12 % for 88 %, and 21 to 25 % for 60 %.
        """
        if self.missed is None or not (known := self.missed[self.done & ~self.missed.isnan()]).numel():
            return None
        return int(known.sum()) <= most_by_chance(QUARTERS * len(known))

    @property
    def warnings(self) -> list[str]:
        """What speaks against the estimates or their errors, each in a line."""
        lines = khat_warnings(self.khat[self.done], self.num_samples[self.done], len(self)).splitlines()[1:]
        if self.missed is not None and self.errors_hold is False:
            share = self.missed[self.done].nanmean().item() / QUARTERS
            lines.append(
                f"warning: Monte Carlo errors are too small: {share:.0%} of the 95 % intervals of quarters of the "
                "samples miss the log-mean of all. Take more samples or steps, or log_likelihood_within"
            )
        return lines

    def __str__(self) -> str:
        samples, num_data = self.num_samples[self.done], int(self.done.sum())
        if not num_data:
            return f"{self.quantity}: interrupted before any of {len(self)} data was done"
        K = f"{int(samples.min())}"
        if samples.max() > samples.min():
            K += f"..{int(samples.max())}"
        measure = f"{self.measure} on {self.space}" if self.space else self.measure
        text = (
            f"{self.quantity} = {self.mean:.3f} nats per datum ({measure}; {self.bound}), "
            f"Monte Carlo s.e. {self.mc_se_of_mean:.3f}, s.e. over {num_data} data {self.data_se_of_mean:.3f}; "
            f"K = {K}, median ESS {self.ess[self.done].median().item():.1f}; "
            f"data {self.encoding or 'as given'} [{self.fingerprint}]"
        )
        if not self.complete:
            what = (
                f"with {num_data} of {len(self)} data done" if num_data < len(self) else "before all samples were drawn"
            )
            text += f"\nwarning: interrupted {what}"
        return "\n".join([text, *self.warnings])


def most_by_chance(num_intervals: int) -> int:
    """How many of so many intervals miss, of which a tenth do on average, in all but one of a thousand cases.

    >>> most_by_chance(4), most_by_chance(400)
    (3, 60)
    """
    from scipy.special import bdtrik  # seconds

    return math.ceil(bdtrik(1 - FALSE_ALARMS, num_intervals, MISSED_SHARE))


def rungs_of(rung: Tensor) -> dict[str, int]:
    """How many data stand on each rung of the ladder that has any, by its name in `RUNGS`."""
    return {name: count for kind, name in enumerate(RUNGS) if (count := int((rung == kind).sum()))}


def over_limit(khat: Tensor, num_samples: Tensor) -> Tensor:
    """Which k-hats, shape (data,), are over the limit of their numbers of samples; not those that are unknown."""
    return khat > torch.as_tensor(khat_limit(num_samples))


def surely_below_limit(khat: Tensor, num_samples: Tensor) -> Tensor:
    """Which are below it by their standard error at least: of a k-hat at the limit, that of other samples would be over
    it every second time."""
    return khat + torch.as_tensor(khat_error(khat, num_samples)) < torch.as_tensor(khat_limit(num_samples))


def num_over_limit(khat: Tensor, num_samples: Tensor) -> int | None:
    """How many are, or None where K < 25 leaves one unknown."""
    return None if khat.isnan().any() else int(over_limit(khat, num_samples).sum())


def widening(khat: Tensor, num_samples: Tensor) -> float:
    """By how much the share of k-hats over their limit widens the Monte Carlo errors of all data together,

        1 / (1 - share)    (counting one datum more that is not over it, so that there is always a number),

    which is what made 95 % intervals of the mean cover on normals of 1, 5 and 20 dimensions with guides too narrow.
    """
    return (len(khat) + 1) / (len(khat) + 1 - int(over_limit(khat, num_samples).sum()))


def khat_warnings(khat: Tensor, num_samples: Tensor, num_data: int) -> str:
    """What k-hats, shape (data,), say against the estimates of `num_data` data, each in a line of its own."""
    text = ""
    if unknown := int(khat.isnan().sum()):
        few = f"K < {MIN_SAMPLES_FOR_KHAT}"
        text += f"\nwarning: k-hat unknown for {unknown} of {num_data} data ({few}): do not trust their error"
    if unreliable := int(over_limit(khat, num_samples).sum()):
        limits = " to ".join(dict.fromkeys(f"{khat_limit(K):.2g}" for K in (num_samples.min(), num_samples.max())))
        text += (
            f"\nwarning: k-hat > {limits} for {unreliable} of {num_data} data: log p(x) may be too low, also where "
            "k-hat is small. Take log_likelihood_within, or improve the guide"
        )
    return text


@dataclass(frozen=True, eq=False)
class PerDatum:
    """An estimate for each datum and its Monte Carlo standard error, shape (data,). `a - b` is paired by datum, with
    the Monte Carlo errors of the two taken as independent."""

    values: Tensor
    mc_se: Tensor

    @classmethod
    def of(cls, result: LogLikelihood) -> PerDatum:
        """log p(x), in nats, with the error of each datum as wide as all data together have it."""
        return cls(result.log_p, result.mc_se * result.widening)

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

    Attributes: `count`, samples so far, shape (data,).
    """

    def __init__(self, num_data: int, max_samples: int, *, device: torch.device | None = None):
        new = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        self.groups = new.expand(min(max_samples, GROUPS), num_data).clone()  # log-sums; sample i is in group i mod G
        self.log_sum_squares = new.clone()
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
        group = (self.count[rows] + torch.arange(len(log_w), device=log_w.device)[:, None]) % len(self.groups)
        largest = log_w.amax(0).clamp(min=torch.finfo(log_w.dtype).min)
        sums = torch.zeros_like(self.groups[:, rows]).scatter_add_(0, group, (log_w - largest).exp())
        groups = torch.logaddexp(self.groups[:, rows], sums.log() + largest)
        log_sum_squares = torch.logaddexp(self.log_sum_squares[rows], (2 * log_w).logsumexp(0))
        tail = torch.cat([self.tail[:, rows], log_w]).topk(len(self.tail), dim=0).values
        # together at last, so that an interrupt hardly finds sums and count of different samples
        self.groups[:, rows], self.log_sum_squares[rows], self.tail[:, rows] = groups, log_sum_squares, tail
        self.count[rows] += len(log_w)

    def put(self, other: LogMeanExp, rows: Tensor) -> None:
        """Those of `rows` become another's, which has as many data, and was made for as many samples."""
        for name in ("groups", "log_sum_squares", "tail", "count"):
            getattr(self, name)[..., rows] = getattr(other, name)

    def log_mean(self) -> Tensor:
        """log 1/K sum_k w_k, shape (data,); NaN for no samples."""
        return self.groups.logsumexp(0) - self.count.log()

    def ess(self) -> Tensor:
        """(sum w)^2 / sum w^2, in 1..K, shape (data,); 0 where no weight is above 0."""
        return (2 * self.groups.logsumexp(0) - self.log_sum_squares).exp().nan_to_num(nan=0.0)

    def standard_error(self) -> Tensor:
        """Of the log-mean, by the jackknife over G groups of samples, shape (data,),

            se^2 = (G - 1) / G sum_g (l_g - mean l)^2,   l_g = log-mean of all samples but those of group g,

        times t / 1.96 with the 97.5 % point t of Student's t with G - 1 degrees of freedom: 1.04 for 32 groups, 1.09
        for 16 samples, 6.5 for two. NaN for one sample; infinite where one group alone has a weight above 0.
        """
        se, t = _jackknife(self.groups, self._sizes())
        return se * t / 1.96

    def missed(self) -> Tensor:
        """How many quarters of the groups have a 95 % interval that the log-mean of all samples is not in, but for
        rounding: 0 to 4, shape (data,); NaN for fewer than 16 samples.

        A quarter's error is that of its own groups, s, by the jackknife, and its distance to the whole, which it is a
        part of, has the error s sqrt(1 - its share of the samples).
        """
        sizes, whole, missed = self._sizes(), self.log_mean(), torch.zeros_like(self.log_sum_squares)
        rounding = EQUAL + EQUAL_PER_NAT * whole.abs()
        for number in range(QUARTERS):
            groups, of_part = self.groups[number::QUARTERS], sizes[number::QUARTERS]
            (se, t), num_samples = _jackknife(groups, of_part), of_part.sum(0)
            distance = (groups.logsumexp(0) - num_samples.log() - whole).abs()
            missed += distance > t * se * (1 - num_samples / self.count).sqrt() + rounding
        return missed.where(self.count >= MIN_SAMPLES_FOR_QUARTERS, math.nan)

    def _sizes(self) -> Tensor:
        """How many samples each group has, (groups, data)."""
        number = torch.arange(len(self.groups), device=self.count.device)[:, None]
        return torch.div(self.count - number - 1, len(self.groups), rounding_mode="floor") + 1

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
            "missed": self.missed().cpu(),
        }


def _jackknife(groups: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The standard error of the log-mean of groups of samples, with log-sums and sizes (groups, data), and the 97.5 %
    point of Student's t for it; both (data,)."""
    from scipy.special import stdtrit  # seconds

    nothing = torch.full_like(groups[:1], -math.inf)
    below, above = (torch.cat([nothing, t.logcumsumexp(0)[:-1]]) for t in (groups, groups.flip(0)))
    others = torch.logaddexp(below, above.flip(0)) - (sizes.sum(0) - sizes).log()
    has = sizes > 0
    G = has.sum(0)
    mean = others.where(has, 0).sum(0) / G
    variance = (others - mean).square().where(has, 0).sum(0) * (G - 1) / G
    t = torch.from_numpy(stdtrit((G - 1).cpu().numpy(), 0.975)).to(variance)
    return variance.sqrt().nan_to_num(nan=math.inf).where(G > 1, math.nan), t
