"""log p(x) of each datum by importance sampling from the guide, for any Pyro pair with one data plate."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext

import torch
from torch import Tensor

from ppl_vae.contract import check_structure, measure_of, tensors_of
from ppl_vae.evaluation.chunks import blocks_of, chunks_of, rows_per_chunk, seed_of
from ppl_vae.evaluation.packing import packed, unpacked_call
from ppl_vae.evaluation.quantity import quantity_of
from ppl_vae.evaluation.refined import Refined
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
from ppl_vae.system.executors import apart
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.places import Constants
from ppl_vae.system.progress import progress


def log_weights(model: Program, guide: Program, x: Tensor, *args: Tensor, num_samples: int) -> Tensor:
    """log w = log p(x, z) - log q(z|x) for z ~ q(z|x), per datum, in nats, shape (samples, data).

    All at once and with torch's own random generator: `log_likelihood` is the same, streaming and seeded.
    Programs run in evaluation mode. `args` are the programs' further arguments, batched with x.

    Raises `ValueError` for num_samples < 1, a site that is masked or not in one data plate, a guide without latent
    sites, a latent site that only one of the two has, or a site whose log-prob is not one number per datum.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1; got {num_samples}")
    data = tensors_of(model, guide, x, *args)
    with evaluating(model, guide):
        return LogWeights(model, guide, *data)(*data, num_samples=num_samples)


