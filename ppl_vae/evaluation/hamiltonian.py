"""The path from a start r to p(x, z), in unconstrained space, and Hamiltonian moves along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from ppl_vae.contract import support_name
from ppl_vae.graphs import Compiled
from ppl_vae.programs import (
    Program,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    sum_of_sites,
    trace_of,
)
from ppl_vae.system.places import Constants
from ppl_vae.system.progress import Report

Sites = dict[str, tuple[Transform, torch.Size]]  # of a latent site: from R^n to its support, and the shape in R^n

# Each trajectory's own factor on its step size: a fixed length comes back to where it began in the directions whose
# period it hits. On the 10-d toy of the tests, errors were up to five times as large without it.
JITTER = (0.5, 1.5)
TRIED = 16  # draws at which an observed site is looked at, to see whether it depends on the latents


class Densities:
    """Log densities of places u (chains, data, size) in unconstrained space, with the log-Jacobian, and their
    gradients: `function(trace, *data, num_samples=chains)` gives them of a trace of the latent sites, (chains, data)
    each.

    `densities(u, *data)` returns them, and then the gradients, after `rows` rows (chains x data) at a time.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], sites: Sites, rows: int):
        self.function, self.sites, self.rows = function, sites, rows
        self.values: Callable[..., tuple[Tensor, ...]] = self._values
        self.leap: Callable[..., tuple[Tensor, ...]] = self._leap

    def compile(self, *programs: Program) -> None:
        constants = Constants(*programs)
        self.values, self.leap = Compiled(self._values, constants), Compiled(self._leap, constants)

    def __call__(self, u: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        return self._by_chunks(self.values, u, [], data)

    def leapfrog(self, u: Tensor, *state_and_data: Tensor) -> tuple[Tensor, ...]:
        """A leapfrog step from u: momentum, gradient, and step (chains, data, *); beta (1, data, 1) and spread
        (1, data, size, size or 1). Returns u, momentum, and at the new u log r, log p and their gradients."""
        state, data = state_and_data[:5], state_and_data[5:]
        return self._by_chunks(self.leap, u, state, data)

    def _by_chunks(
        self, function: Callable[..., tuple[Tensor, ...]], u: Tensor, state: Sequence[Tensor], data: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        step = max(self.rows // len(u), 1)
        parts = [slice(i, i + step) for i in range(0, u.shape[1], step)]
        chunks = [([t[:, part].contiguous() for t in (u, *state)], [t[part] for t in data]) for part in parts]
        results = [function(*states, *of_data) for states, of_data in chunks]
        return tuple(torch.cat(result, 1) for result in zip(*results, strict=True))

    def _values(self, u: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            trace, log_det = unpack(u, self.sites)
            densities = [log_p + log_det for log_p in self.function(trace, *data, num_samples=len(u))]
            gradients = [torch.autograd.grad(t.sum(), u, retain_graph=True)[0] for t in densities]
        return *(t.detach() for t in densities), *gradients

    def _leap(
        self, u: Tensor, momentum: Tensor, gradient: Tensor, step: Tensor, beta: Tensor, spread: Tensor, *data: Tensor
    ) -> tuple[Tensor, ...]:
        momentum = momentum + step / 2 * times(spread, gradient, transposed=True)
        u = u + step * times(spread, momentum)
        log_r, log_p, grad_r, grad_p = self._values(u, *data)
        momentum = momentum + step / 2 * times(spread, (1 - beta) * grad_r + beta * grad_p, transposed=True)
        return u, momentum, log_r, log_p, grad_r, grad_p


def times(spread: Tensor, u: Tensor, *, transposed: bool = False) -> Tensor:
    """L u for each datum, or L^T u: L is a matrix (..., data, size, size), or a diagonal (..., data, size, 1)."""
    if spread.shape[-1] == 1:
        return spread[..., 0] * u
    return ((spread.mT if transposed else spread) @ u[..., None])[..., 0]


class Point(NamedTuple):
    """Places u (chains, data, size) in unconstrained space; log r and log p(x, z) there, with the log-Jacobian,
    (chains, data); their gradients."""

    u: Tensor
    log_r: Tensor
    log_p: Tensor
    grad_r: Tensor
    grad_p: Tensor

    def log_f(self, beta: Tensor) -> Tensor:
        return (1 - beta) * self.log_r + beta * self.log_p

    def gradient(self, beta: Tensor) -> Tensor:
        return (1 - beta) * self.grad_r + beta * self.grad_p


class AnnealingPath(NamedTuple):
    """The path from r, which `start` samples, to p(x, z), `ends`, for a block of data, and how to move along it."""

    start: Program
    ends: Densities
    data: tuple[Tensor, ...]
    leapfrog_steps: int
    report: Report

    def draw(self, num_chains: int) -> Tensor:
        """u (chains, data, size) ~ r."""
        sites = self.ends.sites
        trace = guide_trace_of(self.start, *self.data, num_samples=num_chains)
        sum_of_sites(trace, (num_chains, len(self.data[0])))  # raises for shapes that are not per datum
        _check_support(trace, sites)
        return pack({name: trace.nodes[name]["value"] for name in sites}, sites)

    def at(self, u: Tensor) -> Point:
        return Point(u, *self.ends(u, *self.data))

    def move(self, point: Point, beta: Tensor, step: Tensor, spread: Tensor) -> tuple[Point, Tensor]:
        """Where Hamiltonian Monte Carlo that leaves f_beta invariant goes from a point, and its acceptance (chains,
        data). Steps, (data,), are in units of the spread L, of which L L^T is the inverse of the mass matrix."""
        momentum, beta_of, L = torch.randn_like(point.u), beta[None, :, None], spread[None]
        steps = step[:, None] * torch.empty_like(point.u[..., :1]).uniform_(*JITTER)
        energy = momentum.square().sum(-1) / 2 - point.log_f(beta)
        new = point
        for _ in range(self.leapfrog_steps):
            u, momentum, *ends = self.ends.leapfrog(
                new.u, momentum, new.gradient(beta_of), steps, beta_of, L, *self.data
            )
            new = Point(u, *ends)
        # NaN is a trajectory that diverged or left the support, and is not accepted
        log_ratio = (energy - momentum.square().sum(-1) / 2 + new.log_f(beta)).nan_to_num(nan=-math.inf)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        pairs = zip(new, point, strict=True)
        fields = (torch.where(accepted if a.dim() == 2 else accepted[..., None], a, b) for a, b in pairs)
        self.report()
        return Point(*fields), log_ratio.clamp(max=0).exp().to(momentum)


def path_of(
    model: Program, guide: Program, start: Literal["guide", "prior"], sites: Sites, rows: int
) -> tuple[Program, Densities]:
    """What samples r, the guide or the model's prior, and the densities r and p(x, z)."""

    def from_prior(trace: Trace, *data: Tensor, num_samples: int) -> tuple[Tensor, ...]:
        trace = model_trace_of(model, trace, *data, num_samples=num_samples)
        log_p = log_prob_per_datum(trace, (num_samples, len(data[0])))
        return torch.stack([log_p[name] for name in sites]).sum(0), torch.stack([*log_p.values()]).sum(0)

    def from_guide(*args: Any, num_samples: int) -> tuple[Tensor, ...]:
        # replayed, so that sites of the guide may depend on each other
        of_each = (log_joint(program)(*args, num_samples=num_samples) for program in (guide, model))
        return tuple(log_p for (log_p,) in of_each)

    if start == "prior":
        return model, Densities(from_prior, sites, rows)
    return guide, Densities(from_guide, sites, rows)


def log_joint(program: Program) -> Callable[..., tuple[Tensor]]:
    """The log-prob of a program's sites together, (samples, data), as a function of a trace, for `Densities`."""
    return partial(_log_joint, program)


def _log_joint(program: Program, trace: Trace, *data: Tensor, num_samples: int) -> tuple[Tensor]:
    trace = model_trace_of(program, trace, *data, num_samples=num_samples)
    return (sum_of_sites(trace, (num_samples, len(data[0]))),)


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


def size_of(sites: Sites) -> int:
    """How many dimensions the unconstrained space has."""
    return sum(shape.numel() for _, shape in sites.values())


def unpack(u: Tensor, sites: Sites) -> tuple[Trace, Tensor]:
    """A trace to replay a program against, and log |dz / du| (chains, data)."""
    values, log_det = {}, torch.zeros_like(u[..., 0])
    parts = u.split([shape.numel() for _, shape in sites.values()], -1)
    for (name, (T, shape)), part in zip(sites.items(), parts, strict=True):
        free = part.reshape(*u.shape[:2], *shape)
        values[name] = T(free)
        log_det = log_det + T.log_abs_det_jacobian(free, values[name]).reshape(*u.shape[:2], -1).sum(-1)
    return trace_of(values), log_det
