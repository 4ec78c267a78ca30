"""The card of a model that is shared, in Markdown: what it is, how good, and how to use it and to train it again. Its
head is YAML as the Hugging Face Hub reads it, with the evaluation as `model-index`."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.folders import best_evaluation
from ppl_vae.experiments.runs import Run
from ppl_vae.report.markdown import is_exact, number, table
from ppl_vae.report.page import command_of
from ppl_vae.report.sections import versions
from ppl_vae.report.words import evaluation_lines

PARTS = ("model", "likelihood", "prior", "posterior", "encoding", "objective", "kl_weight", "latent_size")


def model_card(run: Run, folder: Path, *, load: str, samples: str | None = None) -> str:
    """The card of a run in its folder. `load` is the Python expression that loads it, and `samples` the path of a
    picture. Raises `ValueError` for an evaluation that is damaged."""
    config, metrics, shape = run.config, run.metrics, run.event_shape
    things, dataset = "images" if run.is_of_images else "vectors", Path(config.dataset).stem
    evaluation = best_evaluation(folder) if run.model.has_log_p else None
    sizes = " x ".join(map(str, shape))
    trained = f"{metrics.get('train_images', 0):,} {things} of {dataset} for training"
    held_out = f"{metrics.get('validation_images', 0):,} held out for validation"
    return _environment().get_template("card.md.jinja").render(
        name=folder.resolve().name,
        about=f"A `{config.model}` of {things} ({sizes}), with {metrics.get('parameters', 0):,} parameters: a Pyro "
        "model and its guide, trained with ppl_vae.",
        parts=table(["part", "this model's"], [[part.replace("_", " "), str(getattr(config, part))] for part in PARTS]),
        samples=samples,
        data=f"{trained}, {held_out}; fingerprint {metrics.get('dataset_fingerprint', 'unknown')}.",
        dataset=dataset,
        evaluation=[] if evaluation is None else list(evaluation_lines(evaluation, of=f"{things} of {dataset}")),
        has_log_p=run.model.has_log_p,
        needs_labels=run.model.needs_labels,
        metrics=[] if evaluation is None else _index(evaluation),
        load=load,
        shape=shape,
        is_of_images=run.is_of_images,
        commands=_commands(folder, config, evaluation),
        versions=versions(metrics),
    )  # fmt: skip


@cache
def _environment() -> Environment:
    loader = PackageLoader("ppl_vae.report", ".")
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return Environment(loader=loader, undefined=StrictUndefined, **options)


def _index(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """An evaluation's numbers, as the hub lists them."""
    kind = "log-density" if evaluation["measure"] == "density" else "log-probability"
    errors = [] if is_exact(evaluation) else [f"± {number(evaluation['mc_se'])} Monte Carlo"]
    errors += [f"± {number(evaluation['data_se'])} choice of data"]
    if "gap" in evaluation:
        errors += [f"missing at most {number(evaluation['gap'])} ± {number(evaluation['gap_se'])} on simulated data"]
    name = f"log p(x), {kind}, nats per datum, {evaluation['bound']} ({'; '.join(errors)})"
    elbo = f"ELBO, nats per datum (± {number(evaluation.get('elbo_mc_se'))} Monte Carlo)"
    return [
        {"type": "log-likelihood", "value": evaluation["log_p"], "name": name},
        {"type": "elbo", "value": evaluation["elbo"], "name": elbo},
    ]


def _commands(folder: Path, config: TrainConfig, evaluation: dict[str, Any] | None) -> list[str]:
    run = shlex.quote(folder.resolve().name)
    train = command_of("ppl-vae train", config, TrainConfig(), whole=config.start_from is not None)
    commands = [f"{train} --output {run}"]
    if evaluation is not None:
        sizes = {name: evaluation.get(name.replace("-", "_")) for name in ("num-images", "seed")}
        if not is_exact(evaluation):
            sizes = {"num-samples": evaluation["num_samples"], **sizes}
        method = evaluation.get("method", "importance")
        flags = " ".join(f"--{name} {value}" for name, value in sizes.items() if value is not None)
        commands += [f"ppl-vae evaluate {run} --method {method} {flags}"]
    return commands
