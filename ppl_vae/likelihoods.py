"""Likelihoods p(x|z): the distribution of one dimension of x, given the decoder's parameters for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform
from torch.distributions.constraints import Constraint
from torch.nn.functional import softplus

from ppl_vae import distributions
from ppl_vae.components import Component, kebab


class Likelihood(Component, nn.Module, ABC):
    """p(x|z), independent over the dimensions of x given z. Subclass it to add one:

    - `params_per_dim`: how many numbers the decoder gives for each dimension of x. `__init__` may set it;
    - `support`: the `torch.distributions.constraints` that x lies in. It says what log p(x) is: a mass on a
      discrete support, a density on a continuous one;
    - `forward(params)`: from `params`, shape (*, params_per_dim), to a distribution of batch shape (*) and
      event shape (), which has a `mean`. The model declares the dimensions of x as its event.

    Keyword arguments of `__init__` with a type and a default can be set by name, also on the command line.
    """

    params_per_dim: int = 1
    support: ClassVar[Constraint]

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _check_positive(likelihood: Likelihood, **values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"likelihood {kebab(type(likelihood))}: expected {name} > 0; got {value}")


class Bernoulli(Likelihood):
    """x in {0, 1} with log-odds from the decoder: log p(x|z) = x l - log(1 + exp l), a mass, in nats.

    The parameter is a logit and never a probability: probabilities saturate at about 16 nats a dimension.
    """

    support = dist.constraints.boolean

    def forward(self, params: Tensor) -> TorchDistribution:
        # Pixel values in [0, 1] are accepted, since the report trains on them: the result is then a reconstruction
        # loss (the cross entropy) and not a log-likelihood.
        return dist.Bernoulli(logits=params[..., 0], validate_args=False)


class ContinuousBernoulli(Likelihood):
    """x in [0, 1] with density proportional to exp(l x), the logit l from the decoder, in nats.

    Where x is exactly 0 or 1 the density is unbounded as |l| grows: compare log p(x) on dequantised data only.

    Gabriel Loaiza-Ganem, John P. Cunningham: The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders, 2019, arXiv:1907.06845.
    """

    support = dist.constraints.unit_interval

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.ContinuousBernoulli(params[..., 0])


class Gaussian(Likelihood):
    """x ~ N(mean, scale^2), with one scale for all dimensions, fixed: a density, in nats.

    The negative log-likelihood is |x - mean|^2 / (2 scale^2) + D log(scale sqrt(2 pi)), so that scale^2 is the
    report's lambda (its equation 5): the weight of the KL against half the squared error.

    Raises `ValueError` unless scale > 0.
    """

    support = dist.constraints.real

    def __init__(self, scale: float = 0.1):
        super().__init__()
        _check_positive(self, scale=scale)
        self.scale = scale

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params[..., 0], self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class LearnedScale(Likelihood):
    """Location from the decoder, and one `scale` for all dimensions, learned with the networks.

    Raises `ValueError` unless the initial scale > 0.
    """

    support = dist.constraints.real

    def __init__(self, initial_scale: float = 0.3):
        super().__init__()
        _check_positive(self, initial_scale=initial_scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def extra_repr(self) -> str:
        return f"scale={self.scale.item():.4g}"


class GaussianLearned(LearnedScale):
    """x ~ N(mean, scale^2), with one scale for all dimensions, learned with the networks: a density, in nats.

    Oleh Rybkin, Kostas Daniilidis, Sergey Levine: Simple and Effective VAE Training with Calibrated Decoders,
    2021, arXiv:2006.13202. Raises `ValueError` unless the initial scale > 0.
    """

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params[..., 0], self.scale)


class GaussianOptimal(Likelihood):
    """x ~ N(mean, scale^2), with one scale for all dimensions, in closed form: a density, in nats.

    In training mode scale^2 is the mean squared error (MSE) of the batch, over dimensions, data and particles
    together: the maximum-likelihood scale for that batch. The log-probs of N values then add up to

        -N/2 (log(2 pi MSE) + 1),

    whose gradient is that of the summed squared error, divided by -2 MSE. This log-prob is not a density of one datum,
    since the scale depends on the datum. So each call of `log_prob` in training mode also moves a running scale^2 by
    max(momentum, 1 / number of calls), as BatchNorm does its variance. Evaluation mode uses the running scale^2, and
    log p(x) is the log-density of each datum on its own.

    `min_scale` bounds the scale from below, by default at a quarter of a level of 255.

    Oleh Rybkin, Kostas Daniilidis, Sergey Levine: Simple and Effective VAE Training with Calibrated Decoders,
    2021, arXiv:2006.13202. Raises `ValueError` unless min_scale > 0 and 0 < momentum <= 1.
    """

    support = dist.constraints.real
    variance: Tensor
    count: Tensor

    def __init__(self, momentum: float = 0.1, min_scale: float = 0.001):
        super().__init__()
        _check_positive(self, momentum=momentum, min_scale=min_scale)
        if momentum > 1:
            raise ValueError(f"likelihood gaussian-optimal: expected momentum <= 1; got {momentum}")
        self.momentum, self.min_scale = momentum, min_scale
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, params: Tensor) -> TorchDistribution:
        loc = params[..., 0]
        if self.training:
            return distributions.OptimalNormal(loc, self.variance, self.count, self.momentum, self.min_scale)
        return dist.Normal(loc, self.variance.sqrt())

    def extra_repr(self) -> str:
        return f"scale={self.variance.sqrt().item():.4g}, momentum={self.momentum}, min_scale={self.min_scale:.4g}"


class GaussianPerPixel(Likelihood):
    """x ~ N(mean, scale^2), with mean and log-scale from the decoder, for each dimension: a density, in nats.

    A density has no upper bound: on pixels that never vary the scale would go to 0 and log p(x) to infinity.
    `min_scale` prevents it: scale = min_scale + softplus(s). The default is 2.6 levels of 255.
    Raises `ValueError` unless min_scale > 0.
    """

    params_per_dim = 2
    support = dist.constraints.real

    def __init__(self, min_scale: float = 0.01):
        super().__init__()
        _check_positive(self, min_scale=min_scale)
        self.min_scale = min_scale

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, s = params.unbind(-1)
        return dist.Normal(loc, self.min_scale + softplus(s))

    def extra_repr(self) -> str:
        return f"min_scale={self.min_scale:.4g}"


class Laplace(LearnedScale):
    """x ~ Laplace(location, scale), with one scale for all dimensions, learned with the networks: a density, in nats.

    The negative log-likelihood is |x - location|_1 / scale + D log(2 scale). Raises `ValueError` unless the initial
    scale > 0.
    """

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Laplace(params[..., 0], self.scale)


class StudentT(LearnedScale):
    """x ~ location + scale t, t with `df` degrees of freedom, with one scale for all dimensions, learned with the
    networks: a density, in nats.

    Raises `ValueError` unless the initial scale > 0 and 1 < df <= 100: at df <= 1 there is no mean, and above 100 it is
    nearly a Gaussian, whose normaliser is inexact in float32.
    """

    def __init__(self, df: float = 4.0, initial_scale: float = 0.3):
        super().__init__(initial_scale)
        if not 1 < df <= 100:
            raise ValueError(f"likelihood student-t: expected 1 < df <= 100; got {df}")
        self.df = df

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.StudentT(self.df, params[..., 0], self.scale)

    def extra_repr(self) -> str:
        return f"df={self.df}, {super().extra_repr()}"


class LogitNormal(Likelihood):
    """logit x ~ N(m, scale^2), with m and the scale from the decoder, for each dimension: a density on [0, 1], in nats.

    scale = min_scale + softplus(s). At x = 1/2, d logit x = 4 dx, so the default min_scale equals that of
    `GaussianPerPixel` there. Within 2^-24 of 0 and of 1 the density is constant, with the mass of that interval, so
    that data which round to 0 or 1 have a finite log p(x). Raises `ValueError` unless min_scale > 0.
    """

    params_per_dim = 2
    support = dist.constraints.unit_interval

    def __init__(self, min_scale: float = 0.04):
        super().__init__()
        _check_positive(self, min_scale=min_scale)
        self.min_scale = min_scale

    def forward(self, params: Tensor) -> TorchDistribution:
        m, s = params.unbind(-1)
        return distributions.LogitNormal(m, self.min_scale + softplus(s))

    def extra_repr(self) -> str:
        return f"min_scale={self.min_scale:.4g}"


class Beta(Likelihood):
    """x ~ Beta(a, b), with a and b from the decoder, for each dimension: a density on [0, 1], in nats.

    a, b = 1 + softplus(.): with both above 1 the density is bounded and has one mode; below 1 it is unbounded at 0 or
    1, where many pixels are. x is clamped to [2^-24, 1 - 2^-24], so that data which round to 0 or 1 have a finite
    log p(x).
    """

    params_per_dim = 2
    support = dist.constraints.unit_interval

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.Beta(*(1 + softplus(params)).unbind(-1))


# The least scale of a logistic, in units of half the range: an eighth of a level. The level at its centre then has a
# log-mass of -0.04 nats.
MIN_SCALE = 0.001


class DiscretizedLogistic(Likelihood):
    """x in 0..255, a logistic rounded to the nearest level, with location and scale from the decoder, for each
    dimension: a mass, in nats.

    Level v is v/127.5 - 1 on the scale of the logistic, from -1 to 1; the levels 0 and 255 have the mass of the tails.
    scale = 0.001 + softplus(s), at least an eighth of a level.

    Tim Salimans, Andrej Karpathy, Xi Chen, Diederik P. Kingma: PixelCNN++: Improving the PixelCNN with Discretized
    Logistic Mixture Likelihood and Other Modifications, 2017, arXiv:1701.05517.
    """

    params_per_dim = 2
    support = dist.constraints.integer_interval(0, 255)

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, s = params.unbind(-1)
        return distributions.DiscretizedLogistic(loc, MIN_SCALE + softplus(s))


class DiscretizedLogisticMixture(Likelihood):
    """x in 0..255, a mixture of `num_components` discretised logistics for each dimension, with log-weights,
    locations and scales from the decoder: a mass, in nats. See `DiscretizedLogistic`.

    As in PixelCNN++ (arXiv:1701.05517), but colours are independent given z, as all dimensions are.
    Raises `ValueError` unless num_components >= 1.
    """

    support = dist.constraints.integer_interval(0, 255)

    def __init__(self, num_components: int = 5):
        super().__init__()
        if num_components < 1:
            raise ValueError(
                f"likelihood discretized-logistic-mixture: expected num_components >= 1; got {num_components}"
            )
        self.num_components = num_components
        self.params_per_dim = 3 * num_components

    def forward(self, params: Tensor) -> TorchDistribution:
        logits, loc, s = params.chunk(3, -1)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits), distributions.DiscretizedLogistic(loc, MIN_SCALE + softplus(s))
        )

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}"


class Categorical(Likelihood):
    """x in 0..255, with the logits of all 256 levels from the decoder, for each dimension: a mass, in nats.

    The levels have no order; the mean is the mean level.
    """

    params_per_dim = 256
    support = dist.constraints.integer_interval(0, 255)

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.LevelCategorical(logits=params)


class Poisson(Likelihood):
    """A count x ~ Poisson(exp l), with the log-rate l from the decoder: a mass, in nats. Above 60 the log-rate is
    60 + log(1 + l - 60), so that exp stays finite."""

    support = dist.constraints.nonnegative_integer

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.Poisson(params[..., 0])


class NegativeBinomial(Likelihood):
    """A count x of mean exp(m) and variance mean + mean^2 / exp(c), with m and c from the decoder, for each dimension:
    a mass, in nats. exp(c) is the inverse dispersion theta of scVI.

    Romain Lopez, Jeffrey Regier, Michael B. Cole, Michael I. Jordan, Nir Yosef: Deep generative modeling for
    single-cell transcriptomics, Nature Methods, 2018.
    """

    params_per_dim = 2
    support = dist.constraints.nonnegative_integer

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.NegativeBinomial(*params.unbind(-1))


class ZeroInflatedNegativeBinomial(Likelihood):
    """A count x that is 0 with probability sigmoid(g), else as under `NegativeBinomial`, with m, c and g from the
    decoder, for each dimension: a mass, in nats.

    Romain Lopez, Jeffrey Regier, Michael B. Cole, Michael I. Jordan, Nir Yosef: Deep generative modeling for
    single-cell transcriptomics, Nature Methods, 2018.
    """

    params_per_dim = 3
    support = dist.constraints.nonnegative_integer

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.ZeroInflatedNegativeBinomial(*params.unbind(-1))


class Seen(Likelihood, by_name=False):
    """Another likelihood, of what is seen of x: NaN is missing, and has no part in log p(x|z), whose dimensions are
    independent. So log p(x) is that of the values that are there.

    Pierre-Alexandre Mattei, Jes Frellsen: MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets,
    2019, arXiv:1812.02633.
    """

    def __init__(self, likelihood: Likelihood):
        super().__init__()
        self.likelihood, self.params_per_dim = likelihood, likelihood.params_per_dim
        self.support = likelihood.support  # type: ignore[misc]

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.Seen(self.likelihood(params))

    def extra_repr(self) -> str:
        return repr(self.likelihood)


class Rescaled(Likelihood, by_name=False):
    """Another likelihood, of (x - mean) / scale: the density of x itself, in its own units, with the Jacobian

        log p(x|z) = log p((x - mean) / scale | z) - log scale.

    Mean and scale are those of each dimension of the training data, which `initialise` takes: 0 and 1 before. The
    decoder then has numbers of unit scale to learn, whatever the units of a table's columns.
    Raises `ValueError` for a likelihood that is no density on the real line.
    """

    support = dist.constraints.real
    mean: Tensor
    scale: Tensor

    def __init__(self, likelihood: Likelihood, event_shape: tuple[int, ...]):
        super().__init__()
        if likelihood.support is not dist.constraints.real:
            raise ValueError(f"likelihood: expected a density on the real line; got {kebab(type(likelihood))}")
        self.likelihood, self.params_per_dim = likelihood, likelihood.params_per_dim
        self.register_buffer("mean", torch.zeros(event_shape))
        self.register_buffer("scale", torch.ones(event_shape))

    def initialise(self, x: Tensor) -> None:
        """From training data x (data, *event)."""
        for buffer, value in zip((self.mean, self.scale), distributions.standard_units(x), strict=True):
            buffer.copy_(value)

    def forward(self, params: Tensor) -> TorchDistribution:
        return distributions.Affine(self.likelihood(params), AffineTransform(self.mean, self.scale))

    def extra_repr(self) -> str:
        return repr(self.likelihood)
