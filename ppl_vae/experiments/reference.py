"""Published log-likelihoods beside this package's: the same networks, data and estimator, and how far apart they are.

Each row is a run folder a seed, trained and evaluated once; the table is written again after each. Epochs, schedule and
batch size are ours, and chosen on validation data; test data are looked at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_vae.components import UsageError, unknown
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.evaluation.comparison import Unit
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.experiments.batch import Sizes, is_done, of_seeds, run_batch
from ppl_vae.experiments.comparing import mean_over_seeds
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import evaluation_files, load_evaluation
from ppl_vae.experiments.folders import SAMPLES, checked_json
from ppl_vae.experiments.runs import history_of, versions
from ppl_vae.experiments.settings import ReferenceConfig
from ppl_vae.system.files import read_json, write_json
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.machine import processor

EXEMPLAR = "Norouzi, Fleet, Norouzi, arXiv:2004.04795, table 1"
IWAE = "Burda, Grosse, Salakhutdinov, arXiv:1509.00519, table 1"
DREG = "a public rerun of Tucker, Lawson, Gu, Maddison, arXiv:1810.04152"
VAMP = "Tomczak, Welling, arXiv:1705.07120, on other test images"
MCVAE = "Thin and others, arXiv:2106.15921"


@dataclass(frozen=True)
class Row:
    """A model, as it differs from the first row's, and what was published for it: minus log p(x), in nats or, of
    images with 256 levels, in bits per dimension, with the error that was stated; None where there is none."""

    title: str
    model: dict[str, Any]
    published: float | None = None
    error: float | None = None
    source: str = ""

    @property
    def unit(self) -> Unit:
        return "bits per dimension" if "likelihood" in self.model else "nats"


def _gated(source: str, published: dict[str, tuple[float, float | None]], **also: Any) -> dict[str, Row]:
    """Of gated networks 300-300 with 40 latent dimensions, in one layer or two."""
    vamp, two = {"prior": "vamp-prior:num_components=500"}, {"model": "gated-dense-hvae"}
    models = {
        "vae": ("VAE", {}),
        "vamp-prior": ("VAE, VampPrior", vamp),
        "hvae": ("HVAE", two),
        "hvae-vamp-prior": ("HVAE, VampPrior", vamp | two),
    }
    rows = {}
    for name, (value, error) in published.items():
        title, model = models[name]
        rows[name] = Row(title, model | also, value, error, source)
    return rows


IWAE_MODEL: dict[str, Any] = {"model": "dense-vae:hidden=200+200,activation=tanh", "latent_size": 50}
ROWS: dict[str, dict[str, Row]] = {
    "mnist": {
        **_gated(
            EXEMPLAR,
            {
                "vae": (84.45, 0.12),
                "vamp-prior": (82.43, 0.06),
                "hvae": (82.39, 0.11),
                "hvae-vamp-prior": (81.56, 0.09),
            },
        ),
        "exemplar-prior": Row(
            "VAE, exemplar prior", {"prior": "exemplar-prior:num_exemplars=50000"}, 82.09, 0.18, EXEMPLAR
        ),
        "flow-prior": Row("VAE, normalising-flow prior", {"prior": "normalizing-flow"}),
        "flow-posterior": Row("VAE, autoregressive-flow posterior", {"posterior": "inverse-autoregressive-flow"}),
        "full-posterior": Row("VAE, full-covariance posterior", {"posterior": "full-normal"}),
        "iwae-1": Row("200-200, 50 latents: VAE", IWAE_MODEL, 86.76, source=IWAE),
        "iwae-5": Row("the same, IWAE", IWAE_MODEL | {"objective": "importance-weighted"}, 85.54, source=IWAE),
        "dreg-5": Row("the same, DReG", IWAE_MODEL | {"objective": "doubly-reparameterized"}, 84.90, source=DREG),
        "conv-vae": Row("convolutional VAE", {"model": "conv-vae", "latent_size": 64}, 85.22, source=MCVAE),
    },
    "fashion-mnist": _gated(
        EXEMPLAR,
        {
            "vae": (228.70, 0.15),
            "vamp-prior": (227.35, 0.05),
            "hvae": (227.37, None),
            "hvae-vamp-prior": (226.72, None),
        },
    ),
    "freyfaces": _gated(
        VAMP,
        {"vae": (4.63, None), "vamp-prior": (4.57, None), "hvae-vamp-prior": (4.51, None)},
        likelihood="discretized-logistic",
    ),
}


def models_of(config: ReferenceConfig, dataset: str) -> dict[str, TrainConfig]:
    """The models by the name of their row; their seed is to be set. Raises `UsageError` for a set that has no rows, and
    for unknown ones."""
    name = Path(dataset).stem
    if name not in ROWS:
        raise UsageError(f"--dataset: expected one with published figures, {', '.join(ROWS)}; got {dataset}")
    for row in config.rows:
        if row not in ROWS[name]:
            raise UsageError(f"--rows: {unknown('row', row, [*ROWS[name]])}")
    common: dict[str, Any] = {
        "model": "gated-dense-vae",
        "latent_size": 40,
        "dataset": dataset,
        "epochs": config.epochs,
        "patience": config.patience or config.epochs,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "schedule": "cosine",
        "kl_weight": f"linear-warm-up:epochs={config.warm_up}" if config.warm_up else "constant",
        "train_images": config.train_images,
    }
    return {row: TrainConfig(**common | ROWS[name][row].model) for row in config.rows or ROWS[name]}


def run_reference(
    dataset_name: str,
    config: ReferenceConfig,
    output: Path,
    *,
    data_dir: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Trains and evaluates what is not in the folder `output` yet, each row of the first seed before any of the second;
    writes `metrics.json` there, with all rows of this config that the folder has, and returns it. `options` are of
    `run_batch`: an executor, a device, and what goes to `fit` and the estimators.

    A row that fails is said, and in `metrics.json` under "failed"; the others continue.
    """
    models = models_of(config, dataset_name)
    dataset, options = load(dataset_name, data_dir), options | {"data_dir": data_dir}
    output.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    sizes, found = _sizes(config, dataset), of_seeds(models, config.seeds, output).items()
    runs = {name: (model, folder, sizes) for name, (model, folder) in found if not _is_done(folder, model, sizes)}

    def tables() -> None:
        summarise(dataset, dataset_name, config, output, failed)

    run_batch(runs, dataset, failed, title=dataset_name, after_each=tables, **options)
    return summarise(dataset, dataset_name, config, output, failed)


