"""What is monitored in training: the parts of the ELBO, posterior collapse, and where a loss that is not finite comes
from, with what to try."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_vae.distributions import kl_divergence
from ppl_vae.likelihoods import Rescaled
from ppl_vae.networks import Log1p
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    innermost,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    seeded,
)
from ppl_vae.system.places import modules_of
from ppl_vae.system.rows import chunks_of_data

TINY = 1e-4  # a scale below it is the cause of a log-prob that is not finite
COLLAPSED = 5e-3  # nats a datum, 0.01 / 2: less than the KL of one unit whose means have the variance of an active one
LARGE = 150.0  # a standard deviation (of 8-bit levels: below 128) or mean of x that networks aren't initialised for
WIDE = 3.0  # one that they are slow to learn
NARROW = 1e-2  # one of which they see next to nothing
OUTLIER = 1e6  # times as far from the median as the others are on average
FAR = 10.0  # times where it began, that a run is to end below, to be named
_FINITE = "data without NaN and infinity, as encoded"
_OF_GUIDE = "a larger scale of the guide"
_BOUNDED = "a bound on what overflows there (exp), or is divided by 0"


class Finding(NamedTuple):
    """What is wrong with a site, in words, and what to try: "" where only a smaller learning rate is left to try."""

    text: str
    remedy: str


def first_nonfinite(model: Program, guide: Program, *args: Tensor) -> Finding | None:
    """The first site with a value or log-prob that is not finite, in the order of the programs and the guide's first,
    or what is not finite in the data of such a site; None where all are. Programs run in evaluation mode; where they
    raise on finite data, nothing is known: None."""
    found: Finding | None = None
    bad_data = [
        Finding(f"the data, {f'further argument {i}' if i else 'x'}: {bad}", _FINITE)
        for i, data in enumerate(args)
        if (bad := _nonfinite(data))
    ]
    try:
        with evaluating(model, guide):
            guide_trace = poutine.trace(guide).get_trace(*args)
            found = next(_findings(guide_trace, "guide"), None)
            if found is None:
                model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args)
                found = next(_findings(model_trace, "model"), None)
    except (ValueError, RuntimeError, IndexError):  # sampling from NaN
        return next(iter(bad_data), None)
    return next(iter(bad_data), found) if found is not None else None


def _findings(trace: Trace, program: str) -> Iterator[Finding]:
    latent, observed = (sample_sites(trace, observed=observed) for observed in (False, True))
    for name, site in (latent | observed).items():
        fn, value = site["fn"], torch.as_tensor(site["value"])
        where = f"site {name!r} of the {program}"
        if bad := _nonfinite(value):
            if site["is_observed"]:
                yield Finding(f"{where}: observed data with {bad}", _FINITE)
            else:
                yield Finding(f"{where}: values with {bad}, sampled from {_described(fn)}", "")
        elif bad := _nonfinite(fn.log_prob(value)):
            yield Finding(
                f"{where}: a log-prob with {bad}, of {_described(fn)}", _remedy(fn, value, site["is_observed"])
            )


def _nonfinite(values: Tensor) -> str:
    finite = values.isfinite()
    return "" if bool(finite.all()) else f"{values[~finite][0].item()}"


def _remedy(fn: Distribution, value: Tensor, observed: bool) -> str:
    support = fn.support
    if support is not None and not bool(support.check(value).all()):
        return "data in the support of the likelihood" if observed else ""
    scale = _scale(fn)
    if scale is not None and scale < TINY:
        larger = "a larger scale of the likelihood" if observed else f"{_OF_GUIDE}, bounded below"
        return f"{larger}, now {scale:.3g}"
    return ""


def _described(fn: Distribution) -> str:
    name, scale = type(innermost(fn)).__name__, _scale(fn)
    return name if scale is None else f"{name} with a scale of {scale:.3g}"


def _scale(fn: Distribution) -> float | None:
    """The smallest, if the distribution has one."""
    scale = getattr(innermost(fn), "scale", None)
    return None if scale is None else float(torch.as_tensor(scale).min())


def blame(
    before: Finding | None,
    after: Finding | None,
    args: tuple[Tensor, ...],
    learning_rate: float | None,
    *programs: Program,
) -> str:
    """What is to blame, and what to try, from what was found at the weights before the epoch and at the last."""
    scale = out_of_scale(args[0], *programs)
    if before is not None:  # no learning rate helps
        own = "" if scale and before.remedy.startswith(_OF_GUIDE) else before.remedy  # which is small as x is large
        return f"; {before.text}. Try {own or scale or _BOUNDED}"
    remedy = scale or "a smaller learning rate" + ("" if learning_rate is None else f" than {learning_rate:g}")
    found = "" if after is None else f"; all was finite before this epoch, and now {after.text}"
    return f"{found}. Try {remedy}"


def out_of_scale(x: Tensor, *programs: Program, above: float = LARGE) -> str:
    """What to try for data of so large a mean or standard deviation, over data or in a dimension, that training fails:
    "" where the programs rescale them. Counts are told from `LARGE` on: those of a smaller scale are learned."""
    values = _finite_rows(x)
    if len(values) < 2:
        return ""
    are_counts = _are_counts(values)
    mean, std = values.mean(0), values.std(0)
    is_wide = bool(std.max() > (LARGE if are_counts else above))
    if is_wide and (outlier := _outlier(values[:, std.argmax()])):
        return outlier
    if _have(Log1p if are_counts else Rescaled, *programs):
        return ""
    if is_wide:
        return _scaled(f"a standard deviation of {_rounded(std.max())}", are_counts=are_counts)
    largest = mean[mean.abs().argmax()]
    return "" if are_counts or not largest.abs() > above else _scaled(f"a mean of {_rounded(largest)}")


def _hardly_seen(x: Tensor, *programs: Program) -> str:
    """What to try for data of so small a standard deviation that latents can tell nothing of them."""
    values = _finite_rows(x)
    if len(values) < 2 or _are_counts(values) or _have(Rescaled, *programs):
        return ""
    std = values.std(0).max()
    return _scaled(f"a standard deviation of {_rounded(std)}") if 0 < std < NARROW else ""


def _scaled(got: str, *, are_counts: bool = False) -> str:
    if are_counts:
        return f"log(1 + x) as the encoder's input: x has {got}"
    return f"standardised data, (x - mean) / std by dimension (--standardize): x has {got}"


def _outlier(column: Tensor) -> str:
    off = (column - column.median()).abs()
    if len(off) < 3 or not off.max() > OUTLIER * (off.sum() - off.max()) / (len(off) - 1):
        return ""
    return f"data without outliers: x has a value of {column[off.argmax()]:.3g}, and a median of {column.median():.3g}"


def _rounded(value: Tensor) -> str:
    return f"{float(f'{value:.2g}'):,.15g}"


def _are_counts(values: Tensor) -> bool:
    return values.equal(values.round()) and bool((values >= 0).all())


def _finite_rows(x: Tensor) -> Tensor:
    values = x.detach().double().reshape(len(x), -1)
    return values[values.isfinite().all(-1)]


def warn_of_end(rows: list[dict[str, float]], x: Tensor, *programs: Program) -> None:
    """Warns of a posterior that has collapsed, and of a run that ended far below where it began, or, on data out of
    scale that no program rescales, far below independent normals."""
    last = rows[-1]
    kl = last.get("validation_kl", last.get("train_kl", 0.0))
    if 0 < kl < COLLAPSED:  # it is 0 where nothing is latent
        scale = out_of_scale(x, *programs) or _hardly_seen(x, *programs)
        _warn(
            f"posterior collapse: expected latents that depend on the data; got a KL of {kl:.2g} nats a datum, with "
            f"almost no unit active. Try {scale or 'a KL warm-up, free bits, a smaller beta or a weaker decoder'}"
        )
    began, ended = -rows[0]["loss"], last["train_elbo"]
    if ended < began - FAR * max(abs(began), FAR):
        remedy = out_of_scale(x, *programs) or "a smaller learning rate, or clip_norm"
        _warn(f"the ELBO ended far below where it began: from {began:.3g} to {ended:.3g} nats a datum. Try {remedy}")
    elif ended < (simple := _of_normals(x)) - FAR * x[0].numel() and (scale := out_of_scale(x, *programs, above=WIDE)):
        _warn(f"the ELBO ended at {ended:.3g} nats a datum, where independent normals have {simple:.3g}. Try {scale}")


def _have(kind: type[nn.Module], *programs: Program) -> bool:
    return any(isinstance(m, kind) for module in modules_of(*programs) for m in module.modules())


def _of_normals(x: Tensor) -> float:
    """The mean log p(x) of normals of the mean and standard deviation of each dimension, of 1 at least: below it, x may
    be of few values, such as a pixel that is always 0, of which a density says little."""
    values = _finite_rows(x)
    if len(values) < 2:
        return -math.inf
    return -(values.std(0, correction=0).clamp(min=1.0).log() + 0.5 * math.log(2 * math.pi * math.e)).sum().item()


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def mean_parts(
    model: Program, guide: Program, args: tuple[Tensor, ...], seed: int, objective: ELBO | None = None
) -> dict[str, float]:
    """The mean ELBO of the data and its parts; of an objective that enumerates sites its own bound alone."""
    if isinstance(objective, TraceEnum_ELBO):
        with seeded(seed), evaluating(model, guide):
            losses = [objective.loss(model, guide, *chunk) for chunk in chunks_of_data(CHUNK, *args)]
        return {"elbo": -math.fsum(losses) / len(args[0])}
    reconstruction, kl = (part.double().mean().item() for part in elbo_parts(model, guide, *args, seed=seed))
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


CHUNK = 512  # data that are evaluated together


class ElboParts(NamedTuple):
    """The ELBO's two parts for each datum, in nats, shape (data,): ELBO = reconstruction - kl."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        return self.reconstruction - self.kl


