"""log p(x) of a trained run without Monte Carlo error, where its latent has one or two dimensions."""

from __future__ import annotations

import math
from typing import Any

import torch

from ppl_vae.contract import measure_of
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.evaluation.quantity import quantity_of
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.experiments.evaluating import held_out, summarise
from ppl_vae.experiments.runs import Run
from ppl_vae.programs import evaluating, seeded
from ppl_vae.system.hashing import fingerprint


def integrate_run(
    run: Run, *, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[LogLikelihood, dict[str, Any]]:
    """log p(x) of the first test images by `log_p_by_quadrature`, with its `options`, and a summary of it for JSON.

    Raises `ValueError` for an autoencoder, and for a latent of more than two dimensions.
    """
    data, names = held_out(run, num_images, seed)
    log_p = log_p_by_quadrature(run.programs[0], *data, **options).cpu()
    with evaluating(*run.programs), seeded(seed):
        measure, space = measure_of(*run.programs, *data)
        quantity, given = quantity_of(*run.programs, *data)
    result = LogLikelihood(
        log_p,
        mc_se=torch.zeros_like(log_p),
        ess=torch.ones_like(log_p),
        khat=torch.full_like(log_p, -math.inf),  # without weights there is none to fear
        num_samples=torch.ones(len(log_p), dtype=torch.int64),
        measure=measure,
        space=space,
        quantity=quantity,
        given=given,
        fingerprint=fingerprint(data[0]),
        bound="exact (by quadrature)",
        **names,
    )
    return result, summarise(run, result, data, seed)
