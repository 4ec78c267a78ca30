"""Posteriors q(z|x): amortised variational families."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn


class Posterior(nn.Module, ABC):
    """q(z|x). `forward(params)` takes the encoder's output (*, num_params) and returns a distribution with batch
    shape (*) and event shape (latent_size,).

    Subclass it to add one. `__init__` takes latent_size first, then keyword arguments with a type and a default,
    and sets `num_params`.
    """

    def __init__(self, latent_size: int, num_params: int):
        super().__init__()
        self.latent_size, self.num_params = latent_size, num_params

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution: ...

    def extra_repr(self) -> str:
        return f"latent_size={self.latent_size}"


class DiagonalNormal(Posterior):
    """z ~ N(mean, diag(exp(log_variance))), with mean and log-variance from the encoder.

    Diederik P. Kingma, Max Welling: Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114.
    """

    def __init__(self, latent_size: int):
        super().__init__(latent_size, 2 * latent_size)

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_variance = params.chunk(2, -1)
        return dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1)
