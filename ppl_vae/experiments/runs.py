"""Run folders: a trained model with its config, data and metrics; loading one, and what it holds."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppl_vae.components import UnknownComponentError
from ppl_vae.data.dataset import Dataset, select
from ppl_vae.data.loading import load
from ppl_vae.data.observation import Observe
from ppl_vae.experiments.architectures import Model
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.preparation import Assembly, assemble, at_most, split_of
from ppl_vae.networks import Shape
from ppl_vae.programs import Program
from ppl_vae.system.files import check, read_json
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.history import History

EVALUATION = ("log_likelihood.json", "log_likelihood.npz")  # in a run folder, as `experiments.evaluating` writes it
CHECKPOINTS = "checkpoints"  # their folder in that of a run


@dataclass(frozen=True)
class Run:
    """A trained model with what it was trained on and how."""

    assembly: Assembly
    model: Model
    dataset: Dataset
    metrics: dict[str, Any]

    @property
    def config(self) -> TrainConfig:
        return self.assembly.config

    @property
    def observe(self) -> Observe:
        return self.assembly.observe

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
    assembly = _assembled(config, shape, num_classes, folder / "config.json")
    model = load_weights(assembly, shape, num_classes, folder / "weights.safetensors")
    dataset = dataset or load(config.dataset, data_dir)
    if dataset.event_shape != shape:
        raise ValueError(
            f"{config.dataset}: expected images of shape {shape}, as trained on; got {dataset.event_shape}"
        )
    return Run(assembly, model, dataset, read_json(folder / "metrics.json"))


def _assembled(config: TrainConfig, shape: Shape, num_classes: int, path: Path) -> Assembly:
    """The components of a stored config. Raises `ValueError`, which names the file."""
    try:
        assembly = assemble(config, of_images=len(shape) == 3)
    except UnknownComponentError as error:
        raise ValueError(f"{path}: {error} (if it is one of yours, name its module with --plugin)") from None
    except (ValueError, RuntimeError, MemoryError) as error:  # torch's for want of memory is the second
        raise ValueError(f"{path}: {' '.join(str(error).split())[:500]}") from None
    if num_classes < assembly.kind.model.labelled:
        raise ValueError(f"{path}: num_classes: expected a number of classes for {config.model}; got {num_classes}")
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
    """Whether `folder` holds checkpoints of a run to go on with."""
    return bool(Checkpoints(folder / CHECKPOINTS).paths())


def history_of(folder: Path) -> History:
    """The history of a run from its `history.csv`. Raises `ValueError` for a file that is damaged."""
    check(folder, "history.csv")
    return History.load(folder / "history.csv")
