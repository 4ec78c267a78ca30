"""What a Pyro pair must be, to be trained and evaluated: one data plate, shared latents, data in their support.

Checks yield findings. `check_model` collects them; estimators raise the first error as a `ValueError`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint
from torch.utils.data import DataLoader, Dataset

from ppl_vae.programs import (
    MASKED,
    SCORES_ITS_OWN,
    UNMASK,
    Program,
    is_random,
    log_prob_per_datum,
    sample_sites,
    trace_of,
    traced,
)
from ppl_vae.system.hashing import chunks
from ppl_vae.system.machine import fits
from ppl_vae.system.places import modules_of
from ppl_vae.system.rows import Rows, chunks_of_data, rows_of

WHOLE = "Leave subsample_size out: `fit` makes the batches, and evaluation scores every datum"
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


def tensors_of(model: Program, guide: Program, *data: Any) -> tuple[Tensor, ...]:
    """The arguments of a pair as tensors on the device of its parameters: NumPy arrays, data frames and lists, too, and
    floating-point numbers in the precision of the parameters where that loses nothing. Whole numbers stay what they
    are. Data that would take more than half of a device's memory stay where they are. A torch dataset or `DataLoader`
    is the parts of its items, which are read when they are used (`ppl_vae.system.rows`).

    Raises `ValueError` for what is not numbers, numbers that would be rounded, no rows, or different numbers of them.
    """
    parameters = [p for module in modules_of(model, guide) for p in module.parameters()]
    dtypes, device = {p.dtype for p in parameters if p.is_floating_point()}, common_device(parameters)
    tensors: list[Tensor] = []
    for i, t in enumerate(chain.from_iterable(_parts(argument) for argument in data)):
        if not isinstance(t, Tensor):
            array = np.asarray(t)
            if array.dtype.kind not in "buif":
                raise ValueError(f"argument {i}: expected numbers; got {type(t).__name__} of {array.dtype}")
            t = torch.as_tensor(t if isinstance(t, list) else np.ascontiguousarray(array))
        if t.is_floating_point() and len(dtypes) == 1 and t.dtype not in dtypes:
            (dtype,) = dtypes
            if any(not part.to(dtype).to(t.dtype).allclose(part, rtol=0, atol=0, equal_nan=True) for part in chunks(t)):
                raise ValueError(
                    f"argument {i}: expected {dtype}, as the parameters; got {t.dtype} of numbers that it would round. "
                    f"Convert them: torch.as_tensor(x, dtype={dtype})"
                )
            t = Rows(t.source, t.at, dtype) if isinstance(t, Rows) else t.to(dtype)
        tensors.append(t)
        if not len(t) or len(t) != len(tensors[0]):
            raise ValueError(f"argument {i}: expected {max(len(tensors[0]), 1)} rows; got {len(t)}")
    moved = (t for t in tensors if not _are_items(t) and t.device != device)
    if device is not None and fits(sum(t.nbytes for t in moved), device):
        tensors = [Rows(t.source, t.at, t.dtype, device) if _are_items(t) else t.to(device) for t in tensors]
    return tuple(tensors)


def _are_items(t: Tensor) -> TypeGuard[Rows]:
    return isinstance(t, Rows) and t.are_items


def _parts(argument: Any) -> tuple[Any, ...]:
    return rows_of(argument) if isinstance(argument, Dataset | DataLoader) else (argument,)


def common_device(tensors: Iterable[Tensor]) -> torch.device | None:
    """Where all tensors are; None for none, or several places."""
    devices = {t.device for t in tensors}
    return devices.pop() if len(devices) == 1 else None


def plain_trace(program: Program, *data: Tensor, latents: Trace | None = None) -> Trace:
    """A trace of the program as it is, without particles and subsample sites, at given latents.
    Raises `ValueError` for data of another dtype than the parameters', or of another number of arguments than the
    program's, if that is what fails."""
    replayed = poutine.replay(program, latents) if latents is not None else program
    try:
        return traced(replayed, *data)
    except TypeError as error:
        if _takes(program, *data):
            raise
        raise ValueError(
            f"expected data of as many parts as the program has arguments; got {len(data)}: {error}. Where items have "
            "labels that it does not take, leave these out in the dataset, or for `fit` by encode"
        ) from None
    except RuntimeError as error:
        parameters = (p for module in modules_of(program) for p in module.parameters())
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.get_default_dtype())
        got = " and ".join(str(t.dtype) for t in data)
        if all(t.dtype == dtype for t in data) or not _OF_DTYPES.search(str(error)):
            raise
        raise ValueError(
            f"expected data of {dtype}, as the parameters; got {got}. Convert them: x.to({dtype})"
        ) from None


