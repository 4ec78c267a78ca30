"""log p(x) by annealed importance sampling: tighter than importance sampling where the guide fits badly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ppl_vae.contract import check_scores_any, measure_of, tensors_of
from ppl_vae.evaluation.chunks import rows_per_chunk, seed_of
from ppl_vae.evaluation.hamiltonian import AnnealingPath, Densities, latent_sites, pack, path_of, size_of, unpack
from ppl_vae.evaluation.quantity import quantity_of
from ppl_vae.evaluation.refined import Refined
from ppl_vae.evaluation.results import LogLikelihood, LogMeanExp
from ppl_vae.graphs import flop_counter, repays
from ppl_vae.programs import Program, evaluating, seeded
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.progress import progress

Start = Literal["guide", "prior", "better"]

Each = Callable[[Tensor, dict[str, Tensor], Tensor], object]
"""`each(rows, values, log_w)`: values of the latent sites (chains, rows, *event), and their log-weights."""

# Noise is sampled for a block of so many data from a seed of its own, whatever the chunks it is evaluated in.
BLOCK_DATA = 128

PILOT_CHAINS = 8
SPREAD_DRAWS = 64  # of the start, for its spread
EVEN_SHARE = 0.5  # of the temperatures, which lie as they are by default
FIRST_STEP = 0.5  # in standard deviations of the start
TARGET_ACCEPTANCE = 0.8
GAIN = 0.5  # of log step size, per unit of acceptance missed


def annealed_log_likelihood(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_chains: int = 16,
    num_steps: int = 500,
    start: Start = "guide",
    leapfrog_steps: int = 5,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    encoding: str = "",
    show_progress: bool = False,
) -> LogLikelihood:
    """log p(x) of each datum, in nats, by annealed importance sampling along

        log f_beta(z) = (1 - beta) log r(z) + beta log p(x, z),   0 = beta_0 < ... < beta_T = 1,
        log w = sum_t (beta_t - beta_{t-1}) log [p(x, z_{t-1}) / r(z_{t-1})],   z_0 ~ r,   z_t ~ kernel_t(z_{t-1}),
        log p(x) ~ log 1/K sum_k w_k,

    with r = q(z|x), or the prior. Radford Neal: Annealed importance sampling, 1998, arXiv:physics/9803008.

    A guide needs far fewer steps where it is any good. Where the posterior has a mode that the guide does not see,
    chains from the guide hardly ever get there, and neither their error nor their k-hat shows it: chains from the
    prior do. `start="better"` runs the pilot chains from both and takes, for each datum, the one whose pilots
    found more; the weighted chains are independent of that choice, so it costs no bias.

    Kernel t is Hamiltonian Monte Carlo (Radford Neal: MCMC using Hamiltonian dynamics, 2012, arXiv:1206.1901) with
    fresh momentum, a jittered step size and a Metropolis step for each chain and datum, which leaves f_beta_t
    invariant. Its mass matrix is the inverse of a refined guide's covariance, else diagonal, by the start's spread.
    Pilot chains tune the step sizes, one for each t and datum, and the temperatures of each datum: these are denser
    where log p(x, z) - log r(z) varies more among the pilots, so that each step costs about the same part of the
    effective sample size (Yan Zhou, Adam Johansen, John Aston: Toward Automatic Model Comparison: An Adaptive
    Sequential Monte Carlo Approach, 2016, arXiv:1303.3123). Then both are frozen; the chains that are weighted are
    others, with random numbers of their own. So E[w] = p(x) exactly, whatever was tuned, and the logarithm is a lower
    bound in expectation. Constrained latent sites move in unconstrained space, where r and p both carry the Jacobian.

    Cost: (K + 8 pilot chains) x num_steps x leapfrog_steps gradients of the decoder for each datum.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it.
        num_chains: K.
        num_steps: T. One is importance sampling.
        start: r: "guide", "prior", or "better", the better of the two for each datum.
        leapfrog_steps: of each kernel.
        seed: of the chains. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take, with what its gradient keeps; chosen to fit the cache by default. All
            chains of a datum stay together.
        compiled: whether the leapfrog step, with its gradients, is one compiled graph; by default where that repays.
        encoding: how x was made from images, to be named in the result (`compare` wants it equal).
        show_progress: a bar, on standard error, while it works.

    An interrupt (Ctrl-C) ends the work: the result is of the data that are done by then, and says so.

    Raises `ValueError` as `log_likelihood` does, and for a latent site that is discrete, or whose support differs
    between model and guide or from datum to datum, for a start without a density, or a likelihood without a
    gradient in the latent sites.
    """
    settings = Annealing(num_chains, num_steps, start, leapfrog_steps)
    data = tensors_of(model, guide, x, *args)
    options: dict[str, Any] = {"seed": seed, "memory": memory, "compiled": compiled, "show_progress": show_progress}
    (lower,) = anneal(model, guide, data, settings, **options)
    return replace(lower, encoding=encoding)


@dataclass(frozen=True)
class Annealing:
    """How much annealing, and from where. Raises `ValueError` for sizes below 1 and unknown starts."""

    num_chains: int
    num_steps: int
    start: Start
    leapfrog_steps: int

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_steps", "leapfrog_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1; got {getattr(self, name)}")
        if self.start not in get_args(Start):
            raise ValueError(f"start: expected one of {get_args(Start)}; got {self.start!r}")

    @property
    def starts(self) -> tuple[Literal["guide", "prior"], ...]:
        return ("guide", "prior") if self.start == "better" else (self.start,)

    @property
    def betas(self) -> Tensor:
        """From 0 to 1, shape (num_steps + 1,), dense at both ends: before they are tuned."""
        betas = torch.linspace(-4, 4, self.num_steps + 1, dtype=torch.float64).sigmoid()
        return (betas - betas[0]) / (betas[-1] - betas[0])

    @property
    def rows_per_datum(self) -> int:
        """How often the model is evaluated on a datum, for one bound."""
        chains = len(self.starts) * PILOT_CHAINS + self.num_chains
        return chains * ((self.num_steps - 1) * self.leapfrog_steps + 1)

    def __str__(self) -> str:
        start = "better of guide and prior" if self.start == "better" else self.start
        return f"annealed from the {start} in {self.num_steps} steps, in expectation"


def anneal(
    model: Program,
    guide: Program,
    data: tuple[Tensor, ...],
    settings: Annealing,
    *,
    z: Mapping[str, Tensor] | None = None,
    seed: int,
    memory: int | None,
    compiled: bool | None,
    show_progress: bool,
    each: Each | None = None,
) -> list[LogLikelihood]:
    """The lower bound of log p(x) and, where exact samples z (data, *event) of p(z|x) are given, the upper one.

    `each` is told where the chains of a block end: weighted samples of p(z|x)."""
    if memory is not None and memory <= 0:
        raise ValueError(f"memory: expected bytes above 0; got {memory}")
    num_data = len(data[0])
    names = ["lower"] if z is None else ["lower", "upper"]
    bounds = {name: LogMeanExp(num_data, settings.num_chains, device=data[0].device) for name in names}
    blocks = range(0, num_data, BLOCK_DATA)
    moves = len(blocks) * (settings.num_steps - 1) * (len(settings.starts) + len(bounds))
    with evaluating(model, guide), seeded(seed):
        measure, space = measure_of(model, guide, *data)
        quantity, given = quantity_of(model, guide, *data)
        datum = [t[:1] for t in data]
        if settings.start != "prior":
            check_scores_any(guide, *datum)
        sites = latent_sites(model, guide, *datum)
        rows = rows_per_chunk(model, guide, *datum, memory=memory, gradients=True)
        starts = [path_of(model, guide, start, sites, rows) for start in settings.starts]
        for _, ends in starts:
            if compiled or (compiled is None and _repays(ends, data, settings, moves)):
                ends.compile(model, guide)
        with (
            suppress(KeyboardInterrupt),
            progress("annealing", moves, enabled=show_progress) as report,
        ):
            for number, first in enumerate(blocks):
                torch.manual_seed(seed_of(seed, number))
                block = tuple(t[first : first + BLOCK_DATA] for t in data)
                paths = [AnnealingPath(*start, block, settings.leapfrog_steps, report) for start in starts]
                # tuned before, and apart from the chains that are weighted
                for index, path, tuned in _best([(path, _tune(path, settings.betas)) for path in paths]):
                    part = first + index
                    log_w, ends_at = _log_weights(path, path.draw(settings.num_chains), tuned)
                    bounds["lower"].add(log_w, part)
                    if each is not None:
                        trace, _ = unpack(ends_at, sites)
                        each(part, {name: trace.nodes[name]["value"] for name in sites}, log_w)
                    if z is not None:
                        u = pack({name: value[None, part] for name, value in z.items()}, sites)
                        u = u.expand(settings.num_chains, -1, -1)
                        bounds["upper"].add(_log_weights(path, u, tuned.reversed())[0], part)
    results = []
    for name, weights in bounds.items():
        done, estimates = weights.count > 0, weights.estimates()
        if name == "upper":
            estimates["log_p"] = -estimates["log_p"]
        result = LogLikelihood(
            **estimates,
            measure=measure,
            encoding="",
            fingerprint=fingerprint(data[0]),
            bound=f"{name} ({settings})",
            space=space,
            quantity=quantity,
            given=given,
            decoder_rows=int(done.sum()) * settings.rows_per_datum,
            complete=bool(done.all()),
        )
        results.append(result)
    return results


def _repays(ends: Densities, data: tuple[Tensor, ...], settings: Annealing, moves: int) -> bool:
    """Whether compiling the leapfrog step does: by what one takes for a block."""
    block = [t[:BLOCK_DATA] for t in data]
    u = data[0].new_zeros(settings.num_chains, len(block[0]), size_of(ends.sites), dtype=torch.get_default_dtype())
    with flop_counter() as flops:
        ends(u, *block)
    return repays(moves * settings.leapfrog_steps, flops.get_total_flops())


class Tuned(NamedTuple):
    """What pilots tuned for a block: betas (steps + 1, data) from 0 to 1; step sizes (steps - 1, data) in units of the
    spread (data, size, size or 1); and what they found, a rough log p(x) (data,), -inf for a start that cannot move."""

    betas: Tensor
    steps: Tensor
    spread: Tensor
    found: Tensor

    def of(self, index: Tensor) -> Tuned:
        return Tuned(self.betas[:, index], self.steps[:, index], self.spread[index], self.found[index])

    def reversed(self) -> Tuned:
        return self._replace(betas=self.betas.flip(0), steps=self.steps.flip(0))


def _log_weights(path: AnnealingPath, u: Tensor, tuned: Tuned) -> tuple[Tensor, Tensor]:
    """log w (chains, data) of chains from u, and where they end. Where betas descend, with the steps in reverse, it is
    log 1/w: the same kernels between the same weights, backwards."""
    point, steps = path.at(u), iter(tuned.steps)
    log_w = torch.zeros_like(point.log_p, dtype=torch.float64)
    for before, beta in pairwise(tuned.betas):
        log_w += (beta - before) * (point.log_p - point.log_r)
        if (step := next(steps, None)) is not None:
            point, _ = path.move(point, beta.to(u), step, tuned.spread)
    return log_w, point.u


def _best(paths: list[tuple[AnnealingPath, Tuned]]) -> Iterator[tuple[Tensor, AnnealingPath, Tuned]]:
    """For each start that has any, the data for which it is the best by its pilots: (index, path, tuned)."""
    best_found, best = torch.stack([tuned.found for _, tuned in paths]).max(0)
    if best_found.isneginf().any():
        raise ValueError(
            "the start: expected latent sites with a density; got one that always draws the same value, or NaN"
        )
    for i, (path, tuned) in enumerate(paths):
        index = (best == i).nonzero()[:, 0]
        if len(index):
            yield index, path._replace(data=tuple(t[index] for t in path.data)), tuned.of(index)


def _tune(path: AnnealingPath, betas: Tensor) -> Tuned:
    """By pilot chains along `betas`. Step sizes are steered to the acceptance wanted, for each datum."""
    draws = path.draw(max(SPREAD_DRAWS, PILOT_CHAINS))
    point, std = path.at(draws[:PILOT_CHAINS]), draws.std(0)
    spread = path.start.spread(*path.data) if isinstance(path.start, Refined) else std[..., None]
    log_step, log_steps, lengths = torch.full_like(std[:, 0], math.log(FIRST_STEP)), [], []
    log_w = torch.zeros_like(point.log_p, dtype=torch.float64)
    for number, (before, beta) in enumerate(pairwise(betas)):
        ratio = (beta - before) * (point.log_p - point.log_r).double()
        log_w += ratio
        lengths.append(ratio.std(0))
        if number < len(betas) - 2:
            beta_of = beta.to(std).expand_as(log_step)
            point, acceptance = path.move(point, beta_of, log_step.exp(), spread)
            log_step = log_step + GAIN * (acceptance.mean(0) - TARGET_ACCEPTANCE)
            log_steps.append(log_step)
    log_mean = log_w.where(~log_w.isnan(), -math.inf).logsumexp(0) - math.log(PILOT_CHAINS)
    # what no pilot found stays above what cannot move
    found = log_mean.clamp(min=torch.finfo(log_mean.dtype).min).where((std > 0).all(-1), -math.inf)
    betas = betas.to(log_w)[:, None].expand(-1, len(std))
    if not log_steps:
        return Tuned(betas, log_w.new_zeros(0, len(std)), spread, found)
    tuned = _even(betas, torch.stack(lengths))
    at = tuned[1:-1].clamp(betas[1], betas[-2])
    return Tuned(tuned, _interpolated(at, betas[1:-1], torch.stack(log_steps)).exp().to(std), spread, found)


def _even(betas: Tensor, lengths: Tensor) -> Tensor:
    """Betas (steps + 1, data) between which the lengths (steps, data) of those given are the same: in part."""
    lengths = lengths.nan_to_num(nan=0.0, posinf=0.0)
    even = lengths.new_full(lengths.shape, 1 / len(lengths))
    total = lengths.sum(0)
    share = torch.where(total > 0, EVEN_SHARE * even + (1 - EVEN_SHARE) * lengths / total, even)
    at = torch.cat([torch.zeros_like(share[:1]), share.cumsum(0)])
    at = at / at[-1]
    grid = torch.linspace(0, 1, len(at)).to(at)[:, None].expand_as(at)
    tuned = _interpolated(grid, at, betas)
    tuned[0], tuned[-1] = 0.0, 1.0
    return tuned


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear y(x), of x ascending, at other places; all (points, data)."""
    if len(x) == 1:
        return y.expand_as(at)
    right = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x.gather(0, right - 1), x.gather(0, right), y.gather(0, right - 1), y.gather(0, right)
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
