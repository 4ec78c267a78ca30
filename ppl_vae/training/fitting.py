"""Training by stochastic variational inference, in one function."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
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
from ppl_vae.system.progress import progress
from ppl_vae.training.checkpoints import Checkpoints, TrainingState
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step, all_modules
from ppl_vae.training.history import DivergedError, History, Stopped
from ppl_vae.training.monitoring import blame, first_nonfinite, mean_parts, warn_of_collapse
from ppl_vae.training.optimizers import OneOptimizer, adam

Encode = Callable[..., tuple[Tensor, ...]]
"""encode(*batch, generator=...) -> the programs' arguments: from stored data to what the programs observe."""


def observe(*batch: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
    """The data as they are: the `encode` of data that need no encoding."""
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
        validation: held-out data of the same form; their ELBO is logged by epoch under noise frozen by `seed`.
        encode: from a batch of stored data to the programs' arguments, drawn anew for each training batch.
        elbo: the objective, `Elbo()` by default, which is Pyro's `Trace_ELBO`. The loss is its sum over the batch.
        optim: a `PyroOptim`; fused Adam at `learning_rate` by default.
        seed: of the order of the data and of all noise. The same seed gives the same weights, bit for bit, on
            one machine.
        compiled: whether steps are traced and compiled (`ppl_vae.training.compilation`): 20 seconds once, then two to three
            times as fast. By default where the number of steps to come repays it. The same noise is drawn either
            way, and results are the same but for rounding. Pyro's own ELBOs are not compiled, but for `Trace_ELBO`.
        checkpoints: where and how often all that training goes on from is written, `Checkpoints(folder)`.
        resume: goes on from the newest checkpoint, or begins if there is none. Weights and history are bit for bit
            those of a run that was not stopped, but for `seconds`, compiled or not. The first two steps are taken again
            before the state is loaded, since they decide what is traced.
        stop: asked after each step; what is true ends training by `Stopped`, after a checkpoint.
        metrics: called after each epoch with its row of the history, a copy: where a tracker comes in, as
            `ppl_vae.training.trackers.TensorBoard` does. What it draws at random changes nothing here.

    Pyro's param store, torch's random generators and the modules' training mode are left as they were found.

    Raises `ValueError` for empty data, data of unequal length, a program without trainable parameters or with a
    bare `pyro.param` (it would be lost with the param store), checkpoints of another run or all damaged, or
    checkpoints and another optimiser than a `OneOptimizer`; `OSError` where a checkpoint can't be written, and where
    another process trains in its folder; and `DivergedError` when the loss is NaN or infinite, with epoch, step, the
    first site that is to blame and what to try: the weights are then those after the last whole epoch. A posterior
    that has collapsed, with a KL next to 0, is told by a `RuntimeWarning`.
    """
    data = (x, *args)
    _check(data, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    held_out = None if validation is None else (validation if isinstance(validation, tuple) else (validation,))
    generator = Generator().manual_seed(seed)
    monitors = {"train": tuple(t[: len(held_out[0] if held_out else x)] for t in data)}
    if held_out:
        monitors["validation"] = held_out
    # Frozen once, so that epochs differ by the weights alone.
    frozen = {name: encode(*part, generator=Generator().manual_seed(seed)) for name, part in monitors.items()}

    objective = objective_of(elbo)
    if compiled is None and isinstance(elbo, CompiledTrace_ELBO):
        compiled = True
    optim = optim or adam(learning_rate)
    modules = modules_of(model, guide)
    num_steps = math.ceil(len(x) / batch_size)
    at = TrainingState(all_modules(model, guide, objective), optim, generator, num_steps, x.device)
    history = History(at.rows)
    with (
        nullcontext() if checkpoints is None else locked(checkpoints.folder),
        seeded(seed),
        pyro.get_param_store().scope(),
        progress(description, epochs, enabled=show_progress) as report_epoch,
    ):
        step = Step(model, guide, objective, optim, compiled=bool(compiled))

        def drawn(rows: Tensor) -> tuple[Tensor, ...]:
            # index_select copies rows in a tenth of the time that t[rows] takes
            return encode(*(t.index_select(0, rows.to(t.device)) for t in data), generator=generator)

        def take(rows: Tensor, *, first: bool) -> Tensor:
            batch = drawn(rows)
            # The first batch is validated: a wrong shape is a clear error there, and costs time later.
            with pyro.validation_enabled(first), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # an error, below
                try:
                    loss = step(*batch)
                except ValueError:
                    if (found := first_nonfinite(model, guide, *batch)) is None:
                        raise
                    raise ValueError(
                        f"epoch 1, step 1: expected a finite loss{blame(found, None, learning_rate)}"
                    ) from None
            if first:
                _check_params(modules)
                if compiled is None:
                    step.compiled = repays(epochs * num_steps, step.flops)
            return loss

        def save() -> None:
            assert checkpoints is not None
            checkpoints.save({**settings, **at.state_dict()}, at.num_steps)

        def stop_if_told() -> None:
            if reason := stop():
                if checkpoints is not None:
                    save()
                raise Stopped(f"stopped in epoch {at.epoch} of {epochs}, after {at.step} of {num_steps} steps", reason)

        if checkpoints is not None:
            settings = {
                "epochs": epochs,
                "batch_size": batch_size,
                "seed": seed,
                "compiled": compiled,
                "objective": type(objective).__name__,
                "optimiser": _name_of(optim),
                "data": fingerprint(*data, *(held_out or ())),
            }
            if (saved := _checkpoint(checkpoints, resume, settings)) is not None:
                at.check(saved)
                at.restore(saved["modules"])
                # Taken again, the first two steps leave the same graph; the state goes into the tensors that it holds.
                batches = torch.randperm(len(x), generator=generator).split(batch_size)
                with mode(model, guide, training=True):
                    for i, rows in enumerate((*batches, *batches)[: min(2, saved["num_steps"])]):
                        take(rows, first=i == 0)
                at.load_state_dict(saved)
                report_epoch(at.epoch - 1, f"goes on in epoch {at.epoch}, after {at.step} of {num_steps} steps")
        for epoch in range(at.epoch, epochs + 1):
            start = time.perf_counter() - at.seconds
            batches = at.order(len(x)).split(batch_size)
            with mode(model, guide, training=True):
                for i in range(at.step, num_steps):
                    at.losses[i] = take(batches[i], first=epoch == 1 and i == 0)
                    at.step, at.seconds = i + 1, time.perf_counter() - start
                    if at.num_steps == 1 and not at.losses[0].isfinite():
                        break  # no step can make it better: the rest of the epoch is spared
                    stop_if_told()
                    if checkpoints is not None and checkpoints.is_due():
                        save()
            # Read once an epoch, so that no step waits for a loss.
            if not at.losses.isfinite().all():
                bad = int((~at.losses.isfinite()).nonzero()[0])
                batch = drawn(batches[bad])
                after = first_nonfinite(model, guide, *batch)
                at.restore(at.weights)
                before = first_nonfinite(model, guide, *batch)
                raise DivergedError(
                    f"epoch {epoch}, step {bad + 1}: expected a finite loss; got {at.losses[bad].item()}"
                    f"{blame(before, after, learning_rate)}. The weights are those after epoch {epoch - 1}",
                    history,
                )
            row: dict[str, float] = {"epoch": epoch, "loss": at.losses.sum().item() / len(x)}
            for name, arguments in frozen.items():
                row |= {f"{name}_{k}": v for k, v in mean_parts(model, guide, arguments, seed).items()}
            row["seconds"] = time.perf_counter() - start
            at.end_epoch(row)
            report_epoch(text=_line(row, epochs))
            if metrics is not None:
                with torch.random.fork_rng():
                    metrics(dict(row))
            if checkpoints is not None and checkpoints.is_due(epoch):
                save()
    warn_of_collapse(history.rows[-1])
    return history


def _checkpoint(checkpoints: Checkpoints, resume: bool, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, if there is one."""
    if resume:
        return checkpoints.load(**settings)
    if paths := checkpoints.paths():
        raise ValueError(f"checkpoints: expected resume=True, or a folder without checkpoints; got {paths[0]}")
    return None


def _name_of(optim: PyroOptim) -> str:
    if not isinstance(optim, OneOptimizer):
        raise ValueError(f"optim: expected a OneOptimizer, for checkpoints to carry; got {type(optim).__name__}")
    return repr(optim)


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
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  {name} ELBO {row[f'{name}_elbo']:.2f} nats = reconstruction "
        f"{row[f'{name}_reconstruction']:.2f} - KL {row[f'{name}_kl']:.2f}  {row['seconds']:.1f} s, {left:.0f} s left"
    )


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
                "that lives in the param store alone, which fit leaves as it was found"
            )
