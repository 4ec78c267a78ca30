"""log p(x) by annealing: tighter than importance sampling where the guide fits badly, and from both sides on
data simulated from the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.contract import check_rows, measure_of
from ppl_vae.evaluation.chunks import rows_per_chunk, seed_of
from ppl_vae.evaluation.hamiltonian import AnnealingPath, latent_sites, pack
from ppl_vae.evaluation.results import LogLikelihood, LogMeanExp
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    seeded,
)
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.progress import progress

Start = Literal["guide", "prior", "better"]
BETTER = "better of guide and prior"

# Noise is drawn for a block of so many data from a seed of its own, whatever the chunks that it is evaluated in.
BLOCK_DATA = 128

PILOT_CHAINS = 16
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
    encoding: str = "",
    source: str = "",
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
    invariant. Step sizes, one for each t and datum, are tuned on pilot chains and then frozen; the chains that are
    weighted are others, with random numbers of their own. So E[w] = p(x) exactly, whatever the step sizes, and the
    logarithm is a lower bound in expectation. Constrained latent sites move in unconstrained space, where r and p
    both carry the Jacobian.

    Cost: (K + 16 pilot chains) x num_steps x leapfrog_steps gradients of the decoder for each datum.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it.
        num_chains: K.
        num_steps: T. One is importance sampling.
        start: r: "guide", "prior", or "better", the better of the two for each datum.
        leapfrog_steps: of each kernel.
        seed: of the chains. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take, with what its gradient keeps; chosen to fit the cache by default. All
            chains of a datum stay together.
        encoding: how x was made from images, to be named in the result (`compare` wants it equal).
        source: fingerprint of those images, for comparisons across encodings.
        show_progress: a bar, on standard error, while it works.

    An interrupt (Ctrl-C) ends the work: the result is of the data that are done by then, and says so.

    Raises `ValueError` as `log_likelihood` does, and for a latent site that is discrete, or whose support differs
    between model and guide or from datum to datum, for a start without a density, or a likelihood without a
    gradient in the latent sites.
    """
    sizes = (num_chains, num_steps, leapfrog_steps)
    return _anneal(model, guide, (x, *args), {}, sizes, start, seed, memory, encoding, source, show_progress)[0]


@dataclass(frozen=True, eq=False)
class Sandwich:
    """Stochastic bounds of log p(x), in nats, for data simulated from the model.

    Attributes:
        lower: forward chains, log mean w; below log p(x) in expectation.
        upper: reverse chains from the z that made x, -log mean 1/w; above log p(x) in expectation over z too, which
            all chains of a datum share, so that its `mc_se` (of the chains alone) is short of its error.
    """

    lower: LogLikelihood
    upper: LogLikelihood

    @property
    def gap(self) -> float:
        """Mean of upper - lower, nats per datum: what both bounds are off together."""
        return self._gaps.mean().item()

    @property
    def gap_se(self) -> float:
        """Standard error of the gap, from its spread over the data, which are independent; NaN for one datum."""
        return self._gaps.std().item() / math.sqrt(len(self._gaps)) if len(self._gaps) > 1 else math.nan

    @property
    def _gaps(self) -> Tensor:
        return (self.upper.log_p - self.lower.log_p)[self.lower.done & self.upper.done]

    def __str__(self) -> str:
        return (
            f"log p(x) of {len(self.lower)} simulated data is between {self.lower.mean:.3f} and {self.upper.mean:.3f} "
            f"nats per datum ({self.lower.measure}), in expectation; gap {self.gap:.3f}, s.e. {self.gap_se:.3f}. "
            "The upper bound holds only on data simulated from the model."
        )


