"""Train the model of a config, and write its run folder."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ppl_vae.data.dataset import Dataset, select
from ppl_vae.data.loading import load
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.folders import results_of
from ppl_vae.experiments.preparation import Prepared, fitted, prepare, split_of
from ppl_vae.experiments.runs import CHECKPOINTS, Run, finished, load_run, unfinished, versions
from ppl_vae.system.files import CHECKSUMS, to_json, write_checked
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.signals import stoppable
from ppl_vae.training.checkpoints import Checkpoints, difference
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError, History
from ppl_vae.training.optimizers import adam, cosine

NUM_MONITORED = 2000  # validation images whose ELBO is logged by epoch


def train(
    config: TrainConfig,
    output: Path,
    *,
    data_dir: Path | None = None,
    dataset: Dataset | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_epochs: int | None = 1,
    checkpoint_minutes: float | None = 5.0,
    **options: Any,
) -> Run:
    """Trains a model and writes `config.json`, `weights.safetensors`, `history.csv` and, last, `metrics.json`.

    A run without `metrics.json` did not finish: what it goes on from is in `checkpoints/`, until it did. Another run
    in the folder is there until this one is finished and replaces it, with its evaluation.

    Arguments:
        resume: goes on from the newest checkpoint, or begins if there is none. Weights and history are bit for bit
            those of a run that was not stopped. A finished run is loaded.
        overwrite: begins anew where there are checkpoints.
        checkpoint_epochs, checkpoint_minutes: how often checkpoints are written; None for not by epoch, or time.
        options: of `fit`.

    SIGINT and SIGTERM finish the step and write a checkpoint, and `Stopped` is raised.
    Raises `DivergedError` when the loss turns NaN, after writing the weights and history of the epochs before,
    `OSError` for an output that can't be written, and `ValueError` for data that can't be used, checkpoints that are
    neither to be gone on from nor overwritten, and a run with another config or other data to go on with.
    """
    dataset = dataset or load(config.dataset, data_dir)
    checkpoints = Checkpoints(output / CHECKPOINTS, checkpoint_epochs, checkpoint_minutes)
    if resume and not checkpoints.paths() and (output / "metrics.json").is_file():
        return _load_same(output, fitted(config, dataset).config, dataset)
    prepared = prepare(config, dataset)
    config, model = prepared.config, prepared.model
    written = {
        "event_shape": dataset.event_shape,
        "num_classes": prepared.num_classes,
        **dataclasses.asdict(config),
    }
    checkpoints.config = written
    prepared.initialise()
    if overwrite and checkpoints.paths():
        take_steps(config, dataset, 1)  # so that nothing is removed for what can't be trained
        shutil.rmtree(checkpoints.folder)
    num_steps = config.epochs * math.ceil(len(prepared.train[0]) / config.batch_size)
    schedule = cosine(num_steps) if config.schedule == "cosine" else None
    failure = None
    with stoppable() as stop:
        try:
            history = fit(
                model.model,
                model.guide,
                *prepared.train,
                validation=tuple(t[:NUM_MONITORED] for t in prepared.validation),
                encode=prepared.observe,
                elbo=prepared.assembly.objective,
                epochs=config.epochs,
                batch_size=config.batch_size,
                optim=adam(config.learning_rate, schedule=schedule),
                seed=config.seed,
                compiled=config.compiled,
                checkpoints=checkpoints,
                resume=resume,
                stop=stop,
                description=f"{config.dataset} {output.name}",
                **options,
            )
        except DivergedError as error:
            history, failure = error.history, error
        for path in (output / "metrics.json", *results_of(output), output / CHECKSUMS):
            path.unlink(missing_ok=True)  # of an earlier run, which this one replaces
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        files = {
            "config.json": to_json(written),
            "weights.safetensors": save(weights),
            "history.csv": history.to_csv().encode(),
        }
        metrics: dict[str, Any] = {} if failure else _metrics(prepared, history)
        if metrics:
            files["metrics.json"] = to_json(metrics)
        write_checked(output, files)
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
    if failure is not None:
        raise failure
    return Run(prepared.assembly, model, dataset.event_shape, metrics, lambda: dataset)


def _metrics(prepared: Prepared, history: History) -> dict[str, Any]:
    images, validation = prepared.train[0], prepared.validation[0]
    return {
        "dataset_fingerprint": fingerprint(images, validation),
        "train_images": len(images),
        "validation_images": len(validation),
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
        "seed": prepared.config.seed,
        "seconds": round(math.fsum(history["seconds"]), 2),
        "versions": versions(),
        "last_epoch": {k: v for k, v in history.rows[-1].items() if k != "seconds"},
    }


def trained(config: TrainConfig, folder: Path, *, dataset: Dataset, **options: Any) -> Run:
    """The run in the folder, if it is finished; else it is trained, from its checkpoints if it has some."""
    if finished(folder, config):
        return load_run(folder, dataset=dataset)
    return train(config, folder, dataset=dataset, resume=unfinished(folder), **options)


def _load_same(output: Path, config: TrainConfig, dataset: Dataset) -> Run:
    """The finished run in the folder, if it is one of this config and these data."""
    run = load_run(output, dataset=dataset)
    parts = (select(dataset.train, index) for index in split_of(config, dataset))
    then = {**dataclasses.asdict(run.config), "data": run.metrics.get("dataset_fingerprint")}
    now = {**dataclasses.asdict(config), "data": fingerprint(*parts)}
    if differing := difference(then, now):
        raise ValueError(f"{output}: expected this run; got a finished one of another, stored -> given: {differing}")
    return run


def seconds_per_step(config: TrainConfig, dataset: Dataset) -> float:
    """What a training step of this config takes here, measured on two batches after one to warm up."""
    take_steps(config, dataset, 1)
    return take_steps(config, dataset, 2) / 2


def take_steps(config: TrainConfig, dataset: Dataset, num_steps: int) -> float:
    """The seconds that training takes for so many steps, of a model that is built for it alone."""
    prepared = prepare(config, dataset)
    start = time.perf_counter()
    fit(
        prepared.model.model,
        prepared.model.guide,
        *(t[: num_steps * config.batch_size] for t in prepared.train),
        validation=tuple(t[:1] for t in prepared.train),
        encode=prepared.observe,
        elbo=prepared.assembly.objective,
        epochs=1,
        batch_size=config.batch_size,
        show_progress=False,
    )
    return time.perf_counter() - start
