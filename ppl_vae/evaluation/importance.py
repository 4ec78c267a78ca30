"""log p(x) of each datum by importance sampling from the guide, for any Pyro pair with one data plate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.data import fingerprint
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.evaluation.streaming import LogMeanExp
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    model_trace_of,
    part_of,
    sample_sites,
    seeded,
    sum_of_sites,
)
from ppl_vae.progress import progress

# Noise is drawn for a block of so many (sample, datum) rows, each from a seed of its own, whatever the chunk in
# which a block is then decoded: so that the result under one seed does not depend on the memory at hand.
BLOCK_ROWS, BLOCK_DATA = 4096, 64

# The largest intermediate tensor of a chunk should fit a last-level cache: 4,000 rows of 784 logits.
CACHE_BYTES = 12 << 20


def log_weights(model: Program, guide: Program, x: Tensor, *args: Tensor, num_samples: int) -> Tensor:
    """log w = log p(x, z) - log q(z|x) for z ~ q(z|x), per datum, in nats, shape (samples, data).

    All at once and with torch's own random generator: `log_likelihood` is the same, streaming and seeded.
    Programs run in evaluation mode. `args` are the programs' further arguments, batched with x.

    Raises `ValueError` for num_samples < 1, a guide without latent sites, a latent site that only one of the
    two has, a masked site, data outside of the likelihood's support, or a site whose log-prob is not one number
    per datum.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1; got {num_samples}")
    with evaluating(model, guide):
        return _log_weights(model, guide, x, *args, num_samples=num_samples)


def _log_weights(model: Program, guide: Program, *args: Tensor, num_samples: int, rows: int = 0) -> Tensor:
    """As `log_weights`, decoding about `rows` rows (samples x data) at a time, or all of them if 0."""
    shape = num_samples, num_data = num_samples, len(args[0])
    guide_trace = guide_trace_of(guide, *args, num_samples=num_samples)
    if not sample_sites(guide_trace, observed=False):
        raise ValueError(
            "the guide: expected a latent site; got none. p(x) has no estimate by importance sampling "
            "(an autoencoder has a reconstruction loss, not a likelihood)"
        )
    log_q = sum_of_sites(guide_trace, shape)
    rows = rows or num_samples * num_data
    data_step = min(rows, num_data)
    sample_step = max(rows // data_step, 1)
    log_p = torch.empty_like(log_q)
    for d in range(0, num_data, data_step):
        data = slice(d, min(d + data_step, num_data))
        for k in range(0, num_samples, sample_step):
            samples = slice(k, min(k + sample_step, num_samples))
            size = (samples.stop - samples.start, data.stop - data.start)
            part = part_of(guide_trace, samples, data)
            model_trace = model_trace_of(model, part, *(t[data] for t in args), num_samples=size[0])
            _check_latents(model_trace, guide_trace)
            log_p[samples, data] = sum_of_sites(model_trace, size)
    return log_p - log_q


def _check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    in_model, in_guide = (set(sample_sites(t, observed=False)) for t in (model_trace, guide_trace))
    for name in sorted(in_model ^ in_guide):
        has, lacks = ("model", "guide") if name in in_model else ("guide", "model")
        raise ValueError(f"site {name!r}: expected it in both model and guide; got it in the {has}, not in the {lacks}")


def log_likelihood(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_samples: int = 1000,
    seed: int = 0,
    memory: int | None = None,
    encoding: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, with its Monte Carlo error: the importance-weighted bound with K samples,

        log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x).

    Its expectation is a lower bound that rises with K. Yuri Burda, Roger Grosse, Ruslan Salakhutdinov:
    Importance Weighted Autoencoders, 2015, arXiv:1509.00519.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it.
        num_samples: K, exactly so many for each datum.
        seed: of the samples. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take; chosen to fit the cache by default. Memory does not grow with K,
            but for the tail of 3 sqrt(K) weights that the diagnosis keeps for each datum.
        encoding: how x was made from images, to be named in the result (`compare` wants it equal).

    Raises `ValueError` as `log_weights` does, and for NaN in x or x outside of the support of its likelihood.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1; got {num_samples}")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory: expected bytes above 0; got {memory}")
    data = (x, *args)
    for i, t in enumerate(data):
        if not len(t) or len(t) != len(x):
            raise ValueError(f"argument {i}: expected {max(len(x), 1)} rows; got {len(t)}")
    with evaluating(model, guide), seeded(seed):
        measure = _measure(model, guide, *data)
        rows = _chunk_rows(model, guide, *(t[:1] for t in data), memory=memory)
        statistics = LogMeanExp(len(x), num_samples, device=x.device)
        blocks = list(_blocks(len(x), num_samples))
        with progress("log p(x)", len(blocks), enabled=show_progress, lines=False) as report:
            for number, (start, stop, samples) in enumerate(blocks):
                torch.manual_seed(_mix(seed, number))
                block = tuple(t[start:stop] for t in data)
                statistics.add(_log_weights(model, guide, *block, num_samples=samples, rows=rows), start)
                report()
    return LogLikelihood(
        log_p=statistics.log_mean().cpu(),
        mc_se=statistics.standard_error().cpu(),
        ess=statistics.ess().cpu(),
        khat=statistics.khat(),
        num_samples=torch.full((len(x),), num_samples),
        measure=measure,
        encoding=encoding,
        fingerprint=fingerprint(x),
        bound="lower (importance-weighted, in expectation)",
    )