def bidirectional(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_data: int = 64,
    num_chains: int = 16,
    num_steps: int = 500,
    start: Start = "guide",
    leapfrog_steps: int = 5,
    seed: int = 0,
    memory: int | None = None,
    show_progress: bool = False,
) -> Sandwich:
    """log p(x) from both sides, for data simulated from the model: bidirectional Monte Carlo.

    x and args only show the programs what data look like: the data are
    `simulate(model, x, *args, num_data=num_data, seed=seed)`, whose z is an exact draw from p(z|x). From there the
    kernels of `annealed_log_likelihood` run in reverse, with the same frozen step sizes, and E[1/w] = 1/p(x), so

        E[log mean w] <= log p(x) <= E[-log mean 1/w].

    The gap says how far annealing with these settings is off on such data; real data may differ. Roger Grosse,
    Zoubin Ghahramani, Ryan Adams: Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015,
    arXiv:1511.02543.

    Raises `ValueError` as `annealed_log_likelihood` and `simulate` do.
    """
    simulated, z = simulate(model, x, *args, num_data=num_data, seed=seed)
    data = (simulated, *(_rows(t, num_data) for t in args))
    sizes, encoding = (num_chains, num_steps, leapfrog_steps), "simulated from the model"
    return Sandwich(*_anneal(model, guide, data, z, sizes, start, seed, memory, encoding, "", show_progress))


