"""What a model says of x given what was measured: weighted samples of each datum's posterior, by a ladder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ppl_vae.contract import check_structure, plain_trace
from ppl_vae.evaluation.adaptive import ANNEALING_CHAINS, ANNEALING_STEPS, choose, fourfold
from ppl_vae.evaluation.annealing import Annealing, anneal, annealed_log_likelihood
from ppl_vae.evaluation.chunks import BLOCK_DATA, chunks_of, rows_per_chunk, seed_of
from ppl_vae.evaluation.hamiltonian import latent_sites
from ppl_vae.evaluation.importance import LogWeights, log_likelihood
from ppl_vae.evaluation.modes import refine_modes
from ppl_vae.evaluation.results import ANNEALED, GUIDE, REFINED, LogLikelihood, LogMeanExp, PerDatum, widening
from ppl_vae.graphs import Compiled
from ppl_vae.programs import Program, evaluating, model_trace_of, seeded, sum_of_sites, trace_of
from ppl_vae.system.places import Constants
from ppl_vae.system.rows import select

LEAPFROG_STEPS = 5
MAX_FACTOR = 16  # of num_samples
NOT_REFINED = "not refined, samples are of the guide"


class Known(Protocol):
    """What is known of x given z and what was measured, (samples, data, *event): the result of a model."""

    def averaged(self) -> tuple[Tensor, ...]:
        """What is to be averaged over z, as E[x | z]."""

    def sample(self) -> Tensor:
        """x, given z."""


class Proposal(Protocol):
    """What z are drawn from: `draw(*data, num_samples=K)` is log q (K, data), and values of the sites `names`."""

    names: list[str]

    @property
    def draw(self) -> Callable[..., tuple[Tensor, ...]]: ...
    def compile(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Inferred:
    """What weighted samples say, on the CPU.

    Attributes:
        averages: of what `Known.averaged` names, (data, *event) each.
        samples: x given what was measured, with replacement, (num_draws, data, *event).
        log_p: of what was measured, in nats: a lower bound in expectation.
        ess, khat, num_samples: of the weights of each datum, (data,).
        rung: where each datum stands, its number in `RUNGS`, (data,).
    """

    averages: list[Tensor]
    samples: Tensor
    log_p: PerDatum
    ess: Tensor
    khat: Tensor
    num_samples: Tensor
    rung: Tensor


def infer(
    model: Program,
    guide: Program,
    data: tuple[Tensor, ...],
    *,
    num_samples: int,
    num_draws: int,
    climb: bool = True,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    show_progress: bool = False,
    **fitting: Any,
) -> Inferred:
    """What a model, whose result is `Known`, says of x, from weighted samples of z: each datum's are those of the first
    of these rungs whose pilot samples have a k-hat below its limit, or of the last one,

    1. importance sampling from the posterior by `refine_modes`, K = `num_samples`, 4 K and 16 K;
    2. annealing from there, 128 chains in 25, 100 or 400 steps,

    and are fresh ones, which the choice has not seen. Without `climb` all stand on the first rung. Where the posterior
    can't be refined, samples are of the guide, with a `RuntimeWarning`.

    Raises `ValueError` as `refine_modes` does, and for data to which no sample gives a probability.
    """
    shared: dict[str, Any] = {"memory": memory, "compiled": compiled, "show_progress": show_progress}
    if reason := why_not_refined(model, guide, data, seed=seed_of(seed, 0)):
        warnings.warn(f"{NOT_REFINED}: {reason}", RuntimeWarning, stacklevel=3)
        posterior = guide
    else:
        posterior = refine_modes(model, guide, data[0], *data[1:], seed=seed_of(seed, 0), **shared, **fitting)
    sizes = fourfold(num_samples, MAX_FACTOR * num_samples if climb else num_samples)
    rungs = [(REFINED, K) for K in sizes] + [(ANNEALED, T) for T in ANNEALING_STEPS if climb]
    if posterior is guide:
        rungs = [(GUIDE, num_samples)]

    def pilot(x: Tensor, *args: Tensor, seed: int, rung: tuple[int, int]) -> LogLikelihood:
        kind, size = rung
        if kind == ANNEALED:
            sizes: dict[str, Any] = {"num_chains": ANNEALING_CHAINS, "num_steps": size}
            return annealed_log_likelihood(model, posterior, x, *args, seed=seed, **sizes, **shared)
        return log_likelihood(model, posterior, x, *args, num_samples=size, seed=seed, **shared)

    rung_of = torch.zeros(len(data[0]), dtype=torch.int64, device=data[0].device)
    if len(rungs) > 1:
        ladder = [partial(pilot, rung=rung) for rung in rungs]
        rung_of, _, complete = choose(ladder, data, math.inf, seed=seed_of(seed, 2), max_share=1.0)
        if not complete:
            raise KeyboardInterrupt
    with evaluating(model, posterior), seeded(seed):
        proposal = LogWeights(model, posterior, *(t[:1] for t in data))
        most = max(ANNEALING_CHAINS if kind == ANNEALED else size for kind, size in rungs)
        weighed = Weighed(model, posterior, proposal.names, data, most, num_draws, memory)
    for number in rung_of.unique().tolist():
        rows, (kind, size) = (rung_of == number).nonzero()[:, 0], rungs[number]
        at = seed_of(seed, 1, number)
        if kind == ANNEALED:
            weighed.add_chains(posterior, rows, size, seed=at, **shared)
        else:
            weighed.add_samples(proposal, rows, size, seed=at, compiled=compiled)
    return weighed.result(torch.tensor([kind for kind, _ in rungs])[rung_of.cpu()])


def why_not_refined(model: Program, guide: Program, data: tuple[Tensor, ...], *, seed: int) -> str:
    """Why the posterior of data has no gradients to find it by; "" where it has."""
    datum = [t[:1] for t in data]
    with evaluating(model, guide), seeded(seed):
        plain_trace(model, *datum)  # which says so, where the data are not of its shape
        check_structure(model, guide, *datum)
        try:
            latent_sites(model, guide, *datum)
        except ValueError as error:
            return str(error)
    return ""


class Weighed:
    """Averages and draws of x, datum by datum, from weighted samples of z, which are added for some data at a time."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        names: list[str],
        data: tuple[Tensor, ...],
        max_samples: int,
        num_draws: int,
        memory: int | None,
    ):
        self.model, self.names, self.data, self.num_draws = model, names, data, num_draws
        self.rows = rows_per_chunk(model, guide, *(t[:1] for t in data), memory=memory)
        self.statistics = LogMeanExp(len(data[0]), max_samples, device=data[0].device)
        self.averages: list[Tensor] = []
        self.samples = torch.empty(0)
        self.score: Callable[..., tuple[Tensor, ...]] = self._score

    def add_samples(
        self, proposal: Proposal, index: Tensor, num_samples: int, *, seed: int, compiled: bool | None = None
    ) -> None:
        """Importance samples of the data at `index`."""
        blocks, programs = index.split(BLOCK_DATA), (self.model, cast(Program, proposal))
        with evaluating(*programs), seeded(seed):
            for number, rows in enumerate(blocks):
                torch.manual_seed(seed_of(seed, number))
                filled = torch.arange(len(blocks[0]), device=rows.device) % len(rows)  # one graph serves all
                log_q, *values = proposal.draw(*(t[rows[filled]] for t in self.data), num_samples=num_samples)
                self._add(rows, filled, values, log_q=log_q)
                if number == 0 and (compiled or (compiled is None and len(blocks) > 8)):
                    proposal.compile()
                    self.score = Compiled(self._score, Constants(self.model))

    def add_chains(self, start: Program, index: Tensor, num_steps: int, **options: Any) -> None:
        """Chains of the data at `index`, annealed from a guide."""

        def each(part: Tensor, values: dict[str, Tensor], log_w: Tensor) -> None:
            all_of_them = torch.arange(len(part), device=part.device)
            self._add(index[part], all_of_them, [values[name] for name in self.names], log_w=log_w)

        settings = Annealing(ANNEALING_CHAINS, num_steps, "guide", LEAPFROG_STEPS)
        data = tuple(select(t, index) for t in self.data)
        (result,) = anneal(self.model, start, data, settings, each=each, **options)
        if not result.complete:
            raise KeyboardInterrupt

    def result(self, rung: Tensor) -> Inferred:
        statistics, khat = self.statistics, self.statistics.khat()
        count = statistics.count.cpu()
        errors = statistics.standard_error().cpu() * widening(khat, count)
        log_p = PerDatum(statistics.log_mean().cpu(), errors)
        return Inferred(self.averages, self.samples, log_p, statistics.ess().cpu(), khat, count, rung)

    def _score(self, *values_and_data: Tensor) -> tuple[Tensor, ...]:
        """log p of z and what was measured, and what is averaged."""
        values, data = values_and_data[: len(self.names)], values_and_data[len(self.names) :]
        shape = (len(values[0]), len(data[0]))
        trace = self._trace(list(values), *data)
        return sum_of_sites(trace, shape), *known(trace).averaged()

    def _trace(self, values: list[Tensor], *data: Tensor) -> Any:
        z = trace_of(dict(zip(self.names, values, strict=True)))
        return model_trace_of(self.model, z, *data, num_samples=len(values[0]))

    def _add(
        self,
        rows: Tensor,
        filled: Tensor,
        values: list[Tensor],
        *,
        log_q: Tensor | None = None,
        log_w: Tensor | None = None,
    ) -> None:
        """Samples of the data at `rows`, of which some are repeated, as `filled` says: their log q, or log weights."""
        block = [t[rows[filled]] for t in self.data]
        log_w, averages = self._averages(values, block, log_q, log_w)
        impossible = (log_w == -math.inf).all(0)
        if impossible.any():
            row = int(rows[filled][impossible][0])
            raise ValueError(f"row {row}: expected data that the model can make; got weights of 0 for all samples")
        chosen = torch.multinomial(log_w.softmax(0).T, self.num_draws, replacement=True).T
        z = [value[chosen, torch.arange(len(filled), device=rows.device)] for value in values]
        x, n = known(self._trace(z, *block)).sample(), len(rows)
        if not self.averages:
            num_data = len(self.data[0])
            self.averages = [torch.empty(num_data, *t.shape[1:], dtype=t.dtype) for t in averages]
            self.samples = torch.empty(self.num_draws, num_data, *x.shape[2:], dtype=x.dtype)
        self.statistics.add(log_w[:, :n], rows)
        for t, average in zip(self.averages, averages, strict=True):
            t[rows.cpu()] = average[:n].cpu()
        self.samples[:, rows.cpu()] = x[:, :n].cpu()

    def _averages(
        self, values: list[Tensor], block: list[Tensor], log_q: Tensor | None, log_w: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """log w (samples, data), and averages by them, a part of the samples after another."""
        given = log_w if log_q is None else log_q
        assert given is not None
        log_w, log_sum, sums = torch.empty_like(given), given.new_full(given.shape[1:], -math.inf), list[Tensor]()
        for samples, part in chunks_of(len(given), given.shape[1], self.rows):
            log_p, *terms = self.score(*(value[samples, part] for value in values), *(t[part] for t in block))
            log_w[samples, part] = given[samples, part] if log_q is None else log_p - given[samples, part]
            before = log_sum[part].clone()
            log_sum[part] = torch.logaddexp(before, log_w[samples, part].logsumexp(0))
            finite = log_sum[part].clamp(min=torch.finfo(log_sum.dtype).min)  # while no weight is above 0
            w, kept = (log_w[samples, part] - finite).exp(), (before - finite).exp()
            sums = sums or [t.new_zeros(given.shape[1], *t.shape[2:]) for t in terms]
            for total, t in zip(sums, terms, strict=True):
                old = kept.to(t).reshape(-1, *(1,) * (t.dim() - 2)) * total[part]
                total[part] = old + torch.einsum("kd,kd...->d...", w.to(t), t)
        return log_w, sums


def known(trace: Any) -> Known:
    return trace.nodes["_RETURN"]["value"]
