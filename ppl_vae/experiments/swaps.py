"""Every component in the place of the usual one, on one dataset: how much log p(x) depends on the prior, the posterior,
the objective, the number of layers, and the likelihood.

Each model is a run folder of its own, and is trained and evaluated once: an experiment that was interrupted
resumes, also in the middle of a training. The tables are written again after each model, and can be read at any time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ppl_vae.components import choices
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.evaluation.comparison import Unit, compare
from ppl_vae.experiments.batch import Sizes, of_seeds, run_batch
from ppl_vae.experiments.comparing import mean_over_seeds, rows_over_seeds
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.evaluating import evaluated, load_evaluation
from ppl_vae.experiments.folders import SAMPLES
from ppl_vae.experiments.preparation import assemble
from ppl_vae.experiments.runs import history_of, versions
from ppl_vae.experiments.settings import SwapsConfig
from ppl_vae.likelihoods import Likelihood
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.system.files import check, read_json, write_json
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.signals import attempted

BASE = "base"
GROUPS = ("prior", "posterior", "objective", "layers", "likelihood")


def models_of(config: SwapsConfig, dataset: str) -> dict[str, TrainConfig]:
    """The models by name, `base` and GROUP-COMPONENT; their seed is to be set."""
    base = TrainConfig(
        model="gated-dense-vae",
        dataset=dataset,
        latent_size=config.latent_size,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        schedule="cosine",
        train_images=config.train_images,
    )

    def swapped(group: str, *specs: str) -> Iterator[tuple[str, TrainConfig]]:
        for spec in specs:
            change: dict[str, Any] = {group: spec}
            yield f"{group}-{spec.partition(':')[0]}", dataclasses.replace(base, **change)

    priors = [name for name in choices(Prior) if name != base.prior]
    posteriors = [name for name in choices(Posterior) if name != base.posterior]
    objectives = [
        "analytic-kl",
        *(f"{name}:num_particles={config.num_particles}" for name in ("importance-weighted", "doubly-reparameterized")),
    ]
    # Bernoulli's mass is of binarised pixels; the slowest of the others is last
    likelihoods = sorted({*choices(Likelihood)} - {"bernoulli"}, key=lambda name: (name == "categorical", name))
    two_layers = dataclasses.replace(base, model="gated-dense-hvae")
    return {
        BASE: base,
        **dict(swapped("prior", *priors)),
        "layers-two": two_layers,
        "layers-two-vamp-prior": dataclasses.replace(two_layers, prior="vamp-prior"),
        **dict(swapped("objective", *objectives)),
        **dict(swapped("posterior", *posteriors)),
        **dict(swapped("likelihood", *likelihoods)),
    }


def run_swaps(
    dataset_name: str,
    config: SwapsConfig,
    output: Path,
    *,
    data_dir: Path | None = None,
    say: Callable[[str], object] = print,
    after_each: Callable[[Path], object] = lambda output: None,
    **options: Any,
) -> dict[str, Any]:
    """Trains and evaluates what is not in the folder `output` yet; writes `metrics.json` there, and returns it.
    `after_each(output)` is called after each model. `options` are of
    `run_batch`: an executor, a device, and what goes to `fit` and the estimators.

    A model that fails (as where its loss or a weight is NaN) is said, and in `metrics.json` under "failed"; the others
    continue.
    """
    dataset, options = load(dataset_name, data_dir), options | {"data_dir": data_dir}
    output.mkdir(parents=True, exist_ok=True)
    models = models_of(config, dataset_name)
    failed: dict[str, str] = {}
    sizes, found = sizes_of(config, dataset), of_seeds(models, config.seeds, output).items()
    runs = {name: (c, folder, sizes) for name, (c, folder) in found if not _evaluated(folder, c, sizes)}

    def tables() -> None:
        with attempted("tables", failed, say):
            summarise(dataset, config, output, failed)
            after_each(output)

    run_batch(runs, dataset, failed, title=dataset_name, say=say, after_each=tables, **options)
    metrics = summarise(dataset, config, output, failed)
    after_each(output)
    return metrics


def sizes_of(config: SwapsConfig, dataset: Dataset) -> Sizes:
    """The test images are observed under one seed, so that models of all seeds see the same."""
    num_images = min(config.num_images, len(dataset.test))
    sizes = {"num_samples": config.num_samples, "num_images": num_images, "seed": 0}
    return {"importance": sizes, "ladder": sizes}


def _evaluated(folder: Path, c: TrainConfig, sizes: Sizes) -> bool:
    """Whether the folder has the evaluation of just this model, whose weights may be elsewhere."""
    if any(evaluated(folder, method=m, **s) is None for m, s in sizes.items()):
        return False
    try:
        check(folder, "config.json", "metrics.json", SAMPLES)  # what is damaged is made again
        history_of(folder)
        return read_config(folder / "config.json")[0] == assemble(c).config
    except (OSError, ValueError):
        return False


def summarise(dataset: Dataset, config: SwapsConfig, output: Path, failed: dict[str, str]) -> dict[str, Any]:
    """`metrics.json` and the figures from the evaluations in the run folders."""
    models, sizes = models_of(config, dataset.name), sizes_of(config, dataset)
    groups: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    for group in GROUPS:
        names = [name for name in models if name.startswith(group) or (name == BASE and group != "likelihood")]
        runs: dict[str, list[Path]] = {}
        for name in names:
            found = of_seeds({name: models[name]}, config.seeds, output).values()
            if done := [folder for c, folder in found if _evaluated(folder, c, sizes)]:
                runs[name] = done
                seconds[name] = [read_json(folder / "metrics.json")["seconds"] for folder in done]
        if runs:
            components = {name: _component(models[name], group) for name in runs}
            groups[group] = _table(runs, components, "bits per dimension" if group == "likelihood" else "nats", dataset)
    metrics = {
        "dataset": dataset.name,
        "dataset_fingerprint": fingerprint(dataset.train, dataset.test),
        "config": dataclasses.asdict(config) | {"seeds": list(config.seeds)},
        "groups": groups,
        "training_seconds": seconds,
        "failed": failed,
        "versions": versions(),
    }
    write_json(output / "metrics.json", metrics)
    return read_json(output / "metrics.json")  # where what is infinite or NaN is None


def _component(model: TrainConfig, group: str) -> str:
    if group == "layers":
        return f"{'VAE of two latent layers' if model.model.endswith('hvae') else 'VAE'}, {model.prior}"
    return getattr(assemble(model).config, group)


def _table(runs: dict[str, list[Path]], components: dict[str, str], unit: Unit, dataset: Dataset) -> dict[str, Any]:
    """The rows of `compare`, best first, of each model's mean over its seeds; all numbers in `unit`."""
    num_dims = math.prod(dataset.image_shape)
    means = {name: mean_over_seeds([load_evaluation(f, "ladder") for f in folders]) for name, folders in runs.items()}
    comparison = compare(means, unit=unit, num_dims=num_dims, levels=True)
    return {"unit": unit, "rows": rows_over_seeds(comparison, runs, components, num_dims)}