def _blocks(num_data: int, num_samples: int) -> Iterator[tuple[int, int, int]]:
    """(first datum, last datum + 1, samples) of blocks that cover every datum `num_samples` times."""
    for start in range(0, num_data, BLOCK_DATA):
        stop = min(start + BLOCK_DATA, num_data)
        per_block = max(BLOCK_ROWS // (stop - start), 1)
        for done in range(0, num_samples, per_block):
            yield start, stop, min(per_block, num_samples - done)


def _mix(seed: int, number: int) -> int:
    """A seed for each block, without the overlap of seed + number."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x2545F491) % (1 << 63)


def _measure(model: Program, guide: Program, *data: Tensor) -> str:
    """What log p(x) measures, "mass" or "density", from the support of the observed sites, which x must lie in."""
    guide_trace = guide_trace_of(guide, *(t[:1] for t in data), num_samples=1)
    model_trace = model_trace_of(model, guide_trace, *(t[:1] for t in data), num_samples=1)
    observed = sample_sites(model_trace, observed=True)
    if not observed:
        raise ValueError("the model: expected an observed site; got none")
    discrete = set()
    for name, site in observed.items():
        support = site["fn"].support
        discrete.add(support.is_discrete)
        value = site["value"]
        # The site observes x itself in most programs, and then all of x can be checked at once.
        x = data[0] if value.shape[1:] == data[0].shape[1:] and value.equal(data[0][:1]) else value
        bad = x[~support.check(x).reshape(len(x), -1).all(-1)]
        if len(bad):
            values = bad.flatten()
            remedy = ""
            if _kind(support) == "boolean" and bool(((values >= 0) & (values <= 1)).all()):
                remedy = (
                    ". A Bernoulli on grey pixels is no likelihood: binarise the images (encoding binarize), or "
                    "use a likelihood on a continuous space"
                )
            raise ValueError(
                f"site {name!r}: expected values in {_kind(support)}; got {len(bad)} data outside, with values in "
                f"[{values.min():.4g}, {values.max():.4g}]{remedy}"
            )
    if len(discrete) > 1:
        return "mixed (mass and density)"
    return "mass" if discrete.pop() else "density"


def _kind(support: Constraint) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return str(support).strip("()").lower()


class _OutputBytes(TorchDispatchMode):
    """Records the size in bytes of what each operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            self.sizes.append(t.numel() * t.element_size() if isinstance(t, Tensor) else 0)
        return result


def _chunk_rows(model: Program, guide: Program, *datum: Tensor, memory: int | None) -> int:
    """How many rows (samples x data) to decode at once, from what a row takes: measured on one datum."""
    sizes = []
    for num_samples in (2, 4):
        guide_trace = guide_trace_of(guide, *datum, num_samples=num_samples)
        with _OutputBytes() as outputs:
            model_trace_of(model, guide_trace, *datum, num_samples=num_samples)
        sizes.append(outputs.sizes)
    # The difference of the two runs is what grows with the rows: weights and constants cancel.
    per_row = max(1, max((b - a) // 2 for a, b in zip(*sizes, strict=False)))
    if memory is None:
        return max(1, CACHE_BYTES // per_row)
    return max(1, memory // (4 * per_row))  # an operation's input, its output, and what log-prob adds to them