class LogWeights:
    """log w of blocks of data, shape (samples, data): the guide samples for a whole block, the model scores about
    `rows` rows (samples x data) at a time. Both parts are functions of tensors, to be compiled."""

    def __init__(self, model: Program, guide: Program, *example: Tensor, rows: int = 0):
        self.model, self.guide, self.rows = model, guide, rows
        with torch.random.fork_rng():  # the check leaves the noise as it was
            _, guide_trace = check_structure(model, guide, *example)
        self.names = [*sample_sites(guide_trace, observed=False)]
        self.draw: Callable[..., tuple[Tensor, ...]] = self._draw
        self.score: Callable[..., tuple[Tensor, ...]] = self._score

    def compile(self) -> None:
        constants = Constants(self.model, self.guide)
        self.draw, self.score = Compiled(self._draw, constants), Compiled(self._score, constants)

    def only(self, *data: Tensor) -> LogWeights:
        """The same, not compiled, for these data: what another process needs."""
        guide = self.guide.only(*data) if isinstance(self.guide, Refined) else self.guide
        part = copy.copy(self)
        part.guide, part.draw, part.score = guide, part._draw, part._score
        return part

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
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    executor: Executor | None = None,
    encoding: str = "",
    source: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, with its Monte Carlo error: the importance-weighted bound with K samples,

        log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x).

    Its expectation is a lower bound that rises with K. Yuri Burda, Roger Grosse, Ruslan Salakhutdinov:
    Importance Weighted Autoencoders, 2015, arXiv:1509.00519.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it: tensors, or what numpy
            takes for an array.
        num_samples: K, exactly so many for each datum.
        seed: of the samples. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take; chosen to fit the cache by default. Memory does not grow with K,
            but for the tail of 3 sqrt(K) weights that the diagnosis keeps for each datum.
        compiled: whether blocks of samples are traced and compiled (`ppl_vae.graphs`). By default where the
            number of samples repays it. The noise is the same either way.
        executor: does blocks of data apart, not compiled; the result is that of `compiled=False`, bit for bit. The
            programs are pickled.
        encoding: how x was made from images, to be named in the result (`compare` wants it equal).
        source: fingerprint of those images, for comparisons across encodings.
        show_progress: a bar, on standard error, while it works.

    An interrupt (Ctrl-C) ends the work: the result is of the samples that each datum has by then, and is not
    `complete`.

    Raises `ValueError` as `log_weights` does, and for NaN in x or x outside of the support of its likelihood.
    """
    data = tensors_of(model, guide, x, *args)
    check_options(num_samples, memory)
    statistics, complete = LogMeanExp(len(data[0]), num_samples, device=data[0].device), True
    with evaluating(model, guide), seeded(seed):
        measure, space = measure_of(model, guide, *data)
        quantity, given = quantity_of(model, guide, *data)
        weights = chunked_log_weights(model, guide, *data, memory=memory)
        if compiled and executor is None:
            weights.compile()
        try:
            add_samples(
                statistics,
                torch.arange(len(data[0]), device=data[0].device),
                weights,
                data,
                num_samples=num_samples,
                seed=seed_of(seed, 0),
                compile_if_repaid=compiled is None,
                show_progress=show_progress,
                executor=executor,
            )
        except KeyboardInterrupt:
            complete = False
    return LogLikelihood(
        **statistics.estimates(),
        measure=measure,
        encoding=encoding,
        fingerprint=fingerprint(data[0]),
        bound="lower (importance-weighted, in expectation)",
        source=source,
        space=space,
        quantity=quantity,
        given=given,
        decoder_rows=int(statistics.count.sum()),
        complete=complete,
    )


def check_options(num_samples: int, memory: int | None) -> None:
    """Raises `ValueError` for sizes below 1."""
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1; got {num_samples}")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory: expected bytes above 0; got {memory}")


def chunked_log_weights(model: Program, guide: Program, *data: Tensor, memory: int | None) -> LogWeights:
    """log w of such data, decoded in chunks that take about `memory` bytes."""
    datum = [t[:1] for t in data]
    return LogWeights(model, guide, *datum, rows=rows_per_chunk(model, guide, *datum, memory=memory))


def add_samples(
    statistics: LogMeanExp,
    index: Tensor,
    weights: LogWeights,
    data: tuple[Tensor, ...],
    *,
    num_samples: int,
    seed: int,
    compile_if_repaid: bool = False,
    show_progress: bool = False,
    executor: Executor | None = None,
) -> None:
    """Adds `num_samples` weights for each of the data, which are those at `index` of the statistics. The blocks after
    the first are compiled if that repays and is wanted, or done by an executor, those of the same data together."""
    blocks = list(blocks_of(len(index), num_samples))
    if executor is not None:
        numbers: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for number, (samples, part) in enumerate(blocks):
            numbers[part.start, part.stop].append((number, samples.stop - samples.start))
        calls = {}
        for (start, stop), of_part in numbers.items():
            copies = tuple(t[start:stop].clone() for t in data)  # of a view, all of its memory would be packed
            calls[f"{start}:{stop}"] = (packed(_weighed, weights.only(*copies), copies, num_samples, seed, of_part),)
        with progress("log p(x)", len(calls), enabled=show_progress) as report:
            for name, result in apart(executor, unpacked_call, calls):
                statistics.put(result(), index[slice(*map(int, name.split(":")))])
                report()
        return
    with progress("log p(x)", len(blocks), enabled=show_progress) as report:
        for number, (samples, part) in enumerate(blocks):
            torch.manual_seed(seed_of(seed, number))
            block = [t[part] for t in data]
            with flop_counter() if compile_if_repaid and number == 0 else nullcontext() as flops:
                log_w = weights(*block, num_samples=samples.stop - samples.start)
            if flops is not None and repays(len(blocks), flops.get_total_flops()):
                weights.compile()
            statistics.add(log_w, index[part])
            report()


def _weighed(
    weights: LogWeights, data: tuple[Tensor, ...], num_samples: int, seed: int, blocks: list[tuple[int, int]]
) -> LogMeanExp:
    """The statistics of some data, from blocks by number and size, in a process of their own."""
    statistics = LogMeanExp(len(data[0]), num_samples, device=data[0].device)
    everyone = torch.arange(len(data[0]), device=data[0].device)
    with evaluating(weights.model, weights.guide), seeded(seed):
        for number, size in blocks:
            torch.manual_seed(seed_of(seed, number))
            statistics.add(weights(*data, num_samples=size), everyone)
    return statistics