def _takes(program: Program, *data: Tensor) -> bool:
    """Whether a program takes so many arguments, as far as that is known."""
    try:
        inspect.signature(program).bind(*data)
    except TypeError:
        return False
    except ValueError:
        pass
    return True


_OF_DTYPES = re.compile(r"same dtype|scalar type|type \(.*\) should be the same|bias type|bool tensor")


def check_structure(model: Program, guide: Program, *data: Tensor) -> tuple[Trace, Trace]:
    """Plain traces of the model, at the guide's latents, and of the guide.
    Raises `ValueError` for a fault in their plates, masks or sites, modules that aren't found, whose mode isn't known,
    and observed values that their distributions don't score."""
    model_trace, guide_trace, declared = plain_traces(model, guide, *data)
    num_data = len(data[0])
    faults = chain(plates(guide_trace, num_data), plates(model_trace, num_data), sites(model_trace, guide_trace))
    raise_first(chain(faults, unseen(declared, model, guide), scored(model_trace, num_data)))
    return model_trace, guide_trace


def plain_traces(model: Program, guide: Program, *data: Tensor) -> tuple[Trace, Trace, Trace]:
    """Plain traces of the model, at the guide's latents, of the guide, and of the parameters of both.
    Raises `ValueError` for what `misfit` knows."""
    try:
        with poutine.trace(param_only=True) as declared:
            guide_trace = plain_trace(guide, *data)
            model_trace = plain_trace(model, *data, latents=guide_trace)
    except Exception as error:
        raise_first(filter(None, [misfit(error, model, guide, *data)]))
        raise
    return model_trace, guide_trace, declared.trace


def misfit(error: Exception, model: Program, guide: Program, *data: Tensor) -> Finding | None:
    """What is wrong with a pair that raised such an error, if it is that of a plate or an autoguide."""
    if any(_subsamples(program, *data) for program in (guide, model)):
        return Finding("plates", "", "expected a data plate without subsample_size; got one with", WHOLE)
    if any(isinstance(m, AutoGuide) and m.prototype_trace is not None for m in modules_of(guide)):
        return Finding(
            "latents", "", "expected a guide of any data; got an autoguide that is set up for others", _ENCODE
        )
    message = str(error).partition("\n")[0]
    if isinstance(error, ValueError) and (
        found := re.match(r"Shape mismatch inside plate\(.*\) at site (\S+)", message)
    ):
        return Finding("runs", found[1], message, event_of(data[0]))
    return None


def _subsamples(program: Program, *data: Tensor) -> bool:
    """Whether a plate of the program is smaller than the data, as far as it runs."""
    tracer = poutine.trace()
    with torch.random.fork_rng(), tracer, suppress(Exception):
        program(*data)
    fns = (site["fn"] for site in tracer.trace.nodes.values() if site["type"] == "sample" and site_is_subsample(site))
    return any(fn.size == len(data[0]) and fn.subsample_size not in (None, fn.size) for fn in fns)


def event_of(x: Tensor) -> str:
    """What to do where dims of a datum are taken for others."""
    return f"Declare all dims of a datum as the event, .to_event({x.dim() - 1}) for x"


