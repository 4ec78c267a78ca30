"""Trackers of experiments: TensorBoard, Weights & Biases, MLflow, or one of your own.

Of a run, `train(config, folder, tracker=TensorBoard("runs/log"))` and `ppl-vae train --tracker tensorboard:runs/log`
tell a tracker all. Of a pair of your own:

    tracker = Wandb("my-project")
    tracker.begin("first try", {"learning_rate": 0.01})
    fit(model, guide, x, learning_rate=0.01, metrics=tracker)
    tracker.end({"log_p": log_likelihood(model, guide, x).mean})

`fit` itself knows no trackers: `metrics` is any function of a row of the history. This one appends to a list:

>>> import torch
>>> from ppl_vae.models import PPCA
>>> from ppl_vae.programs import seeded
>>> from ppl_vae.training.fitting import fit
>>> log = []
>>> def metrics(row):
...     step = int(row.pop("epoch"))
...     log.append((step, sorted(row)))
>>> with seeded(0):
...     ppca, x = PPCA((4,), latent_size=2), torch.randn(20, 4)
>>> history = fit(ppca.model, ppca.guide, x, epochs=2, metrics=metrics, show_progress=False)
>>> log[1]
(2, ['loss', 'seconds', 'train_elbo', 'train_kl', 'train_reconstruction'])

The history that `fit` returns has all rows in any case, and `history.save` writes them as CSV.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ppl_vae.components import Component, UnknownComponentError, UsageError, choices, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Tracker(Component, ABC):
    """What is told of a training: its config at the beginning, a row of the history after each epoch, and results and
    pictures at the end. A subclass has `__call__`, and the two others as it needs them. On the command line it is
    `--tracker NAME:PLACE`, of its name in kebab case.

    `place` says where to: a folder, a project, an address.
    """

    def __init__(self, place: Path | str):
        self.place = str(place)

    def begin(self, name: str, config: Mapping[str, Any], known: str | None = None) -> str | None:
        """Called before the first epoch, with the name of the run and its config. Returns what the tracker itself calls
        the run, if it does; of a run that goes on, or is evaluated later, that is `known`."""
        return None

    @abstractmethod
    def __call__(self, row: dict[str, float]) -> None:
        """Called after each epoch with a row of the history: see `History`."""

    def end(
        self, results: Mapping[str, float], pictures: Mapping[str, Image] = NOTHING, *, failed: bool = False
    ) -> None:
        """Called at the end, of training and of each evaluation, with results by name, as in `test/log_p`, and PIL
        images. Of work that `failed`, or was interrupted, there are none."""


class TensorBoard(Tracker, by_name="tensorboard"):
    """Writes for TensorBoard to the folder `place`, by epoch: `elbo/train` beside `elbo/validation`, in nats per datum,
    and so on; the config, the results and samples too. `tensorboard --logdir place` shows them.

        fit(model, guide, x, metrics=TensorBoard("runs/a"))

    Runs whose folders have one parent are compared by `tensorboard --logdir parent`. A run that resumes appends to its
    folder. Raises `ImportError` unless tensorboard is installed, and `OSError` where no folder can be made.
    """

    def __init__(self, place: Path | str):
        super().__init__(place)
        folder = Path(place)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise OSError(f"TensorBoard: expected a folder that can be written to; got {there}")
        imported(self, "tensorboard")
        self._writer_of = importlib.import_module("torch.utils.tensorboard").SummaryWriter

    @functools.cached_property
    def writer(self) -> Any:
        """torch's `SummaryWriter`, made when there is something to write."""
        return self._writer_of(self.place)

    def begin(self, name: str, config: Mapping[str, Any], known: str | None = None) -> None:
        self.writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()))

    def __call__(self, row: dict[str, float]) -> None:
        for name, value in tagged(row).items():
            self.writer.add_scalar(name, value, int(row["epoch"]))
        self.writer.flush()  # seen at once, and there if the process is killed

    def end(
        self, results: Mapping[str, float], pictures: Mapping[str, Image] = NOTHING, *, failed: bool = False
    ) -> None:
        import numpy as np

        for name, value in results.items():
            self.writer.add_scalar(name, value)
        for name, picture in pictures.items():
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), dataformats="HWC")
        self.writer.close()


