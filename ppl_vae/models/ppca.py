"""Probabilistic principal component analysis: a linear VAE."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.models.pair import PyroPair
from ppl_vae.programs import seeded


class PPCA(PyroPair):
    """Probabilistic principal component analysis: a linear VAE with the exact posterior, and log p(x) in closed form,

        z ~ N(0, I),    x = W z + mean + scale e,    e ~ N(0, I),
        q(z|x) = p(z|x) = N(M^-1 W^T (x - mean), scale^2 M^-1),    M = W^T W + scale^2 I.

    Michael E. Tipping, Christopher M. Bishop: Probabilistic Principal Component Analysis, Journal of the Royal
    Statistical Society B 61(3), 1999, doi:10.1111/1467-9868.00196.

    Parameters W (D, latent), mean (D,) and log_scale () for data (data, *event) of D dimensions; `fit` trains them as
    any pair's, and `maximum_likelihood` finds them at once. Raises `ValueError` unless 1 <= latent_size.
    """

    zeros: Tensor

    def __init__(self, event_shape: tuple[int, ...], latent_size: int):
        super().__init__()
        if latent_size < 1:
            raise ValueError(f"latent_size: expected at least 1; got {latent_size}")
        D = math.prod(event_shape)
        self.event_shape = tuple(event_shape)
        self.W = nn.Parameter(torch.empty(D, latent_size))
        with torch.no_grad():
            self.W.normal_().div_(math.sqrt(D))
        self.mean = nn.Parameter(torch.zeros(D))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("zeros", torch.zeros(latent_size), persistent=False)

    @classmethod
    @torch.no_grad()
    def maximum_likelihood(cls, x: Tensor, latent_size: int) -> PPCA:
        """The PPCA of highest likelihood for data x (data, *event), of their covariance S = U diag(l) U^T:

            scale^2 = mean of the D - L smallest l,    W = U_L (diag(l_L) - scale^2 I)^(1/2),    L = latent_size.

        Raises `ValueError` unless 1 <= latent_size < D, and for data that L dimensions hold without noise.
        """
        with seeded(0):  # the weights that are drawn here don't stay
            ppca = cls(tuple(x.shape[1:]), latent_size).to(x)
        D, L = ppca.W.shape
        if L >= D:
            raise ValueError(f"latent_size: expected less than the {D} dimensions of x; got {L}")
        flat = x.flatten(1).double()
        mean = flat.mean(0)
        S = (flat - mean).T @ (flat - mean) / len(flat)
        eigenvalues, U = torch.linalg.eigh(S)  # in ascending order
        variance = eigenvalues[: D - L].mean()
        if not variance > 1e-12 * eigenvalues[-1]:
            raise ValueError(f"x: expected data that spread over more than {L} dimensions; got none beyond")
        ppca.W.copy_(U[:, D - L :] * (eigenvalues[D - L :] - variance).clamp(min=0).sqrt())  # equal but for rounding
        ppca.mean.copy_(mean)
        ppca.log_scale.copy_(0.5 * variance.log())
        return ppca

    def initialise(self, x: Tensor, *labels: Tensor) -> None:
        """The maximum-likelihood solution, where there is one."""
        latent_size = len(self.zeros)
        if latent_size < min(math.prod(x.shape[1:]), len(x)):
            self.load_state_dict(self.maximum_likelihood(x, latent_size).state_dict())

    def model(self, x: Tensor) -> None:
        """p(x, z)."""
        pyro.module("ppca", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            pyro.sample("x", self._p_x(z).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor) -> None:
        """p(z|x)."""
        pyro.module("ppca", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exactly, in nats and in double precision, shape (*), of x (*, *event): N(mean, C), C = W W^T +
        scale^2 I, by the matrix determinant lemma and the matrix inversion lemma, which torch's distribution uses,

            log |C| = log |M| + (D - L) log scale^2,    C^-1 = (I - W M^-1 W^T) / scale^2.
        """
        W, mean, variance = self.W.double(), self.mean.double(), (2 * self.log_scale.double()).exp()
        p = dist.LowRankMultivariateNormal(mean, W, variance.expand(len(mean)))
        return p.log_prob(x.double().flatten(-len(self.event_shape)))

    def encode(self, x: Tensor) -> TorchDistribution:
        """p(z|x), batch shape (data,) and event shape (latent,), of x (data, *event)."""
        variance = (2 * self.log_scale).exp()
        M = self.W.T @ self.W + variance * torch.eye(len(self.zeros)).to(self.W)
        L = torch.linalg.cholesky(M)
        mean = torch.cholesky_solve(self.W.T @ (x.flatten(1) - self.mean).T, L).T
        precision = (M + M.mT) / (2 * variance)  # W^T W is symmetric but for rounding
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of latents z (*, latent)."""
        return self._p_x(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z = E[z|x]], shape (data, *event), of x (data, *event)."""
        return self.decode(self.encode(x).mean)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z) for draws z ~ N(0, I), batch shape (num_samples, *event)."""
        return self._p_x(torch.randn(num_samples, *self.zeros.shape).to(self.W))

    def _p_x(self, z: Tensor) -> TorchDistribution:
        loc = z @ self.W.T + self.mean
        return dist.Normal(loc.unflatten(-1, self.event_shape), self.log_scale.exp())

    def extra_repr(self) -> str:
        return f"event_shape={self.event_shape}, latent_size={len(self.zeros)}"
