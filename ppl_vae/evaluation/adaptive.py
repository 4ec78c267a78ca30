"""log p(x) to a tolerance: for each datum as many importance samples as its error asks for, or else annealing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.importance import check_options, log_likelihood
from ppl_vae.evaluation.results import LogLikelihood, over_limit
from ppl_vae.programs import Program
from ppl_vae.system.hashing import fingerprint

MAX_FACTOR = 64  # of num_samples, by default
ANNEALING_STEPS, ANNEALING_CHAINS = (50, 100, 200, 400, 800), 32
PER_DATUM = ("log_p", "mc_se", "ess", "khat", "num_samples")

Rung = Callable[..., LogLikelihood]
"""An estimator of log p(x): `rung(*data, seed=...)`."""


def log_likelihood_within(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    tolerance: float,
    num_samples: int = 1000,
    max_samples: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    encoding: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, with a Monte Carlo error of about `tolerance` nats where it can.

    Pilot samples find what each datum needs: their number K begins at `num_samples` and doubles while the estimated
    error is above the tolerance, or k-hat above its limit, up to `max_samples` (64 times as many by default). What is
    still above is annealed from the better of guide and prior, in 50 to 800 steps, if its latent sites are continuous.

    **The estimate is of fresh samples**, as many, and so is its error. Their K does not depend on their weights, so
    E[w] = p(x), and log p(x) is a lower bound in expectation with errors that hold. (To stop when the error of the
    very samples seems small favours those that missed large weights.) Where pilots missed them, the error comes out
    above the tolerance; and no sample tells of a mode where neither guide nor chains ever are.

    The other arguments are those of `log_likelihood`. It takes about twice the time of the samples that it counts.
    An interrupt (Ctrl-C) ends the work: the result has what each datum has by then, its pilot samples if there is
    nothing else, and is not `complete`.

    Raises `ValueError` as `log_likelihood` does, for a tolerance not above 0, and max_samples below num_samples.
    """
    data = (x, *args)
    check_options(data, num_samples, memory)
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected nats above 0; got {tolerance}")
    max_samples = max_samples or MAX_FACTOR * num_samples
    if max_samples < num_samples:
        raise ValueError(f"max_samples: expected at least num_samples = {num_samples}; got {max_samples}")
    sizes = [num_samples]
    while 2 * sizes[-1] <= max_samples:
        sizes.append(2 * sizes[-1])
    shared: dict[str, Any] = {"memory": memory, "encoding": encoding, "show_progress": show_progress}
    sample = partial(log_likelihood, model, guide, compiled=compiled, **shared)
    anneal = partial(annealed_log_likelihood, model, guide, num_chains=ANNEALING_CHAINS, start="better", **shared)
    samples: list[Rung] = [partial(sample, num_samples=K) for K in sizes]
    chains: list[Rung] = [partial(anneal, num_steps=T) for T in ANNEALING_STEPS]
    result, rung = climb([*samples, *chains], data, tolerance, seed=seed)
    num_annealed = int((rung >= len(samples)).sum())
    return replace(
        result, bound=f"lower (K by pilot samples, {num_annealed} of {len(x)} data annealed, in expectation)"
    )


def climb(
    rungs: Sequence[Rung], data: tuple[Tensor, ...], tolerance: float, *, seed: int
) -> tuple[LogLikelihood, Tensor]:
    """log p(x) of each datum by the first rung, of rungs ever dearer, at which a pilot run has an error of at most
    `tolerance` and a k-hat below its limit, or by the last one; and the number of its rung, shape (data,).

    The estimates are of a second run, whose samples the choice has not seen. A rung but the first that raises a
    `ValueError` ends the ladder below it. An interrupt ends the work, with the pilots' estimates where there are no
    others.
    """
    rest = torch.arange(len(data[0]), device=data[0].device)
    rung_of = torch.zeros_like(rest)
    runs: list[list[tuple[Tensor, LogLikelihood]]] = [[], []]

    def run(number: int, index: Tensor, fresh: bool) -> LogLikelihood:
        result = rungs[number](*(t[index] for t in data), seed=seed_of(seed, fresh, number))
        runs[fresh].append((index.cpu(), result))
        if not result.complete:
            raise KeyboardInterrupt
        return result

    try:
        for number in range(len(rungs)):
            try:
                pilot = run(number, rest, fresh=False)
            except ValueError:
                if number == 0:
                    raise
                break
            rung_of[rest] = number
            sure = (pilot.mc_se <= tolerance) & ~pilot.khat.isnan() & ~over_limit(pilot.khat, pilot.num_samples)
            rest = rest[~sure.to(rest.device)]
            if not len(rest):
                break
        for number in rung_of.unique().tolist():
            run(number, (rung_of == number).nonzero()[:, 0], fresh=True)
        complete = True
    except KeyboardInterrupt:
        complete = False
    if not runs[0]:
        raise KeyboardInterrupt
    first, results = runs[0][0][1], [result for of_stage in runs for _, result in of_stage]
    fields = {name: getattr(first, name).clone() for name in PER_DATUM}
    for index, result in (*runs[0], *runs[1]):
        for name, values in fields.items():
            values[index[result.done]] = getattr(result, name)[result.done]
    return replace(
        first,
        **fields,
        fingerprint=fingerprint(data[0]),
        decoder_rows=sum(result.decoder_rows for result in results),
        complete=complete,
    ), rung_of.cpu()
