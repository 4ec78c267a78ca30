"""Run folders: a trained model with its config, data and metrics; loading one, and what it holds."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppl_vae.components import UnknownComponentError
from ppl_vae.data.dataset import Dataset, select
from ppl_vae.data.loading import load, options_of
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.experiments.architectures import Model
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.folders import check_run
from ppl_vae.experiments.preparation import Assembled, Assembly, assemble, at_most, split_of
from ppl_vae.networks import Shape
from ppl_vae.programs import Program, evaluating, seeded
from ppl_vae.system.archives import unpacked
from ppl_vae.system.files import check, read_json
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.machine import device_of
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.history import History

CHECKPOINTS = "checkpoints"  # their folder in that of a run


@dataclass(frozen=True, eq=False)
class Run(Assembled):
    """A trained model with how it was trained, and its data, which are loaded when they are first asked for."""

    assembly: Assembly
    model: Model
    event_shape: tuple[int, ...]
    metrics: dict[str, Any]
    load_dataset: Callable[[], Dataset]
    folder: Path | None = None

    @cached_property
    def dataset(self) -> Dataset:
        """Raises `ValueError` for data that the model is not for, and as `load` does."""
        return self._fitting(self.load_dataset())

    @property
    def device(self) -> torch.device:
        """Where the model is. Data are on the CPU, and results too."""
        return next(self.model.parameters()).device

    def on(self, dataset: Dataset) -> Run:
        """The same model on other data. Raises `ValueError` for data of another shape."""
        self._fitting(dataset)
        return dataclasses.replace(self, load_dataset=lambda: dataset)

    def _fitting(self, dataset: Dataset) -> Dataset:
        if dataset.event_shape != self.event_shape:
            raise ValueError(
                f"{dataset.name}: expected data of shape {self.event_shape}, as trained on; got {dataset.event_shape}"
            )
        return dataset

    @property
    def weights(self) -> str:
        """A fingerprint of the weights: that of a run that was trained again is another."""
        return fingerprint(*(t for t in self.model.state_dict().values() if t.is_floating_point()))

    @property
    def is_of_images(self) -> bool:
        return len(self.event_shape) == 3

    @cached_property
    def has_its_own_data(self) -> bool:
        """Whether `dataset` is what the model was trained on, by fingerprint."""
        stored, dataset = self.metrics.get("dataset_fingerprint"), self.dataset
        try:
            parts = [select(dataset.train, index) for index in split_of(self.config, dataset)]
        except ValueError:  # of other sizes
            return False
        return stored is None or stored == fingerprint(*parts)

    @property
    def programs(self) -> tuple[Program, Program]:
        """Model and guide for log p(x)."""
        return self.model.programs

    def test_labels(self, num_images: int | None = None) -> tuple[Tensor, ...]:
        """The labels of the first test images where the programs want them, else nothing."""
        if not self.model.needs_labels:
            return ()
        if self.dataset.test_labels is None:
            raise ValueError(f"{self.dataset.name}: expected test labels, for {self.config.model}; got none")
        labels, num_classes = self.dataset.test_labels[:num_images], self.model.num_classes
        if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"{self.dataset.name}: expected test labels 0 to {num_classes - 1}, as trained on, for "
                f"{self.config.model}; got {int(labels.min())} to {int(labels.max())}"
            )
        return (labels,)

    def train_data(self, num_images: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The first images that the model was trained on, and their labels where the programs want them."""
        index = split_of(self.config, self.dataset)[0][:num_images]
        images, labels = select(self.dataset.train, index), self.dataset.train_labels
        return images, (labels[index],) if self.model.needs_labels and labels is not None else ()

    def encode(self, x: Tensor, *, chunk: int = 512) -> Tensor:
        """E_q[z|x], (data, latent), of the top layer if there are two, for a model without labels.

        x are data as a `Dataset` has them, tensors or arrays: images (data, C, H, W), uint8 or floats in [0, 1], or
        vectors (data, D)."""
        with evaluating(self.model.model):
            parts = torch.as_tensor(x).split(chunk)
            return torch.cat([self.model.encode(self._seen(part)).mean.cpu() for part in parts])

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], (*, *event), of latents (*, latent), for a model without labels; images as brightness in [0, 1]."""
        with evaluating(self.model.model):
            return self._shown(self.model.decode(torch.as_tensor(z).to(self.device)))

    def reconstruct(self, x: Tensor, *labels: Tensor, chunk: int = 512, **options: Any) -> Tensor:
        """What the model makes of data as `encode` takes them, noisy ones among them: (data, *event), of images as
        brightness in [0, 1]. A model that needs labels is given them, (data,), and a ladder `num_layers`."""
        with evaluating(self.model.model):
            parts = zip(torch.as_tensor(x).split(chunk), *(t.to(self.device).split(chunk) for t in labels), strict=True)
            made = (self.model.reconstruct(self._seen(part), *rest, **options) for part, *rest in parts)
            return torch.cat([self._shown(x) for x in made])

    def score(
        self, x: Tensor, *labels: Tensor, num_samples: int = 1000, seed: int = 0, **options: Any
    ) -> LogLikelihood:
        """log p(x) of data as `encode` takes them, encoded under the seed, with errors and k-hats: by
        `log_likelihood_within`, whose `options` these are. A model that needs labels is given them. Raises `ValueError`
        for an autoencoder."""
        if not self.model.has_log_p:
            raise ValueError(f"{self.config.model}: expected a VAE; got an autoencoder, which has no log p(x)")
        x = torch.as_tensor(x)
        if self.is_of_images and x.is_floating_point():
            x = (x * 255).round().to(torch.uint8)
        data = *self.observe.frozen(x, seed), *labels
        return log_likelihood_within(*self.programs, *data, num_samples=num_samples, seed=seed, **options)

    def sample(self, num_data: int, *, seed: int = 0, mean: bool = True) -> Tensor:
        """New data, (num_data, *event): E[x|z] for z from the prior, of images as brightness in [0, 1], or x ~ p(x|z)
        unless `mean`. A model that takes labels makes some of each class in turn. Raises `ValueError` for an
        autoencoder."""
        if not self.model.has_log_p:
            raise ValueError(
                f"{self.config.model}: expected a VAE; got an autoencoder, which has no prior to sample from"
            )
        with seeded(seed), evaluating(self.model.model):
            x = self.model.generate(num_data)
            return self._shown(x.mean) if mean else x.sample().cpu()

    def _shown(self, x: Tensor) -> Tensor:
        return self.observe.encoding.grey(x.cpu()) if self.is_of_images else x.cpu()

    def _seen(self, x: Tensor) -> Tensor:
        return self.observe.for_encoder(x / 255 if x.dtype == torch.uint8 else x).to(self.device)


def load_run(
    folder: Path | str,
    *,
    data_dir: Path | None = None,
    dataset: Dataset | str | None = None,
    device: torch.device | str = "cpu",
) -> Run:
    """A finished run from its folder, or from an archive, whose checksums are verified: `ppl-vae export RUN FILE.zip`
    makes one.

    Arguments:
        data_dir: where torchvision's datasets are: see `load`.
        dataset: the data, or their name or path: those of the training at another place, or others of their shape. By
            default those of the training, where they were.
        device: where the model goes, and the data that it is asked about: cpu, cuda, cuda:1, or auto.

    Data are loaded when `Run.dataset` is first used. That raises `ValueError` for data of another shape, and for others
    than those of the training unless `dataset` is given.
    Raises `FileNotFoundError` for a folder that is no finished run, and `ValueError` for files that don't fit, and for
    an archive that is damaged.
    """
    path = Path(folder)
    with unpacked(path) as folder:
        check_run(folder)
        check(folder, "config.json", "weights.safetensors", "metrics.json")
        config, shape, num_classes = read_config(folder / "config.json")
        assembly = _assembled(config, shape, folder / "config.json")
        model = load_weights(assembly, shape, num_classes, folder / "weights.safetensors").to(device_of(str(device)))
        metrics = read_json(folder / "metrics.json")

    def given() -> Dataset:
        if isinstance(dataset, Dataset):
            return dataset
        name = dataset or config.dataset
        reading = {option: config.reading[option] for option in options_of(name)}
        return load(name, data_dir, **reading)

    def unchanged() -> Dataset:
        try:
            found = Run(assembly, model, shape, metrics, given)
            if found.has_its_own_data:
                return found.dataset
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}. If the data have moved, say where they are by --dataset") from None
        raise ValueError(
            f"{config.dataset}: expected the data that {path} was trained on, with the fingerprint "
            f"{metrics.get('dataset_fingerprint')}; got others (to use them all the same, name them by --dataset)"
        )

    run = Run(assembly, model, shape, metrics, unchanged if dataset is None else given, path if path.is_dir() else None)
    return run if dataset is None or isinstance(dataset, str) else run.on(dataset)


def _assembled(config: TrainConfig, shape: Shape, path: Path) -> Assembly:
    """The components of a stored config. Raises `ValueError`, which names the file."""
    try:
        assembly = assemble(config, of_images=len(shape) == 3)
    except UnknownComponentError as error:
        raise ValueError(f"{path}: {error} (if it is one of yours, name its module with --plugin)") from None
    except (ValueError, RuntimeError, MemoryError) as error:  # torch's for want of memory is the second
        raise ValueError(f"{path}: {' '.join(str(error).split())[:500]}") from None
    return assembly


def load_weights(assembly: Assembly, shape: Shape, num_classes: int, path: Path) -> Model:
    """The model of these components with the weights in a file. Raises `ValueError` where the two don't fit: before
    memory is taken for a model of more than twice the file."""
    config = assembly.config
    try:
        weights = load_file(path)
        with at_most(2 * sum(t.numel() for t in weights.values())):  # some parts are made more than once
            model = assembly.build(shape, num_classes)
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


def finished(folder: Path, config: TrainConfig) -> bool:
    """Whether `folder` holds a finished run of just this config, defaults written out or not."""
    if not (folder / "metrics.json").is_file() or not (folder / "weights.safetensors").is_file():
        return False
    try:
        stored, shape, _ = read_config(folder / "config.json")
        return len({assemble(c, of_images=len(shape) == 3).config for c in (stored, config)}) == 1
    except (OSError, ValueError):
        return False


def unfinished(folder: Path) -> bool:
    """Whether `folder` holds checkpoints of a run to resume."""
    return bool(Checkpoints(folder / CHECKPOINTS).paths())


def history_of(folder: Path) -> History:
    """The history of a run from its `history.csv`. Raises `ValueError` for a file that is damaged."""
    check(folder, "history.csv")
    return History.load(folder / "history.csv")
