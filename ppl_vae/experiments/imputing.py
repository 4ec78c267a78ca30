"""Fill in missing pixels of a run's test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from ppl_vae.data.noise import NoNoise
from ppl_vae.data.operators import Missing
from ppl_vae.evaluation.denoising import mean_and_se
from ppl_vae.evaluation.imputation import Imputation, impute
from ppl_vae.evaluation.results import rungs_of
from ppl_vae.experiments.evaluating import held_out
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.experiments.settings import ImputationConfig
from ppl_vae.system.arrays import to_npz
from ppl_vae.system.files import to_json, write_whole

NUM_SHOWN = 10


def impute_run(
    run: Run, seen: Tensor, *, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[Imputation, Tensor]:
    """`impute` of the first test images where `seen`, (*event) or (data, *event), is false, and those images as
    observed. Raises `ValueError` as `held_out` and `impute` do."""
    data, _ = held_out(run, num_images, seed)
    if not isinstance(run.observe.noise, NoNoise):
        raise ValueError(f"{run.config.noise}: expected a guide that sees x; got one that was trained to see it noisy")
    return impute(*run.programs, *data, seen=seen, seed=seed, **options), data[0]


def impute_images(run: Run, config: ImputationConfig, output: Path, *, show_progress: bool = True) -> Imputation:
    """Fills in the missing pixels of test images; writes `imputation.json`, and the first images as they are, as seen
    and as filled in to `imputation.npz`, (images, C, H, W) in [0, 1]. Raises `ValueError` as `impute_run` does."""
    if not run.is_of_images:
        raise ValueError(f"{output}: expected a model of images; got one of vectors, {run.event_shape}")
    missing, generator = Missing(config.missing, config.fraction), Generator().manual_seed(config.seed)
    seen = missing.seen(run.dataset.test[: config.num_images], generator)
    options: dict[str, Any] = {k: getattr(config, k) for k in ("num_images", "num_samples", "climb", "seed")}
    result, x = impute_run(run, seen, show_progress=show_progress, **options)
    grey, p = run.observe.encoding.grey, result.log_p_missing
    square = (grey(result.mean) - grey(x)) ** 2 * ~seen
    error, error_se = mean_and_se(square.flatten(1).sum(1) / (~seen).flatten(1).sum(1))
    summary = {
        "missing": config.missing,
        "fraction": config.fraction,
        **options,
        "log_p_missing": {"mean": p.mean, "mc_se": p.mc_se_of_mean, "data_se": p.data_se_of_mean},
        "squared_error": {"mean": error, "se": error_se},
        "khat_over_limit": result.num_unreliable,
        "rungs": rungs_of(result.rung),
        "versions": versions(),
    }
    rows = {"original": x, "seen": x * seen, "mean": result.mean}
    rows |= {f"draw {i + 1}": draw for i, draw in enumerate(result.samples[:3])}
    write_whole(output / "imputation.npz", pictures({name: grey(row) for name, row in rows.items()}))
    write_whole(output / "imputation.json", to_json(summary))
    return result


def pictures(rows: dict[str, Tensor]) -> bytes:
    """The first images of each row, (images, C, H, W), as the content of a `.npz` file."""
    return to_npz({name: row[:NUM_SHOWN].numpy() for name, row in rows.items()})
