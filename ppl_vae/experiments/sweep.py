"""A grid of trainings on one dataset: how log p(x) depends on each setting, with several seeds of each.

Each is a run folder, OUTPUT/SETTING=VALUE,.../seed-SEED, trained and evaluated once: a sweep that was interrupted
resumes, also in the middle of a training. The tables are written again after each, and can be read at any time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppl_vae.components import UsageError
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.experiments.batch import Sizes, is_done, of_seeds, run_batch
from ppl_vae.experiments.comparing import compare_all, mean_over_seeds, rows_over_seeds
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import load_evaluation
from ppl_vae.experiments.runs import versions
from ppl_vae.experiments.settings import ONCE, SweepConfig
from ppl_vae.system.files import read_json, write_json
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.machine import processor
from ppl_vae.system.signals import attempted


def swept(config: SweepConfig) -> dict[str, tuple[Any, ...]]:
    """The settings that have several values, but for the seed. Raises `UsageError` for one without a value, or with one
    twice."""
    settings = {o.name: getattr(config.grid, o.name) for o in dataclasses.fields(config.grid) if o.name not in ONCE}
    for name, values in settings.items():
        if not values or len({*values}) < len(values):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: expected values that differ; got {' '.join(map(str, values)) or 'none'}")
    return {name: values for name, values in settings.items() if len(values) > 1 and name != "seed"}


def models_of(config: SweepConfig) -> dict[str, TrainConfig]:
    """The models by the name of their folder; their seed is to be set. Raises `UsageError` as `TrainConfig` and `swept`
    do, and for values whose folders would have one name."""
    settings, grid = swept(config), vars(config.grid)
    common = {o.name: grid[o.name] if o.name in ONCE else grid[o.name][0] for o in dataclasses.fields(config.grid)}
    models: dict[str, TrainConfig] = {}
    for values in itertools.product(*settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        name = re.sub(r"[^\w.,=+-]", "-", title_of(chosen, "=", ",")) or re.sub(r"\W+", "-", common["model"])
        if name in models:
            raise UsageError(f"values: expected ones that name different folders; got {name} twice")
        models[name] = TrainConfig(**common | chosen)
    return models


def title_of(chosen: Mapping[str, Any], between: str = " ", after: str = ", ") -> str:
    """
    >>> title_of({"latent_size": 10, "prior": "vamp-prior"})
    'latent-size 10, prior vamp-prior'
    """
    return after.join(f"{name.replace('_', '-')}{between}{value}" for name, value in chosen.items())


def run_sweep(
    config: SweepConfig,
    output: Path,
    *,
    data_dir: Path | None = None,
    say: Callable[[str], object] = print,
    after_each: Callable[[Path], object] = lambda output: None,
    **options: Any,
) -> dict[str, Any]:
    """Trains and evaluates what is not in the folder `output` yet, all models of the first seed before any of the
    second; writes `metrics.json` there, and returns it. `after_each(output)` is called after each run. `options` are of
    `run_batch`: an executor, a device, and what goes to `fit` and the estimators.

    A run that fails is said, and in `metrics.json` under "failed"; the others continue.
    """
    models = models_of(config)
    dataset = load(config.grid.dataset, data_dir)
    output.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    sizes = _sizes(config, dataset)
    found = of_seeds(models, config.grid.seed, output).items()
    runs = {name: (model, folder, sizes) for name, (model, folder) in found if not is_done(folder, model, sizes)}

    def tables() -> None:
        with attempted("tables", failed, say):
            summarise(config, dataset, output, failed)
            after_each(output)

    run_batch(runs, dataset, failed, title=dataset.name, say=say, after_each=tables, data_dir=data_dir, **options)
    metrics = summarise(config, dataset, output, failed)
    after_each(output)
    return metrics


def _sizes(config: SweepConfig, dataset: Dataset) -> Sizes:
    """The test data are observed under one seed, so that models of all seeds see the same."""
    num_images = min(config.sizes.num_images, len(dataset.test))
    return {"ladder": {"num_samples": config.sizes.num_samples, "num_images": num_images, "seed": 0}}


def summarise(config: SweepConfig, dataset: Dataset, output: Path, failed: dict[str, str]) -> dict[str, Any]:
    """`metrics.json` from the run folders that are there: a table for each group of models that can be compared, such
    as those of one measure. Densities of images are bounds on the mass of their levels there."""
    settings, sizes = swept(config), _sizes(config, dataset)
    runs: dict[str, list[Path]] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for name, model in models_of(config).items():
        found = of_seeds({name: model}, config.grid.seed, output).values()
        if done := [folder for of_seed, folder in found if is_done(folder, of_seed, sizes)]:
            runs[name], chosen[name] = done, {setting: getattr(model, setting) for setting in settings}
    num_dims = math.prod(dataset.event_shape)
    means = {name: mean_over_seeds([load_evaluation(f, "ladder") for f in folders]) for name, folders in runs.items()}
    is_of_images = len(dataset.event_shape) == 3
    compared = compare_all(means, num_dims=dict.fromkeys(means, num_dims), levels=is_of_images)
    titles = {name: title_of(of_model) or name for name, of_model in chosen.items()}
    tables = [rows_over_seeds(table, runs, titles, num_dims) for table in compared.tables]
    metrics = {
        "dataset": dataset.name,
        "dataset_fingerprint": fingerprint(dataset.train, dataset.test),
        "sweep": {
            "settings": settings,
            "tables": [
                {"unit": "nats", "rows": [row | {"settings": chosen[row["name"]]} for row in rows]} for rows in tables
            ],
            "left_out": compared.left_out,
        },
        "config": {**vars(config.grid), **vars(config.sizes), "seeds": config.grid.seed},
        "failed": failed,
        "processor": processor(),
        "versions": versions(),
    }
    write_json(output / "metrics.json", metrics)
    return read_json(output / "metrics.json")
