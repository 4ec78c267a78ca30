"""Train the model of a config, and write its run folder."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ppl_vae.components import create
from ppl_vae.data.dataset import Dataset, select
from ppl_vae.data.loading import load
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.folders import check_run, results_of
from ppl_vae.experiments.preparation import Prepared, fitted, prepare, split_of
from ppl_vae.experiments.runs import CHECKPOINTS, Run, finished, load_run, load_weights, unfinished, versions
from ppl_vae.experiments.tracking import tracked
from ppl_vae.models import PyroPair
from ppl_vae.system.files import CHECKSUMS, check, locked, to_json, write_checked, write_whole
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.machine import device_of
from ppl_vae.system.signals import stoppable
from ppl_vae.training.checkpoints import Checkpoints, difference, from_file, to_bytes
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError, History
from ppl_vae.training.optimizers import OneOptimizer, adam
from ppl_vae.training.parallel import Ranks
from ppl_vae.training.schedules import Schedule
from ppl_vae.training.trackers import Tracker

LAST, STATE = "last.safetensors", "state.safetensors"
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
    keep_state: bool = True,
    device: torch.device | str = "cpu",
    tracker: Tracker | None = None,
    process_group: ProcessGroup | None = None,
    **options: Any,
) -> Run:
    """Trains a model and writes `config.json`, `weights.safetensors`, `history.csv` and, last, `metrics.json`; of a run
    with patience, whose weights are those after the best epoch, `last.safetensors` has those after the last.

    A run without `metrics.json` did not finish: until it does, its state is in `checkpoints/`. Another run
    in the folder is there until this one is finished and replaces it, with its evaluation.

    Arguments:
        resume: resumes from the newest checkpoint, or begins if there is none. Weights and history are bit for bit
            those of a run that was not stopped. A finished run is loaded.
        overwrite: starts again where there are checkpoints.
        checkpoint_epochs, checkpoint_minutes: how often checkpoints are written; None for not by epoch, or time.
        keep_state: whether the last checkpoint is kept, as `state.safetensors`, from which `extend` goes on: a file
            three to five times as large as the weights.
        device: where the model and its data go: cpu, cuda, cuda:1, or auto. Checkpoints move between devices.
        tracker: is told of the run: `TensorBoard(folder)`, `Wandb(project)`, `MLflow(uri)` or another.
        process_group: whose ranks train together: see `fit`. Each calls this; the first writes the folder, and all have
            the run.
        options: of `fit`.

    SIGINT and SIGTERM finish the step and write a checkpoint, and `Stopped` is raised.
    Raises `DivergedError` when the loss turns NaN, after writing the weights and history of the epochs before,
    `OSError` for an output that can't be written, and `ValueError` for data that can't be used, checkpoints that are
    neither to be resumed nor overwritten, and a run with another config or other data to resume.
    """
    dataset, ranks = dataset or load(config.dataset, data_dir, **config.reading), Ranks(process_group)
    checkpoints = Checkpoints(output / CHECKPOINTS, checkpoint_epochs, checkpoint_minutes)
    if resume and ranks.first(lambda: not checkpoints.paths() and (output / "metrics.json").is_file()):
        return _load_same(output, fitted(config, dataset).config, dataset)
    prepared = prepare(config, dataset)
    config, model = prepared.config, prepared.model
    checkpoints.config = _stored(prepared)
    if config.train_images is not None and config.train_images > len(dataset.train):
        warnings.warn(
            f"train_images: {dataset.name} has {len(dataset.train):,} training images, which are all used; asked for "
            f"were {config.train_images:,}",
            RuntimeWarning,
            stacklevel=2,
        )
    prepared.initialise()
    prepared.model.to(device_of(str(device)))
    if config.start_from is not None and ranks.is_first and not (resume and checkpoints.paths()):
        _start_from(Path(config.start_from), prepared)
    if overwrite and ranks.is_first and checkpoints.paths():
        take_steps(config, dataset, 1)  # so that nothing is removed for what can't be trained
        shutil.rmtree(checkpoints.folder)
    failure, followed = None, tracker if ranks.is_first else None
    with tracked(followed, output, checkpoints.config, goes_on=resume) as told, stoppable() as stop:
        try:
            history = fit(
                model.model,
                model.guide,
                *prepared.train,
                validation=tuple(t[:NUM_MONITORED] for t in prepared.validation),
                encode=prepared.encode,
                elbo=prepared.assembly.objective,
                epochs=config.epochs,
                batch_size=config.batch_size,
                optim=_optimizer(config),
                ema_decay=config.ema_decay,
                patience=config.patience,
                seed=config.seed,
                compiled=config.compiled,
                checkpoints=checkpoints,
                resume=resume,
                stop=stop,
                process_group=process_group,
                description=f"{config.dataset} {output.name}",
                **{**told, **options},
            )
        except DivergedError as error:
            history, failure = error.history, error
        if ranks.is_first:
            state = checkpoints.paths()[0] if failure is None else None
            _write(output, prepared, history, state, keep_state=keep_state, finished=failure is None)
            shutil.rmtree(checkpoints.folder, ignore_errors=True)
    if failure is not None:
        raise failure
    return _run(output, prepared, history)


def save_run(
    folder: Path | str, model: PyroPair, config: TrainConfig, history: History, *, dataset: Dataset | None = None
) -> Run:
    """Writes the run folder of a model that was trained in Python, for `load_run` and `ppl-vae evaluate`, `report`, ...

    Arguments:
        model: as `build(config, ...)` makes it, trained.
        config: what the model is. Its dataset, seed and train_images say which data it was trained on; its epochs,
            batch size and learning rate are notes.
        history: what `fit` returned.
        dataset: the data, if they are not found under config.dataset.

    An earlier run in the folder is replaced. Raises `ValueError` for a model that is not of this config.
    """
    dataset = dataset or load(config.dataset, **config.reading)
    prepared = prepare(config, dataset)
    found, expected = ({name: t.shape for name, t in m.state_dict().items()} for m in (model, prepared.model))
    if found != expected:
        differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ValueError(f"model: expected one of config {config.model!r}; got another at {', '.join(differing[:3])}")
    prepared = dataclasses.replace(prepared, model=model)
    with locked(Path(folder)):
        _write(Path(folder), prepared, history)
    return _run(Path(folder), prepared, history)


def extend(
    output: Path | str,
    epochs: int,
    *,
    data_dir: Path | None = None,
    resume: bool = False,
    process_group: ProcessGroup | None = None,
    **options: Any,
) -> Run:
    """Goes on for so many more epochs with a finished run, from its `state.safetensors`, and replaces it when they are
    done.

    The end is bit for bit that of a run of all epochs together (if both were compiled, or neither), except for what
    looks ahead: a schedule is, from here on, that of all epochs together, and patience counts from here.

    Arguments:
        output: the folder of the run.
        resume: resumes an extension that was stopped.
        process_group, options: of `train`.

    Raises `FileNotFoundError` for a folder that is no finished run, or has no state (see `keep_state`), and
    `ValueError` for epochs < 1, a damaged state, and an unfinished run in the folder that is not to be resumed.
    """
    begin = partial(_begin_extension, Path(output), epochs, resume=resume)
    config = Ranks(process_group).first(begin)
    return train(config, Path(output), data_dir=data_dir, resume=True, process_group=process_group, **options)


def _begin_extension(output: Path, epochs: int, *, resume: bool) -> TrainConfig:
    """Writes the state of a finished run as the checkpoint of one of more epochs, whose config it returns."""
    checkpoints, path = Checkpoints(output / CHECKPOINTS), output / STATE
    check_run(output)
    if epochs < 1:
        raise ValueError(f"extend: expected at least 1 epoch; got {epochs}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the state to go on from; got none (--from begins with the weights)")
    if checkpoints.paths() and not resume:
        raise ValueError(f"{output}: expected a finished run; got an unfinished one too (resume it first)")
    check(output, "config.json", STATE)
    state = from_file(path)
    done = state["epoch"] - 1
    config = dataclasses.replace(read_config(output / "config.json")[0], epochs=done + epochs)
    more = {"epochs": config.epochs, "config": {**state["config"], "epochs": config.epochs}, "since": done}
    checkpoints.folder.mkdir(exist_ok=True)
    write_whole(checkpoints.path(state["num_steps"]), to_bytes({**state, **more}))  # those after it are newer
    return config


def _start_from(folder: Path, prepared: Prepared) -> None:
    """Gives the model the weights of a finished run. Raises `ValueError` for those of another model."""
    check_run(folder)
    check(folder, "weights.safetensors")
    shape, path = prepared.dataset.event_shape, folder / "weights.safetensors"
    other = load_weights(prepared.assembly, shape, prepared.num_classes, path)
    prepared.model.load_state_dict(other.state_dict())


def _write(
    output: Path,
    prepared: Prepared,
    history: History,
    state: Path | None = None,
    *,
    keep_state: bool = False,
    finished: bool = True,
) -> None:
    """Writes a run in the place of an earlier one, with its results. `state` is its last checkpoint."""
    for path in (output / "metrics.json", *results_of(output), output / CHECKSUMS, output / LAST, output / STATE):
        path.unlink(missing_ok=True)
    files = {
        "config.json": to_json(_stored(prepared)),
        "weights.safetensors": save(_weights(prepared.model)),
        "history.csv": history.to_csv().encode(),
    }
    if state is not None and prepared.config.patience is not None:
        files[LAST] = save(_last_weights(prepared.model, from_file(state)))
    if state is not None and keep_state:
        files[STATE] = state.read_bytes()
    if finished:
        files["metrics.json"] = to_json(_metrics(prepared, history))
    write_checked(output, files)


def _run(output: Path, prepared: Prepared, history: History) -> Run:
    dataset = prepared.dataset
    return Run(
        prepared.assembly, prepared.model, dataset.event_shape, _metrics(prepared, history), lambda: dataset, output
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}


def _last_weights(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those after the last epoch, averaged if they are averaged, of a model that has those after the best."""
    other = copy.deepcopy(model)
    last = (state["average"] or state["modules"])[0]
    with torch.no_grad():
        for name, t in (*other.named_parameters(), *other.named_buffers()):
            t.copy_(last[name])
    return _weights(other)


