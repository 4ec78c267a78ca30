"""Experiments: a frozen config in, a folder of artefacts out."""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ppl_vae.checkpoints import Checkpoints, difference
from ppl_vae.components import create
from ppl_vae.configs import TrainConfig, at_most, read_config, read_json
from ppl_vae.data import load
from ppl_vae.dataset import Dataset, fingerprint
from ppl_vae.files import CHECKSUMS, check, to_json, write_checked
from ppl_vae.interruption import stoppable
from ppl_vae.kinds import Model, Parts
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import PPCA, Autoencoder, ConditionalVAE, SemiSupervisedVAE
from ppl_vae.networks import Dense, Log1p, Shape
from ppl_vae.objectives import Objective
from ppl_vae.observation import Observe, num_classes, observation, rescale, split_images, split_labels, suited
from ppl_vae.optimizers import adam, cosine
from ppl_vae.programs import Program, seeded
from ppl_vae.training import DivergedError, History, fit

EVALUATION = ("log_likelihood.json", "log_likelihood.npz")  # in the folder of a run, as `ppl_vae.assessment` writes it
CHECKPOINTS = "checkpoints"  # their folder in that of a run
NUM_FIRST = 10_000  # training images that a prior may begin from; the split has put them in random order
NUM_MONITORED = 2000  # validation images whose ELBO is logged by epoch


def build(config: TrainConfig, event_shape: Shape, num_classes: int = 0) -> Model:
    """The untrained model of a config for data of this shape, (C, H, W) for images, its weights drawn from the
    config's seed. Models that take labels want their `num_classes`."""
    config = config.resolved()
    with seeded(config.seed):
        parts = Parts(
            config.network() if config.kind.has_network else Dense(),
            create(Likelihood, config.likelihood or ""),
            config.prior,
            config.posterior,
            config.latent_size,
            event_shape,
            num_classes,
            rescale(config),
            is_quiet=isinstance(rescale(config), Log1p),
        )
        return config.kind.build(parts)


def objective(config: TrainConfig) -> ELBO:
    """The objective of training, with its KL weight at its first step."""
    if config.kind.enumerates:
        return TraceEnum_ELBO(max_plate_nesting=1)
    return create(Objective, config.objective).weighted(create(KLWeight, config.kl_weight))


@dataclass(frozen=True)
class Run:
    """A trained model with what it was trained on and how."""

    config: TrainConfig
    model: Model
    dataset: Dataset
    metrics: dict[str, Any]

    @property
    def observe(self) -> Observe:
        return observation(self.config)

    @property
    def programs(self) -> tuple[Program, Program]:
        """Model and guide for log p(x): of a semi-supervised model those with the class summed out of both."""
        m = self.model
        return (m.marginal_model, m.marginal_guide) if isinstance(m, SemiSupervisedVAE) else (m.model, m.guide)

    def test_labels(self, num_images: int | None = None) -> tuple[Tensor, ...]:
        """The labels of the first test images where the programs want them, else nothing."""
        if not self.config.kind.needs_labels:
            return ()
        if self.dataset.test_labels is None:
            raise ValueError(f"{self.dataset.name}: expected test labels, for {self.config.model}; got none")
        labels, model = self.dataset.test_labels[:num_images], self.model
        if isinstance(model, ConditionalVAE) and not 0 <= int(labels.min()) <= int(labels.max()) < model.num_classes:
            raise ValueError(
                f"{self.dataset.name}: expected test labels 0 to {model.num_classes - 1}, as trained on, for "
                f"{self.config.model}; got {int(labels.min())} to {int(labels.max())}"
            )
        return (labels,)


