"""Contenders in importance sampling: each takes a case and returns a function that evaluates some more images, and
how many decoder rows (samples x images) that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from cases import Case, Pair, binarized, images, products
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor

from ppl_vae.evaluation.chunks import BLOCK_DATA, rows_per_chunk
from ppl_vae.evaluation.importance import LogWeights, add_samples
from ppl_vae.evaluation.results import LogMeanExp
from ppl_vae.programs import evaluating

Run = tuple[Callable[[], object], int]
ROWS = 4096  # at a time where the contender lets us choose: the logits then fit the last cache


def _one_image_after_another(case: Case, evaluate: Callable[[Tensor], object]) -> Run:
    def forever() -> Iterator[Tensor]:
        data = binarized(images())
        while True:
            yield from data.split(1)

    data = forever()
    return (lambda: evaluate(next(data))), case.num_samples


def _ours(case: Case, compiled: bool, rows: int = 0) -> Run:
    pair, x = Pair(case.architecture), binarized(images())[:BLOCK_DATA]
    with evaluating(pair.model, pair.guide):
        rows = rows or rows_per_chunk(pair.model, pair.guide, x[:1], memory=None)
        weights = LogWeights(pair.model, pair.guide, x[:1], rows=rows)
    if compiled:
        weights.compile()
    index = torch.arange(len(x))

    def run() -> None:
        with evaluating(pair.model, pair.guide):
            statistics = LogMeanExp(len(x), case.num_samples)
            add_samples(statistics, index, weights, (x,), num_samples=case.num_samples, seed=0)
            statistics.log_mean()

    return run, len(x) * case.num_samples


def ours(case: Case) -> Run:
    """This package's `log_likelihood` on a pair with none of its classes, once it is compiled."""
    return _ours(case, compiled=True)


def ours_in_chunks(case: Case, rows: int) -> Run:
    """The same, decoding so many rows at a time."""
    return _ours(case, compiled=True, rows=rows)


def ours_eager(case: Case) -> Run:
    """The same, not compiled."""
    return _ours(case, compiled=False)


def pyro_naive(case: Case) -> Run:
    """Pyro, one sample after another: trace the guide, replay the model, log_prob_sum."""
    pair = Pair(case.architecture)
    pyro.enable_validation(False)

    @torch.no_grad()
    def evaluate(x: Tensor) -> Any:
        log_w = []
        for _ in range(case.num_samples):
            guide_trace = poutine.trace(pair.guide).get_trace(x)
            model_trace = poutine.trace(poutine.replay(pair.model, guide_trace)).get_trace(x)
            log_w.append(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
        return torch.stack(log_w).logsumexp(0)

    return _one_image_after_another(case, evaluate)


def pyro_vectorized(case: Case) -> Run:
    """Pyro's vectorized_importance_weights, an image at a time (a batch would be weighted jointly)."""
    pair = Pair(case.architecture)
    pyro.enable_validation(False)

    @torch.no_grad()
    def evaluate(x: Tensor) -> Any:
        log_w, _, _ = vectorized_importance_weights(
            pair.model, pair.guide, x, num_samples=case.num_samples, max_plate_nesting=1, normalized=False
        )
        return log_w.logsumexp(0)

    return _one_image_after_another(case, evaluate)


def _by_hand(case: Case, compiled: bool) -> Run:
    pair, x = Pair(case.architecture), binarized(images())[:BLOCK_DATA]
    step = ROWS // len(x)
    log_weights = torch.compile(pair.log_weights, dynamic=False) if compiled else pair.log_weights

    @torch.no_grad()
    def run() -> Tensor:
        chunks = [log_weights(x, step).logsumexp(0) for _ in range(0, case.num_samples, step)]
        return torch.stack(chunks).logsumexp(0)

    return run, len(x) * step * len(range(0, case.num_samples, step))


def by_hand(case: Case) -> Run:
    """Plain torch, by hand, 4,096 rows at a time."""
    return _by_hand(case, compiled=False)


def by_hand_compiled(case: Case) -> Run:
    """The same with torch.compile."""
    return _by_hand(case, compiled=True)


def numpyro_jit(case: Case) -> Run:
    """NumPyro's handlers under jit and vmap, an image at a time."""
    import peers

    return _one_image_after_another(case, peers.numpyro_importance(case))


def pythae(case: Case) -> Run:
    """pythae's get_nll, with its own batch size of 100 samples."""
    import peers

    return _one_image_after_another(case, peers.pythae_importance(case))


def bare_products(case: Case) -> Run:
    """The floor: the matrix products of the decoder, 4,096 rows at a time, and nothing else."""
    decoder = products(case.architecture)[len(products(case.architecture)) // 2 :]
    tensors = [(torch.randn(ROWS, n), torch.randn(n, m), torch.empty(ROWS, m)) for n, m in decoder]

    def run() -> None:
        for x, W, y in tensors:
            torch.mm(x, W, out=y)

    return run, ROWS
