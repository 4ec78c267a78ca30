"""Training by stochastic variational inference, in one function."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.optim import PyroOptim
from torch import Generator, Tensor

from ppl_vae.graphs import repays
from ppl_vae.objectives import Elbo
from ppl_vae.programs import Program, mode, modules_of, seeded
from ppl_vae.system.files import locked
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.progress import duration, progress
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step, all_modules
from ppl_vae.training.history import DivergedError, History, Stopped
from ppl_vae.training.monitoring import Finding, blame, first_nonfinite, mean_parts, warn_of_collapse
from ppl_vae.training.optimizers import OneOptimizer, adam, learning_rate_of
from ppl_vae.training.state import TrainingState

Encode = Callable[..., tuple[Tensor, ...]]
"""encode(*batch, generator=...) -> the programs' arguments: from stored data to what the programs observe."""


def observe(*batch: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
    """The `encode` of data that need no encoding: returns them unchanged."""
    return batch


def fit(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    validation: Tensor | tuple[Tensor, ...] | None = None,
    encode: Encode = observe,
    elbo: ELBO | None = None,
    optim: PyroOptim | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    compiled: bool | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    stop: Callable[[], object] = bool,
    metrics: Callable[[dict[str, float]], object] | None = None,
    show_progress: bool = True,
    description: str = "fit",
) -> History:
    """Trains a Pyro pair by SVI, in place, and returns the history.

    Arguments:
        model, guide: any Pyro pair whose parameters belong to `nn.Module`s (`pyro.module`).
        x, args: the data, batched together along dim 0: tensors of shape (data, ...).
        validation: held-out data of the same form; their ELBO is logged by epoch, with the noise of `seed` in each.
        encode: from a batch of stored data to the programs' arguments, with new noise for each training batch.
        elbo: the objective, `Elbo()` by default, which is Pyro's `Trace_ELBO`. The loss is its sum over the batch.
        optim: a `PyroOptim`; by default fused Adam at `learning_rate`, which is for that alone.
        seed: of the order of the data and of all noise. The same seed gives the same weights, bit for bit, on
            one machine.
        compiled: whether steps are traced and compiled (`ppl_vae.training.compilation`), which takes 20 seconds once
            and makes them two to three times as fast. By default where the number of steps repays it. The noise is
            the same either way, and results are the same but for rounding. Of Pyro's own ELBOs only `Trace_ELBO` is
            compiled.
        checkpoints: where and how often the state of training is written, `Checkpoints(folder)`.
        resume: whether to resume from the newest checkpoint, if there is one. Weights and history are bit for bit
            those of a run that was not stopped, but for `seconds`, compiled or not. The first two or three steps are
            taken again before the state is loaded, since they decide what is traced.
        stop: called after each step; a true value ends training by `Stopped`, after a checkpoint.
        metrics: a logging callback, such as `ppl_vae.training.trackers.TensorBoard`: called after each epoch with a
            copy of its row of the history. Random numbers that it takes change nothing here.

    Pyro's param store, torch's random generators and the modules' training mode are left as they were found.

    Raises `ValueError` for empty data, data of unequal length, a program without trainable parameters or with a
    bare `pyro.param` (it would be lost with the param store), checkpoints of another run or all damaged, or
    checkpoints and an optimiser other than a `OneOptimizer`; `OSError` where a checkpoint can't be written, and where
    another process trains in its folder; and `DivergedError` when the loss is NaN or infinite, with epoch, step, the
    first site that is to blame and what to try: the weights are then those after the last whole epoch. Warns by
    `RuntimeWarning` of a posterior that has collapsed, with a KL next to 0.
    """
    data = (x, *args)
    _check(data, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    held_out = validation if isinstance(validation, tuple) else () if validation is None else (validation,)
    monitored = _monitored(data, held_out, encode, seed)
    objective, optim = objective_of(elbo), optim or adam(learning_rate)
    if isinstance(elbo, CompiledTrace_ELBO) and compiled is None:
        compiled = True
    generator, num_steps = Generator().manual_seed(seed), math.ceil(len(x) / batch_size)
    step = Step(model, guide, objective, optim, compiled=bool(compiled))
    state = TrainingState(all_modules(model, guide, objective), optim, generator, num_steps, x.device)
    steps = _Steps(step, state, data, encode, num_planned=epochs * num_steps if compiled is None else None)
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "compiled": compiled}

    def save() -> None:
        if checkpoints is not None:
            checkpoints.save({**settings, **state.state_dict()}, state.num_steps)

    with (
        nullcontext() if checkpoints is None else locked(checkpoints.folder),
        seeded(seed),
        pyro.get_param_store().scope(),
        progress(description, epochs * num_steps, enabled=show_progress) as report,
    ):
        if checkpoints is not None:
            settings |= _settings(objective, optim, (*data, *held_out))
            if (saved := _checkpoint(checkpoints, resume, settings)) is not None:
                steps.resume(saved, batch_size)
                report((state.epoch - 1) * num_steps + state.step, f"resumes {_place(state, epochs)}")
        for epoch in range(state.epoch, epochs + 1):
            start = time.perf_counter() - state.seconds
            batches = state.order(len(x)).split(batch_size)
            with mode(model, guide, training=True):
                for rows in batches[state.step :]:
                    state.losses[state.step] = steps.take(rows, first=state.num_steps == 0)
                    state.step, state.seconds = state.step + 1, time.perf_counter() - start
                    report()
                    if state.num_steps == 1 and not state.losses[0].isfinite():
                        break  # no step can make it better: the rest of the epoch is spared
                    if reason := stop():
                        save()
                        raise Stopped(f"stopped {_place(state, epochs)}", reason)
                    if checkpoints is not None and checkpoints.is_due():
                        save()
            if not state.losses.isfinite().all():  # read once an epoch, so that no step waits for a loss
                raise steps.diverged(batches)
            row: dict[str, float] = {"epoch": epoch, "loss": state.losses.sum().item() / len(x)}
            for name, arguments in monitored.items():
                row |= {f"{name}_{k}": v for k, v in mean_parts(model, guide, arguments, seed).items()}
            row["seconds"] = time.perf_counter() - start
            state.end_epoch(row)
            report(0, _line(row, epochs))
            if metrics is not None:
                with torch.random.fork_rng():
                    metrics(dict(row))
            if checkpoints is not None and checkpoints.is_due(epoch):
                save()
    warn_of_collapse(state.rows[-1])
    return History(state.rows)


@dataclass
class _Steps:
    """Steps on batches of `data`, encoded anew for each. `num_planned` is how many there will be, if that decides
    whether they are compiled."""

    step: Step
    state: TrainingState
    data: tuple[Tensor, ...]
    encode: Encode
    num_planned: int | None

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        # index_select copies rows in a tenth of the time that t[rows] takes
        parts = (t.index_select(0, rows.to(t.device)) for t in self.data)
        return self.encode(*parts, generator=self.state.generator)

    def take(self, rows: Tensor, *, first: bool) -> Tensor:
        """The loss of a step. Raises `ValueError` for what Pyro's validation or `_check_params` finds in the first."""
        batch = self.batch(rows)
        # The first batch is validated: a wrong shape is a clear error there, and costs time later.
        with pyro.validation_enabled(first), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # an error, in `fit`
            try:
                loss = self.step(*batch)
            except ValueError:
                if (found := self._first_nonfinite(batch)) is None:
                    raise
                at = f"epoch {self.state.epoch}, step {self.state.step + 1}"
                raise ValueError(f"{at}: expected a finite loss{self._blame(found, None)}") from None
        if first:
            _check_params(modules_of(self.step.model, self.step.guide))
            if self.num_planned is not None:
                self.step.compiled = repays(self.num_planned, self.step.flops)
        return loss

    def resume(self, saved: Mapping[str, Any], batch_size: int) -> None:
        """Takes on a saved state. Taken again, the first steps leave the same graph (the second step's, or the third's
        where the second batch is a shorter one); the state is then written into the tensors that it holds."""
        self.state.check(saved)
        self.state.restore(saved["modules"])
        batches = torch.randperm(len(self.data[0]), generator=self.state.generator).split(batch_size)
        with mode(self.step.model, self.step.guide, training=True):
            num_steps = min(3 if len(batches) == 2 else 2, saved["num_steps"])
            for i, rows in enumerate((*batches, *batches)[:num_steps]):
                self.take(rows, first=i == 0)
        self.state.load_state_dict(saved)

    def diverged(self, batches: Sequence[Tensor]) -> DivergedError:
        """The error of an epoch with a loss that is not finite. The weights are then those after the epoch before."""
        state = self.state
        bad = int((~state.losses.isfinite()).nonzero()[0])
        batch = self.batch(batches[bad])
        after = self._first_nonfinite(batch)
        state.restore(state.weights)
        before = self._first_nonfinite(batch)
        return DivergedError(
            f"epoch {state.epoch}, step {bad + 1}: expected a finite loss; got {state.losses[bad].item()}"
            f"{self._blame(before, after)}. The weights are those after epoch {state.epoch - 1}",
            History(state.rows),
        )

    def _first_nonfinite(self, batch: tuple[Tensor, ...]) -> Finding | None:
        return first_nonfinite(self.step.model, self.step.guide, *batch)

    def _blame(self, before: Finding | None, after: Finding | None) -> str:
        return blame(before, after, learning_rate_of(self.step.optim))


def _monitored(
    data: tuple[Tensor, ...], held_out: tuple[Tensor, ...], encode: Encode, seed: int
) -> dict[str, tuple[Tensor, ...]]:
    """The programs' arguments whose ELBO is logged. Encoded once, so that epochs differ by the weights alone."""
    parts = {"train": tuple(t[: len(held_out[0] if held_out else t)] for t in data)}
    if held_out:
        parts["validation"] = held_out
    return {name: encode(*part, generator=Generator().manual_seed(seed)) for name, part in parts.items()}


def _checkpoint(checkpoints: Checkpoints, resume: bool, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state to resume from, if there is one."""
    if resume:
        return checkpoints.load(**settings)
    if paths := checkpoints.paths():
        raise ValueError(f"checkpoints: expected resume=True, or a folder without checkpoints; got {paths[0]}")
    return None


def _settings(objective: ELBO, optim: PyroOptim, data: tuple[Tensor, ...]) -> dict[str, str]:
    """What must be the same in a run that resumes."""
    if not isinstance(optim, OneOptimizer):
        raise ValueError(
            f"optim: expected a OneOptimizer, whose state checkpoints can hold; got {type(optim).__name__}"
        )
    return {"objective": type(objective).__name__, "optimiser": repr(optim), "data": fingerprint(*data)}


def _place(state: TrainingState, epochs: int) -> str:
    return f"in epoch {state.epoch} of {epochs}, after {state.step} of {len(state.losses)} steps"


def objective_of(elbo: ELBO | None) -> ELBO:
    """The objective as one of ours, which can be compiled, where there is one that is the same."""
    if isinstance(elbo, CompiledTrace_ELBO):
        return elbo.objective
    if elbo is None or (type(elbo) is Trace_ELBO and vars(elbo) == vars(Trace_ELBO())):
        return Elbo()
    return elbo


def _line(row: dict[str, float], epochs: int) -> str:
    name = "validation" if "validation_elbo" in row else "train"
    left = row["seconds"] * (epochs - row["epoch"])
    elbo, reconstruction, kl = (row[f"{name}_{part}"] for part in ("elbo", "reconstruction", "kl"))
    parts = f"ELBO {elbo:.2f} nats = reconstruction {reconstruction:.2f} - KL {kl:.2f}"
    if kl == 0:  # an autoencoder has no latent, and no ELBO
        parts = f"loss {-elbo:.2f}"
    return f"epoch {row['epoch']:.0f}/{epochs}  {name} {parts}  {row['seconds']:.1f} s, {duration(left)} left"


def _check(data: tuple[Tensor, ...], **positive: float) -> None:
    if not len(data[0]):
        raise ValueError("x: expected at least one datum; got an empty tensor")
    for i, t in enumerate(data[1:], 1):
        if len(t) != len(data[0]):
            raise ValueError(f"argument {i}: expected {len(data[0])} rows as in x; got {len(t)}")
    for name, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a number above 0; got {value}")


def _check_params(modules: list) -> None:
    """The params of the first step must be parameters of a module, since the store itself is not kept."""
    store = pyro.get_param_store()
    ours = {p.data_ptr() for module in modules for p in module.parameters()}
    params = dict(store.named_parameters())
    if not params:
        raise ValueError("expected a program with parameters, declared by pyro.module; got none")
    for name, param in params.items():
        if param.data_ptr() not in ours:
            raise ValueError(
                f"param {name!r}: expected a contiguous nn.Parameter of a module that the program refers to; got one "
                "that is in the param store alone, which fit leaves as it was found"
            )
