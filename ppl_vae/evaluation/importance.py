"""log p(x) of each datum by importance sampling from the guide, for any Pyro pair with one data plate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from ppl_vae.contract import check_latents, check_rows, measure_of
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.chunks import blocks_of, chunks_of, rows_per_chunk, seed_of
from ppl_vae.evaluation.diagnostics import KHAT_LIMIT
from ppl_vae.evaluation.results import LogLikelihood, LogMeanExp
from ppl_vae.graphs import Compiled, flop_counter, repays
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    model_trace_of,
    sample_sites,
    seeded,
    sum_of_sites,
    trace_of,
)
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.progress import progress

ADAPTIVE = "no bound (importance-weighted{}, until the error seemed small)"
ANNEALING_STEPS, ANNEALING_CHAINS = (50, 100, 200, 400, 800), 32


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
        return LogWeights(model, guide, x, *args)(x, *args, num_samples=num_samples)


class LogWeights:
    """log w of blocks of data, shape (samples, data): the guide draws for a whole block, the model scores about
    `rows` rows (samples x data) at a time. Both parts are functions of tensors, to be compiled."""

    def __init__(self, model: Program, guide: Program, *example: Tensor, rows: int = 0):
        self.model, self.guide, self.rows = model, guide, rows
        with torch.random.fork_rng():  # a look at the sites is no draw
            guide_trace = guide_trace_of(guide, *example, num_samples=1)
            check_latents(model_trace_of(model, guide_trace, *example, num_samples=1), guide_trace)
        self.names = [*sample_sites(guide_trace, observed=False)]
        self.draw: Callable[..., tuple[Tensor, ...]] = self._draw
        self.score: Callable[..., tuple[Tensor, ...]] = self._score

    def compile(self) -> None:
        self.draw, self.score = Compiled(self._draw), Compiled(self._score)

    def _draw(self, *data: Tensor, num_samples: int) -> tuple[Tensor, ...]:
        """log q, and the latent sites' values."""
        trace = guide_trace_of(self.guide, *data, num_samples=num_samples)
        log_q = sum_of_sites(trace, (num_samples, len(data[0])))
        return log_q, *(trace.nodes[name]["value"] for name in self.names)

    def _score(self, *values_and_data: Tensor) -> tuple[Tensor]:
        """log p of the latent sites' values and the data."""
        values, data = values_and_data[: len(self.names)], values_and_data[len(self.names) :]
        shape = (len(values[0]), len(data[0]))
        trace = trace_of(dict(zip(self.names, values, strict=True)))
        return (sum_of_sites(model_trace_of(self.model, trace, *data, num_samples=shape[0]), shape),)

    def __call__(self, *data: Tensor, num_samples: int) -> Tensor:
        return self.with_values(*data, num_samples=num_samples)[0]

    def with_values(self, *data: Tensor, num_samples: int) -> tuple[Tensor, ...]:
        """log w, and the values that the latent sites, `names`, have in it, (samples, data, *event)."""
        num_data = len(data[0])
        log_q, *values = self.draw(*data, num_samples=num_samples)
        log_p = torch.empty_like(log_q)
        for samples, part in chunks_of(num_samples, num_data, self.rows or num_samples * num_data):
            chunk = (*(value[samples, part] for value in values), *(t[part] for t in data))
            (log_p[samples, part],) = self.score(*chunk)
        return log_p - log_q, *values


