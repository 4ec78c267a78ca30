"""Normalising flows: zuko's transforms as one Pyro distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

_validate = bool(Distribution._validate_args)
import zuko  # noqa: E402  (turns off the validation of all of torch's distributions, so import it from here)
from zuko.lazy import LazyComposedTransform, LazyTransform  # noqa: E402
from zuko.transforms import ComposedTransform  # noqa: E402

Distribution.set_default_validate_args(_validate)


class Flow(TorchDistribution):
    """z = f(e) with e ~ N(0, I) and f = f_T o ... o f_1:

        log p(z) = log N(e; 0, I) - log |det df/de|,   e = f^-1(z), in nats.

    Danilo Jimenez Rezende, Shakir Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770.

    The most recent sample is scored with the e and the determinant that it was made with; any other value goes through
    the inverse of f.

    Arguments:
        zeros: the mean of e, shape (*, event): it says the batch shape, the device and the dtype.
        transforms: f_1, ..., f_T, each one zuko's or torch's.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, zeros: Tensor, *transforms: Transform):
        super().__init__(zeros.shape[:-1], zeros.shape[-1:], validate_args=False)
        self.zeros, self.transform = zeros, ComposedTransform(*transforms)
        self.base = dist.Normal(zeros, 1.0, validate_args=False).to_event(1)
        self._last: tuple[Tensor | None, Tensor, bool] = None, zeros, False

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Flow:
        return Flow(self.zeros.expand(*batch_shape, -1), *self.transform.transforms)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        e = self.base.rsample(sample_shape)
        z, log_det = self.transform.call_and_ladj(e)
        self._last = z, self.base.log_prob(e) - log_det, torch.is_grad_enabled()
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        drawn, log_prob, with_grad = self._last
        # A sample made without gradients is a constant, but its score has a gradient, which the kept log-prob lacks.
        if value is drawn and (with_grad or not torch.is_grad_enabled()):
            return log_prob
        e, log_det = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(e) + log_det

    @property
    def mean(self) -> Tensor:
        """E[z], which has no closed form: the mean of f over 32 fixed e, in pairs e and -e (exact if f is affine)."""
        e = torch.randn(16, *self.event_shape, generator=torch.Generator().manual_seed(0)).to(self.zeros)
        return torch.stack([self.transform(self.zeros + e_k) for e_k in torch.cat([e, -e])]).mean(0)


MOST_WEIGHTS = 2**26


def affine(size: int, context: int = 0, *, num_transforms: int, hidden_size: int) -> LazyTransform:
    """Affine autoregressive transforms of R^size in alternating order, given `context` numbers, near the identity."""
    networks = _networks(size + context, hidden_size, 2 * size)
    flow = zuko.flows.MAF(size, context, transforms=num_transforms, **networks)
    return _near_identity(flow.transform)


def spline(size: int, context: int = 0, *, num_transforms: int, hidden_size: int, num_bins: int) -> LazyTransform:
    """As `affine`, with monotonic rational-quadratic splines of `num_bins` bins, on [-5, 5] in every dimension."""
    networks = _networks(size + context, hidden_size, (3 * num_bins - 1) * size)
    flow = zuko.flows.NSF(size, context, transforms=num_transforms, bins=num_bins, **networks)
    return _near_identity(flow.transform)


def _networks(num_inputs: int, hidden_size: int, num_outputs: int) -> dict[str, Any]:
    """Raises `ValueError` for a layer of more than 2^26 weights, whose masks alone would take seconds and gigabytes."""
    if (largest := hidden_size * max(num_inputs, hidden_size, num_outputs)) > MOST_WEIGHTS:
        raise ValueError(f"flow: expected layers of at most {MOST_WEIGHTS:,} weights; got {largest:,}")
    return {"hidden_features": (hidden_size, hidden_size), "activation": nn.ELU}  # smooth, as densities should be


@torch.no_grad()
def _near_identity(transforms: LazyComposedTransform) -> LazyTransform:
    for transform in transforms.transforms:
        last: nn.Module = transform.hyper[-1] if hasattr(transform, "hyper") else transform.phi  # without a network
        for parameter in last.parameters():
            parameter.mul_(0.01)
    return transforms
