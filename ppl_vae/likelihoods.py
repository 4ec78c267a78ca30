"""Likelihoods p(x|z): what a decoder's parameters say about one dimension of the datum."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.constraints import Constraint


class Likelihood(nn.Module, ABC):
    """p(x|z), independent over the dimensions of x given z. Subclass it to add one:

    - `params_per_dim`: how many numbers the decoder gives for each dimension of x;
    - `support`: the `torch.distributions.constraints` that x lies in. It says what log p(x) is: a mass on a
      discrete support, a density on a continuous one;
    - `forward(params)`: from `params`, shape (*, params_per_dim), to a distribution of batch shape (*) and
      event shape (). The model declares the dimensions of the datum as its event.

    Keyword arguments of `__init__` with a type and a default can be set by name, also on the command line.
    """

    params_per_dim: ClassVar[int] = 1
    support: ClassVar[Constraint]

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class Bernoulli(Likelihood):
    """x in {0, 1} with log-odds from the decoder: log p(x|z) = x l - log(1 + exp l), a mass, in nats.

    The parameter is a logit and never a probability: probabilities saturate at about 16 nats a dimension.
    """

    support = dist.constraints.boolean

    def forward(self, params: Tensor) -> TorchDistribution:
        # Grey values x in [0, 1] are let through for those who train on them, as the report did;
        # what comes out is then a reconstruction loss (the cross entropy) and not a log-likelihood.
        return dist.Bernoulli(logits=params[..., 0], validate_args=False)


class Gaussian(Likelihood):
    """x ~ N(mean, scale^2), with one scale for all dimensions, fixed: a density, in nats.

    The negative log-likelihood is |x - mean|^2 / (2 scale^2) + D log(scale sqrt(2 pi)), so that scale^2 is the
    report's lambda (its equation 5): the weight of the KL against half the squared error.

    Raises `ValueError` unless scale > 0.
    """

    support = dist.constraints.real

    def __init__(self, scale: float = 0.1):
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"likelihood gaussian: expected scale > 0; got {scale}")
        self.scale = scale

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params[..., 0], self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class GaussianLearned(Likelihood):
    """x ~ N(mean, scale^2), with one scale for all dimensions, learned with the networks: a density, in nats.

    Oleh Rybkin, Kostas Daniilidis, Sergey Levine: Simple and Effective VAE Training with Calibrated Decoders,
    2021, arXiv:2006.13202. Raises `ValueError` unless the initial scale > 0.
    """

    support = dist.constraints.real

    def __init__(self, initial_scale: float = 0.3):
        super().__init__()
        if not (initial_scale > 0 and math.isfinite(initial_scale)):
            raise ValueError(f"likelihood gaussian-learned: expected initial_scale > 0; got {initial_scale}")
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params[..., 0], self.log_scale.exp())

    def extra_repr(self) -> str:
        return f"scale={self.log_scale.exp().item():.4g}"


class GaussianPerPixel(Likelihood):
    """x ~ N(mean, scale^2), with mean and log-scale from the decoder, for each dimension: a density, in nats.

    A density has no upper bound: on pixels that never vary the scale would run to 0 and log p(x) to infinity.
    `min_scale` holds it off, softly: scale = min_scale + softplus(s). The default is 2.6 grey levels.
    Raises `ValueError` unless min_scale > 0.
    """

    params_per_dim = 2
    support = dist.constraints.real

    def __init__(self, min_scale: float = 0.01):
        super().__init__()
        if not (min_scale > 0 and math.isfinite(min_scale)):
            raise ValueError(f"likelihood gaussian-per-pixel: expected min_scale > 0; got {min_scale}")
        self.min_scale = min_scale

    def forward(self, params: Tensor) -> TorchDistribution:
        loc, s = params.unbind(-1)
        return dist.Normal(loc, self.min_scale + nn.functional.softplus(s))

    def extra_repr(self) -> str:
        return f"min_scale={self.min_scale:.4g}"
