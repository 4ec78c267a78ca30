"""The report's study: autoencoders and VAEs on one data set, how they remove noise, and how likely they find images.

Each model is a run folder of its own, skipped when it is there already, so that a study that stopped goes on, also in
the midst of a training. A model that fails does not keep the others from being trained and compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator, Tensor
from tyro.conf import Suppress

from ppl_vae import plots
from ppl_vae.components import create
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.data.noise import Noise
from ppl_vae.evaluation.denoising import PCA, quality_summary
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.decoding import restore
from ppl_vae.experiments.evaluating import evaluate_run
from ppl_vae.experiments.preparation import split_images
from ppl_vae.experiments.runs import Run, finished, versions
from ppl_vae.experiments.training import seconds_per_step, trained
from ppl_vae.models import VAE
from ppl_vae.report.gallery import draw_run
from ppl_vae.system.files import check, read_json, to_json, write_checked, write_json
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.signals import attempted, stoppable


@dataclass(frozen=True)
class StudyConfig:
    """The report's experiments on one data set. What is left out follows from the size of the set: the report's
    20 and 15 epochs from 20,000 training images on, fewer epochs and images below that."""

    dataset: Suppress[str] = "mnist-mini"
    noise: str = "gaussian-noise:scale=0.5"
    """What to remove: gaussian-noise:scale=0.5, salt-and-pepper:fraction=0.3 or masking:fraction=0.5."""
    autoencoder_epochs: int | None = None
    """Default: 20 on full sets, 6 on small ones."""
    vae_epochs: int | None = None
    """Default: 15 on full sets, 4 on small ones."""
    batch_size: int | None = None
    """Default: 128 on full sets, 64 on small ones."""
    num_images: int | None = None
    """Test images whose log p(x) is estimated. Default: 1000 on full sets, 200 on small ones."""
    num_samples: int | None = None
    """Importance samples for each of them. Default: 500 on full sets, 100 on small ones."""
    seed: int = 0
    train_images: int | None = None
    """Use the first so many training images only."""

    def __post_init__(self) -> None:
        for field in ("autoencoder_epochs", "vae_epochs", "batch_size", "num_images", "num_samples", "train_images"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: expected at least 1; got {value}")
        create(Noise, self.noise)

    def resolved(self, num_train: int) -> StudyConfig:
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
    say: Any = print,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Trains, evaluates and draws; returns what it writes to `metrics.json`, and leaves `figures/` beside it.

    Models that failed are in the metrics under "failed", with why. Raises `ArithmeticError` where all did.
    """
    dataset = load(config.dataset, data_dir)
    image_shape = dataset.image_shape
    config = config.resolved(len(dataset.train))
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    configs = config.models()
    todo = [c for name, c in configs.items() if not finished(output / name, c)]
    num_train = len(split_images(next(iter(configs.values())), dataset)[0])
    if todo and show_progress:
        steps = -(-num_train // (config.batch_size or 1))
        minutes = 0.0
        for c in todo:
            with contextlib.suppress(Exception):  # it will fail in its turn, and say why
                minutes += seconds_per_step(c, dataset) * steps * c.epochs / 60
        say(
            f"{config.dataset}: {len(todo)} of {len(configs)} models to train, about {minutes:.0f} min, then evaluation"
        )
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, c in configs.items():
        with attempted(name, failed, say):
            runs[name] = trained(c, output / name, dataset=dataset, show_progress=show_progress)
    metrics: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "image_shape": image_shape,
        "train_images": num_train,
        "dataset_fingerprint": fingerprint(dataset.train, dataset.test),
        "log_likelihood": {},
        "versions": versions(),
    }
    for name, run in runs.items():
        with attempted(name, failed, say):
            draw_run(run, output / name)
            if isinstance(run.model, VAE):
                metrics["log_likelihood"][name] = _evaluate(run, output / name, config, show_progress, say)
    runs = {name: run for name, run in runs.items() if name not in failed}
    if not runs:
        raise ArithmeticError(f"{output}: expected models to compare; got none that did not fail")
    say(f"{config.dataset}: denoising {len(dataset.test)} test images")
    metrics["denoising"], pictures = denoise_all(runs, dataset, config)
    metrics["seconds"] = {
        "training": {name: run.metrics["seconds"] for name, run in runs.items()},
        "this_call": round(time.perf_counter() - start, 1),
    }
    metrics["failed"] = failed
    draw(metrics, pictures, output)
    write_json(output / "metrics.json", metrics)
    return metrics