def _sizes(config: ReferenceConfig, dataset: Dataset) -> Sizes:
    """The test images are observed under one seed, so that models of all seeds see the same."""
    num_images = min(config.num_images, len(dataset.test))
    num_refined = min(config.num_refined_images, num_images)
    return {
        "importance": {"num_samples": config.num_samples, "num_images": num_images, "seed": 0},
        "ladder": {"num_samples": config.num_refined_samples, "num_images": num_refined, "seed": 0},
    }


def _is_done(folder: Path, model: TrainConfig, sizes: Sizes) -> bool:
    """Whether the folder has just this model, its evaluations and its samples."""
    return is_done(folder, model, sizes) and (folder / SAMPLES).is_file()


def summarise(
    dataset: Dataset, dataset_name: str, config: ReferenceConfig, output: Path, failed: dict[str, str]
) -> dict[str, Any]:
    """`metrics.json` from the run folders that are there, of rows in the order of the table."""
    rows, sizes = {}, _sizes(config, dataset)
    for name, model in models_of(dataclasses.replace(config, rows=()), dataset_name).items():
        found = of_seeds({name: model}, config.seeds, output).values()
        if done := [folder for of_seed, folder in found if _is_done(folder, of_seed, sizes)]:
            row = ROWS[dataset.name][name]
            rows[name] = _summary(row, done, dataset)
    metrics = {
        "dataset": dataset.name,
        "data": dataset_name,
        "dataset_fingerprint": fingerprint(dataset.train, dataset.test),
        "reference": rows,
        "config": dataclasses.asdict(config) | {"seeds": list(config.seeds), "rows": list(config.rows)},
        "failed": failed,
        "processor": processor(),
        "versions": versions(),
    }
    write_json(output / "metrics.json", metrics)
    return read_json(output / "metrics.json")