def initialise(model: Model, images: Tensor, labels: tuple[Tensor, ...], observe: Observe, seed: int) -> None:
    """What starts from the training data: pseudo-inputs, PPCA at its solution, the weight of m2's classifier."""
    x = observe.frozen(images[:NUM_FIRST], seed)[-1]  # what the encoder sees
    if isinstance(model, PPCA):
        latent_size = len(model.zeros)
        if latent_size < min(math.prod(x.shape[1:]), len(x)):
            model.load_state_dict(PPCA.maximum_likelihood(x, latent_size).state_dict())
    elif isinstance(model, SemiSupervisedVAE):
        # the paper's alpha, 0.1 N, weighs the mean over the labelled data, and this one their sum
        model.alpha = 0.1 * len(images) / int((labels[0] >= 0).sum())
    elif not isinstance(model, Autoencoder):
        model.prior.initialise(x)


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
    config = suited(config, dataset)
    images, validation = split_images(config, dataset)
    labels, validation_labels = split_labels(config, dataset)
    of_data = {"event_shape": dataset.event_shape, "num_classes": num_classes(config, dataset)}
    written = {**of_data, **dataclasses.asdict(config)}
    checkpoints = Checkpoints(output / CHECKPOINTS, checkpoint_epochs, checkpoint_minutes, written)
    if resume and not checkpoints.paths() and (output / "metrics.json").is_file():
        return _load_same(output, config, dataset)
    model = build(config, dataset.event_shape, num_classes(config, dataset))
    observe = observation(config)
    initialise(model, images, labels, observe, config.seed)
    if overwrite and checkpoints.paths():
        take_steps(config, dataset, 1)  # so that nothing is removed for what can't be trained
        shutil.rmtree(checkpoints.folder)
    num_steps = config.epochs * math.ceil(len(images) / config.batch_size)
    schedule = cosine(num_steps) if config.schedule == "cosine" else None
    failure = None
    with stoppable() as stop:
        try:
            history = fit(
                model.model,
                model.guide,
                images,
                *labels,
                validation=tuple(t[:NUM_MONITORED] for t in (validation, *validation_labels)),
                encode=observe,
                elbo=objective(config),
                epochs=config.epochs,
                batch_size=config.batch_size,
                optim=adam(config.learning_rate, schedule=schedule),
                learning_rate=config.learning_rate,
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
        for name in ("metrics.json", *EVALUATION, CHECKSUMS):  # of an earlier run, which this one replaces
            (output / name).unlink(missing_ok=True)
        files = {
            "config.json": to_json(written),
            "weights.safetensors": save(
                {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
            ),
            "history.csv": history.to_csv().encode(),
        }
        metrics: dict[str, Any] = {}
        if failure is None:
            metrics = {
                "dataset_fingerprint": fingerprint(images, validation),
                "train_images": len(images),
                "validation_images": len(validation),
                "parameters": sum(p.numel() for p in model.parameters()),
                "seed": config.seed,
                "seconds": round(math.fsum(history["seconds"]), 2),
                "versions": versions(),
                "last_epoch": {k: v for k, v in history.rows[-1].items() if k != "seconds"},
            }
            files["metrics.json"] = to_json(metrics)
        write_checked(output, files)
        shutil.rmtree(checkpoints.folder, ignore_errors=True)
    if failure is not None:
        raise failure
    return Run(config, model, dataset, metrics)


def trained(config: TrainConfig, folder: Path, *, dataset: Dataset, **options: Any) -> Run:
    """The run in the folder, if it is finished; else it is trained, from its checkpoints if it has some."""
    if finished(folder, config):
        return load_run(folder, dataset=dataset)
    return train(config, folder, dataset=dataset, resume=unfinished(folder), **options)


def _load_same(output: Path, config: TrainConfig, dataset: Dataset) -> Run:
    """The finished run in the folder, if it is one of this config and these data."""
    run = load_run(output, dataset=dataset)
    then = {**dataclasses.asdict(run.config.resolved()), "data": run.metrics.get("dataset_fingerprint")}
    now = {**dataclasses.asdict(config), "data": fingerprint(*split_images(config, dataset))}
    if differing := difference(then, now):
        raise ValueError(f"{output}: expected this run; got a finished one of another, stored -> given: {differing}")
    return run


def load_run(folder: Path, *, data_dir: Path | None = None, dataset: Dataset | None = None) -> Run:
    """A finished run from its folder.

    Raises `FileNotFoundError` for a folder that is no finished run, and `ValueError` for files that don't fit.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of a run; got nothing there")
    for name in ("config.json", "weights.safetensors", "metrics.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected a finished run, with {name}; got a folder without it")
    check(folder, "config.json", "weights.safetensors", "metrics.json")
    config, shape, num_classes = read_config(folder / "config.json")
    model = load_weights(config, shape, num_classes, folder / "weights.safetensors")
    dataset = dataset or load(config.dataset, data_dir)
    if dataset.event_shape != shape:
        raise ValueError(
            f"{config.dataset}: expected images of shape {shape}, as trained on; got {dataset.event_shape}"
        )
    return Run(config, model, dataset, read_json(folder / "metrics.json"))


def load_weights(config: TrainConfig, shape: Shape, num_classes: int, path: Path) -> Model:
    """The model of a config with the weights in a file. Raises `ValueError` where the two don't fit: before memory is
    taken for a model of more than twice the file."""
    try:
        weights = load_file(path)
        with at_most(2 * sum(t.numel() for t in weights.values())):  # some parts are made more than once
            model = build(config, shape, num_classes)
        expected = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
        for name, t in weights.items():
            if name in expected and (t.shape, t.dtype) != expected[name]:
                size, dtype = expected[name]
                got = f"{t.dtype} {tuple(t.shape)}"
                raise ValueError(f"{name}: expected {dtype} {tuple(size)}, as in {config.model}; got {got}")
        model.load_state_dict(weights)
        return model
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (SafetensorError, RuntimeError, OSError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected the weights of {config.model}; got {reason}") from None


def versions() -> dict[str, str]:
    names = ("ppl-vae", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def seconds_per_step(config: TrainConfig, dataset: Dataset) -> float:
    """What a training step of this config takes here, measured on two batches after one to warm up."""
    take_steps(config, dataset, 1)
    return take_steps(config, dataset, 2) / 2


def take_steps(config: TrainConfig, dataset: Dataset, num_steps: int) -> float:
    """The seconds that training takes for so many steps, of a model that is built for it alone."""
    images, labels = split_images(config, dataset)[0], split_labels(config, dataset)[0]
    model = build(config, dataset.event_shape, num_classes(config, dataset))
    start = time.perf_counter()
    fit(
        model.model,
        model.guide,
        *(t[: num_steps * config.batch_size] for t in (images, *labels)),
        validation=tuple(t[:1] for t in (images, *labels)),
        encode=observation(config),
        elbo=objective(config),
        epochs=1,
        batch_size=config.batch_size,
        show_progress=False,
    )
    return time.perf_counter() - start


def finished(folder: Path, config: TrainConfig) -> bool:
    """Whether `folder` holds a finished run of just this config, defaults written out or not."""
    if not (folder / "metrics.json").is_file() or not (folder / "weights.safetensors").is_file():
        return False
    try:
        return read_config(folder / "config.json")[0].resolved() == config.resolved()
    except (OSError, ValueError):
        return False


def unfinished(folder: Path) -> bool:
    """Whether `folder` holds checkpoints of a run to go on with."""
    return bool(Checkpoints(folder / CHECKPOINTS).paths())


def history_of(folder: Path) -> History:
    """The history of a run from its `history.csv`. Raises `ValueError` for a file that is damaged."""
    check(folder, "history.csv")
    path = folder / "history.csv"
    try:
        lines = path.read_text().splitlines()
        names = lines[0].split(",")
        return History([dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: expected columns of numbers, with their names; got {str(error)[:100]}") from None
