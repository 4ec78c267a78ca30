"""Priors p(z)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform, constraints

from ppl_vae.components import Component, kebab
from ppl_vae.flows import Flow, spline


class Prior(Component, nn.Module, ABC):
    """p(z). `forward()` returns a distribution with batch shape () and event shape (latent_size,).

    Subclass it to add one. `__init__` takes latent_size first, then keyword arguments with a type and a default.
    Pass further sizes on to `super().__init__` by name, to be checked and shown. Raises `ValueError` unless every
    size >= 1.
    """

    zeros: Tensor

    def __init__(self, latent_size: int, **sizes: int):
        super().__init__()
        self._sizes = {"latent_size": latent_size, **sizes}
        for name, size in self._sizes.items():
            if size < 1:
                raise ValueError(f"prior {kebab(type(self))}: expected {name} >= 1; got {size}")
        self.latent_size = latent_size
        # a buffer follows the module from device to device, and holds nothing that has to be saved
        self.register_buffer("zeros", torch.zeros(latent_size), persistent=False)

    @abstractmethod
    def forward(self) -> TorchDistribution: ...

    def initialise(self, x: Tensor) -> None:
        """Initialises from training data x, shape (data, *event). Most priors do nothing."""

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self._sizes.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class StandardNormal(Prior):
    """z ~ N(0, I)."""

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.zeros, 1.0).to_event(1)


class Laplace(Prior):
    """z_d ~ Laplace(0, 1): log p(z) = -sum_d |z_d| - D log 2, in nats."""

    def forward(self) -> TorchDistribution:
        return dist.Laplace(self.zeros, 1.0).to_event(1)


class StudentT(Prior):
    """z_d ~ Student's t with location 0 and scale 1: heavier tails the fewer its degrees of freedom.

    Raises `ValueError` unless degrees_of_freedom > 0.
    """

    def __init__(self, latent_size: int, degrees_of_freedom: float = 5.0):
        super().__init__(latent_size)
        if not (degrees_of_freedom > 0 and math.isfinite(degrees_of_freedom)):
            raise ValueError(f"prior student-t: expected degrees_of_freedom > 0; got {degrees_of_freedom}")
        self.degrees_of_freedom = degrees_of_freedom

    def forward(self) -> TorchDistribution:
        return dist.StudentT(self.degrees_of_freedom, self.zeros, 1.0).to_event(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, degrees_of_freedom={self.degrees_of_freedom}"


class LearnedNormal(Prior):
    """z ~ N(mean, diag(scale^2)), both learned; N(0, I) at initialisation."""

    def __init__(self, latent_size: int):
        super().__init__(latent_size)
        self.mean, self.log_scale = (nn.Parameter(torch.zeros(latent_size)) for _ in range(2))

    def forward(self) -> TorchDistribution:
        return dist.Normal(self.mean, self.log_scale.exp()).to_event(1)


class GaussianMixture(Prior):
    """z ~ sum_k w_k N(mean_k, diag(scale_k^2)), all learned. At initialisation each dimension has mean 0 and variance 1
    in expectation over the random means.

    Zhuxi Jiang, Yin Zheng, Huachun Tan, Bangsheng Tang, Hanning Zhou: Variational Deep Embedding: An Unsupervised
    and Generative Approach to Clustering, 2016, arXiv:1611.05148.
    """

    def __init__(self, latent_size: int, num_components: int = 10):
        super().__init__(latent_size, num_components=num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        # different means, since equal components would stay equal
        self.mean = nn.Parameter(torch.empty(num_components, latent_size))
        nn.init.normal_(self.mean, std=0.5)
        self.log_scale = nn.Parameter(torch.full((num_components, latent_size), 0.5 * math.log(1 - 0.5**2)))

    def forward(self) -> TorchDistribution:
        components = dist.Normal(self.mean, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class NormalizingFlow(Prior):
    """z = mean + scale f^-1(e), e ~ N(0, I), with f an autoregressive neural spline flow: log p(z) takes one pass,
    sampling takes latent_size passes. Training and log p(x) do not sample from the prior.

    Conor Durkan, Artur Bekasov, Iain Murray, George Papamakarios: Neural Spline Flows, 2019, arXiv:1906.04032.
    As a prior: Xi Chen et al.: Variational Lossy Autoencoder, 2016, arXiv:1611.02731.
    """

    def __init__(self, latent_size: int, num_transforms: int = 3, hidden_size: int = 128, num_bins: int = 8):
        sizes = {"num_transforms": num_transforms, "hidden_size": hidden_size, "num_bins": num_bins}
        super().__init__(latent_size, **sizes)
        # the splines act on [-5, 5]; mean and scale move the latents there
        self.mean, self.log_scale = (nn.Parameter(torch.zeros(latent_size)) for _ in range(2))
        self.flow = spline(latent_size, **sizes)

    def forward(self) -> TorchDistribution:
        scaled = AffineTransform(self.mean, self.log_scale.exp())
        return Flow(self.zeros, self.flow().inv, scaled)


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z|u_k): the posterior of the model itself, averaged over K pseudo-inputs u_k, learned.

    The encoder and the posterior are those of the VAE, which saves them and moves them between devices. They see the
    pseudo-inputs in evaluation mode, so that batch statistics are those of the data alone.

    Jakub M. Tomczak, Max Welling: VAE with a VampPrior, 2017, arXiv:1705.07120.
    """

    def __init__(
        self,
        latent_size: int,
        encoder: nn.Module,
        posterior: nn.Module,
        event_shape: tuple[int, ...],
        num_components: int = 500,
    ):
        super().__init__(latent_size, num_components=num_components)
        self._shared = encoder, posterior  # in a tuple, for nn.Module would register them here as well
        self.pseudo_inputs = nn.Parameter(torch.empty(num_components, *event_shape))
        nn.init.uniform_(self.pseudo_inputs)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Sets the pseudo-inputs to training data, evenly spaced among x, shape (data, *event).

        Raises `ValueError` for fewer data than pseudo-inputs: equal ones would stay equal.
        """
        K = len(self.pseudo_inputs)
        if len(x) < K:
            raise ValueError(f"prior vamp-prior: expected at least num_components = {K} training data; got {len(x)}")
        mean = x.double().nanmean(0).nan_to_num(nan=0.0).to(x)  # for what is missing
        chosen = x[torch.arange(K) * len(x) // K]
        self.pseudo_inputs.copy_(chosen.where(~chosen.isnan(), mean))

    def forward(self) -> TorchDistribution:
        encoder, posterior = self._shared
        with _evaluation_mode(encoder, posterior):
            return AggregatePosterior(posterior, encoder(self.pseudo_inputs))


class AggregatePosterior(TorchDistribution):
    """1/K sum_k q(z | params_k), of params (K, num_params)."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, posterior: nn.Module, params: Tensor):
        self.posterior, self.params, self.components = posterior, params, posterior(params)
        super().__init__(torch.Size(), self.components.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        q = self.components
        if isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal):
            log_q = _log_normals(value, q.mean, q.stddev)
        else:
            log_q = q.log_prob(value[..., None, :])
        return log_q.logsumexp(-1) - math.log(len(self.params))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        k = torch.randint(len(self.params), sample_shape, device=self.params.device)
        return self.posterior(self.params[k]).sample()


def _log_normals(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """log N(z_i; mean_k, diag(scale_k^2)) of z (*, D) under each of K normals (K, D), shape (*, K).

    It is computed by matrix products, since a tensor (*, K, D) would have 20,000 numbers a row for 500 pseudo-inputs
    and 40 dimensions; and in float64, since the expanded square cancels, with an error of about eps (mean / scale)^2.
    """
    z, mean, precision = z.double(), mean.double(), scale.double() ** -2
    square = z**2 @ precision.T - 2 * z @ (mean * precision).T + (mean**2 * precision).sum(-1)
    log_det = scale.log().sum(-1) + 0.5 * math.log(2 * math.pi) * scale.shape[-1]
    return -0.5 * square.to(scale.dtype) - log_det


@contextmanager
def _evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    submodules = [(m, m.training) for module in modules for m in module.modules()]
    for m, _ in submodules:
        m.training = False
    try:
        yield
    finally:
        for m, was_training in submodules:
            m.training = was_training