def check_training(model: Program, guide: Program, *data: Tensor, enumerates: bool = False) -> list[str]:
    """The names of the parameters that are in Pyro's param store alone, and in none of the programs' modules.

    Raises `ValueError` for a pair that can't be trained on such data: a fault in its plates, masks, sites, or
    parameters, no parameters, data outside of their support, or a site without one log-prob a datum. A pair may be an
    autoencoder, its guide a point. `enumerates` says that the objective sums over the sites that the model enumerates.
    """
    model_trace, guide_trace, declared = plain_traces(model, guide, *data)
    shared = (f for f in shared_latents(model_trace, guide_trace) if not (enumerates and f.check == "enumerated"))
    faults = (plates(guide_trace, len(data[0])), plates(model_trace, len(data[0])), shared, observed(model_trace))
    values = () if enumerates else scored(model_trace, len(data[0]))
    raise_first(chain(*faults, params(declared, model, guide), values, support_of(model_trace)))
    if not len(declared.nodes) > 0:
        raise ValueError("expected a program with parameters, declared by pyro.module or pyro.param; got none")
    log_prob_per_datum(guide_trace, (len(data[0]),))
    if not enumerates:
        log_prob_per_datum(model_trace, (len(data[0]),))
    ours = {id(p) for module in modules_of(model, guide) for p in module.parameters()}
    return [name for name, site in _param_sites(declared) if id(site["value"].unconstrained()) not in ours]


def measure_of(model: Program, guide: Program, *data: Tensor) -> tuple[str, str]:
    """What log p(x) measures, "mass" or "density", and the space that it is spread over ("boolean^784"), from the
    support of the observed sites, in which x must lie: each datum in its own, where that depends on it.

    Raises `ValueError` for a pair that breaks the contract, and for data outside of the support.
    """
    trace, _ = check_structure(model, guide, *(t[:1] for t in data))
    for chunk in chunks_of_data(CHUNK_DATA, *data):
        raise_first(support_of(plain_trace(model, *chunk, latents=plain_trace(guide, *chunk))))
    fns = [site["fn"] for site in observed_sites(trace).values()]
    discrete = {fn.support.is_discrete for fn in fns}
    measure = "mixed (mass and density)" if len(discrete) > 1 else "mass" if discrete.pop() else "density"
    return measure, " x ".join(f"{support_name(fn.support)}^{fn.event_shape.numel()}" for fn in fns)


