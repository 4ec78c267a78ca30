"""Experiments: a frozen config in, a folder of artefacts out."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import platform
import shutil
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO, TraceEnum_ELBO
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Generator, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot

from ppl_vae.arrays import read_npz
from ppl_vae.checkpoints import Checkpoints, difference
from ppl_vae.components import create
from ppl_vae.configs import MOST_CLASSES, NO_NOISE, TrainConfig, at_most, read_config, read_json
from ppl_vae.data import Dataset, chunks, fingerprint, load, select, split
from ppl_vae.elbo_parts import elbo_parts
from ppl_vae.encodings import Dequantize, Encoding, Identity, Levels
from ppl_vae.evaluation.annealing import Sandwich, annealed_log_likelihood, bidirectional
from ppl_vae.evaluation.gaps import active_units, aggregate_posterior, gap_decomposition, generalisation_gap
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.imputation import Imputation, impute
from ppl_vae.evaluation.pairs import support_name
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.files import CHECKSUMS, check, write_checked, write_whole
from ppl_vae.interruption import stoppable
from ppl_vae.kinds import Model, Parts
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import PPCA, VAE, Autoencoder, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE
from ppl_vae.networks import Dense, Divided, Log1p, Shape
from ppl_vae.noise import Noise, NoNoise
from ppl_vae.objectives import Objective
from ppl_vae.optimizers import adam, cosine
from ppl_vae.programs import Program, evaluating, seeded
from ppl_vae.training import DivergedError, History, fit

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


def rescale(config: TrainConfig) -> nn.Module | None:
    """What the encoder's input passes through first. An image with noise is in [0, 1] already."""
    config = config.resolved()
    encoding, noise = create(Encoding, config.encoding or ""), create(Noise, config.noise)
    if isinstance(encoding, Levels) and isinstance(noise, NoNoise):
        return Divided(255)
    support = create(Likelihood, config.likelihood or "").support
    if isinstance(encoding, Identity) and support.is_discrete and support is not constraints.boolean:
        return Log1p()
    return None


def _unscaled(config: TrainConfig, grey: Tensor) -> Tensor:
    """Images in [0, 1] as the encoder expects them."""
    return grey * 255 if isinstance(rescale(config), Divided) else grey


