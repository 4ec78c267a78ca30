"""The state that training resumes from, as it changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Generator, Tensor, nn

from ppl_vae.graphs import generator_states, set_generator_states
from ppl_vae.system.errors import one_line
from ppl_vae.training.averaging import Average
from ppl_vae.training.checkpoints import difference
from ppl_vae.training.history import History

_OTHER_STATE = (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError, OverflowError)


class TrainingState:
    """The state that training resumes from: epoch and step, the parameters and buffers of `modules`, the parameters
    that are in Pyro's param store alone, whose names are `bare`, the optimiser's state, the generator of the data's
    order and noise, torch's own generators, the losses of the epoch so far, and the history. With `ema_decay` also the
    average of parameters and buffers, and with `keep_best` those after the best epoch.

    `load_state_dict` writes into the tensors that are there, since a graph that was traced holds them.

    Attributes: `epoch`, from 1; `step`, the steps taken of it; `seconds` spent on it; `losses` of its steps, float64
    (steps,); `rows` of the history; `since`, the epochs that early stopping does not count; `weights` after the epoch
    before, averaged if they are averaged, and `kept`, those that training leaves: the same, or those after the best
    epoch.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optim: PyroOptim,
        generator: Generator,
        num_steps: int,
        device: torch.device,
        bare: Sequence[str] = (),
        *,
        ema_decay: float | None = None,
        keep_best: bool = False,
    ):
        self.modules, self.optim, self.generator, self.bare = modules, optim, generator, bare
        self.epoch, self.step, self.seconds = 1, 0, 0.0
        self.losses = torch.zeros(num_steps, dtype=torch.float64, device=device)
        self.rows: list[dict[str, float]] = []
        self.since = 0
        self.average = None if ema_decay is None else Average(ema_decay)
        self.weights = self.snapshot()
        self.keep_best, self.kept = keep_best, self.weights
        self._before = generator.get_state()
        self._noise = None if device.type == "cpu" else Generator(device).manual_seed(generator.initial_seed())

    def noise_of(self, device: torch.device) -> Generator:
        """The generator of noise on a device: that of the order on the CPU, and the device's own elsewhere."""
        return self.generator if self._noise is None or device.type == "cpu" else self._noise

    @property
    def num_steps(self) -> int:
        """The number of steps taken in all epochs."""
        return (self.epoch - 1) * len(self.losses) + self.step

    def order(self, num_data: int) -> Tensor:
        """The order of the data in this epoch, a permutation (data,): sampled as the epoch begins, and sampled again
        from the same state of the generator in the middle of it."""
        now = self.generator.get_state()
        if self.step == 0:
            self._before = now
        self.generator.set_state(self._before)
        order = torch.randperm(num_data, generator=self.generator)
        if self.step > 0:
            self.generator.set_state(now)
        return order

    @property
    def kept_epoch(self) -> int:
        """The epoch that the kept weights are of; 0 before the end of the first."""
        return History(self.rows).best_epoch if self.keep_best else len(self.rows)

    def end_step(self, loss: Tensor, start: float) -> None:
        """Counts a step of an epoch that began at `start`, by `time.perf_counter`."""
        self.losses[self.step] = loss
        self.step, self.seconds = self.step + 1, time.perf_counter() - start
        if self.average is not None:
            self.average.update(self._tensors(), self.num_steps)

    def end_epoch(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.weights = self.snapshot()
        if self.kept_epoch == self.epoch:
            self.kept = self.weights
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are the averaged ones, if they are averaged."""
        if self.average is None:
            yield
            return
        now = _copy(self._tensors())
        self.restore(self.snapshot())
        try:
            yield
        finally:
            self.restore(now)

    def snapshot(self) -> list[dict[str, Tensor]]:
        """A copy of the weights, averaged if they are averaged."""
        return _copy(self._tensors() if self.average is None else self.average.tensors or self._tensors())

    @torch.no_grad()
    def restore(self, weights: Sequence[Mapping[str, Tensor]]) -> None:
        for tensors, values in zip(self._tensors(), weights, strict=True):
            for name, t in tensors.items():
                t.copy_(values[name])

    def _tensors(self) -> list[dict[str, Tensor]]:
        of_modules = [{**dict(module.named_parameters()), **dict(module.named_buffers())} for module in self.modules]
        return [*of_modules, self._bare()] if self.bare else of_modules

    def _bare(self) -> dict[str, Tensor]:
        return {name: p for name, p in pyro.get_param_store().named_parameters() if name in self.bare}

    def is_finite(self) -> bool:
        """Whether the losses of the epoch and all parameters are."""
        parameters = (p for module in self.modules for p in module.parameters())
        return all(bool(t.isfinite().all()) for t in (self.losses, *parameters, *self._bare().values()))

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "rows": self.rows,
            "modules": self._tensors(),
            "weights": self.weights if self.step else None,  # between epochs they are the modules' own, or the average
            "average": self.average and self.average.tensors,
            "kept": None if self.kept is self.weights else self.kept,
            "since": self.since,
            "optim": self.optim.get_state(),
            "generator": self.generator.get_state(),
            "noise": self._noise and self._noise.get_state(),
            "before": self._before,
            "generators": generator_states(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a state of other modules."""
        try:
            then = _shapes(state["modules"])
        except _OTHER_STATE as error:
            raise _not_ours(error) from None
        none: dict[str, list[int]] = {}
        modules = zip_longest(then, _shapes(self._tensors()), fillvalue=none)
        if differing := ", ".join(filter(None, (difference(*shapes) for shapes in modules))):
            raise ValueError(f"checkpoint: expected the state of these modules; got another's: {differing}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes on a state of the same modules. Raises `ValueError` for another."""
        try:
            self._load(state)
        except _OTHER_STATE as error:
            raise _not_ours(error) from None

    def _load(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.losses.copy_(state["losses"])
        self.rows[:] = state["rows"]
        self.restore(state["modules"])
        if self.average is not None:
            self.average.tensors = [
                {name: values[name].to(t.device) for name, t in tensors.items()}
                for tensors, values in zip(self._tensors(), state["average"], strict=True)
            ]
        self.weights = state["weights"] or self.snapshot()
        self.kept, self.since = state["kept"] or self.weights, state["since"]
        optim = state["optim"]
        moments = {int(i): s for i, s in optim["optimizer"]["state"].items()}  # JSON's keys are strings
        self.optim.set_state({**optim, "optimizer": {**optim["optimizer"], "state": moments}})
        self.generator.set_state(state["generator"])
        self._before = state["before"]
        if self._noise is not None and state.get("noise") is not None:
            self._noise.set_state(state["noise"])
        set_generator_states(state["generators"])


def _copy(weights: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: t.detach().clone() for name, t in tensors.items()} for tensors in weights]


def _shapes(modules: Sequence[Mapping[str, Tensor]]) -> list[dict[str, list[int]]]:
    return [{name: list(t.shape) for name, t in tensors.items()} for tensors in modules]


def _not_ours(error: Exception) -> ValueError:
    reason = one_line(error, foreign=True)
    return ValueError(f"checkpoint: expected the state of this training; got another ({reason})")
