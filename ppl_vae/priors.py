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

    def remember(self, index: Tensor, means: Tensor) -> None:
        """Sees the means of q(z|x), (data, latent_size), of training data that come with their index, (data,). Most
        priors do nothing."""

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


class ExemplarPrior(Prior):
    """p(z) = 1/K sum_k N(z; mean_k, scale^2 I): a mixture around the means of q(z|x_k) of K training data, the
    exemplars, with one scale, which is learned; N(0, I) before `initialise`.

    In training each datum's own exemplar is left out of its prior, which would else be tight around it: programs are
    given the `index` of each datum among the training data (`ppl_vae.data.observation.Indexed`); without it, as where
    log p(x) of training data is asked for, it counts. The sum is over all others, for a product of matrices costs
    little beside the paper's, over nearest neighbours that are encoded anew.
    Means are those of when the encoder last saw their datum, and saved: p(z) needs no data. No gradient goes through
    them: where p(z) is the best of its kind for the latents, to move a mean changes E[log p(z)] by nothing.

    The paper has all training data as exemplars, `num_exemplars=50000` on MNIST.
    Sajad Norouzi, David J. Fleet, Mohammad Norouzi: Exemplar VAE: Linking Generative Models, Nearest Neighbor
    Retrieval, and Data Augmentation, 2020, arXiv:2004.04795.
    """

    means: Tensor
    exemplars: Tensor

    def __init__(self, latent_size: int, encoder: nn.Module, posterior: nn.Module, num_exemplars: int = 1000):
        super().__init__(latent_size, num_exemplars=num_exemplars)
        if num_exemplars < 2:
            raise ValueError(f"prior exemplar-prior: expected num_exemplars >= 2; got {num_exemplars}")
        self.num_exemplars = num_exemplars
        self._shared = encoder, posterior  # as a VampPrior has them
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("means", torch.zeros(num_exemplars, latent_size))
        # the index of each among the training data, in ascending order
        self.register_buffer("exemplars", torch.zeros(num_exemplars, dtype=torch.int64))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Takes the exemplars from training data, evenly spaced among x, shape (data, *event), and encodes them.

        Raises `ValueError` for fewer data than exemplars.
        """
        K = self.num_exemplars
        if len(x) < K:
            raise ValueError(f"prior exemplar-prior: expected at least num_exemplars = {K} training data; got {len(x)}")
        encoder, posterior = self._shared
        chosen = torch.arange(K) * len(x) // K
        self.exemplars.copy_(chosen)
        with _evaluation_mode(encoder, posterior):
            parts = [posterior(encoder(x[part].to(self.means.device))).mean for part in chosen.split(500)]
        self.means.copy_(torch.cat(parts))

    def forward(self, index: Tensor | None = None) -> TorchDistribution:
        """With the index of training data, (data,), batch shape (data,): each without its own exemplar.

        Raises `ValueError` in training mode without.
        """
        if index is None and self.training:
            raise ValueError(
                "prior exemplar-prior: expected in training the index of each datum, to leave out its own exemplar; "
                "got none. Take fit(..., x, torch.arange(len(x)), encode=Indexed(encoding, noise))"
            )
        return Exemplars(self.means, self.log_scale.exp(), None if index is None else self._own(index))

    @torch.no_grad()
    def remember(self, index: Tensor, means: Tensor) -> None:
        """In training mode, the means (data, latent_size) of these training data become those of their exemplars."""
        if self.training:
            own = self._own(index)
            change = (means - self.means[own]).where((own >= 0)[:, None], 0.0)
            self.means.index_add_(0, own.clamp(min=0), change)

    def _own(self, index: Tensor) -> Tensor:
        """Which exemplar each training datum is, (data,), -1 for none."""
        k = torch.searchsorted(self.exemplars, index).clamp(max=self.num_exemplars - 1)
        return k.where(self.exemplars[k] == index, -1)


class Exemplars(TorchDistribution):
    """1/n sum_k N(z; mean_k, scale^2 I), of means (K, D), over all k, or for each datum over those that are not its
    `own`, (data,), -1 for none: n of them.

    `log_prob` is exact, in memory independent of K. It is in float64, for squares that are expanded cancel; but in
    training, which leaves out its own, in the precision of z. Its gradient in z and the scale is, by Fisher's identity,
    that of E_r[log N(z; mean_k, scale^2 I)] with r, the shares of the components in the sum, held fixed.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    CHUNK = 1024

    def __init__(self, means: Tensor, scale: Tensor, own: Tensor | None = None):
        self.means, self.scale, self.own = means, scale, own
        batch_shape = torch.Size() if own is None else own.shape
        super().__init__(batch_shape, means.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        kind = torch.float64 if self.own is None else value.dtype
        z, scale, (K, D) = value.to(kind), self.scale.to(kind), self.means.shape
        wants_gradient = torch.is_grad_enabled()
        with torch.no_grad():
            log_sum, centre, spread = self._sums(z, scale**2, with_moments=wants_gradient)
            n = K if self.own is None else K - (self.own >= 0).to(kind)
            log_p = log_sum - torch.as_tensor(n, dtype=kind, device=z.device).log() - self._constant(z, scale)
        if not wants_gradient:
            return log_p.to(value.dtype)
        square = (z - centre).square().sum(-1) + spread  # E_r |z - mean_k|^2
        expected = -0.5 * square / scale**2 - D * scale.log()
        return (log_p + (expected - expected.detach())).to(value.dtype)

    @staticmethod
    def _constant(z: Tensor, scale: Tensor) -> Tensor:
        """What all components share, (*)."""
        return 0.5 * z.square().sum(-1) / scale**2 + z.shape[-1] * (scale.log() + 0.5 * math.log(2 * math.pi))

    def _sums(self, z: Tensor, variance: Tensor, *, with_moments: bool) -> tuple[Tensor, Tensor, Tensor]:
        """log sum_k w_k, w_k = N(z; mean_k, variance) but for what all k share, shape (*), and, if they are wanted, of
        mean_k under w the mean (*, D) and the sum of its variances (*)."""
        top = torch.full_like(z[..., 0], -math.inf)  # the largest log w_k so far, from which the sums are counted
        total, first, second = torch.zeros_like(top), torch.zeros_like(z), torch.zeros_like(top)
        for start in range(0, len(self.means), self.CHUNK):
            mean = self.means[start : start + self.CHUNK].to(z.dtype)
            square = mean.square().sum(-1)
            log_w = (z @ mean.T - 0.5 * square) / variance
            if self.own is not None:
                k = torch.arange(start, start + len(mean), device=z.device)
                log_w = log_w.masked_fill(k == self.own[:, None], -math.inf)
            new = torch.maximum(top, log_w.amax(-1))
            w, before = (log_w - new[..., None]).exp(), (top - new).exp()
            total = before * total + w.sum(-1)
            if with_moments:
                first = before[..., None] * first + w @ mean
                second = before * second + w @ square
            top = new
        first, second = first / total[..., None], second / total
        return top + total.log(), first, (second - first.square().sum(-1)).clamp(min=0)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        k = torch.arange(len(self.means), device=self.means.device)
        among = (torch.ones_like(k) if self.own is None else k != self.own[:, None]).to(self.means.dtype)
        chosen = torch.multinomial(among, math.prod(sample_shape), replacement=True).movedim(-1, 0)
        mean = self.means[chosen.reshape(*sample_shape, *self.batch_shape)]
        return mean + self.scale * torch.randn_like(mean)


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
