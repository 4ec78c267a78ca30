"""What is scored given what: log p(x), log p(x | y) and log p(x, y) are different things."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from ppl_vae.contract import observed_sites, plain_trace
from ppl_vae.evaluation.chunks import chunks_of_data
from ppl_vae.programs import Program, log_prob_per_datum, sample_sites, sum_of_sites
from ppl_vae.system.hashing import chunks, fingerprint

SOME_DATA = 8  # on which the model is tried with the arguments of other data


def quantity_of(model: Program, guide: Program, *data: Tensor) -> tuple[str, str]:
    """What the weights of a pair estimate, "log p(x, y | c)", and fingerprints of all that it depends on but x.

    Scored are x and what the model observes besides, by the name of the argument or of the site; and discrete latent
    sites that the guide pins to an argument (labels that are known). Given are arguments that the model depends on
    without observing them. What the guide alone sees, a noisy image say, is neither.
    """
    x, *args = data
    names = _argument_names(model, len(args))
    some = [t[:SOME_DATA] for t in data]
    guide_trace = plain_trace(guide, *some)
    trace = plain_trace(model, *some, latents=guide_trace)
    scored, used = ["x seen" if any(part.isnan().any() for part in chunks(x)) else "x"], []
    for site, value in ((name, s["value"]) for name, s in observed_sites(trace).items()):
        of = [i for i, t in enumerate(some[1:]) if _same(value, t)]
        used += of
        if not _same(value, some[0]) and len(observed_sites(trace)) > 1:
            scored.append(names[of[0]] if of else site)
    for i, name in enumerate(names):
        if i in used:
            continue
        known = _num_pinned(guide, i, *data) if not args[i].is_floating_point() else 0
        if known:
            used.append(i)
            scored.append(name if known == len(x) else f"{name} of {known} of {len(x)} data")
    given = [i for i, _ in enumerate(args) if i not in used and _matters(model, guide_trace, some, i + 1)]
    quantity = ", ".join(dict.fromkeys(scored)) + " | " * bool(given) + ", ".join(names[i] for i in given)
    return f"log p({quantity})", " ".join(f"{names[i]}: {fingerprint(args[i])}" for i in sorted({*used, *given}))


def _argument_names(model: Program, number: int) -> list[str]:
    """Of the arguments after x."""
    try:
        parameters = [*inspect.signature(model).parameters.values()][1:]
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"argument {i + 1}" for i in range(number)]


def _same(value: Tensor, argument: Tensor) -> bool:
    return value.numel() == argument.numel() and bool((value.reshape(-1) == argument.reshape(-1)).all())


def _num_pinned(guide: Program, i: int, *data: Tensor) -> int:
    """For how many data a discrete latent site has all its mass on the argument's value."""
    number = 0
    for chunk in chunks_of_data(512, *data):
        trace = plain_trace(guide, *chunk)
        log_q = log_prob_per_datum(trace, (len(chunk[0]),))
        for name, site in sample_sites(trace, observed=False).items():
            if site["fn"].support.is_discrete and site["value"].shape == chunk[i + 1].shape:
                number += int(((log_q[name] == 0) & (site["value"] == chunk[i + 1])).sum())
    return number


def _matters(model: Program, guide_trace: object, data: list[Tensor], i: int) -> bool:
    """Whether the log-prob of the model changes with an argument, at the same latents."""
    others = data[i].flip(0)
    if others.equal(data[i]):
        others = torch.zeros_like(data[i]) if data[i].any() else torch.ones_like(data[i])
    shape = (len(data[0]),)
    try:
        a, b = (
            sum_of_sites(plain_trace(model, *data[:i], t, *data[i + 1 :], latents=guide_trace), shape)  # type: ignore
            for t in (data[i], others)
        )
    except Exception:  # a value that it does not take: it looks at them
        return True
    return not torch.allclose(a, b, equal_nan=True)