def plates(trace: Trace, num_data: int) -> Iterator[Finding]:
    """Faults in the plates, masks and scales of a program's trace: each site is in one plate, of all data, at dim -1.
    What is deterministic needs none."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        if site["mask"] is not None:
            yield Finding("mask", name, MASKED, UNMASK)
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        if not frames and site["infer"].get("_deterministic"):
            continue
        if remedy := _plate_remedy(frames, num_data):
            remedy = _ENCODE if _is_auxiliary(site) else remedy
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
    if frames[0].size not in (num_data, -1):  # a plate without a size has -1
        subsampled = frames[0].size != frames[0].full_size
        return WHOLE if subsampled else "Give the plate the size len(x)"
    return ""


def sites(model_trace: Trace, guide_trace: Trace) -> Iterator[Finding]:
    """Faults in what a pair samples and observes: `latents`, and a model that observes nothing."""
    yield from latents(model_trace, guide_trace)
    yield from observed(model_trace)


def observed(model_trace: Trace) -> Iterator[Finding]:
    if not observed_sites(model_trace):
        message = "the model: expected an observed site; got none"
        yield Finding("observed", "", message, "Pass obs=x to pyro.sample")


def latents(model_trace: Trace, guide_trace: Trace) -> Iterator[Finding]:
    """Faults in the latent sites: the two programs share them, at least one, and those of the guide have a density."""
    in_guide = sample_sites(guide_trace, observed=False)
    if not in_guide:
        remedy = "An autoencoder has a reconstruction loss and no log p(x): sample a latent site in both programs"
        yield Finding("latents", "", "the guide: expected a latent site; got none", remedy)
    yield from shared_latents(model_trace, guide_trace)
    for name, site in in_guide.items():
        if _is_point(site["fn"]) and not any(map(_is_auxiliary, in_guide.values())):
            message = "in the guide: expected a distribution; got a point (Delta)"
            yield Finding("support", name, message, "Give it a spread: a point has no importance weight")


def shared_latents(model_trace: Trace, guide_trace: Trace) -> Iterator[Finding]:
    """The latent sites that only one of the two programs has."""
    in_model, in_guide = (sample_sites(t, observed=False) for t in (model_trace, guide_trace))
    for name in sorted(set(in_model) ^ set(in_guide)):
        has, lacks = ("model", "guide") if name in in_model else ("guide", "model")
        message = f"expected it in both model and guide; got it in the {has} alone"
        if name in in_guide and _is_auxiliary(in_guide[name]):
            message = "expected a latent site of the model; got an auxiliary one, of an autoguide"
            yield Finding("latents", name, message, _ENCODE)
        elif name in in_model and in_model[name]["infer"].get("enumerate"):
            remedy = "Train it by TraceEnum_ELBO; for log p(x), sum it out (MixtureSameFamily), or add it to the guide"
            yield Finding("enumerated", name, message, remedy)
        else:
            yield Finding("latents", name, message, f"Add it to the {lacks}, or take it out of the {has}")


_ENCODE = "An autoguide has parameters for the data that it was set up with alone: write a guide that encodes x"


def _is_auxiliary(site: dict) -> bool:
    return bool(site["infer"].get("is_auxiliary"))


def params(declared: Trace, *programs: Program) -> Iterator[Finding]:
    """Faults in the parameters of a trace: each is one that a module has, or is bare (`pyro.param`)."""
    yield from unseen(declared, *programs)
    for name, site in _param_sites(declared):
        trained, own = site["value"].unconstrained(), site["args"][-1]
        if not isinstance(own, nn.Parameter) or trained is own:
            continue
        if own.is_contiguous():
            got = "expected the module's parameter; got another of this name in Pyro's param store, to be trained"
            remedy = "Give each module a name of its own in pyro.module, or call pyro.clear_param_store()"
            yield Finding("gradients", name, got, remedy)
        else:
            got = "expected a contiguous nn.Parameter; got one that Pyro's param store copies, to train the copy"
            yield Finding("gradients", name, got, "Make it contiguous: nn.Parameter(value.contiguous())")


def unseen(declared: Trace, *programs: Program) -> Iterator[Finding]:
    """The parameters of a trace that are of modules which aren't found: these stay in the mode that they are in."""
    ours = {id(p) for module in modules_of(*programs) for p in module.parameters()}
    for name, site in _param_sites(declared):
        own = site["args"][-1]
        is_own = isinstance(own, nn.Parameter) and own is site["value"].unconstrained()
        if "$$$" in name and is_own and id(own) not in ours:
            got = "expected a parameter of a module that the program refers to; got another, whose mode isn't known"
            remedy = "Let the program use the module by a variable, an attribute or a global name"
            yield Finding("modules", name, got, remedy)


def _param_sites(trace: Trace) -> list[tuple[str, dict]]:
    return [(name, site) for name, site in trace.nodes.items() if site["type"] == "param"]


def _is_point(fn: Distribution) -> bool:
    """Whether a distribution is a Delta, which has no density to weight by."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def observed_sites(trace: Trace) -> dict[str, dict]:
    """The observed sample sites of a trace by name, without factors."""
    return {name: site for name, site in trace.nodes.items() if is_observation(site)}


def is_observation(site: Any) -> bool:
    """Whether a site of a trace, or a handler's message, is an observed sample site, and no factor."""
    return is_random(site) and site["is_observed"] and not site_is_factor(site)


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


def check_scores_any(guide: Program, *datum: Tensor) -> None:
    """Raises `ValueError` for a guide that scores its own draws alone: a flow without an inverse."""
    values = {
        name: site["value"].clone() for name, site in sample_sites(plain_trace(guide, *datum), observed=False).items()
    }
    try:
        plain = plain_trace(guide, *datum, latents=trace_of(values))
        log_prob_per_datum(plain, (len(datum[0]),))
    except (KeyError, NotImplementedError):  # as Pyro's transforms raise
        raise ValueError(
            f"the guide: {SCORES_ITS_OWN}. `log_likelihood` wants no more than that, nor does annealing from the prior"
        ) from None


