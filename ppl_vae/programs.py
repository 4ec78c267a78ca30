"""What can be done with any Pyro program without knowing its class: run it apart, in evaluation mode, per datum."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

Program = Callable[..., Any]


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


def modules_of(*programs: Program) -> list[nn.Module]:
    """The `nn.Module`s that the programs are, are methods of, or refer to as a closure or a global name."""
    found: dict[int, nn.Module] = {}
    for program in programs:
        if isinstance(program, functools.partial):
            for module in modules_of(program.func):
                found[id(module)] = module
            continue
        owner = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
        if isinstance(owner, nn.Module):
            found[id(owner)] = owner
        function = inspect.unwrap(getattr(program, "__func__", program))
        if inspect.isfunction(function):
            variables = inspect.getclosurevars(function)
            for value in (*variables.nonlocals.values(), *variables.globals.values()):
                if isinstance(value, nn.Module):
                    found[id(value)] = value
    return list(found.values())


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
    """Evaluation mode, no gradients, no validation of arguments, a param store of its own."""
    with mode(*programs, training=False), own_param_store(), torch.no_grad(), pyro.validation_enabled(False):
        yield


def in_particles(program: Program, num_samples: int) -> Program:
    """The program, vectorised over `num_samples` particles at dim -2."""

    def run(*args: Any) -> Any:
        with pyro.plate("particles", num_samples, dim=-2):
            return program(*args)

    return run


def sample_sites(trace: Trace, *, observed: bool) -> dict[str, dict]:
    """The observed, or the latent, sample sites of a trace by name; `pyro.deterministic` makes neither."""
    return {k: site for k, site in trace.nodes.items() if _is_random(site) and site["is_observed"] == observed}


def _is_random(site: Any) -> bool:
    return site["type"] == "sample" and not site["infer"].get("_deterministic")


def innermost(fn: Distribution) -> Distribution:
    """What a site's distribution is without `to_event` and `expand`.

    >>> innermost(pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
    Normal(loc: torch.Size([2]), scale: torch.Size([2]))
    """
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def guide_trace_of(guide: Program, *args: Tensor, num_samples: int) -> Trace:
    """A trace of the guide with `num_samples` particles at dim -2, without subsample sites."""
    return prune_subsample_sites(poutine.trace(in_particles(guide, num_samples)).get_trace(*args))


def model_trace_of(model: Program, guide_trace: Trace, *args: Tensor, num_samples: int) -> Trace:
    """A trace of the model at the guide's latent values, with `num_samples` particles at dim -2."""
    replayed = poutine.replay(in_particles(model, num_samples), guide_trace)
    return prune_subsample_sites(poutine.trace(replayed).get_trace(*args))


def part_of(guide_trace: Trace, samples: slice, data: slice | Tensor) -> Trace:
    """The trace with the values of some of its particles and data, to replay a model against."""
    part = guide_trace.copy()
    for name, site in part.nodes.items():
        if site["type"] == "sample":
            part.nodes[name] = {**site, "value": site["value"][samples, data]}
    return part


def trace_of(values: Mapping[str, Tensor]) -> Trace:
    """A trace of latent sites with these values, to replay a program against."""
    trace = Trace()
    for name, value in values.items():
        trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
    return trace


def log_prob_per_datum(trace: Trace, shape: tuple[int, int]) -> dict[str, Tensor]:
    """log-prob of each sample site, expanded to `shape` = (samples, data), in nats.

    Unscaled, so that beta, warm-up and subsampling never leak in.
    Raises `ValueError` for a site that is masked, or whose log-prob is not one number a datum.
    """
    log_probs = {}
    for name, site in trace.nodes.items():
        if not _is_random(site):
            continue
        if site["mask"] is not None:
            raise ValueError(f"site {name!r}: expected a site without a mask; got one inside poutine.mask")
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        if log_prob.shape != shape:
            frames = [f"{f.name!r} at dim {f.dim}" for f in site["cond_indep_stack"] if f.vectorized]
            raise ValueError(
                f"site {name!r}: expected a log-prob of shape {shape} (samples, data), with one data plate at "
                f"dim -1; got {tuple(log_prob.shape)} in plates {', '.join(frames)}"
            )
        log_probs[name] = log_prob
    return log_probs


def sum_of_sites(trace: Trace, shape: tuple[int, int]) -> Tensor:
    """The trace's log-prob per sample and datum, in nats, shape (samples, data)."""
    return sum(log_prob_per_datum(trace, shape).values(), torch.zeros(()))
