"""log p(x) to a tolerance: as many importance samples for each datum as its error asks for, then annealing."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ppl_vae.contract import measure_of
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.diagnostics import KHAT_LIMIT
from ppl_vae.evaluation.importance import add_samples, check_options, chunked_log_weights
from ppl_vae.evaluation.results import LogLikelihood, LogMeanExp
from ppl_vae.programs import Program, evaluating, seeded
from ppl_vae.system.hashing import fingerprint

BOUND = "no bound (importance-weighted{}, until the error seemed small)"
MAX_FACTOR = 64  # of num_samples, by default
ANNEALING_STEPS, ANNEALING_CHAINS = (50, 100, 200, 400, 800), 32
PER_DATUM = ("log_p", "mc_se", "ess", "khat", "num_samples")


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
    source: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, with an estimated Monte Carlo error of at most `tolerance` nats where it can.

    The number of importance samples starts at `num_samples` and doubles for each datum whose Monte Carlo error is
    above the tolerance, or whose k-hat is above 0.7, up to `max_samples` (64 times as many by default). What is still
    above is annealed from the better of guide and prior, if its latent sites are continuous.

    **Stopping on the estimated error is biased**, and the tolerance does not bound the error: it favours runs that
    missed large weights, and cannot see a mode that the guide never samples. Since K depends on the weights, the
    result is no lower bound either, not even in expectation: where rare small weights would pull the estimate down,
    it stops before they are sampled. `log_likelihood`, with a fixed K, gives a bound.

    The other arguments are those of `log_likelihood`. An interrupt (Ctrl-C) ends the work: the result is of the
    samples that each datum has by then, and is not `complete`.

    Raises `ValueError` as `log_likelihood` does, for a tolerance not above 0, and max_samples below num_samples.
    """
    data = (x, *args)
    check_options(data, num_samples, memory)
    if not tolerance > 0:
        raise ValueError(f"tolerance: expected nats above 0; got {tolerance}")
    max_samples = max_samples or MAX_FACTOR * num_samples
    if max_samples < num_samples:
        raise ValueError(f"max_samples: expected at least num_samples = {num_samples}; got {max_samples}")
    statistics, complete = LogMeanExp(len(x), max_samples, device=x.device), True
    unsure = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    active, samples, doubling = torch.arange(len(x), device=x.device), num_samples, 0
    with evaluating(model, guide), seeded(seed):
        measure, space = measure_of(model, guide, *data)
        weights = chunked_log_weights(model, guide, *data, memory=memory)
        if compiled:
            weights.compile()
        try:
            while len(active):
                add_samples(
                    statistics,
                    active,
                    weights,
                    tuple(t[active] for t in data),
                    num_samples=samples,
                    seed=seed_of(seed, doubling),
                    compile_if_repaid=compiled is None and doubling == 0,
                    show_progress=show_progress,
                )
                error = statistics.standard_error().nan_to_num(nan=math.inf)
                unsure = (error > tolerance) | ~(statistics.khat().to(x.device) <= KHAT_LIMIT)  # NaN is unsure
                active = (unsure & (2 * statistics.count <= max_samples)).nonzero()[:, 0]
                # all that are active have as many samples, and get as many again
                samples, doubling = int(statistics.count[active].max()) if len(active) else 0, doubling + 1
        except KeyboardInterrupt:
            complete = False
    result = LogLikelihood(
        **statistics.estimates(),
        measure=measure,
        encoding=encoding,
        fingerprint=fingerprint(x),
        bound=BOUND.format(""),
        source=source,
        space=space,
        decoder_rows=int(statistics.count.sum()),
        complete=complete,
    )
    if not complete or not unsure.any():
        return result
    rest = unsure.nonzero()[:, 0]
    return _annealed(result, rest, model, guide, data, tolerance, seed=seed, memory=memory, show_progress=show_progress)


def _annealed(
    result: LogLikelihood,
    rest: Tensor,
    model: Program,
    guide: Program,
    data: tuple[Tensor, ...],
    tolerance: float,
    *,
    seed: int,
    memory: int | None,
    show_progress: bool,
) -> LogLikelihood:
    """The result with the data at `rest` annealed, in ever more steps until their error is below the tolerance.
    Where it can't be done (a discrete latent site), the result as it is: its k-hat says what it is worth."""
    fields = {name: getattr(result, name).clone() for name in PER_DATUM}
    decoder_rows, num_annealed, complete = result.decoder_rows, 0, True
    for num_steps in ANNEALING_STEPS:
        try:
            annealed = annealed_log_likelihood(
                model,
                guide,
                *(t[rest] for t in data),
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
    bound = BOUND.format(f", {num_annealed} of {len(result)} data annealed")
    return dataclasses.replace(result, **fields, bound=bound, decoder_rows=decoder_rows, complete=complete)