def _stored(prepared: Prepared) -> dict[str, Any]:
    """What `config.json` has."""
    sizes = {"event_shape": prepared.dataset.event_shape, "num_classes": prepared.num_classes}
    return {**sizes, **dataclasses.asdict(prepared.config)}


def _optimizer(config: TrainConfig) -> OneOptimizer:
    constant = config.schedule == "constant" and not config.warm_up_steps
    return adam(
        config.learning_rate,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        schedule=None if constant else create(Schedule, config.schedule).warmed(config.warm_up_steps),
    )


def _metrics(prepared: Prepared, history: History) -> dict[str, Any]:
    images, validation = prepared.train[0], prepared.validation[0]
    rows = {"last_epoch": history.rows[-1]}
    if prepared.config.patience is not None:
        rows["best_epoch"] = history.rows[history.best_epoch - 1]
    return {
        "dataset_fingerprint": fingerprint(images, validation),
        "train_images": len(images),
        "validation_images": len(validation),
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
        "seed": prepared.config.seed,
        "seconds": round(math.fsum(history["seconds"]), 2),
        "versions": versions(),
        **{name: {k: v for k, v in row.items() if k != "seconds"} for name, row in rows.items()},
    }


def trained(
    config: TrainConfig, folder: Path, *, dataset: Dataset, device: torch.device | str = "cpu", **options: Any
) -> Run:
    """The run in the folder, if it is finished; else it is trained, from its checkpoints if it has some. Of its state
    nothing is kept, unless it is asked for."""
    if finished(folder, config):
        return load_run(folder, dataset=dataset, device=device)
    options = {"keep_state": False, "device": device} | options
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
    """What a training step of this config takes here, not compiled: of 22 against 2, after one to warm up, so that what
    is done once for all steps cancels."""
    _, few, many = (take_steps(config, dataset, n) for n in (1, 2, 22))
    return max(many - few, 0.0) / 20


def take_steps(config: TrainConfig, dataset: Dataset, num_steps: int) -> float:
    """The seconds that training takes for so many steps, of a model that is built for it alone."""
    prepared = prepare(config, dataset)
    start = time.perf_counter()
    fit(
        prepared.model.model,
        prepared.model.guide,
        *(t[: num_steps * config.batch_size] for t in prepared.train),
        validation=tuple(t[:1] for t in prepared.train),
        encode=prepared.encode,
        elbo=prepared.assembly.objective,
        epochs=1,
        batch_size=config.batch_size,
        show_progress=False,
    )
    return time.perf_counter() - start