def log_likelihood(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_samples: int = 1000,
    tolerance: float | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    encoding: str = "",
    source: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, with its Monte Carlo error: the importance-weighted bound with K samples,

        log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x).

    Its expectation is a lower bound that rises with K. Yuri Burda, Roger Grosse, Ruslan Salakhutdinov:
    Importance Weighted Autoencoders, 2015, arXiv:1509.00519.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it.
        num_samples: K, exactly so many for each datum.
        tolerance: if given, in nats, K starts at `num_samples` and doubles for each datum whose Monte Carlo error is
            above it, or whose k-hat is above 0.7, up to `max_samples` (64 times as many by default). What is still
            above goes to annealing from the better of guide and prior, if its latent sites are continuous. To stop
            when the estimated error is small favours samples that missed large weights, and a mode that the guide
            never draws from shows in no weight: the tolerance is not a bound on the error. Since K depends on the
            weights, neither is the estimate one of log p(x), even in expectation: where rare small weights would pull
            it down, it stops before they are drawn.
        seed: of the samples. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take; chosen to fit the cache by default. Memory does not grow with K,
            but for the tail of 3 sqrt(K) weights that the diagnosis keeps for each datum.
        compiled: whether blocks of samples are traced and compiled (`ppl_vae.graphs`). By default where the
            number of samples repays it. The same noise is drawn either way.
        encoding: how x was made from images, to be named in the result (`compare` wants it equal).
        source: fingerprint of those images, for comparisons across encodings.
        show_progress: a bar, on standard error, while it works.

    An interrupt (Ctrl-C) ends the work: the result is of the samples that each datum has by then, and is not
    `complete`.

    Raises `ValueError` as `log_weights` does, and for NaN in x or x outside of the support of its likelihood.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1; got {num_samples}")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory: expected bytes above 0; got {memory}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance: expected nats above 0; got {tolerance}")
    max_samples = num_samples if tolerance is None else max_samples or 64 * num_samples
    if max_samples < num_samples:
        raise ValueError(f"max_samples: expected at least num_samples = {num_samples}; got {max_samples}")
    data = (x, *args)
    check_rows(*data)
    statistics = LogMeanExp(len(x), max_samples, device=x.device)
    unsure: Tensor | None = None
    complete = True
    active, samples, doubling = torch.arange(len(x), device=x.device), num_samples, 0
    with evaluating(model, guide), seeded(seed):
        measure, space = measure_of(model, guide, *data)
        datum = [t[:1] for t in data]
        rows = rows_per_chunk(model, guide, *datum, memory=memory)
        weights = LogWeights(model, guide, *datum, rows=rows)
        if compiled:
            weights.compile()
        try:
            while True:
                some = tuple(t[active] for t in data)
                auto = compiled is None and doubling == 0
                _sample(weights, some, samples, seed_of(seed, doubling), statistics, active, show_progress, auto)
                if tolerance is None:
                    break
                error = statistics.standard_error().nan_to_num(nan=math.inf)
                unsure = (error > tolerance) | ~(statistics.khat().to(x.device) <= KHAT_LIMIT)  # NaN is unsure
                active = (unsure & (2 * statistics.count <= max_samples)).nonzero()[:, 0]
                if not len(active):
                    break
                samples, doubling = int(statistics.count[active[0]]), doubling + 1
        except KeyboardInterrupt:
            unsure, complete = None, False
    result = LogLikelihood(
        log_p=statistics.log_mean().cpu(),
        mc_se=statistics.standard_error().cpu(),
        ess=statistics.ess().cpu(),
        khat=statistics.khat(),
        num_samples=statistics.count.cpu(),
        measure=measure,
        encoding=encoding,
        fingerprint=fingerprint(x),
        bound="lower (importance-weighted, in expectation)" if tolerance is None else ADAPTIVE.format(""),
        source=source,
        space=space,
        decoder_rows=int(statistics.count.sum()),
        complete=complete,
    )
    if unsure is None or not unsure.any():
        return result
    return _annealed(result, unsure.nonzero()[:, 0], model, guide, data, tolerance or 0.0, seed, memory, show_progress)


def _annealed(
    result: LogLikelihood,
    rest: Tensor,
    model: Program,
    guide: Program,
    data: tuple[Tensor, ...],
    tolerance: float,
    seed: int,
    memory: int | None,
    show_progress: bool,
) -> LogLikelihood:
    """The result with the data at `rest` annealed, in ever more steps until their error is below the tolerance.
    Where it can't be done (a discrete latent site), the result as it is: its k-hat says what it is worth."""
    fields = {name: getattr(result, name).clone() for name in ("log_p", "mc_se", "ess", "khat", "num_samples")}
    decoder_rows, num_annealed, complete = result.decoder_rows, 0, True
    for num_steps in ANNEALING_STEPS:
        some = tuple(t[rest] for t in data)
        try:
            annealed = annealed_log_likelihood(
                model,
                guide,
                *some,
                num_chains=ANNEALING_CHAINS,
                num_steps=num_steps,
                seed=seed_of(seed, num_steps),
                start="better",
                memory=memory,
                show_progress=show_progress,
            )
        except ValueError:
            return result
        decoder_rows += annealed.decoder_rows
        done = annealed.done
        num_annealed = max(num_annealed, int(done.sum()))
        for name, values in fields.items():
            values[rest.cpu()[done]] = getattr(annealed, name)[done]
        complete = annealed.complete
        if not complete:
            break
        rest = rest[((annealed.mc_se > tolerance) | ~(annealed.khat <= KHAT_LIMIT)).to(rest.device)]
        if not len(rest):
            break
    bound = ADAPTIVE.format(f", {num_annealed} of {len(result)} data annealed")
    return dataclasses.replace(result, **fields, bound=bound, decoder_rows=decoder_rows, complete=complete)


def _sample(
    weights: LogWeights,
    data: tuple[Tensor, ...],
    num_samples: int,
    seed: int,
    statistics: LogMeanExp,
    index: Tensor,
    show_progress: bool,
    auto: bool,
) -> None:
    """Adds `num_samples` weights for each of the data, which are those at `index` of the statistics. With `auto`,
    the blocks after the first are compiled if that repays."""
    blocks = list(blocks_of(len(index), num_samples))
    with progress("log p(x)", len(blocks), enabled=show_progress, lines=False) as report:
        for number, (samples, part) in enumerate(blocks):
            torch.manual_seed(seed_of(seed, number))
            block = [t[part] for t in data]
            with flop_counter() if auto and number == 0 else nullcontext() as flops:
                log_w = weights(*block, num_samples=samples.stop - samples.start)
            if flops is not None and repays(len(blocks), flops.get_total_flops()):
                weights.compile()
            statistics.add(log_w, index[part])
            report()
