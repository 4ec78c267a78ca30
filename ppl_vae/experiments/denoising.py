"""Remove noise from test images: by runs, and by linear methods for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from ppl_vae.components import create
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.noise import Noise, NoNoise
from ppl_vae.evaluation.denoising import linear_baselines, quality_summary
from ppl_vae.experiments.imputing import pictures
from ppl_vae.experiments.restoring import clean_images, restore_run
from ppl_vae.experiments.runs import Run
from ppl_vae.system.files import to_json, write_whole

FEW = 100  # images, by inference
USUAL = "gaussian-noise:scale=0.5"


def noise_of(run: Run, noise: str | None) -> str:
    """What to remove: by default what the run learned to, else Gaussian noise."""
    return noise or (USUAL if isinstance(run.observe.noise, NoNoise) else run.config.noise)


def denoise_run(
    run: Run,
    output: Path,
    *,
    name: str,
    noise: str | None = None,
    num_images: int | None,
    seed: int,
    by_inference: bool = False,
) -> dict[str, Any]:
    """Quality of a run's restorations of the first test images with noise, by default what it learned to remove, else
    Gaussian; with `by_inference` also by `restore_run`, of 100 images by default. Writes `denoising.json`, and the
    first images to `denoising.npz`; returns what is in the former."""
    if not run.is_of_images:
        raise ValueError(
            f"{name}: expected a model of images, to remove noise from; got one of vectors, {run.event_shape}"
        )
    spec = noise_of(run, noise)
    clean = run.dataset.test[: num_images or (FEW if by_inference else None)] / 255
    add = create(Noise, spec)
    noisy = add(clean, Generator().manual_seed(seed))
    restored = {"noisy": noisy, name: run.reconstruct(noisy, *run.test_labels(len(noisy)))}
    if by_inference:
        name = f"{name}, by inference"
        restored[name] = restore_run(run, noisy, add, seed=seed).mean
    rows = {name: quality_summary(x, clean) for name, x in restored.items()}
    summary = {"noise": spec, "by_inference": by_inference, "num_images": len(clean), "seed": seed, "rows": rows}
    shown = {"original": clean, "noisy": noisy, "restored": restored[name]}
    write_whole(output / "denoising.npz", pictures(shown))
    write_whole(output / "denoising.json", to_json(summary))
    return summary


def denoise_all(runs: dict[str, Run], dataset: Dataset, noise: str, *, seed: int) -> tuple[dict, dict[str, Tensor]]:
    """Quality of every model's restoration of the same noisy test images, beside the noisy images and linear methods.

    Returns rows for JSON, and the images of each row.
    """
    add = create(Noise, noise)
    clean = dataset.test / 255
    noisy = add(clean, Generator().manual_seed(seed))
    images, validation = clean_images(next(iter(runs.values())), dataset)
    restored = linear_baselines(images, validation, noisy, add, seed=seed)
    restored |= {name: run.reconstruct(noisy, *run.test_labels(len(noisy))) for name, run in runs.items()}
    rows: dict[str, Any] = {}
    for name, x in restored.items():
        run = runs.get(name)
        rows[name] = {
            "trained_on_noise": name.startswith("Wiener") or (run is not None and run.config.noise == noise),
            **quality_summary(x, clean),
        }
    return {"noise": noise, "num_images": len(clean), "rows": rows}, {"original": clean, **restored}
