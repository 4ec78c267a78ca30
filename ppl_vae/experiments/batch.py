"""Runs that an experiment trains and evaluates, each apart: one after another, or by an executor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import evaluate_once, evaluated
from ppl_vae.experiments.runs import finished
from ppl_vae.experiments.sampling import save_samples
from ppl_vae.experiments.training import trained
from ppl_vae.system.executors import apart
from ppl_vae.system.files import locked
from ppl_vae.system.progress import progress
from ppl_vae.system.signals import attempted

Sizes = Mapping[str, Mapping[str, int]]
"""Of an evaluation (num_samples, num_images, seed), by its method."""


def of_seeds(
    models: Mapping[str, TrainConfig], seeds: Iterable[int], output: Path
) -> dict[str, tuple[TrainConfig, Path]]:
    """Each model with each seed, and its folder, by name/seed-SEED: all models of the first seed before any of the
    second."""
    return {
        f"{name}/seed-{seed}": (dataclasses.replace(model, seed=seed), output / name / f"seed-{seed}")
        for seed in seeds
        for name, model in models.items()
    }


def is_done(folder: Path, model: TrainConfig, sizes: Sizes) -> bool:
    """Whether the folder has just this model, and its evaluations."""
    return finished(folder, model) and all(evaluated(folder, method=m, **s) is not None for m, s in sizes.items())


def train_and_evaluate(
    config: TrainConfig,
    folder: Path,
    sizes: Sizes,
    *,
    dataset: Dataset | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> None:
    """A run in its folder, with samples where it is of images, and with its evaluations: what is there already is not
    made again. `options` go to `fit` and the estimators."""
    dataset = dataset or load(config.dataset, data_dir)
    with locked(folder):
        run = trained(config, folder, dataset=dataset, device=device, **options)
        if run.is_of_images:
            save_samples(run, folder)
        for method, of_method in sizes.items():
            evaluate_once(run, folder, method, of_method, say=say, **options)


def run_batch(
    runs: Mapping[str, tuple[TrainConfig, Path, Sizes]],
    dataset: Dataset,
    failed: dict[str, str],
    *,
    title: str,
    executor: Executor | None = None,
    say: Callable[[str], object] = print,
    show_progress: bool = True,
    after_each: Callable[[], object] = lambda: None,
    **options: Any,
) -> None:
    """Trains and evaluates runs by name, as `train_and_evaluate` does, of which the other options are. One that fails
    is said, and why is stored in `failed` under its name; the others go on.

    Workers of an executor load the dataset themselves, and show no progress: here it is shown how many runs are done.
    """
    calls = {name: (config, folder.absolute(), sizes) for name, (config, folder, sizes) in runs.items()}
    here = {"dataset": dataset, "say": say, "show_progress": show_progress}
    options |= here if executor is None else {"show_progress": False}
    with progress(title, len(calls), enabled=executor is not None and show_progress) as report:
        for name, result in apart(executor, partial(train_and_evaluate, **options), calls):
            say(f"{title} {name.replace('/seed-', ', seed ')}")
            with attempted(name, failed, say):
                result()
            report()
            after_each()
    in_order = {name: failed.pop(name) for name in runs if name in failed}
    failed.update(in_order)
