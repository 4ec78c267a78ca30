"""What a Pyro pair must be, to be trained and evaluated: one data plate, shared latents, data in their support.

Checks yield findings. `check_model` collects them; estimators raise the first error as a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_factor
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from ppl_vae.programs import Program, sample_sites

CHUNK_DATA = 256  # data whose observed values are looked at together


@dataclass(frozen=True)
class Finding:
    """What is wrong, and how to fix it. `site` is the sample site, parameter or buffer concerned, "" for none.

    An "error" means that training or log p(x) would go wrong; a "warning" may well be intended.
    """

    check: str
    site: str
    message: str
    remedy: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        site = f"{self.site!r} " * bool(self.site)
        return f"{self.severity} ({self.check}): {site}{self.message}. {self.remedy}"


def raise_first(findings: Iterable[Finding]) -> None:
    """Raises the first finding that is an error, if any, as a `ValueError`."""
    for finding in findings:
        if finding.severity == "error":
            site = f"site {finding.site!r}: " * bool(finding.site)
            raise ValueError(f"{site}{finding.message}. {finding.remedy}")


def check_rows(*data: Tensor) -> None:
    """Raises `ValueError` unless every argument has as many rows as the first, and at least one."""
    for i, t in enumerate(data):
        if not len(t) or len(t) != len(data[0]):
            raise ValueError(f"argument {i}: expected {max(len(data[0]), 1)} rows; got {len(t)}")


def plain_trace(program: Program, *data: Tensor, latents: Trace | None = None) -> Trace:
    """A trace of the program as it is, without particles and subsample sites, at given latents."""
    replayed = poutine.replay(program, latents) if latents is not None else program
    return prune_subsample_sites(poutine.trace(replayed).get_trace(*data))


def check_structure(model: Program, guide: Program, *data: Tensor) -> tuple[Trace, Trace]:
    """Plain traces of the model, at the guide's latents, and of the guide.
    Raises `ValueError` for a fault in their plates, masks or sites."""
    guide_trace = plain_trace(guide, *data)
    model_trace = plain_trace(model, *data, latents=guide_trace)
    num_data = len(data[0])
    raise_first(chain(plates(guide_trace, num_data), plates(model_trace, num_data), sites(model_trace, guide_trace)))
    return model_trace, guide_trace


def measure_of(model: Program, guide: Program, *data: Tensor) -> tuple[str, str]:
    """What log p(x) measures, "mass" or "density", and the space that it is spread over ("boolean^784"), from the
    support of the observed sites, in which x must lie.

    Raises `ValueError` for a pair that breaks the contract, and for data outside of the support.
    """
    trace, _ = check_structure(model, guide, *(t[:1] for t in data))
    discrete, spaces = set(), []
    for name, site in observed_sites(trace).items():
        support = site["fn"].support
        discrete.add(support.is_discrete)
        spaces.append(f"{support_name(support)}^{site['fn'].event_shape.numel()}")
        raise_first(observed_outside(name, support, _observed_values(name, site["value"], model, guide, data)))
    measure = "mixed (mass and density)" if len(discrete) > 1 else "mass" if discrete.pop() else "density"
    return measure, " x ".join(spaces)


def _observed_values(name: str, of_datum: Tensor, model: Program, guide: Program, data: tuple[Tensor, ...]) -> Tensor:
    """What an observed site observes, (data, *event), from its value at the first datum."""
    x = data[0]
    if of_datum.shape[1:] == x.shape[1:] and of_datum.equal(x[:1]):
        return x  # in most programs
    values = []
    for chunk in zip(*(t.split(CHUNK_DATA) for t in data), strict=True):
        trace = plain_trace(model, *chunk, latents=plain_trace(guide, *chunk))
        values.append(trace.nodes[name]["value"].reshape(len(chunk[0]), *of_datum.shape[1:]))
    return torch.cat(values)


def plates(trace: Trace, num_data: int) -> Iterator[Finding]:
    """Faults in the plates, masks and scales of a program's trace: each site is in one plate, of all data, at dim -1.
    What is deterministic needs none."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        if site["mask"] is not None:
            message = "expected a site without a mask; got one inside poutine.mask"
            yield Finding("mask", name, message, "Take it out: it hides part of the data")
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if not frames and site["infer"].get("_deterministic"):
            continue
        if remedy := _plate_remedy(frames, num_data):
            got = " and ".join(f"{f.name!r} with {f.size} of {f.full_size} at dim {f.dim}" for f in frames) or "none"
            yield Finding("plates", name, f"expected one data plate, at dim -1; got {got}", remedy)
        elif bool(torch.as_tensor(site["scale"] != 1).any()):
            message = "expected no scale; got one, of poutine.scale or of a plate that is subsampled"
            remedy = "Evaluation ignores it: log p(x) is that of the pair without a scale"
            yield Finding("scale", name, message, remedy, "warning")


