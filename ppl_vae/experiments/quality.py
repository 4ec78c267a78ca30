"""How good the samples of trained runs are, beside the test data and on the same features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.quality import sample_quality
from ppl_vae.experiments.features import Features, features_of
from ppl_vae.experiments.folders import QUALITY, made_of
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.system.files import write_json
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.signals import attempted

CHUNK = 250  # samples at a time: the parameters of some likelihoods are 256 for each pixel


def quality_run(
    run: Run,
    features: Features,
    *,
    num_samples: int = 5000,
    num_neighbours: int = 5,
    draws: bool = False,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """`sample_quality` of a run's samples against as many test data, chosen at random, for JSON; "training" are the
    same figures of training data in place of samples: what samples of the data's own distribution have.

    Arguments:
        draws: x ~ p(x|z) against data as the likelihood sees them, instead of E[x|z] against the images themselves. Of
            vectors it is always x.
        training: these, if they are known.

    Raises `ValueError` as that and `Run.sample` do.
    """
    draws = draws or not run.is_of_images
    number = min(num_samples, len(run.dataset.test))

    def seen(images: Tensor) -> Tensor:
        return _brightness(run, run.observe.frozen(images, seed)[0]) if draws else images / 255

    sizes = [CHUNK] * (number // CHUNK) + [number % CHUNK] * (number % CHUNK > 0)
    made = torch.cat([run.sample(n, seed=seed_of(seed, i), mean=not draws) for i, n in enumerate(sizes)])
    test, train = (_some(images, number, seed) for images in (run.dataset.test, run.dataset.train))
    data = features(seen(test), show_progress=show_progress)

    def quality(x: Tensor) -> dict[str, Any]:
        of = features(x, show_progress=show_progress)
        options: dict[str, Any] = {"num_neighbours": num_neighbours, "seed": seed, "show_progress": show_progress}
        return dataclasses.asdict(sample_quality(data, of, **options))

    return {
        "quality": quality(_brightness(run, made) if draws else made),
        "training": training or quality(seen(train)),
        "features": features.about,
        "weights": run.weights,
        "dataset": run.dataset.name,
        "dataset_fingerprint": fingerprint(run.dataset.train, run.dataset.test),
        "num_data": number,
        "versions": versions(),
    }


def _some(x: Tensor, number: int, seed: int) -> Tensor:
    """So many of the data, at random: MNIST's first 5,000 test images are by other hands than the rest."""
    return x[torch.randperm(len(x), generator=Generator().manual_seed(seed))[:number]]


def _brightness(run: Run, x: Tensor) -> Tensor:
    return run.observe.encoding.grey(x) if run.is_of_images else x


def quality_runs(
    runs: Sequence[Path],
    load: Callable[[Path], Run],
    path: Path | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], object] = print,
    draws: bool = False,
    num_samples: int = 5000,
    num_neighbours: int = 5,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[Path, dict[str, Any]]:
    """`quality_run` of the runs in these folders, each written to `quality.json`, or `quality-draws.json`,
    beside its run, and not computed again where it is there and of the same run, features and sizes.

    `path` is the file of the features (see `features_of`), by default `features-DATASET.safetensors` in the folder
    above the first run of that dataset: so runs that lie side by side are compared on the same. A run without samples,
    as an autoencoder, is said, and left out.
    """
    found: dict[Path, dict[str, Any]] = {}
    features: dict[str, Features] = {}
    training: dict[Any, dict[str, Any]] = {}
    asked: dict[str, Any] = {"draws": draws, "num_samples": num_samples, "num_neighbours": num_neighbours, "seed": seed}
    failed: dict[str, str] = {}
    for folder in runs:
        with attempted(str(folder), failed, say):
            run = load(folder)
            data = fingerprint(run.dataset.train)
            if data not in features:
                own = folder.parent / f"features-{run.dataset.name}.safetensors"
                features[data] = features_of(run.dataset, path or own, show_progress=show_progress)
            same = {"settings": asked, "weights": run.weights, "features": features[data].about}
            output = folder / QUALITY[draws]
            quality = None if overwrite else made_of(output, same)
            if quality is None:
                say(f"{folder}: {features[data].about['name']}")
                of_training = training.get(key := (data, draws and repr(run.observe)))
                quality = quality_run(run, features[data], training=of_training, **asked, show_progress=show_progress)
                training[key] = quality["training"]
                write_json(output, quality | {"settings": asked})
            found[folder] = quality
    if not found and failed:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    return found
