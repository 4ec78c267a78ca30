"""Fill in missing pixels of a run's test images."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppl_vae.data.noise import NoNoise
from ppl_vae.evaluation.imputation import Imputation, impute
from ppl_vae.experiments.evaluating import held_out
from ppl_vae.experiments.runs import Run


def impute_run(
    run: Run, seen: Tensor, *, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[Imputation, Tensor]:
    """`impute` of the first test images where `seen`, (*event) or (data, *event), is false, and those images as
    observed. Raises `ValueError` as `held_out` and `impute` do."""
    data, _ = held_out(run, num_images, seed)
    if not isinstance(run.observe.noise, NoNoise):
        raise ValueError(f"{run.config.noise}: expected a guide that sees x; got one that was trained to see it noisy")
    return impute(*run.programs, *data, seen=seen, seed=seed, **options), data[0]