def simulate(
    model: Program, x: Tensor, *args: Tensor, num_data: int, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Data from the model, (num_data, *event), and the latent sites' values that made them, each the same.

    x and args are templates, whose rows are used over and over: only args can matter (labels, say).

    Raises `ValueError` unless the model has one observed site, which observes x itself, and whose distribution
    does not depend on x (an autoregressive likelihood's does).
    """
    if num_data < 1 or not len(x):
        raise ValueError(f"expected num_data >= 1 from a template of at least 1 row; got {num_data} from {len(x)}")
    template, *rest = (_rows(t, num_data) for t in (x, *args))
    with evaluating(model), seeded(seed):
        observed = sample_sites(guide_trace_of(model, template, *rest, num_samples=1), observed=True)
        if len(observed) != 1 or not all(site["value"].equal(template) for site in observed.values()):
            raise ValueError(f"the model: expected one observed site, of x itself; got {sorted(observed)}")
        (name,) = observed
        trace = guide_trace_of(poutine.uncondition(model), template, *rest, num_samples=1)
        z = {name: site["value"][0] for name, site in sample_sites(trace, observed=False).items()}
        simulated = z.pop(name)
        again = model_trace_of(model, trace, simulated, *rest, num_samples=1)
        log_p, log_p_again = (log_prob_per_datum(t, (1, num_data))[name] for t in (trace, again))
        if not torch.allclose(log_p, log_p_again):
            raise ValueError(f"site {name!r}: expected a distribution that does not depend on x; got one that does")
    return simulated, z


def _rows(t: Tensor, num_data: int) -> Tensor:
    return t[torch.arange(num_data, device=t.device) % len(t)]


def _anneal(
    model: Program,
    guide: Program,
    data: tuple[Tensor, ...],
    z: dict[str, Tensor],
    sizes: tuple[int, int, int],
    start: Start,
    seed: int,
    memory: int | None,
    encoding: str,
    source: str,
    show_progress: bool,
) -> list[LogLikelihood]:
    """The lower bound and, where exact draws z from p(z|x) are given, the upper one."""
    num_chains, num_steps, leapfrog_steps = sizes
    for name, size in zip(("num_chains", "num_steps", "leapfrog_steps"), sizes, strict=True):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1; got {size}")
    if start not in get_args(Start):
        raise ValueError(f"start: expected one of {get_args(Start)}; got {start!r}")
    if memory is not None and memory <= 0:
        raise ValueError(f"memory: expected bytes above 0; got {memory}")
    check_rows(*data)
    num_data = len(data[0])
    betas = torch.linspace(-4, 4, num_steps + 1, dtype=torch.float64).sigmoid()  # dense at both ends
    betas = (betas - betas[0]) / (betas[-1] - betas[0])
    bounds = {name: LogMeanExp(num_data, num_chains, device=data[0].device) for name in ("lower", "upper")}
    if not z:
        del bounds["upper"]
    blocks = range(0, num_data, BLOCK_DATA)
    starts: list[Literal["guide", "prior"]] = ["guide", "prior"] if start == "better" else [start]
    moves = len(blocks) * (num_steps - 1) * (len(starts) + len(bounds))
    with evaluating(model, guide), seeded(seed):
        measure, space = measure_of(model, guide, *data)
        datum = [t[:1] for t in data]
        sites = latent_sites(model, guide, *datum)
        rows = rows_per_chunk(model, guide, *datum, memory=memory, gradients=True)
        with (
            suppress(KeyboardInterrupt),
            progress("annealing", moves, enabled=show_progress, lines=False) as report,
        ):
            for number, first in enumerate(blocks):
                torch.manual_seed(seed_of(seed, number))
                block = tuple(t[first : first + BLOCK_DATA] for t in data)
                paths = [AnnealingPath(model, guide, r, block, sites, rows, leapfrog_steps, report) for r in starts]
                for index, path, steps in _tuned(paths, betas):  # before and apart from the chains that are weighted
                    part = first + index
                    bounds["lower"].add(_log_weights(path, path.draw(num_chains), betas, steps), part)
                    if z:
                        u = pack({name: value[None, part] for name, value in z.items()}, sites)
                        u = u.expand(num_chains, -1, -1)
                        bounds["upper"].add(_log_weights(path, u, betas.flip(0), steps[::-1]), part)
    return [
        LogLikelihood(
            log_p=weights.log_mean().cpu() * (1 if name == "lower" else -1),
            mc_se=weights.standard_error().cpu(),
            ess=weights.ess().cpu(),
            khat=weights.khat(),
            num_samples=weights.count.cpu(),
            measure=measure,
            encoding=encoding,
            fingerprint=fingerprint(data[0]),
            bound=f"{name} (annealed from the {BETTER if start == 'better' else start} in {num_steps} steps, "
            "in expectation)",
            source=source,
            space=space,
            decoder_rows=int((weights.count > 0).sum())
            * (len(starts) * PILOT_CHAINS + num_chains)
            * ((num_steps - 1) * leapfrog_steps + 1),
            complete=bool((weights.count > 0).all()),
        )
        for name, weights in bounds.items()
    ]


def _log_weights(path: AnnealingPath, u: Tensor, betas: Tensor, steps: list[Tensor]) -> Tensor:
    """log w (chains, data) of chains from u. Where betas descend, with `steps` in reverse, it is log 1/w: the same
    kernels between the same weights, backwards."""
    point, moves = path.at(u), iter(steps)
    log_w = torch.zeros_like(point.log_p, dtype=torch.float64)
    for before, beta in pairwise(betas.tolist()):
        log_w += (beta - before) * (point.log_p - point.log_r)
        if 0 < beta < 1:
            point, _ = path.move(point, beta, next(moves))
    return log_w


def _tuned(paths: list[AnnealingPath], betas: Tensor) -> Iterator[tuple[Tensor, AnnealingPath, list[Tensor]]]:
    """For each path that has any, the data for which it is the best by its pilots: (index, path, step sizes)."""
    tuned = [_tune(path, betas) for path in paths]
    best_found, best = torch.stack([found for _, found in tuned]).max(0)
    if best_found.isneginf().any():
        raise ValueError(
            "the start: expected latent sites with a density; got one that always draws the same value, or NaN"
        )
    for i, (path, (steps, _)) in enumerate(zip(paths, tuned, strict=True)):
        index = (best == i).nonzero()[:, 0]
        if len(index):
            yield index, path._replace(data=tuple(t[index] for t in path.data)), [step[index] for step in steps]


def _tune(path: AnnealingPath, betas: Tensor) -> tuple[list[Tensor], Tensor]:
    """Step sizes (data, size) for each beta between 0 and 1, from pilot chains: the spread of the start in each
    direction, times a factor for each datum that steers to the acceptance wanted. And what the pilots found, a
    rough log p(x) (data,), which is -inf for a start that cannot move: its spread is 0, or lost in rounding."""
    u = path.draw(PILOT_CHAINS)
    scale = u.std(0)
    point, log_factor, steps = path.at(u), torch.full_like(scale[:, :1], math.log(FIRST_STEP)), []
    log_w = torch.zeros_like(point.log_p, dtype=torch.float64)
    for before, beta in pairwise(betas.tolist()):
        log_w += (beta - before) * (point.log_p - point.log_r)
        if 0 < beta < 1:
            point, acceptance = path.move(point, beta, log_factor.exp() * scale)
            log_factor = log_factor + GAIN * (acceptance.mean(0)[:, None] - TARGET_ACCEPTANCE)
            steps.append(log_factor.exp() * scale)
    log_mean = log_w.where(~log_w.isnan(), -math.inf).logsumexp(0) - math.log(PILOT_CHAINS)
    # what no pilot found stays above what cannot move
    return steps, log_mean.clamp(min=torch.finfo(log_mean.dtype).min).where((scale > 0).all(-1), -math.inf)