def suited(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The config with its defaults written out for this data set. Raises `ValueError` where the two don't fit."""
    if len(dataset.train) > 1 and all(bool((part == dataset.train[:1]).all()) for part in chunks(dataset.train)):
        raise ValueError(f"{dataset.name}: expected data that differ; got {len(dataset.train)} times the same")
    if dataset.is_images:
        config = config.resolved()
        if isinstance(create(Encoding, config.encoding or ""), Identity):
            raise ValueError(
                f"encoding: expected one for images ({dataset.name}); got {config.encoding!r}, for vectors"
            )
        return config
    for name, value in {"encoding": "identity", "noise": NO_NOISE}.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(
                f"{name}: expected {value!r} for vectors ({dataset.name}); got {getattr(config, name)!r}, for images"
            )
    config = dataclasses.replace(config, encoding="identity").resolved()
    support = create(Likelihood, config.likelihood or "").support
    if config.kind.encoding is None and not support.is_discrete and not dataset.train.is_floating_point():
        raise ValueError(
            f"{dataset.name}: expected floats for {config.likelihood}; got whole numbers, on which a density is no "
            "likelihood (poisson is one; measurements that happen to be whole are stored as floats)"
        )
    for part in (*chunks(dataset.train), *chunks(dataset.test)) if config.kind.encoding is None else ():
        x = part.float()
        if not bool(support.check(x).all()):
            raise ValueError(
                f"{dataset.name}: expected values in {support_name(support)} for {config.likelihood}; got "
                f"some outside, in [{x.min():.4g}, {x.max():.4g}]"
            )
    return config


@dataclass(frozen=True)
class Observe:
    """From 8-bit images, perhaps with their labels, to the arguments of the programs: x, then the noisy image for the
    guide if there is noise, then the labels.

    x is drawn first, so that under one seed it is the same for models with and without noise.
    """

    encoding: Encoding
    noise: Noise

    def __call__(self, images: Tensor, *labels: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
        x = self.encoding(images, generator)
        noisy = () if isinstance(self.noise, NoNoise) else (self.noise(images / 255, generator),)
        return (x, *noisy, *labels)

    def frozen(self, images: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As observed once under a seed: validation and test data."""
        return self(images, generator=Generator().manual_seed(seed))


def observation(config: TrainConfig) -> Observe:
    config = config.resolved()
    return Observe(create(Encoding, config.encoding or ""), create(Noise, config.noise))


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


def num_classes(config: TrainConfig, dataset: Dataset) -> int:
    """Of the labels, if the model takes them. Raises `ValueError` if it does and there are none."""
    if not config.kind.learns_labels:
        return 0
    labels = dataset.train_labels
    if labels is None or int(labels.min()) < 0:
        got = "none" if labels is None else f"the label {int(labels.min())}"
        raise ValueError(f"{dataset.name}: expected labels 0, 1, ..., for {config.model}; got {got}")
    if int(labels.max()) >= MOST_CLASSES:
        raise ValueError(f"{dataset.name}: expected labels below {MOST_CLASSES}; got the label {int(labels.max())}")
    return int(labels.max()) + 1


def labelled(labels: Tensor, num_labels: int) -> Tensor:
    """The labels with -1 in place of all but `num_labels` of them: the first of each class, as many of each.

    >>> labelled(torch.tensor([0, 0, 0, 1, 1, 2]), 4)
    tensor([ 0,  0, -1,  1, -1,  2])
    """
    place = one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]  # 1 for the first of its class
    first = place.argsort(stable=True)[:num_labels]
    return torch.full_like(labels, -1).index_copy(0, first, labels[first])


def split_images(config: TrainConfig, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Training and validation images, uint8: the seed takes one sixth for validation (60,000 -> 50,000 + 10,000)."""
    train, validation = _split(config, dataset)
    return select(dataset.train, train), select(dataset.train, validation)


def split_labels(config: TrainConfig, dataset: Dataset) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The labels that training and validation are given beside the images: none, for most models, and -1 where the
    label is latent, as it always is in the validation of a semi-supervised model."""
    if not num_classes(config, dataset):
        return (), ()
    assert dataset.train_labels is not None
    train, validation = (dataset.train_labels[indices] for indices in _split(config, dataset))
    if config.kind.needs_labels:
        return (train,), (validation,)
    if config.num_labels is not None:
        train = labelled(train, config.num_labels)
    return (train,), (torch.full_like(validation, -1),)


def _split(config: TrainConfig, dataset: Dataset) -> tuple[Tensor, Tensor]:
    num_images = min(len(dataset.train), config.train_images or len(dataset.train))
    if num_images < 6:
        raise ValueError(f"training images: expected at least 6, to hold out one in six; got {num_images}")
    return split(num_images, num_images // 6, seed=config.seed)


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


def to_json(values: Any) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def write_json(path: Path, values: Any) -> None:
    """Writes JSON, so that a file under this name is whole."""
    write_whole(path, to_json(values))


def versions() -> dict[str, str]:
    names = ("ppl-vae", "torch", "pyro-ppl", "arviz", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


# What a trained model is asked for


def held_out(run: Run, num_images: int | None, seed: int) -> tuple[tuple[Tensor, ...], dict[str, str]]:
    """The programs' arguments for the first test images, observed once under `seed`, and how that is named.

    Raises `ValueError` for an autoencoder.
    """
    if isinstance(run.model, Autoencoder):
        raise ValueError(f"{run.config.model}: expected a VAE; got an autoencoder, which has no log p(x)")
    likelihood, encoding = create(Likelihood, run.config.likelihood or ""), run.observe.encoding
    if not likelihood.support.is_discrete and not isinstance(encoding, Dequantize | Identity):
        raise ValueError(
            f"{run.config.likelihood}: expected images encoded by dequantize; got {run.config.encoding}, whose "
            "values are a discrete set, on which a density has no bound and is no likelihood"
        )
    images = run.dataset.test[:num_images]
    names = {"encoding": f"{run.observe.encoding!r}, seed {seed}", "source": fingerprint(images)}
    return (*run.observe.frozen(images, seed), *run.test_labels(num_images)), names


def evaluate_run(
    run: Run, *, num_samples: int, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[LogLikelihood, dict[str, Any]]:
    """log p(x) of the first test images by `log_likelihood`, with its `options`, and a summary of it for JSON.

    Raises `ValueError` for an autoencoder, and for an encoding under which the model has no likelihood.
    """
    data, names = held_out(run, num_images, seed)
    result = log_likelihood(
        *run.programs,
        *data,
        num_samples=num_samples,
        seed=seed,
        encoding=names["encoding"],
        source=names["source"],
        **options,
    )
    return result, summarise(run, result, data, seed)


def anneal_run(
    run: Run, *, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[LogLikelihood, dict[str, Any]]:
    """The same by `annealed_log_likelihood`, with its `options`."""
    data, names = held_out(run, num_images, seed)
    result = annealed_log_likelihood(
        *run.programs,
        *data,
        seed=seed,
        encoding=names["encoding"],
        source=names["source"],
        **options,
    )
    return result, summarise(run, result, data, seed)


def sandwich_run(run: Run, *, num_images: int | None = None, seed: int = 0, **options: Any) -> Sandwich:
    """Both bounds of log p(x), by `bidirectional`, on data simulated from the model like its test images."""
    data, _ = held_out(run, num_images, seed)
    if not isinstance(run.observe.noise, NoNoise):
        raise ValueError(f"{run.config.noise}: expected a guide that sees x; got one that was trained to see it noisy")
    sandwich = bidirectional(*run.programs, *data, num_data=num_images or 64, seed=seed, **options)
    if not sandwich.upper.done.any():
        raise KeyboardInterrupt  # before anything was done that could be kept
    return sandwich


def impute_run(
    run: Run, seen: Tensor, *, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[Imputation, Tensor]:
    """`impute` of the first test images where `seen`, (*event) or (data, *event), is false, and those images as
    observed. Raises `ValueError` as `held_out` and `impute` do."""
    data, _ = held_out(run, num_images, seed)
    if not isinstance(run.observe.noise, NoNoise):
        raise ValueError(f"{run.config.noise}: expected a guide that sees x; got one that was trained to see it noisy")
    return impute(*run.programs, *data, seen=seen, seed=seed, **options), data[0]


def gaps_run(
    run: Run,
    log_p: LogLikelihood,
    *,
    num_samples: int,
    num_images: int | None = None,
    seed: int = 0,
    num_steps: int = 500,
    **options: Any,
) -> dict[str, Any]:
    """Where log p(x) - ELBO comes from on the first test images, and what codes tell of them, for JSON, in nats per
    image. log_p is `evaluate_run`'s of them; as many training images are evaluated likewise, with its `options`.

    Raises `ValueError` as `evaluate_run` and `gap_decomposition` do, and for a log_p that was interrupted.
    """
    if not log_p.done.all():
        raise ValueError(f"log_p: expected all of {len(log_p)} images; got {int(log_p.done.sum())} done")
    program, data = run.programs, held_out(run, num_images, seed)[0]
    gaps = gap_decomposition(*program, *data, log_p=log_p, seed=seed, num_steps=num_steps)
    images = split_images(run.config, run.dataset)[0][: len(log_p)]
    labels = [t[: len(log_p)] for t in split_labels(run.config, run.dataset)[0]]
    seen = Dataset(run.dataset.name, run.dataset.train, images, run.dataset.train_labels, *labels)
    trained = dataclasses.replace(run, dataset=seen)
    train_log_p, _ = evaluate_run(trained, num_samples=num_samples, seed=seed, **options)
    generalisation, units = generalisation_gap(train_log_p, log_p), active_units(program[1], *data)
    codes = aggregate_posterior(*program, *data, seed=seed)
    parts = {name: getattr(gaps, name) for name in ("total", "approximation", "amortisation")}
    parts |= {name: getattr(codes, name) for name in ("kl", "mutual_information", "marginal_kl")}
    return {
        **{k: {"mean": part.mean, "mc_se": part.mc_se_of_mean} for k, part in parts.items()},
        "generalisation": dataclasses.asdict(generalisation),
        "active_units": units.num_active,
        "latent_size": units.variances.numel(),
        "log_num_images": math.log(len(log_p)),
        "num_images": len(log_p),
        "num_steps": num_steps,
        "seed": seed,
    }


def summarise(run: Run, result: LogLikelihood, data: tuple[Tensor, ...], seed: int) -> dict[str, Any]:
    """A result for JSON, with the ELBO and its parts beside it, in nats per image, and how many units are active (None
    for more than one latent site). That none is, the posterior has collapsed, is told by a `RuntimeWarning`."""
    if not result.done.any():
        raise KeyboardInterrupt  # before anything was done that could be kept
    done = [t[result.done] for t in data]
    parts = elbo_parts(*run.programs, *done, seed=seed)
    try:
        num_active = active_units(run.programs[1], *done).num_active
    except ValueError:  # one datum, or not one latent site on the reals
        num_active = None
    if num_active == 0:
        warnings.warn(
            f"posterior collapse: expected active units; got 0 of {run.config.latent_size}: codes tell nothing of "
            "their data. Try a KL warm-up, free bits, a smaller beta or a weaker decoder",
            RuntimeWarning,
            stacklevel=2,
        )
    return {
        "likelihood": run.config.likelihood,
        "measure": result.measure,
        "space": result.space,
        "bound": result.bound,
        "encoding": result.encoding,
        "fingerprint": result.fingerprint,
        "source": result.source,
        "num_images": int(result.done.sum()),
        "num_samples": int(result.num_samples.max()),
        "decoder_rows": result.decoder_rows,
        "seed": seed,
        "log_p": result.mean,
        "mc_se": result.mc_se_of_mean,
        "data_se": result.data_se_of_mean,
        "khat_over_limit": result.num_unreliable_or_none,
        "elbo": parts.elbo.double().mean().item(),
        "reconstruction": parts.reconstruction.double().mean().item(),
        "kl": parts.kl.double().mean().item(),
        "active_units": num_active,
    }


PER_IMAGE = ("log_p", "mc_se", "ess", "khat", "num_samples")
EVALUATION = ("log_likelihood.json", "log_likelihood.npz")


def save_evaluation(folder: Path, result: LogLikelihood, summary: dict[str, Any]) -> None:
    """Writes `log_likelihood.json`, and per image (log_p, mc_se, ess, khat, num_samples) `log_likelihood.npz`."""
    arrays = io.BytesIO()
    np.savez(arrays, **{name: getattr(result, name).numpy() for name in PER_IMAGE})
    summary = summary | {"versions": versions()}
    write_checked(folder, {"log_likelihood.npz": arrays.getvalue(), "log_likelihood.json": to_json(summary)})


def load_evaluation(folder: Path) -> LogLikelihood:
    """The result that `ppl-vae evaluate` left in a run folder.

    Raises `FileNotFoundError` where it left none, and `ValueError` for files that are damaged.
    """
    for name in EVALUATION:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder}: expected {name}, as ppl-vae evaluate writes it; got a folder without it"
            )
    check(folder, *EVALUATION)
    summary, path = read_json(folder / "log_likelihood.json"), folder / "log_likelihood.npz"
    try:
        arrays = read_npz(path, PER_IMAGE)
    except ValueError as error:
        raise ValueError(f"{path}: expected an evaluation; got {str(error).removeprefix(f'{path}: ')}") from None
    kinds = {name: np.dtype(np.int64 if name == "num_samples" else np.float64) for name in PER_IMAGE}
    shapes = {array.shape for array in arrays.values()}
    if {name: array.dtype for name, array in arrays.items()} != kinds or len(shapes) > 1 or len(shapes.pop()) != 1:
        got = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{path}: expected an evaluation, {', '.join(PER_IMAGE)} (images,); got {got or 'nothing'}")
    text = dict.fromkeys(("measure", "encoding", "fingerprint", "bound", "source", "space"), str)
    summary.setdefault("space", "")
    for name, kind in {**text, "decoder_rows": int}.items():
        if type(summary.get(name)) is not kind:
            got = str(summary.get(name))[:100]
            raise ValueError(f"{folder / EVALUATION[0]}: {name}: expected {kind.__name__}; got {got!r}")
    fields: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return LogLikelihood(**fields, **{name: summary[name] for name in (*text, "decoder_rows")})


def restore(run: Run, noisy: Tensor, *, chunk: int = 512) -> Tensor:
    """The model's reconstruction of noisy images in [0, 1], shape (data, C, H, W), as brightness in [0, 1]. A model
    that takes labels sees those of the test images."""
    seen = (_unscaled(run.config, noisy), *run.test_labels(len(noisy)))
    with evaluating(run.model.model):
        chunks = zip(*(t.split(chunk) for t in seen), strict=True)
        return torch.cat([run.observe.encoding.grey(run.model.reconstruct(*part)) for part in chunks])


def generate(run: Run, num_samples: int) -> TorchDistribution:
    """p(x|z) for z from the prior, batch shape (num_samples, *event), of a model that takes labels for each class in
    turn. Raises `ValueError` for an autoencoder."""
    if isinstance(run.model, Autoencoder):
        raise ValueError(f"{run.config.model}: expected a VAE; got an autoencoder, which has no prior to sample from")
    if isinstance(run.model, ConditionalVAE):
        return run.model.generate(torch.arange(num_samples) % run.model.num_classes)
    return run.model.generate(num_samples)


def sample_images(run: Run, num_images: int, *, seed: int = 0) -> Tensor:
    """E[x|z] for z from the prior, as brightness in [0, 1], shape (num_images, C, H, W); see `generate`."""
    with seeded(seed), evaluating(run.model.model):
        return run.observe.encoding.grey(generate(run, num_images).mean)


def sample_data(run: Run, num_data: int, *, seed: int = 0) -> Tensor:
    """x ~ p(x|z) for z from the prior, shape (num_data, *event); see `generate`."""
    with seeded(seed), evaluating(run.model.model):
        return generate(run, num_data).sample()


def codes(run: Run, grey: Tensor) -> Tensor:
    """E_q[z|x], of the top layer if there are two, shape (data, latent), of images in [0, 1], (data, C, H, W)."""
    assert isinstance(run.model, VAE | HierarchicalVAE | PPCA)
    with evaluating(run.model.model):
        return run.model.encode(_unscaled(run.config, grey)).mean


def decode(run: Run, z: Tensor) -> Tensor:
    """E[x|z] as brightness in [0, 1], shape (*, C, H, W), of codes (*, latent)."""
    assert isinstance(run.model, VAE | HierarchicalVAE | PPCA)
    with evaluating(run.model.model):
        return run.observe.encoding.grey(run.model.decode(z))


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
