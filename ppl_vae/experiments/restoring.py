"""Restore images of a run by inference, and the rows of a study: every VAE against every noise."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ppl_vae.components import create
from ppl_vae.data.dataset import Dataset, select
from ppl_vae.data.noise import Noise, NoNoise
from ppl_vae.evaluation.denoising import linear_baselines, quality_summary
from ppl_vae.evaluation.restoration import Restoration, restore
from ppl_vae.evaluation.results import rungs_of
from ppl_vae.experiments.folders import made_of
from ppl_vae.experiments.imputing import pictures
from ppl_vae.experiments.preparation import split_of
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.system.arrays import to_npz
from ppl_vae.system.files import read_json, to_json, write_json, write_whole
from ppl_vae.system.signals import attempted

MISFIT = 0.2  # of images around a decoder's mean, where noise leaves pixels as they are: of the highest log p(y)
INTERVALS = {"50%": 0.6745, "90%": 1.6449}  # in standard deviations
NOISES = tuple(
    f"{kind}={value}"
    for kind, values in (
        ("gaussian-noise:scale", (0.25, 0.5, 1.0)),
        ("salt-and-pepper:fraction", (0.15, 0.3, 0.5)),
        ("masking:fraction", (0.25, 0.5, 0.75)),
    )
    for value in values
)
HALF_LEVEL = 0.5 / 255  # images are rounded to levels
NUM_SIMULATED = 200  # images, at most


def keeps_pixels(corruption: Noise) -> bool:
    """Whether pixels may be just what they were, which has no density."""
    grey = torch.full((1, 1, 12, 12), 0.5)
    return not corruption.likelihood(grey).log_prob(torch.tensor(0.3)).isfinite().all()


def restore_run(run: Run, y: Tensor, corruption: Noise, **options: Any) -> Restoration:
    """`restore` of images by a run's model. Where the corruption leaves pixels as they are, a clean image lies around
    the decoder's mean with a standard deviation of 0.2, and is drawn (clean="drawn"); images don't climb the ladder of
    `restore`, which costs a few times as much and hardly changes their means: unless `options` say otherwise. Raises
    `ValueError` as `restore` does, and for an autoencoder."""
    if not run.model.has_log_p:
        raise ValueError(f"{run.config.model}: expected a VAE; got an autoencoder, which has no prior of images")
    if not run.is_of_images:
        raise ValueError(f"{run.config.model}: expected a model of images; got one of vectors, {run.event_shape}")
    if keeps_pixels(corruption):
        options = {"misfit": MISFIT, "clean": "drawn" if _says_what_pixels_were(corruption) else "mean", **options}
    options = {"climb": False, "encoding": run.observe.encoding, **options}
    given = () if isinstance(run.observe.noise, NoNoise) else (corruption.guess(y).nan_to_num(nan=0.0),)
    return restore(*run.programs, y, *given, *run.test_labels(len(y)), corruption=corruption, **options)


def _says_what_pixels_were(corruption: Noise) -> bool:
    grey = torch.full((1, 1, 12, 12), 0.5)
    try:
        corruption.clean_given(grey, grey, MISFIT)
    except (ValueError, NotImplementedError, RuntimeError):
        return False
    return True


def covers(result: Restoration, clean: Tensor, slack: float = 0.0) -> dict[str, float]:
    """What shares of the pixels are in the intervals of the stated mean and standard deviation, by name."""
    error = (result.mean - clean).abs() - slack
    return {name: (error <= width * result.std).double().mean().item() for name, width in INTERVALS.items()}


def quality_of(result: Restoration, clean: Tensor, seconds: float) -> dict[str, Any]:
    """MSE, PSNR and SSIM of restored images, and what shares of pixels their intervals hold, for JSON."""
    return {
        **quality_summary(result.mean, clean),
        "covers": covers(result, clean, HALF_LEVEL),
        "log_p": result.log_p.mean,
        "khat_over_limit": result.num_unreliable,
        "rungs": rungs_of(result.rung),
        "num_images": len(result),
        "cpu_seconds_per_image": seconds / len(result),
    }


def restore_images(
    run: Run,
    corruption: Noise,
    output: Path,
    *,
    y: Tensor | None = None,
    num_images: int | None = None,
    misfit: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Restoration:
    """Restores corrupted images y, or the first test images, 20 by default, after the corruption. Writes
    `restoration.npz` with mean, std and samples, and log p(y) and k-hat of each image; the first images as rows to draw
    to `restoration-shown.npz`; and `restoration.json`. Raises `ValueError` as `restore_run` does."""
    if y is not None and run.model.needs_labels:
        raise ValueError(f"{run.config.model}: expected test images, whose labels are known; got others")
    shown: dict[str, Tensor] = {}
    if y is None:
        shown["original"] = run.dataset.test[: num_images or 20] / 255
        y = corruption(shown["original"], Generator().manual_seed(seed))
    if misfit is not None:
        options |= {"misfit": misfit}
    result = restore_run(run, y, corruption, seed=seed, **options)
    guess = corruption.guess(y).nan_to_num(nan=0.0)
    shown |= {"corrupted": guess, "network": run.reconstruct(guess, *run.test_labels(len(guess)))}
    shown |= {"inference": result.mean, "std x 2": (2 * result.std).clamp(max=1)}
    shown |= {f"draw {i + 1}": draw for i, draw in enumerate(result.samples[:3])}
    summary = {
        "model": run.config.model,
        "corruption": repr(corruption),
        "num_images": len(result),
        "num_samples": options.get("num_samples", 256),
        "rungs": rungs_of(result.rung),
        "seed": seed,
        "log_p": {"mean": result.log_p.mean, "mc_se": result.log_p.mc_se_of_mean},
        "khat_over_limit": result.num_unreliable,
        "versions": versions(),
    }
    if "original" in shown:
        summary["quality"] = quality_summary(result.mean, shown["original"])
    fields = ("mean", "std", "samples", "khat", "ess", "num_samples", "rung")
    arrays = {name: getattr(result, name).numpy() for name in fields} | {"log_p": result.log_p.values.numpy()}
    write_whole(output / "restoration.npz", to_npz(arrays))
    write_whole(output / "restoration-shown.npz", pictures(shown))
    write_whole(output / "restoration.json", to_json(summary))
    return result


def is_restored(run: Run, corruption: Noise, output: Path, *, num_images: int, seed: int = 0) -> bool:
    """Whether `restore_images` has written what it would of these test images."""
    num_images = min(num_images, len(run.dataset.test))
    wanted = {"model": run.config.model, "corruption": repr(corruption), "num_images": num_images, "seed": seed}
    return made_of(output / "restoration.json", wanted) is not None


def clean_images(run: Run, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The images that a run was trained on, and its validation images, in [0, 1]."""
    images, validation = (select(dataset.train, index) / 255 for index in split_of(run.config, dataset))
    return images, validation


