"""The path from a start r to p(x, z), in unconstrained space, and Hamiltonian moves along it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from ppl_vae.contract import support_name
from ppl_vae.programs import (
    Program,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    sum_of_sites,
    trace_of,
)
from ppl_vae.system.progress import Report

Sites = dict[str, tuple[Transform, torch.Size]]  # of a latent site: from R^n to its support, and the shape in R^n

# Each trajectory's own factor on its step size: a fixed length comes back to where it began in the directions whose
# period it hits. On the 10-d toy of the tests, errors were up to five times as large without it.
JITTER = (0.5, 1.5)
TRIED = 16  # draws at which an observed site is looked at, to see whether it depends on the latents


class Point(NamedTuple):
    """Places u (chains, data, size) in unconstrained space; log r and log p(x, z) there, with the log-Jacobian,
    (chains, data); their gradients."""

    u: Tensor
    log_r: Tensor
    log_p: Tensor
    grad_r: Tensor
    grad_p: Tensor

    def log_f(self, beta: float) -> Tensor:
        return (1 - beta) * self.log_r + beta * self.log_p

    def gradient(self, beta: float) -> Tensor:
        return (1 - beta) * self.grad_r + beta * self.grad_p


class AnnealingPath(NamedTuple):
    """The path from r to p(x, z) for a block of data, and how to move along it."""

    model: Program
    guide: Program
    start: Literal["guide", "prior"]
    data: tuple[Tensor, ...]
    sites: Sites
    rows: int
    leapfrog_steps: int
    report: Report

    def draw(self, num_chains: int) -> Tensor:
        """u (chains, data, size) ~ r."""
        trace = guide_trace_of(self.model if self.start == "prior" else self.guide, *self.data, num_samples=num_chains)
        sum_of_sites(trace, (num_chains, len(self.data[0])))  # raises for shapes that are not per datum
        _check_support(trace, self.sites)
        return pack({name: trace.nodes[name]["value"] for name in self.sites}, self.sites)

    def at(self, u: Tensor) -> Point:
        step = max(self.rows // len(u), 1)
        chunks = [slice(i, i + step) for i in range(0, u.shape[1], step)]
        return Point(*(torch.cat(field, 1) for field in zip(*(self._at(u[:, c], c) for c in chunks), strict=True)))

    @torch.enable_grad()
    def _at(self, u: Tensor, part: slice) -> Point:
        u = u.detach().requires_grad_()
        trace, log_det = unpack(u, self.sites)
        data, shape = [t[part] for t in self.data], (len(u), u.shape[1])
        log_p = log_prob_per_datum(model_trace_of(self.model, trace, *data, num_samples=shape[0]), shape)
        if self.start == "prior":
            log_r = sum(log_p[name] for name in self.sites)
        else:  # replayed, so that sites of the guide may depend on each other
            log_r = sum_of_sites(model_trace_of(self.guide, trace, *data, num_samples=shape[0]), shape)
        ends = log_r + log_det, sum(log_p.values()) + log_det
        gradients = (torch.autograd.grad(end.sum(), u, retain_graph=True)[0] for end in ends)
        return Point(u.detach(), *(end.detach() for end in ends), *gradients)

    def move(self, point: Point, beta: float, step: Tensor) -> tuple[Point, Tensor]:
        """Where Hamiltonian Monte Carlo that leaves f_beta invariant goes from a point, and its acceptance (chains,
        data)."""
        new, momentum = point, torch.randn_like(point.u)
        step = step * torch.empty_like(point.u[..., :1]).uniform_(*JITTER)
        energy = momentum.square().sum(-1) / 2 - point.log_f(beta)
        for _ in range(self.leapfrog_steps):
            momentum = momentum + step / 2 * new.gradient(beta)
            new = self.at(new.u + step * momentum)
            momentum = momentum + step / 2 * new.gradient(beta)
        # NaN is a trajectory that diverged or left the support, and is not accepted
        log_ratio = (energy - momentum.square().sum(-1) / 2 + new.log_f(beta)).nan_to_num(nan=-math.inf)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        pairs = zip(new, point, strict=True)
        fields = (torch.where(accepted if a.dim() == 2 else accepted[..., None], a, b) for a, b in pairs)
        self.report()
        return Point(*fields), log_ratio.clamp(max=0).exp().to(momentum)


def latent_sites(model: Program, guide: Program, *datum: Tensor) -> Sites:
    """Of a pair that keeps the contract. Raises `ValueError` for a latent site without a bijection from R^n, or whose
    support differs between model and guide, and for an observed site that depends on the latents without a gradient;
    one that does not depend on them is a constant."""
    guide_trace = guide_trace_of(guide, *datum, num_samples=TRIED)
    latent = sample_sites(guide_trace, observed=False)
    transforms = {name: _bijection(name, site) for name, site in latent.items()}
    sites = {name: (T, T.inv(latent[name]["value"]).shape[2:]) for name, T in transforms.items()}
    _check_support(model_trace_of(model, guide_trace, *datum, num_samples=TRIED), sites)
    u = pack({name: site["value"] for name, site in latent.items()}, sites).requires_grad_()
    with torch.enable_grad():
        model_trace = model_trace_of(model, unpack(u, sites)[0], *datum, num_samples=TRIED)
        log_p = log_prob_per_datum(model_trace, (TRIED, 1))
        for name in sample_sites(model_trace, observed=True):
            at, gradient = log_p[name], None
            if at.requires_grad:
                (gradient,) = torch.autograd.grad(at.sum(), u, retain_graph=True, allow_unused=True)
            if gradient is None and (at != at[0]).any():
                raise ValueError(f"site {name!r}: expected a log-prob with a gradient in the latent sites; got none")
    return sites


def _bijection(name: str, site: dict) -> Transform:
    """From unconstrained space to the support of a latent site."""
    support = site["fn"].support
    if support.is_discrete:
        raise ValueError(f"site {name!r}: expected a continuous latent site; got one on {support_name(support)}")
    while isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    try:
        return biject_to(support)
    except NotImplementedError:
        raise ValueError(f"site {name!r}: expected a support with a bijection from R^n; got {support}") from None


def _check_support(trace: Trace, sites: Sites) -> None:
    """The same for the model and the guide, and for all values and data."""
    for name, (T, _) in sites.items():
        value = trace.nodes[name]["value"]
        if not torch.allclose(_bijection(name, trace.nodes[name])(T.inv(value)), value, rtol=1e-3):
            raise ValueError(
                f"site {name!r}: expected one support, for model and guide and all data; got another, "
                f"{support_name(trace.nodes[name]['fn'].support)}"
            )


def pack(values: dict[str, Tensor], sites: Sites) -> Tensor:
    """u (chains, data, size) of sites' values (chains, data, *event)."""
    return torch.cat([T.inv(values[name]).reshape(*values[name].shape[:2], -1) for name, (T, _) in sites.items()], -1)


def unpack(u: Tensor, sites: Sites) -> tuple[Trace, Tensor]:
    """A trace to replay a program against, and log |dz / du| (chains, data)."""
    values, log_det = {}, torch.zeros_like(u[..., 0])
    parts = u.split([shape.numel() for _, shape in sites.values()], -1)
    for (name, (T, shape)), part in zip(sites.items(), parts, strict=True):
        free = part.reshape(*u.shape[:2], *shape)
        values[name] = T(free)
        log_det = log_det + T.log_abs_det_jacobian(free, values[name]).reshape(*u.shape[:2], -1).sum(-1)
    return trace_of(values), log_det
