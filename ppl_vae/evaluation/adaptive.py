"""log p(x) by a ladder: for each datum the cheapest of guide, refined posterior and annealing that can be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_vae.contract import tensors_of
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.importance import check_options, log_likelihood
from ppl_vae.evaluation.refinement import refine
from ppl_vae.evaluation.results import ANNEALED, GUIDE, REFINED, LogLikelihood, over_limit, rungs_of, surely_below_limit
from ppl_vae.programs import Program
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.rows import select

MAX_FACTOR = 64  # of num_samples, by default
ANNEALING_STEPS, ANNEALING_CHAINS = (25, 100, 400), 128
MAX_SHARE, VERDICT_DATA = 0.1, 128  # of data over the limit that a guide may have, by so many data
PER_DATUM = ("log_p", "mc_se", "ess", "khat", "num_samples", "missed")

Rung = Callable[..., LogLikelihood]
"""An estimator of log p(x): `rung(*data, seed=...)`."""


def log_likelihood_within(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    tolerance: float = math.inf,
    num_samples: int = 1000,
    max_samples: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    executor: Executor | None = None,
    encoding: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, that needs no warning, by the first rung of a ladder whose pilot samples have a
    k-hat below its limit, by its standard error (`khat_error`) at least, and a Monte Carlo error of at most `tolerance`
    nats (by default any):

    1. importance sampling from the guide, K = `num_samples`, unless more than a tenth of the data are over the limit:
       then none of them is believed, since those that missed their large weights have small k-hats;
    2. from the posterior refined for each datum (`refine`), K = `num_samples` and then 4, 16, ... times as many, up to
       `max_samples` (64 times as many by default);
    3. annealing from the refined posterior, 128 chains in 25, 100 or 400 steps.

    Where the posterior can't be refined (a discrete latent site, a likelihood without a gradient), it says so in a
    `RuntimeWarning`, and the samples are of the guide. `result.rung` tells where each datum stands.

    **The estimate is of fresh samples**, as many, and so is its error. Their K does not depend on their weights, so
    E[w] = p(x), and log p(x) is a lower bound in expectation with errors that hold. (To stop when the error of the
    very samples seems small favours those that missed large weights.) Where pilots missed them, the error comes out
    above the tolerance; and no sample tells of a mode where neither guide nor chains ever are.

    The other arguments are those of `log_likelihood`; what an executor does apart is the first two rungs. It takes
    about twice the time of the samples that it counts, and that of refinement. An interrupt (Ctrl-C) ends the work: the
    result has what each datum has by then, its pilot samples if there is nothing else, and is not `complete`.

    Raises `ValueError` as `log_likelihood` does, for a tolerance not above 0, and max_samples below num_samples.
    """
    data = tensors_of(model, guide, x, *args)
    check_options(num_samples, memory)
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected nats above 0; got {tolerance}")
    max_samples = max_samples or MAX_FACTOR * num_samples
    if max_samples < num_samples:
        raise ValueError(f"max_samples: expected at least num_samples = {num_samples}; got {max_samples}")
    options: dict[str, Any] = {"memory": memory, "compiled": compiled, "show_progress": show_progress}
    options["executor"] = executor
    sizes: dict[str, Any] = {"num_samples": num_samples, "max_samples": max_samples}
    return by_ladder(model, guide, data, tolerance=tolerance, seed=seed, encoding=encoding, **sizes, **options)


def by_ladder(
    model: Program,
    guide: Program,
    data: tuple[Tensor, ...],
    posterior: Program | None = None,
    *,
    tolerance: float,
    num_samples: int,
    max_samples: int,
    seed: int,
    encoding: str,
    executor: Executor | None,
    **shared: Any,
) -> LogLikelihood:
    """`log_likelihood_within`, with the refined posterior of the data where that is known (or the guide, if it can't be
    refined); else it is fitted when a rung needs it. All rungs share what else there is."""
    posteriors: list[Program] = [] if posterior is None else [posterior]

    def refined(*data: Tensor) -> Program:
        """Of the data of the first call, which are those of all others."""
        if not posteriors:
            options = {**shared, "seed": seed_of(seed, REFINED), "executor": executor}
            posteriors.append(refined_or_guide(model, guide, *data, **options))
        return posteriors[0]

    def sample(*data: Tensor, num_samples: int, seed: int, of: Callable[..., Program]) -> LogLikelihood:
        options = {**shared, "num_samples": num_samples, "encoding": encoding, "executor": executor}
        return log_likelihood(model, of(*data), *data, seed=seed, **options)

    def anneal(*data: Tensor, num_steps: int, seed: int) -> LogLikelihood:
        options = {**shared, "num_chains": ANNEALING_CHAINS, "num_steps": num_steps}
        return annealed_log_likelihood(model, refined(*data), *data, seed=seed, encoding=encoding, **options)

    rungs = [
        (GUIDE, partial(sample, num_samples=num_samples, of=lambda *data: guide)),
        *((REFINED, partial(sample, num_samples=K, of=refined)) for K in fourfold(num_samples, max_samples)),
        *((ANNEALED, partial(anneal, num_steps=T)) for T in ANNEALING_STEPS),
    ]
    result, number = climb([rung for _, rung in rungs], data, tolerance, seed=seed)
    rung = torch.tensor([kind for kind, _ in rungs])[number]
    if posteriors == [guide]:
        rung[rung == REFINED] = GUIDE
    counts = ", ".join(f"{count} {name}" for name, count in rungs_of(rung).items())
    return replace(result, rung=rung, bound=f"lower (by rung of a ladder: {counts}; in expectation)")