def _summary(row: Row, folders: list[Path], dataset: Dataset) -> dict[str, Any]:
    """Of the runs of all seeds: means over them, of minus log p(x) and of minus the ELBO in the row's unit. Where the
    ladder scored the first images alone, what it gains there is added to importance sampling on all."""
    factor = 1.0 if row.unit == "nats" else 1 / (math.prod(dataset.image_shape) * math.log(2))
    summary: dict[str, Any] = {name: getattr(row, name) for name in ("title", "published", "error", "source", "unit")}
    of_guide, of_ladder = ([load_evaluation(folder, m) for folder in folders] for m in ("importance", "ladder"))
    guide, ladder = mean_over_seeds(of_guide), mean_over_seeds(of_ladder)
    # the samples' own errors, which do not count what they missed: as those of published figures
    parts = {"importance": [PerDatum(guide.log_p, guide.mc_se)], "ladder": [PerDatum.of(ladder)]}
    values = {"importance": [of.mean for of in of_guide], "ladder": [of.mean for of in of_ladder]}
    if (n := len(ladder)) < len(guide):
        first = PerDatum(guide.log_p[:n], guide.mc_se[:n])
        parts["ladder"] = [*parts["importance"], parts["ladder"][0] - first]
        pairs = zip(of_guide, of_ladder, strict=True)
        values["ladder"] = [of.mean + better.mean - of.log_p[:n].mean().item() for of, better in pairs]
    for method, result in (("importance", guide), ("ladder", ladder)):
        of_seeds = -factor * torch.tensor(values[method], dtype=torch.float64)
        summary[method] = {
            "value": of_seeds.mean().item(),
            "mc_se": factor * math.hypot(*(part.mc_se_of_mean for part in parts[method])),
            "data_se": factor * math.hypot(*(part.data_se_of_mean for part in parts[method])),
            "sd_of_seeds": of_seeds.std().item() if len(folders) > 1 else None,
            "khat_over_limit": result.num_unreliable,
            "num_images": len(result),
        }
    stored, refined = (
        [checked_json(folder, evaluation_files(method)[0]) for folder in folders] for method in ("importance", "ladder")
    )
    metrics, histories = [read_json(folder / "metrics.json") for folder in folders], [history_of(f) for f in folders]
    summary |= {
        "elbo": -factor * sum(s["elbo"] for s in stored) / len(stored),
        "gap": factor * refined[0]["gap"] if refined[0].get("gap") is not None else None,
        "active_units": stored[0]["active_units"],
        "epochs": [len(history) for history in histories],
        "best_epochs": [history.best_epoch for history in histories],
        "hours": sum(m["seconds"] for m in metrics) / len(metrics) / 3600,
        "num_seeds": len(folders),
    }
    return summary | {"verdict": verdict(summary)}


def verdict(row: dict[str, Any]) -> str:
    """Ours against what was published, by the same estimator: "better", "level" within two standard errors, or "behind"
    by how much; "" where nothing was published. Errors are of the samples, of our seeds, and what was stated.

    >>> row = {"error": 0.12, "num_seeds": 1, "importance": {"value": 84.0, "mc_se": 0.01, "sd_of_seeds": None}}
    >>> [verdict(row | {"published": published}) for published in (84.45, 84.1, 83.0, None)]
    ['better', 'level', 'behind by 1.00', '']
    """
    if row["published"] is None:
        return ""
    ours = row["importance"]
    of_seeds = (ours["sd_of_seeds"] or 0.0) / math.sqrt(row["num_seeds"])
    error = math.hypot(ours["mc_se"], row["error"] or 0.0, of_seeds)
    behind = ours["value"] - row["published"]
    if abs(behind) <= 2 * error:
        return "level"
    return "better" if behind < 0 else f"behind by {behind:.2f}"