class Wandb(Tracker):
    """Logs to the project `place` of Weights & Biases, which `WANDB_MODE`, `WANDB_ENTITY` and its other variables set
    up. Raises `ImportError` unless wandb is installed."""

    run: Any = None
    """`wandb.Run`"""

    def __init__(self, place: Path | str):
        super().__init__(place)
        self._wandb = imported(self, "wandb")

    def begin(self, name: str, config: Mapping[str, Any], known: str | None = None) -> str:
        self.run = self._wandb.init(
            project=self.place, name=name, config=dict(config), id=known, resume="allow", reinit="create_new"
        )
        return self.run.id

    def __call__(self, row: dict[str, float]) -> None:
        if self.run is None:
            self.begin("fit", {})
        self.run.log(tagged(row), step=int(row["epoch"]))

    def end(
        self, results: Mapping[str, float], pictures: Mapping[str, Image] = NOTHING, *, failed: bool = False
    ) -> None:
        self.run.summary.update(dict(results))
        if pictures:
            self.run.log({name: self._wandb.Image(picture) for name, picture in pictures.items()})
        self.run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """Logs to the MLflow server, database or folder at `place`: `http://localhost:5000`, say, or `sqlite:///mlflow.db`,
    which takes the whole of mlflow. The experiment is that of `MLFLOW_EXPERIMENT_NAME`, or "ppl-vae". Raises
    `ImportError` unless mlflow, or mlflow-skinny, is installed."""

    run_id: str | None = None

    def __init__(self, place: Path | str):
        super().__init__(place)
        self._mlflow = imported(self, "mlflow")

    def begin(self, name: str, config: Mapping[str, Any], known: str | None = None) -> str:
        client = self.client = self._mlflow.MlflowClient(self.place)
        if known is None:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ppl-vae")
            found = client.get_experiment_by_name(experiment)
            experiment_id = found.experiment_id if found else client.create_experiment(experiment)
            known = str(client.create_run(experiment_id, run_name=name).info.run_id)
            params = [self._mlflow.entities.Param(key, str(value)) for key, value in config.items()]
            client.log_batch(known, params=params)  # which may not change afterwards
        self.run_id = known
        return known

    def __call__(self, row: dict[str, float]) -> None:
        if self.run_id is None:
            self.begin("fit", {})
        self._log(tagged(row), int(row["epoch"]))

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def end(
        self, results: Mapping[str, float], pictures: Mapping[str, Image] = NOTHING, *, failed: bool = False
    ) -> None:
        self._log(results, 0)
        for name, picture in pictures.items():
            self.client.log_image(self.run_id, picture, f"{name}.png")
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def tracker_of(spec: str) -> Callable[[], Tracker]:
    """What makes the tracker that `spec` names, NAME:PLACE. Raises `UsageError` for an unknown name and no place.

    >>> tracker_of("wandb")
    Traceback (most recent call last):
    ppl_vae.components.UsageError: tracker wandb: expected wandb:PLACE; got 'wandb'
    """
    name, _, place = spec.partition(":")
    known = choices(Tracker)
    if name not in known:
        raise UnknownComponentError(unknown("tracker", name, list(known), ", ".join(f"{k}:PLACE" for k in known)))
    if not place:
        raise UsageError(f"tracker {name}: expected {name}:PLACE; got {spec!r}")
    return functools.partial(known[name], place)


def tag(column: str) -> str:
    """The name of a column of the history in a tracker, which groups plots by what precedes the slash.

    >>> tag("validation_elbo"), tag("seconds")
    ('elbo/validation', 'seconds')
    """
    part, _, quantity = column.partition("_")
    return f"{quantity}/{part}" if part in ("train", "validation") else column


def tagged(row: Mapping[str, float]) -> dict[str, float]:
    """A row by these names, without its epoch."""
    return {tag(column): value for column, value in row.items() if column != "epoch"}


def imported(tracker: Tracker, name: str) -> Any:
    """A package that is an extra. Raises `ImportError`, in one line, where there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ImportError(
            f"{type(tracker).__name__}: expected {name}; got none (pip install 'ppl-vae[{name}]')"
        ) from None
