"""log p(x) from both sides, by bidirectional Monte Carlo on data simulated from the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.contract import check_same_without_x, observed_x, tensors_of
from ppl_vae.evaluation.annealing import Annealing, Start, anneal
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    seeded,
)


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
    compiled: bool | None = None,
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
    x, *args = tensors_of(model, guide, x, *args)  # type: ignore[assignment]
    simulated, z = simulate(model, x, *args, num_data=num_data, seed=seed)
    data = (simulated, *(_rows(t, num_data) for t in args))
    settings = Annealing(num_chains, num_steps, start, leapfrog_steps)
    options: dict[str, Any] = {"seed": seed, "memory": memory, "compiled": compiled, "show_progress": show_progress}
    bounds = anneal(model, guide, data, settings, z=z, **options)
    return Sandwich(*(replace(bound, encoding="simulated from the model") for bound in bounds))


def simulate(
    model: Program, x: Tensor, *args: Tensor, num_data: int, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Data from the model, (num_data, *event), and the latent sites' values that made them, each the same.

    x and args are templates, whose rows are used over and over: only args can matter (labels, say).

    Raises `ValueError` unless the model has one observed site, which observes x itself, and whose distribution
    does not depend on x (an autoregressive likelihood's does).
    """
    data = tensors_of(model, model, x, *args)
    if num_data < 1:
        raise ValueError(f"num_data: expected at least 1; got {num_data}")
    template, *rest = (_rows(t, num_data) for t in data)
    with evaluating(model), seeded(seed):
        name, _ = observed_x(guide_trace_of(model, template, *rest, num_samples=1), template)
        trace = guide_trace_of(poutine.uncondition(model), template, *rest, num_samples=1)
        z = {name: site["value"][0] for name, site in sample_sites(trace, observed=False).items()}
        simulated = z.pop(name).reshape(template.shape)
        again = model_trace_of(model, trace, simulated, *rest, num_samples=1)
        log_p, log_p_again = (log_prob_per_datum(t, (1, num_data))[name] for t in (trace, again))
        check_same_without_x(name, log_p, log_p_again)
    return simulated, z


def _rows(t: Tensor, num_data: int) -> Tensor:
    return t[torch.arange(num_data, device=t.device) % len(t)]