def _plate_remedy(frames: list[Any], num_data: int) -> str:
    """How to mend a site's plates; "" where they are as they should be."""
    if not frames:
        return 'Put it `with pyro.plate("data", len(x), dim=-1)`: a global latent makes data dependent'
    if len(frames) > 1:
        return "Keep the plate of the data, and declare other dims as the event (to_event)"
    if frames[0].dim != -1:
        return "Set dim=-1, and declare dims to the right of the data as the event (to_event)"
    if frames[0].size != num_data:
        subsampled = frames[0].size != frames[0].full_size
        remedy = "Leave subsample_size out: `fit` makes the batches, and evaluation scores every datum"
        return remedy if subsampled else f"Give the plate the size len(x) = {num_data}"
    return ""


def sites(model_trace: Trace, guide_trace: Trace) -> Iterator[Finding]:
    """Faults in what a pair samples and observes: `latents`, and a model that observes nothing."""
    yield from latents(model_trace, guide_trace)
    if not observed_sites(model_trace):
        message = "the model: expected an observed site; got none"
        yield Finding("observed", "", message, "Pass obs=x to pyro.sample")


def latents(model_trace: Trace, guide_trace: Trace) -> Iterator[Finding]:
    """Faults in the latent sites: the two programs share them, at least one, and those of the guide have a density."""
    in_model, in_guide = (sample_sites(t, observed=False) for t in (model_trace, guide_trace))
    if not in_guide:
        remedy = "An autoencoder has a reconstruction loss and no log p(x): sample a latent site in both programs"
        yield Finding("latents", "", "the guide: expected a latent site; got none", remedy)
    for name in sorted(set(in_model) ^ set(in_guide)):
        has, lacks = ("model", "guide") if name in in_model else ("guide", "model")
        message = f"expected it in both model and guide; got it in the {has} alone"
        yield Finding("latents", name, message, f"Add it to the {lacks}, or take it out of the {has}")
    for name, site in in_guide.items():
        if _is_point(site["fn"]):
            message = "in the guide: expected a distribution; got a point (Delta)"
            yield Finding("support", name, message, "Give it a spread: a point has no importance weight")


def _is_point(fn: Distribution) -> bool:
    """Whether a distribution is a Delta, which has no density to weight by."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def observed_sites(trace: Trace) -> dict[str, dict]:
    """The observed sample sites of a trace by name, without factors."""
    return {k: site for k, site in sample_sites(trace, observed=True).items() if not site_is_factor(site)}


def only_latent(who: str, trace: Trace) -> tuple[str, dict]:
    """The one latent site of a trace, by name. Raises `ValueError` for none or several."""
    latents = sample_sites(trace, observed=False)
    if len(latents) != 1:
        raise ValueError(f"the {who}: expected one latent site; got {', '.join(map(repr, latents)) or 'none'}")
    return next(iter(latents.items()))


def observed_x(trace: Trace, x: Tensor) -> tuple[str, dict]:
    """The one observed site of a model's trace, which observes x itself or x flattened, by name.
    Raises `ValueError` for another number of sites, or another value."""
    observed = sample_sites(trace, observed=True)
    if len(observed) != 1 or not all(site["value"].reshape(-1).equal(x.reshape(-1)) for site in observed.values()):
        raise ValueError(f"the model: expected one observed site, of x itself; got {sorted(observed)}")
    return next(iter(observed.items()))


def check_same_without_x(name: str, log_p: Tensor, at_other_x: Tensor) -> None:
    """Raises `ValueError` where a log-prob of the same value differs as the program is given another x."""
    if not torch.allclose(log_p, at_other_x):
        raise ValueError(f"site {name!r}: expected a distribution that does not depend on x; got one that does")


def observed_outside(name: str, support: Constraint, values: Tensor) -> Iterator[Finding]:
    """A finding for observed values (data, *event) of which some are outside of the support, or NaN."""
    if message := outside(support, values, "data"):
        remedy = "Encode x so that it is inside, or take a likelihood that allows for it"
        if support_name(support) == "boolean" and values.min() >= 0 and values.max() <= 1:
            remedy = (
                "A Bernoulli on grey pixels is no likelihood: binarise x (encoding binarize), or take a likelihood "
                "for grey pixels (ContinuousBernoulli, on dequantised images)"
            )
        yield Finding("support", name, message, remedy)


def outside(support: Constraint, values: Tensor, what: str) -> str:
    """What is wrong with values (rows, *event) of which some are outside of a support or NaN; "" for none."""
    bad = values[~support.check(values).reshape(len(values), -1).all(-1)]
    if not len(bad):
        return ""
    got = f"{len(bad)} {what} outside, values in [{bad.min():.4g}, {bad.max():.4g}]"
    return f"expected values in {support_name(support)}; got {got}"


def support_name(support: Constraint) -> str:
    while hasattr(support, "base_constraint"):  # of independent dimensions, and of mixtures
        support = support.base_constraint
    return str(support).removesuffix("()").lower()
