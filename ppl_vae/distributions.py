"""Distributions that torch and Pyro lack, or that lose precision in float32 at parameters that a decoder may give."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
)
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

# The step of torch.rand, and the distance from 1 to the float32 below it.
EPS = 2.0**-24


class Univariate(TorchDistribution):
    """Event shape (); the parameters, in the order of `arg_constraints`, are broadcast to the batch shape."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]]

    def __init__(self, *params: Tensor, validate_args: bool | None = None):
        self._params = broadcast_all(*params)
        for name, value in zip(self.arg_constraints, self._params, strict=True):
            setattr(self, name, value)
        super().__init__(self._params[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Univariate:
        new = type(self)(*(value.expand(batch_shape) for value in self._params), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _uniform(self, sample_shape: Any) -> Tensor:
        like = self._params[0]
        return torch.rand(self._extended_shape(sample_shape), dtype=like.dtype, device=like.device)


class ContinuousBernoulli(Univariate):
    """A density on [0, 1], with natural parameter l, the logit:

        log p(x) = l x - A(l),    A(l) = log (exp(l) - 1) / l = l/2 + log sinh(l/2) / (l/2).

    torch's is parametrised by a probability, which saturates: at l = -60 its log-normaliser is 2.769 and the true
    one 4.094. Here |l| < 1 uses the series at 0, so that the gradient is right there too.

    Gabriel Loaiza-Ganem, John P. Cunningham: The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders, 2019, arXiv:1907.06845.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True
    logits: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        small, near, far = self._branches(1)
        u2 = (near / 2).square()
        series = u2 * (1 / 6 - u2 * (1 / 180 - u2 * (1 / 2835 - u2 / 37800)))
        log_sinhc = torch.where(small, series, far.abs() / 2 + (-torch.expm1(-far.abs()) / far.abs()).log())
        return self.logits * (value - 0.5) - log_sinhc

    def _branches(self, limit: float) -> tuple[Tensor, Tensor, Tensor]:
        """Where |l| < limit, and l for each of the two branches. Where the other branch is used, l is replaced by a
        value with a finite gradient, since `where` would pass on 0 * inf."""
        small = self.logits.abs() < limit
        return small, torch.where(small, self.logits, 0.0), torch.where(small, limit, self.logits)

    @property
    def mean(self) -> Tensor:
        """A'(l) = 1/2 + coth(l/2) / 2 - 1/l."""
        small, near, far = self._branches(1)
        l2 = near.square()
        series = near * (1 / 12 - l2 * (1 / 720 - l2 * (1 / 30240 - l2 * (1 / 1209600 - l2 / 47900160))))
        return 0.5 + torch.where(small, series, 0.5 / (far / 2).tanh() - 1 / far)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """By the inverse cdf, x = log(1 + u (exp(l) - 1)) / l; near l = 0 by its series, sum_k l^(k-1) / k! times the
        k-th cumulant of a Bernoulli(u)."""
        u = self._uniform(sample_shape)
        small, near, far = self._branches(0.1)
        k2 = u * (1 - u)
        k3, k4 = k2 * (1 - 2 * u), k2 * (1 - 6 * k2)
        k5 = k3 * (1 - 12 * k2)
        series = u + near * (k2 / 2 + near * (k3 / 6 + near * (k4 / 24 + near * k5 / 120)))
        # for l < 0; l > 0 is its mirror image, which can't overflow
        v = torch.where(far > 0, 1 - u, u).clamp(max=1 - EPS)
        x = (-(v * torch.expm1(-far.abs())).log1p() / far.abs()).clamp(max=1)
        return torch.where(small, series, torch.where(far > 0, 1 - x, x))


class LogitNormal(Univariate):
    """x = sigmoid(y), y ~ N(loc, scale^2): a density on [0, 1].

    Within EPS = 2^-24 of 0 and of 1 the density is constant, with the mass of that interval: log p(x) is finite on data
    that round to 0 or 1, and the density integrates to 1 for all parameters.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.unit_interval
    has_rsample = True
    loc: Tensor
    scale: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value.clamp(EPS, 1 - EPS)
        log_x, log_1mx = x.log(), (-x).log1p()
        inside = dist.Normal(self.loc, self.scale).log_prob(log_x - log_1mx) - log_x - log_1mx
        edge = math.log(EPS) - math.log1p(-EPS)
        below = torch.special.log_ndtr((edge - self.loc) / self.scale) - math.log(EPS)
        above = torch.special.log_ndtr((edge + self.loc) / self.scale) - math.log(EPS)
        return torch.where(value < EPS, below, torch.where(value > 1 - EPS, above, inside))

    @property
    def mean(self) -> Tensor:
        """E[sigmoid(loc + scale t)], t ~ N(0, 1), by the trapezoid rule with step 1: over t where scale < 1; else,
        since the sigmoid is too steep, over a logistic y, as it is P(y < loc + scale t). Exact to 2e-6."""
        narrow = sum(
            math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) * (self.loc + self.scale * t).sigmoid() for t in range(-6, 7)
        )
        wide = sum(
            0.25 / math.cosh(y / 2) ** 2 * torch.special.ndtr((self.loc - y) / self.scale) for y in range(-20, 21)
        )
        return torch.where(self.scale < 1, narrow, wide)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return dist.Normal(self.loc, self.scale).rsample(sample_shape).sigmoid()


def capped(t: Tensor, most: float = 60.0) -> Tensor:
    """t up to `most`, and most + log(1 + t - most) above. So exp of it, and float32 sums over a batch of that, stay
    finite, and every t has a gradient.

    >>> capped(torch.tensor([-100.0, 60.0, 100.0]))
    tensor([-100.0000,   60.0000,   63.7136])
    """
    return torch.where(t > most, most + (t - most).clamp(min=0).log1p(), t)


def bounded(t: Tensor) -> Tensor:
    """`capped` on both sides, at 30: for log-variances, whose exp is squared and divided by."""
    return -capped(-capped(t, 30), 30)


class Beta(dist.Beta):
    """Pyro's Beta, with x clamped to [EPS, 1 - EPS], EPS = 2^-24: log p(x) is finite on data that round to 0 or 1.

    Computed in float64, since log-gammas cancel as the concentrations grow: at 10^4 float32 has errors of 0.1 nats.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        p = dist.Beta(self.concentration1.double(), self.concentration0.double(), validate_args=self._validate_args)
        return p.log_prob(value.clamp(EPS, 1 - EPS).double()).to(self.concentration1.dtype)


class Affine(dist.TransformedDistribution):
    """loc + scale y of any y, made with an `AffineTransform`; it has the mean that torch's lacks."""

    @property
    def mean(self) -> Tensor:
        return self.transforms[0](self.base_dist.mean)


def standard_units(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each dimension of data (data, *event), and its standard deviation: 1 where it is constant. NaN is
    left out; where there is nothing else the mean is 0."""
    x = x.double()
    mean = x.nanmean(0).nan_to_num(nan=0.0)
    scale = (x - mean).square().nanmean(0).nan_to_num(nan=0.0).sqrt()
    return mean, torch.where(scale > 1e-6 * mean.abs(), scale, 1.0)


class DiscretizedLogistic(Univariate):
    """A mass on the levels 0..255: a logistic on the line where level v is the interval v/127.5 - 1 +- 1/255, rounded
    to the nearest level. The levels 0 and 255 have the mass of the tails.

    With upper and lower bounds h and l of the interval in units of the scale, and sigmoid s, the mass is
    s(h) - s(l) = s(h) s(-l) (1 - exp(-(h - l))): the product does not cancel.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.integer_interval(0, 255)
    loc: Tensor
    scale: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_at_most = logsigmoid(self._standardise(value + 0.5))
        log_at_least = logsigmoid(-self._standardise(value - 0.5))
        inside = log_at_most + log_at_least + (-torch.expm1(-1 / (127.5 * self.scale))).log()
        return torch.where(value < 0.5, log_at_most, torch.where(value > 254.5, log_at_least, inside))

    def _standardise(self, level: Tensor | float) -> Tensor:
        return (level / 127.5 - 1 - self.loc) / self.scale

    @property
    def mean(self) -> Tensor:
        """E[v] = sum_{v=1..255} P(V >= v), term by term so that memory does not grow with the levels."""
        return sum((-self._standardise(v - 0.5)).sigmoid() for v in range(1, 256))  # type: ignore[return-value]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            x = self.loc + self.scale * self._uniform(sample_shape).logit()
            return ((x + 1) * 127.5).round().clamp(0, 255)


class LevelCategorical(dist.Categorical):
    """Pyro's Categorical over the numbers 0, 1, ...: it has a mean, and samples have the dtype of the logits."""

    @property
    def mean(self) -> Tensor:
        return self.probs @ torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(sample_shape).to(self.logits.dtype)


class Poisson(Univariate):
    """A mass on the counts: log p(x) = x log rate - rate - log x!. It takes the log of the rate, `capped`.

    Computed in float64, since the terms cancel: at counts of 10^7 float32 has errors of 10 nats.
    """

    arg_constraints: ClassVar = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer
    log_rate: Tensor

    @property
    def mean(self) -> Tensor:
        return capped(self.log_rate).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_rate, x = capped(self.log_rate).double(), value.double()
        return (x * log_rate - log_rate.exp() - (x + 1).lgamma()).to(self.log_rate.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return _poisson(self.mean.expand(self._extended_shape(sample_shape)))


def _poisson(rate: Tensor) -> Tensor:
    """Samples; above 10^15 the rate itself, which float32 can't tell from them (torch.poisson ends at 2^63)."""
    return torch.where(rate > 1e15, rate.round(), torch.poisson(rate.clamp(max=1e15)))


def _remainder(z: Tensor) -> Tensor:
    """log G(z) - ((z - 1/2) log z - z + log(2 pi) / 2), within 1e-9 for z > 20."""
    return (1 / 12 - 1 / (360 * z.square())) / z


class NegativeBinomial(Univariate):
    """A mass on the counts: x ~ Poisson(mean g), g ~ Gamma(c, c), so that the variance is mean + mean^2 / c:

        log p(x) = log G(x + c) - log G(c) - log x! + x log mean/(mean + c) + c log c/(mean + c),  G the Gamma function.

    It takes log mean, `capped`, and log c: beyond 80 the limit, a Poisson. torch's takes c and log mean/c, and loses
    log G(x + c) - log G(c) as c grows; here, above 20, that is Stirling's series with its leading terms cancelled by
    hand. Computed in float64, since the terms cancel: at counts of 10^7 float32 has errors of 10 nats.
    """

    arg_constraints: ClassVar = {"log_mean": constraints.real, "log_concentration": constraints.real}
    support = constraints.nonnegative_integer
    log_mean: Tensor
    log_concentration: Tensor

    @property
    def mean(self) -> Tensor:
        return capped(self.log_mean).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x, log_mean = value.double(), capped(self.log_mean).double()
        log_c = self.log_concentration.double().clamp(-300, 80)
        c, logits = log_c.exp(), log_mean - log_c
        log_p, log_q = logsigmoid(logits), logsigmoid(-logits)
        large = c > 20
        C, c_ = torch.where(large, c, 20.0), torch.where(large, 1.0, c)
        # log G(x + c) - log G(c) + x log p; in the first case without x log c and x log mean/c, which cancel
        stirling = (C + x - 0.5) * (x / C).log1p() - x + _remainder(C + x) - _remainder(C)
        rising = torch.where(large, stirling + x * (log_mean + log_q), (x + c_).lgamma() - c_.lgamma() + x * log_p)
        return (rising - (x + 1).lgamma() + c * log_q).to(self.log_mean.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            c = self.log_concentration.double().clamp(-300, 80).exp()
            rate = capped(self.log_mean).exp() * dist.Gamma(c, 1.0).sample(sample_shape) / c
            return _poisson(rate).to(self.log_mean.dtype)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """0 with probability sigmoid(gate_logits), else as under `NegativeBinomial`.

    Pyro's `ZeroInflatedDistribution` caches the probability once it has sampled, and then can't be expanded.
    """

    arg_constraints: ClassVar = {**NegativeBinomial.arg_constraints, "gate_logits": constraints.real}
    gate_logits: Tensor

    @property
    def mean(self) -> Tensor:
        return (-self.gate_logits).sigmoid() * super().mean

    def log_prob(self, value: Tensor) -> Tensor:
        not_gated = logsigmoid(-self.gate_logits) + super().log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), not_gated), not_gated)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        gated = self._uniform(sample_shape) < self.gate_logits.sigmoid()
        return torch.where(gated, 0.0, super().sample(sample_shape))


class OptimalNormal(dist.Normal):
    """N(loc, v), with v the mean squared error of the values that `log_prob` is given, over all of their dimensions:
    the v of maximum likelihood, and at least `min_scale`^2. In place, `log_prob` adds one to `count` and moves
    `variance`, which samples are drawn with, towards v by max(momentum, 1 / count).
    """

    def __init__(self, loc: Tensor, variance: Tensor, count: Tensor, momentum: float, min_scale: float):
        super().__init__(loc, variance.sqrt())
        self.variance_and_count, self.momentum, self.min_scale = (variance, count), momentum, min_scale

    def expand(self, batch_shape: Any, _instance: Any = None) -> OptimalNormal:
        return type(self)(self.loc.expand(batch_shape), *self.variance_and_count, self.momentum, self.min_scale)

    def log_prob(self, value: Tensor) -> Tensor:
        variance, count = self.variance_and_count
        # No gradient runs through v: at the optimum the derivative of the summed log-prob by v is 0.
        v = (value - self.loc).detach().square().mean().clamp(min=self.min_scale**2)
        count += 1
        variance.lerp_(v.to(variance.dtype), count.reciprocal().clamp(min=self.momentum))
        return dist.Normal(self.loc, v.sqrt()).log_prob(value)


class Seen(TorchDistribution):
    """Values of which NaN is not seen, and has no part in the log-probability: that is what is left where the others
    are integrated out, of values that are independent."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: TorchDistribution):
        self.base = base
        super().__init__(base.batch_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Seen:
        return Seen(self.base.expand(batch_shape))

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def log_prob(self, value: Tensor) -> Tensor:
        seen = ~value.isnan()
        return self.base.log_prob(value.where(seen, 0.0)).where(seen, 0.0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(sample_shape)


class OneHot(dist.OneHotCategorical):
    """One of K categories as a unit vector. torch's draws look at their values, which no graph can; here it is the
    argmax of logits + g, g Gumbel noise."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Shape (*sample_shape, *batch, K)."""
        with torch.no_grad():
            return self._unit(self._perturbed(sample_shape))

    def _perturbed(self, sample_shape: Any) -> Tensor:
        uniform = torch.rand_like(self.logits.expand(self._extended_shape(torch.Size(sample_shape))))
        return self.logits - (-uniform.clamp(EPS, 1 - EPS).log()).log()

    @staticmethod
    def _unit(values: Tensor) -> Tensor:
        return torch.zeros_like(values).scatter(-1, values.argmax(-1, keepdim=True), 1.0)


class RelaxedOneHot(OneHot):
    """The same with draws that have a gradient: softmax((logits + g) / temperature), or, `straight_through`, the unit
    vector with the gradient of the softmax. The density, and KLs, are those of the categorical distribution."""

    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, straight_through: bool = False):
        super().__init__(logits=logits, validate_args=False)
        self.temperature, self.straight_through = temperature, straight_through

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Shape (*sample_shape, *batch, K)."""
        soft = (self._perturbed(sample_shape) / self.temperature).softmax(-1)
        return self._unit(soft) + (soft - soft.detach()) if self.straight_through else soft


def kl_divergence(q: Distribution, p: Distribution) -> Tensor:
    """KL(q || p) in closed form, in nats, of the batch shape: where torch or Pyro has one, and also from a normal of
    any covariance to one of independent dimensions,

        KL = 1/2 sum_d (log(2 pi s_d^2) + (Var[z_d] + (E[z_d] - m_d)^2) / s_d^2) - H[q],    p = N(m, diag(s^2)).

    Raises `NotImplementedError` for others.
    """
    if (
        isinstance(q, MultivariateNormal | LowRankMultivariateNormal)
        and isinstance(p, Independent)
        and isinstance(p.base_dist, Normal)
        and p.event_shape == q.event_shape
    ):
        square = (q.variance + (q.mean - p.mean).square()) / p.variance
        return 0.5 * ((2 * math.pi * p.variance).log() + square).sum(-1) - q.entropy()
    return torch.distributions.kl_divergence(q, p)
