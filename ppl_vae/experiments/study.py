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

from tyro.conf import Suppress

from ppl_vae.components import create
from ppl_vae.data.loading import load
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.config import Count, TrainConfig, record
from ppl_vae.experiments.denoising import denoise_all
from ppl_vae.experiments.evaluating import evaluate_run, evaluated, save_evaluation
from ppl_vae.experiments.imputing import pictures
from ppl_vae.experiments.preparation import split_of
from ppl_vae.experiments.runs import Run, finished, versions
from ppl_vae.experiments.training import seconds_per_step, trained
from ppl_vae.system.files import write_json, write_whole
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.signals import attempted


@record
class StudyConfig:
    """The report's experiments on one dataset. What is left out follows from the size of the set: the report's
    20 and 15 epochs from 20,000 training images on, fewer epochs and images below that."""

    dataset: Suppress[str] = "mnist-mini"
    noise: str = "gaussian-noise:scale=0.5"
    """What to remove: gaussian-noise:scale=0.5, salt-and-pepper:fraction=0.3 or masking:fraction=0.5."""
    autoencoder_epochs: Count | None = None
    """Default: 20 on full sets, 6 on small ones."""
    vae_epochs: Count | None = None
    """Default: 15 on full sets, 4 on small ones."""
    batch_size: Count | None = None
    """Default: 128 on full sets, 64 on small ones."""
    num_images: Count | None = None
    """Test images whose log p(x) is estimated. Default: 1000 on full sets, 200 on small ones."""
    num_samples: Count | None = None
    """Importance samples for each of them. Default: 500 on full sets, 100 on small ones."""
    seed: int = 0
    train_images: Count | None = None
    """Use the first so many training images only."""

    def for_set_of(self, num_train: int) -> StudyConfig:
        """With what was left out filled in for a set of `num_train` training images."""
        full = min(num_train, self.train_images or num_train) >= 20_000
        defaults: dict[str, Any] = {
            "autoencoder_epochs": 20 if full else 6,
            "vae_epochs": 15 if full else 4,
            "batch_size": 128 if full else 64,
            "num_images": 1000 if full else 200,
            "num_samples": 500 if full else 100,
        }
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def models(self) -> dict[str, TrainConfig]:
        """The runs of the study by name; `-denoising` learned noisy -> clean, as the autoencoders did."""
        common: dict[str, Any] = {
            "dataset": self.dataset,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "train_images": self.train_images,
        }
        ae = {**common, "epochs": self.autoencoder_epochs, "noise": self.noise}
        vae = {**common, "epochs": self.vae_epochs}
        return {
            "dense-ae": TrainConfig(model="dense-ae", latent_size=32, **ae),
            "conv-ae": TrainConfig(model="conv-ae", **ae),
            "conv-vae-denoising": TrainConfig(model="conv-vae", noise=self.noise, **vae),
            "conv-vae": TrainConfig(model="conv-vae", **vae),
            "dense-vae": TrainConfig(model="dense-vae", **vae),
            "dense-vae-2d": TrainConfig(model="dense-vae", latent_size=2, **vae),
            "dense-vae-gaussian": TrainConfig(model="dense-vae", likelihood="gaussian-learned", **vae),
            "dense-vae-per-pixel": TrainConfig(model="dense-vae", likelihood="gaussian-per-pixel", **vae),
        }


def run_study(
    config: StudyConfig,
    output: Path,
    *,
    data_dir: Path | None = None,
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
            runs[name] = trained(c, output / name, dataset=dataset, show_progress=show_progress)
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
    metrics["seconds"] = {
        "training": {name: run.metrics["seconds"] for name, run in runs.items()},
        "this_call": round(time.perf_counter() - start, 1),
    }
    metrics["failed"] = failed
    write_whole(output / "denoising.npz", pictures(restored))
    write_json(output / "metrics.json", metrics)
    return metrics


def _say_time(configs: dict, dataset: Any, output: Path, num_train: int, config: StudyConfig, say: Any) -> None:
    """How long the trainings that are still to do will take."""
    todo = [c for name, c in configs.items() if not finished(output / name, c)]
    if not todo:
        return
    steps = -(-num_train // (config.batch_size or 1))
    minutes = 0.0
    for c in todo:
        with contextlib.suppress(Exception):  # it will fail in its turn, and say why
            minutes += seconds_per_step(c, dataset) * steps * c.epochs / 60
    say(f"{config.dataset}: {len(todo)} of {len(configs)} models to train, about {minutes:.0f} min, then evaluation")


def _evaluate(run: Run, folder: Path, config: StudyConfig, show_progress: bool, say: Any) -> dict[str, Any]:
    """log p(x) of a run, from its folder where the same was asked before."""
    num_samples, num_images = config.num_samples or 1, min(config.num_images or 1, len(run.dataset.test))
    asked = {"num_samples": num_samples, "num_images": num_images, "seed": config.seed}
    if (known := evaluated(folder, **asked)) is not None:
        return known
    say(f"{config.dataset} {folder.name}: log p(x) of {num_images} test images, K = {num_samples}")
    result, summary = evaluate_run(run, **asked, show_progress=show_progress)
    if not result.complete:
        raise KeyboardInterrupt  # and not kept: the next time it would be taken for a whole one
    say(str(result))
    save_evaluation(folder, result, summary)
    return summary
