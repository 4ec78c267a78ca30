"""The batches of a training, looked at before its first step: a bad datum spoils it, however late it comes."""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_vae.contract import observed_sites, plain_trace, raise_first, support_of
from ppl_vae.distributions import standard_units
from ppl_vae.likelihoods import Rescaled
from ppl_vae.programs import Program, evaluating
from ppl_vae.system.places import modules_of
from ppl_vae.system.rows import Rows

Batch = tuple[Tensor, ...]


def check_batches(model: Program, guide: Program, data: Batch, encode: Callable[..., Batch], batch_size: int) -> None:
    """Raises `ValueError` for observed values outside of their support, a model that rescales data whose units it was
    not given, and what the programs raise for arguments that they refuse, of all data, encoded by the batch.

    To run the programs on all batches would take a third of an epoch. They run on the first, on those where an argument
    has its smallest or largest value, or NaN, and on those with a value outside of a support that is one for all data.
    Where each datum has its own support, and where an argument beside x is read lazily, they run on all.
    """
    args = data[1:]
    extreme: Container[int]  # numbers of batches
    if any(isinstance(t, Rows) for t in args):
        extreme = range(len(data[0]))
    else:
        extreme = {row // batch_size for t in args for row in _extremes(t)}
    supports: list[tuple[int, tuple[int, ...], Constraint]] | None = []
    with evaluating(model, guide), torch.random.fork_rng():
        for number, start in enumerate(range(0, len(data[0]), batch_size)):
            batch = encode(*(t[start : start + batch_size] for t in data))
            if number and number not in extreme and supports is not None and _inside(batch, supports):
                continue
            trace = plain_trace(model, *batch, latents=plain_trace(guide, *batch))
            raise_first(support_of(trace))
            if number == 0:
                _check_units(batch[0], model, guide)
                supports = _supports(trace, batch)


def _extremes(t: Tensor) -> tuple[int, ...]:
    """The rows with the smallest and with the largest value, or NaN."""
    t = t.byte() if t.dtype == torch.bool else t
    return tuple(int(place) // t[0].numel() for place in (t.argmin(), t.argmax()))


def _supports(trace: Trace, batch: Batch) -> list[tuple[int, tuple[int, ...], Constraint]] | None:
    """Of each observed site the argument that it observes, the shape of its values and their support; None where a site
    observes something else, or the support is each datum's own."""
    found = []
    for site in observed_sites(trace).values():
        value, support = site["value"], site["fn"].support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        of = [i for i, t in enumerate(batch) if t.numel() == value.numel() and t.flatten().equal(value.flatten())]
        bounds = (bound for bound in vars(support).values() if isinstance(bound, Tensor))
        if not of or constraints.is_dependent(support) or any(bound.numel() > 1 for bound in bounds):
            return None
        found.append((of[0], tuple(value.shape[1:]), support))
    return found


def _inside(batch: Batch, supports: list[tuple[int, tuple[int, ...], Constraint]]) -> bool:
    return all(
        bool(support.check(batch[i].reshape(-1, *shape)).all()) and not bool(batch[i].isinf().any())
        for i, shape, support in supports
    )


def _check_units(x: Tensor, *programs: Program) -> None:
    """Raises `ValueError` for a model that rescales data, and was not given their units."""
    mean, scale = standard_units(x)
    are_these = mean.abs().max() < 0.5 and scale.log2().abs().max() < 1
    rescaled = [m for module in modules_of(*programs) for m in module.modules() if isinstance(m, Rescaled)]
    for m in rescaled if not are_these else ():
        if bool((m.mean == 0).all()) and bool((m.scale == 1).all()):
            raise ValueError(
                "standardize: expected the units of the data; got a mean of 0 and a scale of 1, as before "
                "`initialise`. Call model.initialise(x)"
            )
