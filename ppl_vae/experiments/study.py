"""The report's study: autoencoders and VAEs on one dataset, how they remove noise, and how likely they find images.

Each model is a run folder of its own, skipped when it is there already, so that a study that stopped resumes, also in
the middle of a training. A model that fails does not keep the others from being trained and compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ppl_vae.components import create
from ppl_vae.data.loading import load
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.denoising import denoise_all
from ppl_vae.experiments.evaluating import evaluate_once
from ppl_vae.experiments.imputing import NUM_SHOWN, pictures
from ppl_vae.experiments.preparation import assemble, split_of
from ppl_vae.experiments.restoration_curves import restoration_curves
from ppl_vae.experiments.restoration_panel import restoration_panel
from ppl_vae.experiments.restoring import NOISES, is_restored, restore_images, restore_study
from ppl_vae.experiments.runs import Run, finished, versions
from ppl_vae.experiments.settings import StudyConfig
from ppl_vae.experiments.training import seconds_per_step, trained
from ppl_vae.graphs import COMPILE_SECONDS
from ppl_vae.system.files import write_json, write_whole
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.signals import attempted

COMPILED_SPEED = 2.0  # of a compiled training step, in units of one that is not
STEPS_PER_IMAGE = 10.0  # training steps that take as long as log p(x) of an image


def run_study(
    config: StudyConfig,
    output: Path,
    *,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = print,
    after_run: Callable[[Run, Path], object] = lambda run, folder: None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Trains and evaluates; writes `metrics.json`, which it returns, and to `denoising.npz` the first images of each
    row of the denoising table. `after_run(run, folder)` is called for each run that is there.

    Models that failed are in the metrics under "failed", with why. Raises `ArithmeticError` where all did.
    """
    create(Noise, config.noise)
    dataset = load(config.dataset, data_dir)
    config = config.for_set_of(len(dataset.train))
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    configs = config.models()
    num_train = len(split_of(next(iter(configs.values())), dataset)[0])
    if show_progress:
        _say_time(configs, dataset, output, num_train, config, say)
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, c in configs.items():
        with attempted(name, failed, say):
            runs[name] = trained(c, output / name, dataset=dataset, device=device, show_progress=show_progress)
    metrics: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "image_shape": dataset.image_shape,
        "train_images": num_train,
        "dataset_fingerprint": fingerprint(dataset.train, dataset.test),
        "log_likelihood": {},
        "versions": versions(),
    }
    for name, run in runs.items():
        with attempted(name, failed, say):
            after_run(run, output / name)
            if run.model.has_log_p:
                metrics["log_likelihood"][name] = _evaluate(run, output / name, config, show_progress, say)
    runs = {name: run for name, run in runs.items() if name not in failed}
    if not runs:
        raise ArithmeticError(f"{output}: expected models to compare; got none that did not fail")
    say(f"{config.dataset}: denoising {len(dataset.test)} test images")
    metrics["denoising"], restored = denoise_all(runs, dataset, config.noise, seed=config.seed)
    noises = (config.noise,) if config.short else tuple(dict.fromkeys((config.noise, *NOISES)))
    asked: dict[str, Any] = {"num_images": config.num_restored, "seed": config.seed}
    restored_rows = restore_study(output, runs, noises, failed=failed, say=say, **asked)
    shown = next((name for name in ("dense-vae", *runs) if name in runs and runs[name].model.has_log_p), None)
    if shown is not None:
        of_shown: Any = runs[shown], create(Noise, config.noise), output
        with attempted(f"{shown}, by inference", failed, say):
            if not is_restored(*of_shown, num_images=NUM_SHOWN, seed=config.seed):
                restore_images(*of_shown, num_images=NUM_SHOWN, seed=config.seed)
            restoration_panel(output, runs[shown], num_images=4 if config.short else 8, seed=config.seed, say=say)
            if not config.short:
                restoration_curves(output, runs[shown], config.noise, seed=config.seed, say=say)
    metrics["seconds"] = {
        "training": {name: run.metrics["seconds"] for name, run in runs.items()},
        "this_call": round(time.perf_counter() - start, 1),
    }
    metrics["failed"] = failed
    write_whole(output / "denoising.npz", pictures(restored))
    write_json(output / "metrics.json", metrics)
    return metrics | {"restoration": restored_rows}  # which have a file of their own


def _say_time(configs: dict, dataset: Any, output: Path, num_train: int, config: StudyConfig, say: Any) -> None:
    """How long the trainings that are still to do will take, and the evaluations of their models."""
    todo = [c for name, c in configs.items() if not finished(output / name, c)]
    if not todo:
        return
    steps = -(-num_train // (config.batch_size or 1))
    seconds = 0.0
    for c in todo:
        with contextlib.suppress(Exception):  # it will fail in its turn, and say why
            step = seconds_per_step(c, dataset)
            seconds += min(step * steps * c.epochs, COMPILE_SECONDS + step * steps * c.epochs / COMPILED_SPEED)
            if assemble(c).kind.model.has_log_p:
                seconds += step * STEPS_PER_IMAGE * min(config.num_images or 0, len(dataset.test))
    say(
        f"{config.dataset}: {len(todo)} of {len(configs)} models to train and evaluate, about "
        f"{max(seconds / 60, 1):.0f} min"
    )


def _evaluate(run: Run, folder: Path, config: StudyConfig, show_progress: bool, say: Any) -> dict[str, Any]:
    """log p(x) of a run by importance sampling from the guide, as papers have it, and by the ladder, each from its
    folder where the same was asked before; the summary of the former."""
    num_samples, num_images = config.num_samples or 1, min(config.num_images or 1, len(run.dataset.test))
    asked = {"num_samples": num_samples, "num_images": num_images, "seed": config.seed}
    of = f"{config.dataset} {folder.name}: log p(x) of {num_images} test images, K = {num_samples}"
    options: dict[str, Any] = {"say": lambda text: say(f"{of}, {text}"), "show_progress": show_progress}
    _, summary = evaluate_once(run, folder, "importance", asked, **options)
    evaluate_once(run, folder, "ladder", asked, **options)
    return summary