def restore_cell(run: Run, noise: str, *, num_images: int | None, seed: int, **options: Any) -> dict[str, Any]:
    """A VAE's restorations of the first test images, by inference and by its own networks, and how its intervals cover
    where the model is right, for JSON."""
    corruption = create(Noise, noise)
    clean = run.dataset.test[:num_images] / 255
    y = corruption(clean, Generator().manual_seed(seed))
    start = time.process_time()
    network = run.reconstruct(y, *run.test_labels(len(y)))
    middle = time.process_time()
    result = restore_run(run, y, corruption, seed=seed, **options)
    end = time.process_time()
    network_row = quality_summary(network, clean) | {"cpu_seconds_per_image": (middle - start) / len(y)}
    row = {"inference": quality_of(result, clean, end - middle), "network": network_row, "seed": seed}
    if not keeps_pixels(corruption) and not run.model.needs_labels:
        row["simulated"] = simulated_covers(run, corruption, min(len(y), NUM_SIMULATED), seed=seed, **options)
    return row


def simulated_covers(run: Run, corruption: Noise, num_images: int, *, seed: int, **options: Any) -> dict[str, Any]:
    """`covers` of images that the model itself made."""
    clean = run.sample(num_images, seed=seed)
    y = corruption(clean, Generator().manual_seed(seed))
    return covers(restore_run(run, y, corruption, seed=seed, **options), clean) | {"num_images": len(y)}


def restore_study(
    folder: Path,
    runs: dict[str, Run],
    noises: tuple[str, ...],
    *,
    num_images: int | None,
    seed: int = 0,
    failed: dict[str, str],
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Rows of `inference.json` in a study's folder, {noise: {model: row}}: each VAE by inference, against each noise,
    and {noise: {method: quality}} of `linear_baselines` on all test images. Those that are there already, of the same
    weights and of as many images or more, are not made again; one that fails is in `failed`."""
    path = folder / "inference.json"
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    rows, baselines = known.get("rows", {}), known.get("baselines", {})
    weights = {name: run.weights for name, run in runs.items()}
    for noise, (name, run) in itertools.product(noises, runs.items()):
        wanted = min(num_images or len(run.dataset.test), len(run.dataset.test))
        row = rows.get(noise, {}).get(name)
        is_known = row and row.get("weights") == weights[name] and row["inference"]["num_images"] >= wanted
        if is_known or not run.model.has_log_p:
            continue
        with attempted(f"{name}, by inference", failed, say):
            say(f"{folder.name} {name}: {noise} by inference, {wanted} images")
            made = restore_cell(run, noise, num_images=wanted, seed=seed)
            rows.setdefault(noise, {})[name] = made | {"weights": weights[name], "versions": versions()}
            write_json(path, {"rows": rows, "baselines": baselines})
    missing = [noise for noise in noises if noise not in baselines] if runs else []
    if missing:
        run = next(iter(runs.values()))
        clean, pairs = run.dataset.test / 255, clean_images(run, run.dataset)
    for noise in missing:
        say(f"{folder.name}: {noise} by linear methods")
        add = create(Noise, noise)
        restored = linear_baselines(*pairs, add(clean, Generator().manual_seed(seed)), add, seed=seed)
        qualities = {name: quality_summary(x, clean) for name, x in restored.items()}
        baselines[noise] = {name: quality | {"num_images": len(clean)} for name, quality in qualities.items()}
        write_json(path, {"rows": rows, "baselines": baselines})
    return rows