def elbo_parts(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_samples: int = 1,
    seed: int = 0,
    chunk: int = CHUNK,
) -> ElboParts:
    """E_q[log p(x|z)] and KL(q(z|x) || p(z)) for each datum, in nats, by `num_samples` samples of the guide.

    A latent site's KL is in closed form where there is one for the two distributions, given the latent sites above
    it, if the guide draws its sites in the order of the model (see `ClosedFormKL`); else it is the mean of
    log q - log p over the same samples. Programs run in evaluation mode, on `chunk` data at a time. For a guide
    without latent sites (an autoencoder) the KL is 0.

    Raises `ValueError` for a site that is masked or not independent per datum.
    """
    with seeded(seed), evaluating(model, guide):
        parts = [_elbo_parts(model, guide, *data, num_samples=num_samples) for data in chunks_of_data(chunk, x, *args)]
    return ElboParts(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _elbo_parts(model: Program, guide: Program, *data: Tensor, num_samples: int) -> ElboParts:
    shape = (num_samples, len(data[0]))
    guide_trace = guide_trace_of(guide, *data, num_samples=num_samples)
    model_trace = model_trace_of(model, guide_trace, *data, num_samples=num_samples)
    log_p, log_q = log_prob_per_datum(model_trace, shape), log_prob_per_datum(guide_trace, shape)
    reconstruction = sum(log_p[name] for name in sample_sites(model_trace, observed=True))
    kl = torch.zeros(shape, device=data[0].device)
    qs, ps = (sample_sites(trace, observed=False) for trace in (guide_trace, model_trace))
    for name, q in qs.items():
        try:
            if [*qs] != [*ps]:
                raise NotImplementedError
            kl = kl + kl_divergence(q["fn"], ps[name]["fn"]).expand(shape)
        except NotImplementedError:
            kl = kl + log_q[name] - log_p[name]
    assert isinstance(reconstruction, Tensor)
    return ElboParts(reconstruction.mean(0), kl.mean(0))