def fourfold(num_samples: int, max_samples: int) -> list[int]:
    """The numbers of samples of one rung after another.

    >>> fourfold(1000, 64_000)
    [1000, 4000, 16000, 64000]
    """
    sizes = [num_samples]
    while 4 * sizes[-1] <= max_samples:
        sizes.append(4 * sizes[-1])
    return sizes


def refined_or_guide(model: Program, guide: Program, *data: Tensor, **options: Any) -> Program:
    """The posterior refined for the data, or the guide where it can't be, with a `RuntimeWarning`."""
    try:
        return refine(model, guide, *data, **options)
    except ValueError as error:
        warnings.warn(f"not refined, samples are of the guide: {error}", RuntimeWarning, stacklevel=2)
        return guide


def climb(
    rungs: Sequence[Rung], data: tuple[Tensor, ...], tolerance: float, *, seed: int
) -> tuple[LogLikelihood, Tensor]:
    """log p(x) of each datum by the rung that `choose` finds for it, and the number of this rung, shape (data,).

    The estimates are of another run, whose samples the choice has not seen. An interrupt ends the work, with the
    pilots' estimates where there are no others.
    """
    rung_of, pilots, complete = choose(rungs, data, tolerance, seed=seed)
    results = [*pilots]
    with suppress(KeyboardInterrupt):
        for number in rung_of.unique().tolist() if complete else []:
            complete = False
            index = (rung_of == number).nonzero()[:, 0]
            result = rungs[number](*(select(t, index) for t in data), seed=seed_of(seed, True, number))
            results.append((index.cpu(), result))
            if not result.complete:
                break
            complete = True
    if not results:
        raise KeyboardInterrupt
    first = results[0][1]
    fields = {
        name: values.new_zeros(len(data[0])) for name in PER_DATUM if (values := getattr(first, name)) is not None
    }
    for index, result in results:
        for name, values in fields.items():
            values[index[result.done]] = getattr(result, name)[result.done]
    return replace(
        first,
        **fields,
        fingerprint=fingerprint(data[0]),
        decoder_rows=sum(result.decoder_rows for _, result in results),
        complete=complete,
    ), rung_of.cpu()


def choose(
    rungs: Sequence[Rung], data: tuple[Tensor, ...], tolerance: float, *, seed: int, max_share: float = MAX_SHARE
) -> tuple[Tensor, list[tuple[Tensor, LogLikelihood]], bool]:
    """For each datum the first rung, of rungs ever dearer, at which a pilot run has an error of at most `tolerance` and
    a k-hat below its limit, by its standard error at least, or the last one: its number, shape (data,); the pilot runs,
    with the indices of their data; and whether the work came to its end, which an interrupt keeps it from.

    More than `max_share` over the limit on the first rung, by some of the data, send all data to the second. A k-hat
    that is unknown is none below the limit. A rung but the first that raises a `ValueError` ends the ladder below it.
    """
    rest = torch.arange(len(data[0]), device=data[0].device)
    rung_of = torch.zeros_like(rest)
    pilots: list[tuple[Tensor, LogLikelihood]] = []

    def run(number: int, index: Tensor) -> LogLikelihood:
        result = rungs[number](*(select(t, index) for t in data), seed=seed_of(seed, False, number))
        pilots.append((index.cpu(), result))
        if not result.complete:
            raise KeyboardInterrupt
        return result

    def bad(pilot: LogLikelihood) -> Tensor:
        return pilot.khat.isnan() | over_limit(pilot.khat, pilot.num_samples)

    try:
        some = rest[:: -(-len(rest) // VERDICT_DATA)]
        is_poor = len(rungs) > 1 and max_share < 1 and bad(run(0, some)).double().mean() > max_share
        for number in range(int(is_poor), len(rungs)):
            try:
                pilot = run(number, rest)
            except ValueError:
                if number == 0:
                    raise
                break
            rung_of[rest] = number
            sure = (pilot.mc_se <= tolerance) & surely_below_limit(pilot.khat, pilot.num_samples)
            rest = rest[~sure.to(rest.device)]
            if not len(rest):
                break
    except KeyboardInterrupt:
        return rung_of, pilots, False
    return rung_of, pilots, True
