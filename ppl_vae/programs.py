"""What can be done with any Pyro program without knowing its class: run it apart, in evaluation mode, per datum."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine import runtime
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Distribution, Independent

from ppl_vae.system.places import modules_of

Program = Callable[..., Any]

SUMMED = 64  # dimensions whose log-probs are summed before they are made double: to convert each one takes longer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random generators start from `seed` inside, and are outside as if nothing had happened."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def own_param_store() -> Iterator[None]:
    """A copy of Pyro's param store inside: programs see what is there, and leave nothing behind."""
    store = pyro.get_param_store()
    with store.scope(store.get_state()):
        yield


@contextmanager
def mode(*programs: Program, training: bool) -> Iterator[None]:
    """The programs' modules in training or evaluation mode inside, each submodule as it was outside."""
    submodules = [m for module in modules_of(*programs) for m in module.modules()]
    before = [m.training for m in submodules]
    for m in submodules:
        m.training = training
    try:
        yield
    finally:
        for m, was_training in zip(submodules, before, strict=True):
            m.training = was_training


@contextmanager
def evaluating(*programs: Program) -> Iterator[None]:
    """Evaluation mode, no gradients, no validation of arguments, a param store of its own. An autoguide that was not
    set up for any data isn't so afterwards."""
    submodules = (m for module in modules_of(*programs) for m in module.modules())
    autoguides = [vars(m) for m in submodules if getattr(m, "prototype_trace", m) is None]
    before = [{k: copy.copy(v) if isinstance(v, dict) else v for k, v in a.items()} for a in autoguides]
    with mode(*programs, training=False), own_param_store(), torch.no_grad(), pyro.validation_enabled(False):
        torch.clear_autocast_cache()  # which holds earlier weights, where torch.autocast is around a training
        try:
            yield
        finally:
            torch.clear_autocast_cache()  # which holds weights without gradients
            for attributes, values in zip(autoguides, before, strict=True):
                attributes.clear()
                attributes.update(values)


@contextmanager
def alone() -> Iterator[None]:
    """Programs inside are seen by no handler, and are in no plate, of those outside."""
    handlers, plates = runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:]
    runtime._PYRO_STACK.clear()
    runtime._DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:] = handlers, plates


def in_particles(program: Program, num_samples: int) -> Program:
    """The program, vectorised over `num_samples` particles at dim -2."""

    def run(*args: Any) -> Any:
        with pyro.plate("particles", num_samples, dim=-2):
            return program(*args)

    return run


def sample_sites(trace: Trace, *, observed: bool) -> dict[str, dict]:
    """The observed, or the latent, sample sites of a trace by name; `pyro.deterministic` makes neither."""
    return {k: site for k, site in trace.nodes.items() if is_random(site) and site["is_observed"] == observed}


def is_random(site: Any) -> bool:
    """Whether a site is a sample site; `pyro.deterministic` makes none."""
    return site["type"] == "sample" and not site["infer"].get("_deterministic")


def innermost(fn: Distribution) -> Distribution:
    """What a site's distribution is without `to_event` and `expand`.

    >>> innermost(pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
    Normal(loc: torch.Size([2]), scale: torch.Size([2]))
    """
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def traced(program: Program, *args: Tensor) -> Trace:
    """A trace of the program, without subsample sites. It raises what the program raises, without the shapes of all
    sites and parameters that Pyro adds to it, a screenful."""
    try:
        return prune_subsample_sites(poutine.trace(program).get_trace(*args))
    except (ValueError, RuntimeError) as error:
        raised: BaseException = error
        while "Trace Shapes:" in str(raised) and raised.__cause__ is not None:
            raised = raised.__cause__
        raise raised from None


def guide_trace_of(guide: Program, *args: Tensor, num_samples: int) -> Trace:
    """A trace of the guide with `num_samples` particles at dim -2, without subsample sites."""
    return traced(in_particles(guide, num_samples), *args)


def model_trace_of(model: Program, guide_trace: Trace, *args: Tensor, num_samples: int) -> Trace:
    """A trace of the model at the guide's latent values, with `num_samples` particles at dim -2."""
    return traced(poutine.replay(in_particles(model, num_samples), guide_trace), *args)


def part_of(guide_trace: Trace, samples: slice, data: slice | Tensor) -> Trace:
    """The trace with the latent values of some of its particles and data, to replay a model against."""
    part = guide_trace.copy()
    for name, site in sample_sites(part, observed=False).items():
        part.nodes[name] = {**site, "value": site["value"][samples, data]}
    return part


def trace_of(values: Mapping[str, Tensor]) -> Trace:
    """A trace of latent sites with these values, to replay a program against."""
    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return trace


def log_prob_per_datum(trace: Trace, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """log-prob of each sample site, in nats, which has `shape`: (samples, data), or (data,) without particles.

    Unscaled, so that beta, warm-up and subsampling never leak in. In double precision, for the differences between
    samples are small beside a sum over thousands of dimensions.
    Raises `ValueError` for a site that is masked, or whose log-prob is not one number a datum.
    """
    log_probs = {}
    for name, site in trace.nodes.items():
        if not is_random(site):
            continue
        check_unmasked(name, site)
        log_probs[name] = _log_prob(site["fn"], site["value"])
        check_per_datum(name, site, log_probs[name].shape, shape)
    return log_probs


SCORES_ITS_OWN = "expected a density at any z; got a flow without an inverse, that scores its own draws alone"
MASKED = "expected a site without a mask; got one inside poutine.mask"
UNMASK = "Mask the distribution itself, before its dims are the event: fn.mask(seen).to_event(1)"


def check_unmasked(name: str, site: dict) -> None:
    """Raises `ValueError` for a site whose data `poutine.mask` hides, where one number a datum is wanted."""
    if site["mask"] is not None:
        raise ValueError(f"site {name!r}: {MASKED}. {UNMASK}")


def check_per_datum(name: str, site: dict, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises `ValueError` where a site's log-prob has another shape than one number a datum."""
    if shape != expected:
        plates = ", ".join(f"{f.name!r} at dim {f.dim}" for f in site["cond_indep_stack"] if f.vectorized) or "none"
        raise ValueError(
            f"site {name!r}: expected one log-prob a datum, of shape {tuple(expected)}, in one data plate at dim -1; "
            f"got {tuple(shape)} in plates {plates}"
        )


def _log_prob(fn: Any, value: Tensor) -> Tensor:
    """log-prob in double precision, summed over dimensions in parts that float32 holds to some 1e-5 nats."""
    num_dims = 0
    while type(fn).log_prob is Independent.log_prob:
        num_dims, fn = num_dims + fn.reinterpreted_batch_ndims, fn.base_dist
    log_prob = fn.log_prob(value)
    if not num_dims:
        return log_prob.double()
    log_prob = log_prob.flatten(-num_dims)
    whole = log_prob.shape[-1] // SUMMED * SUMMED
    parts = log_prob[..., :whole].unflatten(-1, (whole // SUMMED, SUMMED)).sum(-1)
    return parts.sum(-1, dtype=torch.float64) + log_prob[..., whole:].sum(-1)


def sum_of_sites(trace: Trace, shape: tuple[int, int]) -> Tensor:
    """The trace's log-prob per sample and datum, in nats, shape (samples, data)."""
    return sum(log_prob_per_datum(trace, shape).values(), torch.zeros((), dtype=torch.float64))
