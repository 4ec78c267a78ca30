"""Where a loss that is NaN or infinite comes from: the first site of a Pyro pair that is to blame, and what to try."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Distribution

from ppl_vae.programs import Program, evaluating, innermost, sample_sites

TINY = 1e-4  # a scale below it is what the log-prob suffers from, and not what suffers


_FINITE = "data without NaN and infinity, as encoded"


class Finding(NamedTuple):
    """What is wrong with a site, in words, and what to try: "" where only a smaller learning rate is left to try."""

    text: str
    remedy: str


def first_nonfinite(model: Program, guide: Program, *args: Tensor) -> Finding | None:
    """The data, or else the first site with a value or log-prob that is not finite, in the order of the programs and
    the guide's first; None where all are. Programs run in evaluation mode; where they raise, nothing is known: None."""
    for i, data in enumerate(args):
        if bad := _nonfinite(data):
            return Finding(f"the data, {'further argument ' + str(i) if i else 'x'}: {bad}", _FINITE)
    try:
        with evaluating(model, guide):
            guide_trace = poutine.trace(guide).get_trace(*args)
            found = next(_findings(guide_trace, "guide"), None)
            if found is None:
                found = next(
                    _findings(poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args), "model"), None
                )
            return found
    except (ValueError, RuntimeError, IndexError):  # sampling from NaN
        return None


def _findings(trace: Trace, program: str) -> Iterator[Finding]:
    sites = [
        (name, site, observed)
        for observed in (False, True)
        for name, site in sample_sites(trace, observed=observed).items()
    ]
    for name, site, observed in sites:
        fn, value = site["fn"], torch.as_tensor(site["value"])
        where = f"site {name!r} of the {program}"
        if bad := _nonfinite(value):
            if observed:
                yield Finding(f"{where}: observed data with {bad}", _FINITE)
            else:
                yield Finding(f"{where}: values with {bad}, drawn from {_described(fn)}", "")
        elif bad := _nonfinite(fn.log_prob(value)):
            yield Finding(f"{where}: a log-prob with {bad}, of {_described(fn)}", _remedy(fn, value, observed))


def _nonfinite(values: Tensor) -> str:
    finite = values.isfinite()
    return "" if bool(finite.all()) else f"{values[~finite][0].item()}"


def _remedy(fn: Distribution, value: Tensor, observed: bool) -> str:
    support = fn.support
    if support is not None and not bool(support.check(value).all()):
        return "data in the support of the likelihood" if observed else ""
    scale = _scale(fn)
    if scale is not None and scale < TINY:
        return (
            f"a larger scale of the likelihood, now {scale:.3g}"
            if observed
            else "free bits, or a KL warm-up, against a variance that collapses"
        )
    return ""


def _described(fn: Distribution) -> str:
    name, scale = type(innermost(fn)).__name__, _scale(fn)
    return name if scale is None else f"{name} with a scale of {scale:.3g}"


def _scale(fn: Distribution) -> float | None:
    """The smallest, if the distribution has one."""
    scale = getattr(innermost(fn), "scale", None)
    return None if scale is None else float(torch.as_tensor(scale).min())