def _evaluate(run: Run, folder: Path, config: StudyConfig, show_progress: bool, say: Any) -> dict[str, Any]:
    """log p(x) of a run, from `evaluation.json` where the same was asked before."""
    path = folder / "evaluation.json"
    asked = {
        "num_samples": config.num_samples,
        "num_images": min(config.num_images or 1, len(run.dataset.test)),
        "seed": config.seed,
        "trained": run.metrics,
    }
    with contextlib.suppress(FileNotFoundError, ValueError):  # one that is damaged is made again
        check(folder, path.name)
        known = read_json(path)
        if known.get("asked") == asked:
            return known["log_likelihood"]
    say(f"{config.dataset} {folder.name}: log p(x) of {asked['num_images']} test images, K = {config.num_samples}")
    result, summary = evaluate_run(
        run,
        num_samples=config.num_samples or 1,
        num_images=config.num_images,
        seed=config.seed,
        show_progress=show_progress,
    )
    if not result.complete:
        raise KeyboardInterrupt  # and not kept: the next time it would be taken for a whole one
    say(str(result))
    write_checked(folder, {path.name: to_json({"asked": asked, "log_likelihood": summary})})
    return summary


def denoise_all(runs: dict[str, Run], dataset: Dataset, config: StudyConfig) -> tuple[dict, dict[str, Tensor]]:
    """Quality of every model's restoration of the same noisy test images, beside the noisy images and PCA.

    Returns rows for JSON, and the first ten images of each row.
    """
    noise = create(Noise, config.noise)
    clean = dataset.test / 255
    noisy = noise(clean, Generator().manual_seed(config.seed))
    images, validation = (part / 255 for part in split_images(next(iter(runs.values())).config, dataset))
    pca = PCA.tuned(images, noise(validation, Generator().manual_seed(config.seed + 1)), validation)
    restored = {"noisy": noisy, f"PCA ({pca.num_components} components)": pca(noisy)}
    restored |= {name: restore(run, noisy) for name, run in runs.items()}
    rows = {}
    for name, x in restored.items():
        run = runs.get(name)
        rows[name] = {
            "trained_on_noise": run is not None and run.config.noise == config.noise,
            **quality_summary(x, clean),
        }
    shown = {"original": clean[:10], **{name: x[:10] for name, x in restored.items()}}
    return {"noise": config.noise, "num_images": len(clean), "rows": rows}, shown


@stoppable()
def draw(metrics: dict[str, Any], denoised: dict[str, Tensor], output: Path) -> None:
    """The study's comparisons, as PNG under `figures/`."""
    figures = output / "figures"
    figures.mkdir(exist_ok=True)
    name = metrics["config"]["dataset"]

    fig, ax = plots.figure(8, 0.62 * len(denoised) + 0.5)
    plots.rows_of_images(ax, denoised)
    plots.save(fig, figures / "denoising.png", title=f"{name}: {metrics['config']['noise']}, removed")

    rows = metrics["denoising"]["rows"]
    fig, axes = plots.figure(10, 0.4 * len(rows) + 1.2, ncols=3, sharey=True)
    quality = {
        metric.upper(): (
            [row[metric]["mean"] for row in rows.values()],
            [row[metric]["se"] for row in rows.values()],
        )
        for metric in ("mse", "psnr", "ssim")
    }
    plots.denoising_dots(axes, list(rows), quality)
    plots.save(fig, figures / "denoising-quality.png", title=f"{name}: quality of denoising, mean and s.e.")

    likelihoods = metrics["log_likelihood"]
    for measure in sorted({row["measure"] for row in likelihoods.values()}):
        part = {k: row for k, row in likelihoods.items() if row["measure"] == measure}
        fig, ax = plots.figure(7, 0.45 * len(part) + 1.2)
        plots.log_likelihood_bars(
            ax, list(part), [row["log_p"] for row in part.values()], [row["data_se"] for row in part.values()]
        )
        title = f"{name}: log p(x), a {measure}, mean and s.e. over test images"
        plots.save(fig, figures / f"log-likelihood-{measure}.png", title=title)
