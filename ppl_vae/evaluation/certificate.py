"""What the ladder misses, on data simulated from the model: log p(x) from both sides by importance sampling."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_vae.contract import check_scores_any, tensors_of
from ppl_vae.evaluation.adaptive import MAX_FACTOR, by_ladder, refined_or_guide
from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.sandwich import Sandwich, simulate
from ppl_vae.programs import Program, evaluating, model_trace_of, seeded, sum_of_sites, trace_of


def certify(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_data: int = 64,
    num_samples: int = 1000,
    seed: int = 0,
    memory: int | None = None,
    compiled: bool | None = None,
    executor: Executor | None = None,
    show_progress: bool = False,
) -> Sandwich:
    """log p(x) from both sides, for data simulated from the model: below by `log_likelihood_within`, as the data of an
    evaluation are scored, and above with the z that made x among the samples. Of an exact draw z_1 ~ p(z|x) and
    K - 1 others from the refined posterior q, which both bounds share,

        E[log 1/K sum_k p(x, z_k) / q(z_k|x)] >= log p(x).

    The gap is what this evaluation misses, at most, on such data; real data may differ. Artem Sobolev, Dmitry Vetrov:
    Importance Weighted Hierarchical Variational Inference, 2019, arXiv:1905.03290.

    x and args only show the programs what data look like: the data are
    `simulate(model, x, *args, num_data=num_data, seed=seed)`. The other arguments are those of `log_likelihood`.

    Raises `ValueError` as `log_likelihood_within` and `simulate` do, for fewer than 2 samples, and for a guide that
    scores its own draws alone.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, the exact draw and another; got {num_samples}")
    with evaluating(model, guide), seeded(seed):
        check_scores_any(guide, *(t[:1] for t in tensors_of(model, guide, x, *args)))
    simulated, z = simulate(model, x, *args, num_data=num_data, seed=seed)
    data = (simulated, *(t[torch.arange(num_data, device=t.device) % len(t)] for t in args))
    options: dict[str, Any] = {"memory": memory, "compiled": compiled, "show_progress": show_progress}
    options["executor"] = executor
    refined = refined_or_guide(model, guide, *data, seed=seed_of(seed, 1), **options)
    sizes: dict[str, Any] = {"num_samples": num_samples, "max_samples": MAX_FACTOR * num_samples}
    of_ladder = {**sizes, **options, "tolerance": math.inf, "encoding": ""}
    lower = by_ladder(model, guide, data, refined, seed=seed_of(seed, 0), **of_ladder)
    others = log_likelihood(model, refined, *data, num_samples=num_samples - 1, seed=seed_of(seed, 2), **options)
    with evaluating(model, refined), seeded(seed):
        exact = trace_of({name: value[None] for name, value in z.items()})
        log_p, log_q = (
            sum_of_sites(model_trace_of(program, exact, *data, num_samples=1), (1, num_data))[0].double().cpu()
            for program in (model, refined)
        )
    log_sum = torch.logaddexp(others.log_p + math.log(num_samples - 1), log_p - log_q)
    above = replace(others, log_p=log_sum - math.log(num_samples), bound="upper (an exact draw among the samples)")
    return Sandwich(*(replace(bound, encoding="simulated from the model") for bound in (lower, above)))
