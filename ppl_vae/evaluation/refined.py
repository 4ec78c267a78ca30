"""A guide with a posterior of its own for each datum: Student-t's with full covariance, and the guide it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal, TorchDistribution
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_vae.evaluation.chunks import chunks_of_data
from ppl_vae.evaluation.hamiltonian import Sites, pack, unpack
from ppl_vae.programs import Program, alone, guide_trace_of, model_trace_of, sum_of_sites, trace_of

MIX = -0x61C8864680B583EB  # odd: it spreads the bits of a value, of which floats use few
DF, WIDTH = 10, 1.2  # of the Student-t's: heavier and wider than the normals that were fitted
GUIDE_SHARE, EQUAL_SHARE = 0.05, 0.1  # of the mixture: the guide's, and equal weights' of the rest


@dataclass(frozen=True, eq=False)
class Refined:
    """A guide for the data that it was fitted to: for each a mixture of the guide from which it began and of
    Student-t's with `df` degrees of freedom, `width` times as wide as the normals that were fitted, in unconstrained
    space (normals, where `df` is None). A datum's posterior is found by the datum, so data come in any order; for
    others log q is NaN.

    Attributes:
        guide: where it began.
        sites: the latent sites, and how they lie in unconstrained space.
        keys: a number for each datum, ascending, shape (data,).
        loc: of the normals (data, components, size).
        factors: of their covariances: (scale_tril,) or (cov_factor, cov_diag).
        log_weights: of the components (data, components).
        share: of the guide (data,): 1 where no fit is finite.
    """

    guide: Program
    sites: Sites
    keys: Tensor
    loc: Tensor
    factors: tuple[Tensor, ...]
    log_weights: Tensor
    share: Tensor
    df: int | None = DF
    width: float = WIDTH

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_kept(self) -> int:
        """How many data keep the guide, since no fit of theirs is finite."""
        return int((self.share == 1).sum())

    @property
    def normals(self) -> Refined:
        """Of each datum the best normal alone, as it was fitted; the guide where none is."""
        rows, best = torch.arange(len(self), device=self.loc.device), self.log_weights.argmax(-1)
        loc, *factors = (t[rows, best][:, None] for t in (self.loc, *self.factors))
        share = (self.share == 1).to(self.share)
        weights = torch.zeros_like(loc[..., 0])
        return replace(self, loc=loc, factors=tuple(factors), log_weights=weights, share=share, df=None, width=1.0)

    def only(self, *data: Tensor) -> Refined:
        """The same for some of its data alone: what another process needs."""
        keys = keys_of(*data).sort().values
        index = torch.searchsorted(self.keys, keys).clamp(max=len(self) - 1)
        loc, log_weights, share, *factors = (t[index] for t in (self.loc, self.log_weights, self.share, *self.factors))
        return replace(
            self, keys=self.keys[index], loc=loc, factors=tuple(factors), log_weights=log_weights, share=share
        )

    def spread(self, *data: Tensor) -> Tensor:
        """L of each datum's heaviest component, whose covariance is L L^T, (data, size, size); above `FULL_SIZE`
        dimensions the standard deviations, (data, size, 1)."""
        index = torch.searchsorted(self.keys, keys_of(*data)).clamp(max=len(self) - 1)
        best = self.log_weights[index].argmax(-1)
        of_best = normal(self.loc[index, best], [factor[index, best] for factor in self.factors])
        return of_best.scale_tril if len(self.factors) == 1 else of_best.stddev[..., None]

    def __call__(self, *data: Tensor) -> None:
        joint = _Joint(self, data)
        with pyro.plate("data", len(data[0]), dim=-1):
            values = {name: pyro.sample(name, _Site(joint, name, torch.Size([len(data[0])]))) for name in self.sites}
            pyro.factor("log_q", joint.log_prob(values), has_rsample=False)


def mixture_of(
    guide: Program,
    sites: Sites,
    data: tuple[Tensor, ...],
    elbo: Tensor,
    loc: Tensor,
    *factors: Tensor,
    wide_share: float = 0.0,
) -> Refined:
    """The guide of normals that were fitted to data: weighted by their ELBOs (data, fits), -inf for one that diverged,
    with equal weights in part. With a share for it, the last of them is no fit but as wide as the prior."""
    fitted = elbo.isfinite()
    has_fit = fitted.any(-1)
    equal = fitted.to(elbo) / fitted.sum(-1, keepdim=True)
    log_weights = ((1 - EQUAL_SHARE) * elbo.softmax(-1) + EQUAL_SHARE * equal).log().to(loc)
    if wide_share:
        log_weights = log_weights + math.log1p(-wide_share)
        log_weights[:, -1] = math.log(wide_share)
    share = torch.where(has_fit, GUIDE_SHARE, 1.0)
    log_weights = log_weights.where(has_fit[:, None], -math.log(log_weights.shape[1]))
    keys, order = torch.cat([keys_of(*chunk) for chunk in chunks_of_data(512, *data)]).sort()
    loc, share, log_weights, *factors_of = (t[order] for t in (loc, share, log_weights, *factors))
    return Refined(guide, sites, keys, loc, tuple(factors_of), log_weights, share)


class _Joint:
    """The joint distribution of the latent sites in one call of a refined guide."""

    def __init__(self, refined: Refined, data: tuple[Tensor, ...]):
        keys = keys_of(*data)
        index = torch.searchsorted(refined.keys, keys).clamp(max=len(refined) - 1)
        known = (refined.keys[index] == keys)[:, None, None]
        if get_proxy_mode() is None and not known.all():  # in a graph, NaN tells
            row = int((~known).flatten().nonzero()[0])
            raise ValueError(f"expected data that the posterior was refined for; got others, first at row {row}")
        self.refined, self.data, self.sites = refined, data, refined.sites
        self.normal = normal(refined.loc[index].where(known, math.nan), [factor[index] for factor in refined.factors])
        self.log_weights, self.share = refined.log_weights[index], refined.share[index]
        self.drawn: dict[str, Tensor] = {}

    def draw(self, shape: torch.Size) -> dict[str, Tensor]:
        """The values of all sites, of batch shape `shape` = (*samples, data): the same ones for each site."""
        if not self.drawn:
            num_samples = shape[:-1].numel()
            with alone():
                trace = guide_trace_of(self.refined.guide, *self.data, num_samples=num_samples)
            of_guide = pack({name: trace.nodes[name]["value"] for name in self.sites}, self.sites)
            loc = self.normal.loc
            uniform = torch.rand(2, num_samples, len(loc), 1, device=loc.device)
            component = (uniform[0] > self.log_weights.exp().cumsum(-1)[..., :-1]).sum(-1)[..., None, None]
            component = component.expand(-1, -1, 1, loc.shape[-1])
            steps = self.normal.sample((num_samples,)) - loc
            if (df := self.refined.df) is not None:
                radius = torch.randn(df, *of_guide.shape[:2], 1, device=loc.device).square().mean(0).sqrt()
                steps = steps / radius[..., None]
            of_fit = (loc + self.refined.width * steps).gather(2, component)[:, :, 0]
            u = torch.where(uniform[1] < self.share[:, None], of_guide, of_fit)
            values, _ = unpack(u, self.sites)
            for name in self.sites:
                value = values.nodes[name]["value"]
                self.drawn[name] = value.reshape(shape + value.shape[2:])
        return self.drawn

    def log_prob(self, values: dict[str, Tensor]) -> Tensor:
        """log q of the sites' values, in the space that they have in the model; of their batch shape."""
        name, (T, size) = next(iter(self.sites.items()))
        shape = values[name].shape[: values[name].dim() - len(T.forward_shape(size))]
        flat = {name: value.reshape(-1, shape[-1], *value.shape[len(shape) :]) for name, value in values.items()}
        u = pack(flat, self.sites)
        trace, log_det = unpack(u, self.sites)
        log_t = student_t_log_prob(self.normal, u[:, :, None], self.refined.df, self.refined.width)
        log_fit = (self.log_weights + log_t).logsumexp(-1) - log_det
        with alone():
            trace = model_trace_of(self.refined.guide, trace_of(flat), *self.data, num_samples=len(u))
        log_guide = sum_of_sites(trace, (len(u), shape[-1]))
        return torch.logaddexp((-self.share).log1p() + log_fit, self.share.log() + log_guide).reshape(shape)


