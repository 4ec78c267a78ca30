"""Posteriors q(z|x): amortised variational families."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import AffineTransform, constraints

from ppl_vae.components import Component, kebab
from ppl_vae.distributions import bounded
from ppl_vae.flows import Flow, affine, spline


class Posterior(Component, nn.Module, ABC):
    """q(z|x). `forward(params)` takes the encoder's output (*, num_params) and returns a distribution with batch
    shape (*) and event shape (latent_size,).

    Subclass it to add one. `__init__` takes latent_size first, then keyword arguments with a type and a default,
    and passes `num_params`, and further sizes by name, to `super().__init__`, to be checked and shown.
    Raises `ValueError` unless every size >= 1.
    """

    def __init__(self, latent_size: int, num_params: int, **sizes: int):
        super().__init__()
        self._sizes = {"latent_size": latent_size, **sizes}
        for name, size in self._sizes.items():
            if size < 1:
                raise ValueError(f"posterior {kebab(type(self))}: expected {name} >= 1; got {size}")
        self.latent_size, self.num_params = latent_size, num_params

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution: ...

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self._sizes.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _scale(log_variance: Tensor) -> Tensor:
    """The standard deviation of a log-variance, which is `bounded`: beyond 30 it grows as a logarithm, before its
    exp overflows."""
    return (0.5 * bounded(log_variance)).exp()


class DiagonalNormal(Posterior):
    """z ~ N(mean, diag(exp(log_variance))), with mean and log-variance from the encoder.

    Diederik P. Kingma, Max Welling: Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114.
    """

    def __init__(self, latent_size: int):
        super().__init__(latent_size, 2 * latent_size)

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_variance = params.chunk(2, -1)
        return dist.Normal(mean, _scale(log_variance)).to_event(1)


class FullNormal(Posterior):
    """z ~ N(mean, L L^T), with L = diag(scale) (I + N / sqrt(latent_size)), and N strictly lower, from the encoder.

    At initialisation the entries of N are about 1, and L L^T is about scale^2. If the lower triangle did not scale with
    `scale`, the noise of all its entries together would collapse latent dimensions before they have learned anything.

    Diederik P. Kingma, Max Welling: An Introduction to Variational Autoencoders, 2019, arXiv:1906.02691.
    """

    rows_columns: Tensor

    def __init__(self, latent_size: int):
        super().__init__(latent_size, 2 * latent_size + latent_size * (latent_size - 1) // 2)
        self.register_buffer("rows_columns", torch.tril_indices(latent_size, latent_size, -1), persistent=False)

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_variance, lower = params.tensor_split((self.latent_size, 2 * self.latent_size), -1)
        i, j = self.rows_columns
        scale = _scale(log_variance)
        L = scale.diag_embed()
        L[..., i, j] = scale[..., i] * lower / math.sqrt(self.latent_size)
        return dist.MultivariateNormal(mean, scale_tril=L)


class LowRankNormal(Posterior):
    """z ~ N(mean, S (I + U U^T) S), with S = diag(scale), and U of shape (latent_size, rank), from the encoder.

    Victor M.-H. Ong, David J. Nott, Michael S. Smith: Gaussian variational approximation with a factor covariance
    structure, 2017, arXiv:1701.03208.
    """

    def __init__(self, latent_size: int, rank: int = 4):
        super().__init__(latent_size, (2 + rank) * latent_size, rank=rank)
        self.rank = rank

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_variance, U = params.tensor_split((self.latent_size, 2 * self.latent_size), -1)
        scale = _scale(log_variance)
        # bounded, since float32 has no Cholesky decomposition of one that is far larger
        factor = scale[..., None] * bounded(U).unflatten(-1, (self.latent_size, self.rank))
        return dist.LowRankMultivariateNormal(mean, factor, scale.square())


class MixtureNormal(Posterior):
    """z ~ sum_k w_k N(mean_k, diag(exp(log_variance_k))), all from the encoder.

    Alex Graves: Stochastic Backpropagation through Mixture Density Distributions, 2016, arXiv:1607.05690.
    """

    def __init__(self, latent_size: int, num_components: int = 5):
        super().__init__(latent_size, num_components * (1 + 2 * latent_size), num_components=num_components)
        self.num_components = num_components

    def forward(self, params: Tensor) -> TorchDistribution:
        logits, params = params.tensor_split((self.num_components,), -1)
        mean, log_variance = params.unflatten(-1, (self.num_components, -1)).chunk(2, -1)
        components = dist.Normal(mean, _scale(log_variance)).to_event(1)
        return NormalMixture(dist.Categorical(logits=logits), components)


class NormalMixture(dist.MixtureSameFamily):
    """A mixture of diagonal normals with reparameterised samples. Gradients of the weights have a high variance where
    components lie far apart.

    With u_d = F(z_d | z_<d) held fixed, dz_d = -dF(z_d | z_<d) / p(z_d | z_<d), one dimension after another:

        F(z_d | z_<d) = sum_k w_k(z_<d) Phi((z_d - mean_kd) / scale_kd),   w_k(z_<d) ~ w_k p_k(z_<d).

    Michael Figurnov, Shakir Mohamed, Andriy Mnih: Implicit Reparameterization Gradients, 2018, arXiv:1805.08498.
    """

    has_rsample = True
    support = constraints.real_vector

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        drawn = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return drawn
        normals = self.component_distribution.base_dist
        z, log_w = [], self.mixture_distribution.logits
        for z_d, mean, scale in zip(drawn.unbind(-1), normals.mean.unbind(-1), normals.stddev.unbind(-1), strict=True):
            w, e = log_w.softmax(-1), (z_d[..., None] - mean) / scale
            F = (w * torch.special.ndtr(e)).sum(-1)
            p = (w * (-0.5 * e**2).exp() / scale).sum(-1) / math.sqrt(2 * math.pi)
            z_d = z_d - (F - F.detach()) / p.detach()  # its value as it was
            log_w = log_w - 0.5 * ((z_d[..., None] - mean) / scale) ** 2 - scale.log()
            z.append(z_d)
        return torch.stack(z, -1)


class InverseAutoregressiveFlow(Posterior):
    """z = f_T o ... o f_1 (mean + scale e), e ~ N(0, I), with f_t(z)_d = shift_t(z_<d, h) + scale_t(z_<d, h) z_d, and
    the mean, the scale and the context h, of `context_size` numbers, from the encoder.

    A draw takes one pass through each network, and the score of another value latent_size of them.

    Diederik P. Kingma, Tim Salimans, Rafal Jozefowicz, Xi Chen, Ilya Sutskever, Max Welling: Improving Variational
    Inference with Inverse Autoregressive Flow, 2016, arXiv:1606.04934.
    """

    def __init__(self, latent_size: int, num_transforms: int = 2, hidden_size: int = 128, context_size: int = 32):
        sizes = {"num_transforms": num_transforms, "hidden_size": hidden_size}
        super().__init__(latent_size, 2 * latent_size + context_size, context_size=context_size, **sizes)
        self.flow = affine(latent_size, context_size, **sizes)

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_variance, h = params.tensor_split((self.latent_size, 2 * self.latent_size), -1)
        scaled = AffineTransform(mean, _scale(log_variance))
        return Flow(torch.zeros_like(mean), scaled, self.flow(h))


class NeuralSplineFlow(Posterior):
    """z = mean + scale f_T o ... o f_1 (e), e ~ N(0, I), with f_t(e)_d a monotonic rational-quadratic spline in e_d of
    `num_bins` bins on [-5, 5], set by e_<d and the context h; the mean, the scale and h, of `context_size` numbers,
    are from the encoder.

    A draw takes one pass through each network, and the score of another value latent_size of them.

    Conor Durkan, Artur Bekasov, Iain Murray, George Papamakarios: Neural Spline Flows, 2019, arXiv:1906.04032.
    """

    def __init__(
        self,
        latent_size: int,
        num_transforms: int = 2,
        hidden_size: int = 128,
        context_size: int = 32,
        num_bins: int = 8,
    ):
        sizes = {"num_transforms": num_transforms, "hidden_size": hidden_size, "num_bins": num_bins}
        super().__init__(latent_size, 2 * latent_size + context_size, context_size=context_size, **sizes)
        self.flow = spline(latent_size, context_size, **sizes)

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_variance, h = params.tensor_split((self.latent_size, 2 * self.latent_size), -1)
        scaled = AffineTransform(mean, _scale(log_variance))
        return Flow(torch.zeros_like(mean), self.flow(h), scaled)
