"""The posterior of each datum, refined: normals with full covariance, fitted by stochastic gradients of their ELBO."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from itertools import accumulate
from typing import Any

import torch
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal
from torch import Tensor

from ppl_vae.contract import check_scores_any, check_structure, tensors_of
from ppl_vae.evaluation.chunks import rows_per_chunk, seed_of
from ppl_vae.evaluation.hamiltonian import Densities, latent_sites, pack
from ppl_vae.evaluation.hamiltonian import log_joint as joint_of
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.packing import packed, unpacked_call
from ppl_vae.evaluation.refined import Refined, mixture_of
from ppl_vae.graphs import flop_counter, repays
from ppl_vae.programs import Program, evaluating, guide_trace_of, seeded
from ppl_vae.system.executors import apart
from ppl_vae.system.progress import Report, progress
from ppl_vae.system.rows import select

BLOCK_FITS = 64  # whose noise has one seed, and whose steps are taken together
START_DRAWS = 64  # of the guide and of the prior each: for moments, and where more starts are sought
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the guide's spread: a fit begins with the best of them
LOC_RATE, SCALE_RATE = 0.5, 0.05  # of Adam: of the mean in units of the start's spread, of the rest in logarithms
ELBO_DRAWS = 32  # fresh ones, after a fit
ROUNDS = (1, 3)  # times num_steps; the second for data whose pilot samples have too large a k-hat
PILOT_SAMPLES, PILOT_KHAT, MORE_STARTS = 256, 0.5, 4
UPHILL_STEPS, UPHILL_RATE = 200, 0.1  # of Adam, to begin the second round; in units of the spread of guide and prior
MIN_SPREAD = 1e-6  # of a start, where the guide is a point but for rounding
SMALL_SIZE, SMALL_STARTS = 2, 6  # so many starts in up to so many dimensions
WIDE_SHARE = 0.1  # of the mixture: the prior's
FULL_SIZE, RANK = 128, 32  # above so many dimensions the covariance is diagonal plus one of this rank


def refine(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_steps: int = 100,
    num_draws: int = 8,
    num_starts: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    executor: Executor | None = None,
    show_progress: bool = False,
) -> Refined:
    """A guide that is fitted to each datum anew, for any pair with continuous latent sites: so that importance
    sampling from it needs no warning. See `Refined` for what it is; it goes wherever a guide goes.

    For each datum a normal with full covariance maximises its own ELBO,

        E_q[log p(x, u) - log q(u)],   u in unconstrained space, all latent sites together,

    by Adam from the mean of the guide at x, with path gradients, whose noise vanishes as q becomes exact. Draws to
    weigh, and weights, are others than those that it was fitted by: so E[w] = p(x) holds exactly, and the log is a
    lower bound in expectation. Data whose k-hat in a pilot is over the limit are fitted again, in three times as
    many steps and from four starts at least: the fit before, and, uphill from there and from draws of guide and prior
    that the model likes and that lie far apart, places near a maximum of log p(x, u), for guides that are far off and
    posteriors with several modes. A mode that no start finds shows in no k-hat. So in one or
    two dimensions, where it is cheap, there are six starts from the first, and a component as wide as the prior.

    Geoffrey Roeder, Yuhuai Wu, David Duvenaud: Sticking the Landing, 2017, arXiv:1703.09194. Yoon Kim, Sam Wiseman,
    Andrew Miller, David Sontag, Alexander Rush: Semi-Amortized Variational Autoencoders, 2018, arXiv:1802.02550.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it.
        num_steps: of Adam. The rate falls to 0 along a cosine.
        num_draws: of q in each step.
        num_starts: normals for each datum, in the first round too.
        seed: of all draws. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take, with what its gradient keeps; chosen to fit the cache by default.
        compiled: whether values and gradients are traced and compiled; by default where that repays.
        executor: does blocks of data apart, not compiled; the result is that of `compiled=False`, bit for bit.
        show_progress: a bar, on standard error, while it works.

    Raises `ValueError` as `log_likelihood` does, for sizes below 1, and for a latent site that is discrete, or whose
    support differs between model and guide or from datum to datum, and for a likelihood without a gradient in the
    latent sites. A datum whose fits all diverge keeps the guide: `refined.num_kept` tells how many.

    >>> refined = refine(model, guide, x)  # doctest: +SKIP
    >>> log_likelihood(model, refined, x)  # doctest: +SKIP
    """
    data = tensors_of(model, guide, x, *args)
    x = data[0]
    for name, number in {"num_steps": num_steps, "num_draws": num_draws, "num_starts": num_starts}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name}: expected at least 1; got {number}")
    with evaluating(model, guide), seeded(seed):
        datum = [t[:1] for t in data]
        check_structure(model, guide, *datum)
        sites = latent_sites(model, guide, *datum)
        check_scores_any(guide, *datum)
        rows = rows_per_chunk(model, guide, *datum, memory=memory, gradients=True)
        log_joint = Densities(joint_of(model), sites, rows)
        if compiled and executor is None:
            log_joint.compile(model)
        fits = _Fits(model, guide, log_joint, data, num_draws, seed)
        num_starts = num_starts or (1 if fits.wide is None else SMALL_STARTS)
        rest = torch.arange(len(x), device=x.device)
        for number, factor in enumerate(ROUNDS):
            steps = factor * num_steps
            num_blocks = -(-len(rest) // max(BLOCK_FITS // num_starts, 1))
            if compiled is None and executor is None and number == 0:
                u = fits.best[:BLOCK_FITS].expand(num_draws, -1, -1)
                with flop_counter() as flops:
                    log_joint(u, *(t[:BLOCK_FITS] for t in data))
                if repays(num_blocks * steps, flops.get_total_flops()):
                    log_joint.compile(model)
            with progress("refining", num_blocks * steps, enabled=show_progress) as report:
                fits.run(rest, num_starts, steps, report, executor)
            refined = fits.refined()
            if number < len(ROUNDS) - 1:
                rest_data = (select(t, rest) for t in data)
                pilot_seed = seed_of(seed, number, PILOT_SAMPLES)
                options: dict[str, Any] = {"seed": pilot_seed, "memory": memory, "executor": executor}
                pilot = log_likelihood(model, refined, *rest_data, num_samples=PILOT_SAMPLES, **options)
                rest = rest[~(pilot.khat <= PILOT_KHAT).to(rest.device)]
                num_starts = max(num_starts, MORE_STARTS)
            if not len(rest):
                break
    return refined


class _Fits:
    """Normals for each datum, fitted in rounds: where they lie, and how good they are."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        log_joint: Densities,
        data: tuple[Tensor, ...],
        num_draws: int,
        seed: int,
    ):
        self.model, self.guide, self.log_joint, self.data = model, guide, log_joint, data
        self.num_draws, self.seed = num_draws, seed
        draws = self._draws(guide, [t[:1] for t in data])
        size = draws.shape[-1]
        new = draws.new_zeros(len(data[0]), size)
        self.best, self.spread = new, new.clone()  # the start of a datum's next fit, and its spread in each direction
        self.wide = (new.clone(), new.clone()) if size <= SMALL_SIZE else None  # mean and spread of the prior
        self.rounds: list[list[tuple[Tensor, ...]]] = []  # of each block: data (n,); elbo, loc, factors (n, starts, *)

    def run(
        self, index: Tensor, num_starts: int, num_steps: int, report: Report, executor: Executor | None = None
    ) -> None:
        """One round: fits to the data at `index`, from so many starts each."""
        self.rounds.append([])
        per_block = max(BLOCK_FITS // num_starts, 1)
        blocks = {}
        for first in range(0, len(index), per_block):
            # the last block is filled up with others, so that one graph serves all
            filled = torch.arange(first, first + min(per_block, len(index)), device=index.device) % len(index)
            blocks[str(first)] = index[filled]
        fitted = {name: result() for name, result in self._fitted(blocks, (num_starts, num_steps), report, executor)}
        for name, rows in blocks.items():
            fit, (best, spread, *wide) = fitted[name]
            for t, new in zip(self.wide or (), wide, strict=True):
                t[rows] = new
            rows = rows[: len(index) - int(name)]
            self.best[rows], self.spread[rows] = best[: len(rows)], spread[: len(rows)]
            elbo, loc, *factors = (t[: len(rows)] for t in fit)
            self.rounds[-1].append((rows, elbo, loc, *factors))
            best, at = elbo.nan_to_num(nan=-math.inf).max(1)
            ok = best.isfinite()  # else the next round begins where this one did
            self.best[rows[ok]] = loc[ok, at[ok]]

    def _fitted(
        self, blocks: dict[str, Tensor], sizes: tuple[int, int], report: Report, executor: Executor | None
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """What `block` returns for each block of rows, here or apart."""
        seeds = {name: seed_of(self.seed, len(self.rounds), number) for number, name in enumerate(blocks)}
        if executor is None:
            here = {name: (rows, seeds[name], *sizes, report) for name, rows in blocks.items()}
            yield from apart(None, self.block, here)
            return
        calls = {name: (packed(_block, self.only(rows), seeds[name], *sizes),) for name, rows in blocks.items()}
        for name, result in apart(executor, unpacked_call, calls):
            yield name, result
            report(sizes[1])

    def only(self, rows: Tensor) -> _Fits:
        """The same for some of the data: what another process needs."""
        part = copy.copy(self)
        part.data = tuple(t[rows] for t in self.data)
        part.best, part.spread = self.best[rows], self.spread[rows]
        part.wide = self.wide and (self.wide[0][rows], self.wide[1][rows])
        part.rounds = [[] for _ in self.rounds]
        return part

    def block(
        self, rows: Tensor, seed: int, num_starts: int, num_steps: int, report: Report
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Fits to the data at `rows`: elbo, loc and factors (rows, starts, *); and what they began from, best and
        spread, and the prior's mean and spread if they are asked for, (rows, size)."""
        torch.manual_seed(seed)
        data = [t[rows] for t in self.data]
        loc, spread = self._starts(rows, data, num_starts)
        data = [t.repeat_interleave(num_starts, 0) for t in data]
        fit = self._fit(loc.flatten(0, 1), spread.flatten(0, 1), data, num_steps, report)
        begins = (self.best, self.spread, *(self.wide or ()))
        return tuple(t.unflatten(0, (-1, num_starts)) for t in fit), tuple(t[rows] for t in begins)

    def _starts(self, rows: Tensor, data: list[Tensor], num_starts: int) -> tuple[Tensor, Tensor]:
        """Where fits begin, and how wide, (data, starts, size): the best so far, which is the guide's mean at first,
        and draws of guide and prior, of the better half by log p(x, u), far apart."""
        of_guide, of_prior = (self._draws(program, data) for program in (self.guide, self.model))
        new = (self.spread[rows] == 0).all(-1)  # those that fill up a block have begun
        self.best[rows[new]] = of_guide.mean(0)[new]
        self.spread[rows[new]] = of_guide.std(0)[new].clamp(min=MIN_SPREAD)
        if self.wide:
            self.wide[0][rows], self.wide[1][rows] = of_prior.mean(0), of_prior.std(0)
        chosen, everyone = [self.best[rows]], range(len(rows))
        if num_starts > 1:
            draws = torch.cat([of_guide, of_prior])
            log_p = self.log_joint(draws, *data)[0].nan_to_num(nan=-math.inf)
            better = draws.gather(0, log_p.topk(len(draws) // 2, 0).indices[..., None].expand(-1, -1, draws.shape[-1]))
            scale, distance = draws.std(0), torch.tensor(math.inf)
            if self.rounds[1:]:
                chosen.append(chosen[0])  # once more, to go uphill
            while len(chosen) < num_starts:
                distance = torch.minimum(distance, ((better - chosen[-1]) / scale).square().sum(-1))
                chosen.append(better[distance.argmax(0), everyone])
            if self.rounds[1:]:
                chosen[1:] = self._uphill(torch.stack(chosen[1:]), scale, data)
        return torch.stack(chosen, 1), self.spread[rows, None].expand(-1, num_starts, -1)

    def _uphill(self, u: Tensor, scale: Tensor, data: list[Tensor]) -> Tensor:
        """Places (starts, data, size) near a maximum of log p(x, u), by Adam from u: a guide may be off by many of
        its standard deviations, in which the steps of a fit are measured."""
        shift = torch.zeros_like(u)  # in units of the spread of all draws, so that one rate is right for all
        adam = torch.optim.Adam([shift], lr=UPHILL_RATE)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, UPHILL_STEPS)
        for _ in range(UPHILL_STEPS):
            shift.grad = -scale * self.log_joint(u + scale * shift, *data)[1]
            adam.step()
            cosine.step()
        found = u + scale * shift
        return found.where(found.isfinite().all(-1, keepdim=True), u)

    def _draws(self, program: Program, data: list[Tensor]) -> Tensor:
        trace = guide_trace_of(program, *data, num_samples=START_DRAWS)
        return pack({name: trace.nodes[name]["value"] for name in self.log_joint.sites}, self.log_joint.sites)

    def _fit(
        self, loc: Tensor, spread: Tensor, data: list[Tensor], num_steps: int, report: Report
    ) -> tuple[Tensor, ...]:
        """ELBO, loc and factors of normals, one for each of the data, that begin at loc with this spread."""
        size, shape = loc.shape[-1], (self.num_draws, *loc.shape)
        widths = torch.tensor(SCALES, device=loc.device)
        at = [
            self.log_joint(loc + c * spread * torch.randn(shape, device=loc.device), *data)[0].mean(0) for c in widths
        ]
        elbos = torch.stack(at) + size * widths.log()[:, None]
        spread = spread * widths[elbos.nan_to_num(nan=-math.inf).argmax(0), None]
        below = torch.zeros(*loc.shape, size) if size <= FULL_SIZE else 0.01 * torch.randn(*loc.shape, RANK)
        free = [torch.zeros_like(loc), torch.zeros_like(loc), below.to(loc.device)]
        rates = LOC_RATE, SCALE_RATE, SCALE_RATE
        adam = torch.optim.Adam([{"params": [t], "lr": rate} for t, rate in zip(free, rates, strict=True)])
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, num_steps)
        for _ in range(num_steps):
            with torch.enable_grad():
                q = _normal(loc, spread, [t.requires_grad_() for t in free])
                u = q.rsample((self.num_draws,))
                log_q = _normal(loc, spread, [t.detach() for t in free]).log_prob(u)  # the path alone has a gradient
                _, gradient = self.log_joint(u.detach(), *data)
                loss = (log_q - (gradient * u).sum(-1)).mean(0).sum()
                gradients = torch.autograd.grad(loss, free)
            for t, gradient in zip(free, gradients, strict=True):
                t.grad = gradient
            adam.step()
            cosine.step()
            report()
        q = _normal(loc, spread, [t.detach() for t in free])
        u = q.sample((ELBO_DRAWS,))
        elbo = (self.log_joint(u, *data)[0] - q.log_prob(u)).mean(0)
        return elbo, q.loc, *((q.scale_tril,) if size <= FULL_SIZE else (q.cov_factor, q.cov_diag))

    def refined(self) -> Refined:
        """The guide of all fits so far: a mixture by their ELBOs, with equal weights in part."""
        num_data, size = self.best.shape
        counts = [blocks[0][1].shape[1] for blocks in self.rounds] + [1] * (self.wide is not None)
        elbo, loc, *factors = _no_fits(num_data, sum(counts), size, self.best)
        for blocks, end in zip(self.rounds, accumulate(counts), strict=False):
            for rows, *fit in blocks:
                fitted = fit[0].isfinite()
                columns = torch.arange(end - fitted.shape[1], end, device=rows.device)
                places = rows[:, None].expand_as(fitted)[fitted], columns.expand_as(fitted)[fitted]
                for t, part in zip((elbo, loc, *factors), fit, strict=True):
                    t[places] = part[fitted]
        if self.wide is not None:
            loc[:, -1], factors[0][:, -1] = self.wide[0], self.wide[1].diag_embed()
        wide_share = 0.0 if self.wide is None else WIDE_SHARE
        sites = self.log_joint.sites
        return mixture_of(self.guide, sites, self.data, elbo, loc, *factors, wide_share=wide_share)


def _block(fits: _Fits, seed: int, num_starts: int, num_steps: int) -> Any:
    """What `_Fits.block` returns for all its data, in a process of their own."""
    with evaluating(fits.model, fits.guide), seeded(seed):
        rows = torch.arange(len(fits.data[0]), device=fits.data[0].device)
        return fits.block(rows, seed, num_starts, num_steps, lambda advance=1, text="": None)


def _no_fits(num_data: int, num_fits: int, size: int, like: Tensor) -> tuple[Tensor, ...]:
    """ELBOs of -inf, means 0 and unit covariances."""
    shape = num_data, num_fits
    elbo, loc = like.new_full(shape, -math.inf, dtype=torch.float64), like.new_zeros(*shape, size)
    if size <= FULL_SIZE:
        return elbo, loc, torch.eye(size).to(like).expand(*shape, -1, -1).clone()
    return elbo, loc, like.new_zeros(*shape, size, RANK), like.new_ones(*shape, size)


def _normal(loc: Tensor, spread: Tensor, free: list[Tensor]) -> Any:
    """The normal with mean loc + spread * shift, and standard deviations spread * e^s in its directions."""
    shift, log_scale, below = free
    mean, scale = loc + spread * shift, spread * log_scale.exp()
    if below.shape[-1] == below.shape[-2]:
        tril = scale[..., None] * (below.tril(-1) + torch.eye(below.shape[-1], device=below.device))
        return MultivariateNormal(mean, scale_tril=tril, validate_args=False)
    return LowRankMultivariateNormal(mean, scale[..., None] * below, scale.square(), validate_args=False)