def check_same_without_x(name: str, log_p: Tensor, at_other_x: Tensor) -> None:
    """Raises `ValueError` where a log-prob of the same value differs as the program is given another x."""
    if not torch.allclose(log_p, at_other_x):
        raise ValueError(f"site {name!r}: expected a distribution that does not depend on x; got one that does")


def scored(model_trace: Trace, num_data: int) -> Iterator[Finding]:
    """Observed values of a plain trace that their distributions don't score by one number a datum."""
    for name, site in observed_sites(model_trace).items():
        fn, value = site["fn"], site["value"]
        try:
            shape = tuple(fn.log_prob(value).shape)
        except RuntimeError:
            if finding := _outside_support(name, fn.support, value):  # a class that there is none of is no index
                yield finding
                continue
            if value.is_floating_point():
                raise
            dtype = torch.get_default_dtype()
            message = f"expected observed values of {dtype}; got {value.dtype}"
            yield Finding("dtype", name, message, f"Convert them: .to({dtype})")
            continue
        if shape != (num_data,) and value.shape != (num_data, *fn.event_shape):
            expected = ", ".join(["data", *map(str, fn.event_shape)]) + "," * (not fn.event_shape)
            message = (
                f"expected observed values of shape ({expected}), for one log-prob a datum; got {tuple(value.shape)}"
            )
            fits = value.numel() == num_data * fn.event_shape.numel()
            yield Finding("particles", name, message, f"Reshape them to ({expected})" if fits else event_of(value))


def support_of(model_trace: Trace) -> Iterator[Finding]:
    """Observed values outside of their support. A NaN that the likelihood scores is one that it knows for missing."""
    for name, site in observed_sites(model_trace).items():
        fn, values = site["fn"], site["value"]
        missing = bool(values.isnan().any()) and bool(fn.log_prob(values).isfinite().all())
        if finding := _outside_support(name, fn.support, values, but_nan=missing):
            yield finding


def _outside_support(name: str, support: Constraint, values: Tensor, *, but_nan: bool = False) -> Finding | None:
    message = outside(support, values, "data", but_nan=but_nan)
    if not message:
        return None
    remedy = "Encode x so that it is inside, or take a likelihood that allows for it"
    if support_name(support) == "boolean" and 0 <= values.min() <= values.max() <= 1:
        remedy = (
            "A Bernoulli on grey pixels is no likelihood: binarise x (encoding binarize), or take a likelihood "
            "for grey pixels (ContinuousBernoulli, on dequantised images)"
        )
    return Finding("support", name, message, remedy)


def outside(support: Constraint, values: Tensor, what: str, *, but_nan: bool = False) -> str:
    """What is wrong with values (rows, *event) of which some are outside of a support, NaN or infinite; "" for none."""
    is_bad = ~support.check(values).reshape(len(values), -1).all(-1) | values.isinf().reshape(len(values), -1).any(-1)
    if but_nan:
        is_bad &= ~values.isnan().reshape(len(values), -1).any(-1)
    if not len(bad := values[is_bad]):
        return ""
    got = "NaN" if bad.isnan().any() else f"values in [{bad.min():.4g}, {bad.max():.4g}]"
    return f"expected {support_in_words(support)}; got {len(bad)} {what} outside, {got}"


def support_in_words(support: Constraint) -> str:
    """
    >>> support_in_words(torch.distributions.constraints.nonnegative_integer)
    'counts (0, 1, 2, ...)'
    """
    name = support_name(support)
    words = {
        "boolean": "values in {0, 1}",
        "real": "real numbers",
        "interval(lower_bound=0.0, upper_bound=1.0)": "values in [0, 1]",
        "integergreaterthan(lower_bound=0)": "counts (0, 1, 2, ...)",
        "integerinterval(lower_bound=0, upper_bound=255)": "whole numbers from 0 to 255",
    }
    return words.get(name, f"values in {name}")


def support_name(support: Constraint) -> str:
    """Its name, with its bounds where they are one for all."""
    while hasattr(support, "base_constraint"):  # of independent dimensions, and of mixtures
        support = support.base_constraint
    name = str(support).removesuffix("()").lower()
    return name.partition("(")[0] if "tensor" in name else name