class _Site(TorchDistribution):
    """A latent site of a refined guide: it samples, and leaves its density to the factor of all sites."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, joint: _Joint, name: str, batch_shape: torch.Size):
        self.joint, self.name = joint, name
        transform, size = joint.sites[name]
        super().__init__(batch_shape, torch.Size(transform.forward_shape(size)), validate_args=False)

    @property
    def support(self) -> Any:
        return self.joint.sites[self.name][0].codomain

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Site:
        return _Site(self.joint, self.name, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.joint.draw(torch.Size(sample_shape) + self.batch_shape)[self.name]

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


def keys_of(*data: Tensor) -> Tensor:
    """A number for each datum (data,), from the bits of all its values: equal data have equal numbers."""
    key = torch.zeros(len(data[0]), dtype=torch.int64, device=data[0].device)
    for number, t in enumerate(data):
        flat = t.reshape(len(t), -1)
        if flat.is_floating_point():
            flat = (flat + 0.0).view({8: torch.int64, 4: torch.int32, 2: torch.int16}[flat.element_size()])
        place = _mixed(torch.arange(flat.shape[1], device=t.device) + (number << 40))
        key = key + _mixed(_mixed(flat.to(torch.int64)) + place).sum(-1)
    return key


def _mixed(bits: Tensor) -> Tensor:
    bits = bits * MIX
    return (bits ^ (bits >> 29)) * MIX


def normal(loc: Tensor, factors: Any) -> Any:
    if len(factors) == 1:
        return MultivariateNormal(loc, scale_tril=factors[0], validate_args=False)
    return LowRankMultivariateNormal(loc, *factors, validate_args=False)


def student_t_log_prob(normal: Any, u: Tensor, df: int | None, width: float) -> Tensor:
    """log density of `loc + width * e / sqrt(chi2(df) / df)`, where loc + e is normal; without df, of width 1, its."""
    if df is None:
        return normal.log_prob(u)
    size, at_mode = u.shape[-1], normal.log_prob(normal.loc)
    squares = 2 * (at_mode - normal.log_prob(u)) / width**2
    constant = math.lgamma((df + size) / 2) - math.lgamma(df / 2) + size / 2 * math.log(2 / df) - size * math.log(width)
    return constant + at_mode - (df + size) / 2 * (squares / df).log1p()
