"""Training by stochastic variational inference, in one function."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import PyroOptim
from torch import Generator, Tensor
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from ppl_vae.contract import check_training, common_device, plain_trace, tensors_of
from ppl_vae.graphs import repays
from ppl_vae.kl_weights import KLWeight
from ppl_vae.objectives import Elbo
from ppl_vae.programs import Program, evaluating, mode, modules_of, own_param_store, seeded
from ppl_vae.system.files import locked
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.progress import duration, progress
from ppl_vae.system.rows import Rows
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.checks import check_batches
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step, all_modules
from ppl_vae.training.history import DivergedError, History, Stopped
from ppl_vae.training.monitoring import blame, first_nonfinite, mean_parts, warn_of_end
from ppl_vae.training.optimizers import OneOptimizer, end_epoch, learning_rate_of, pyro_optimizer
from ppl_vae.training.parallel import ParallelStep, Ranks, check_parallel
from ppl_vae.training.schedules import Schedule
from ppl_vae.training.state import TrainingState
from ppl_vae.training.stopping import is_over

MONITORED_ITEMS = 10_000  # of a dataset, whose ELBO is logged where there is no validation data

Encode = Callable[..., tuple[Tensor, ...]]
"""encode(*batch, generator=...) -> the programs' arguments: from stored data to what the programs observe."""


def observe(*batch: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
    """The `encode` of data that need no encoding: returns them unchanged."""
    return batch


def fit(
    model: Program,
    guide: Program,
    x: Tensor | Dataset[Any] | DataLoader[Any],
    *args: Tensor,
    validation: Any = None,
    encode: Encode = observe,
    elbo: ELBO | None = None,
    optim: PyroOptim | type[Optimizer] | None = None,
    epochs: int = 10,
    batch_size: int | None = None,
    drop_last: bool = False,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    schedule: Schedule | None = None,
    ema_decay: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    compiled: bool | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    stop: Callable[[], object] = bool,
    metrics: Callable[[dict[str, float]], object] | None = None,
    process_group: ProcessGroup | None = None,
    show_progress: bool = True,
    description: str = "fit",
) -> History:
    """Trains a Pyro pair by SVI, in place, and returns the history.

    Arguments:
        model, guide: any Pyro pair with one data plate, whose parameters are those of `nn.Module`s (`pyro.module`), or
            bare (`pyro.param`): these are trained from where Pyro's param store has them, and put there.
        x, args: the data, batched together along dim 0, of shape (data, ...): tensors, or what numpy makes arrays of.
            They go to the device of the parameters: whole, or a batch at a time where they would take more than half of
            its free memory. Their order is the same on every device, and noise is the device's own.
            Or a torch dataset or `DataLoader`, whose items are tensors, or tuples of them as further arguments, and are
            read when they are used. A map-style one is read in the order of `seed`, in this process; an iterable one is
            streamed, in its own order, and a stream without a length is counted in a first pass. All data are read
            once before the first step, to be checked.
        validation: held-out data of the same form; their ELBO is logged by epoch, with the noise of `seed` in each. Of
            a dataset they are read whole. Without them the ELBO of the training data is logged; of a dataset, that of
            the first 10,000.
        encode: from a batch of stored data to the programs' arguments, with new noise for each training batch.
        elbo: the objective, `Elbo()` by default, which is Pyro's `Trace_ELBO`. The loss is its sum over the batch. Of a
            `TraceEnum_ELBO`, the history has its own bound, without its two parts.
        optim: a `PyroOptim`, or a class of torch.optim; by default fused Adam. A scheduler of `pyro.optim` is stepped
            after each epoch.
        batch_size: 128 by default, or that of a `DataLoader`.
        drop_last: whether an epoch ends before a last batch that is shorter.
        learning_rate, weight_decay, clip_norm: of the default optimiser, which with weight decay is AdamW, or of a
            class; gradients of a larger norm, over all parameters together, are scaled down to `clip_norm`.
        schedule: of the learning rate, by epochs: `Cosine()`, `Plateau()` or another of `ppl_vae.training.schedules`;
            `Cosine().warmed(500)` rises from 0 in the first 500 steps.
        ema_decay: the weights that are monitored and kept are an exponential moving average of the steps' own, which
            reaches about 1 / (1 - ema_decay) steps back (`ppl_vae.training.averaging`); BatchNorm's statistics too.
        patience: early stopping: training ends when the ELBO of the validation data has not been better for so many
            epochs, those of a warm-up of the KL not counted. The weights are then those after the best epoch,
            `history.best_epoch`. With as many as `epochs` none is left out, and the best are kept all the same.
        seed: of the order of the data and of all noise. The same seed gives the same weights, bit for bit, on
            one machine.
        compiled: whether steps are traced and compiled (`ppl_vae.training.compilation`), which takes 20 seconds once
            and makes them two to three times as fast. By default where the number of steps repays it. The noise is
            the same either way, and results are the same but for rounding. Of Pyro's own ELBOs only `Trace_ELBO` is
            compiled.
        checkpoints: where and how often the state of training is written, `Checkpoints(folder)`.
        resume: whether to resume from the newest checkpoint, if there is one. Weights and history are bit for bit
            those of a run that was not stopped, but for `seconds`, compiled or not. The first two or three steps are
            taken again before the state is loaded, since they decide what is traced. Of a stream there are checkpoints
            at the ends of epochs alone: what is stopped within one is resumed from its start, and the same if the
            stream is.
        stop: called after each step; a true value ends training by `Stopped`, after a checkpoint. The weights are then
            the last step's own.
        metrics: a logging callback, or a tracker (`ppl_vae.training.trackers`): called after each epoch with a
            copy of its row of the history. Random numbers that it takes change nothing here.
        process_group: of `torch.distributed`. Its ranks train together: each calls `fit` with the same data and
            settings, and takes its rows of every batch (`ppl_vae.training.parallel`). Weights and history are on all
            ranks those of one process, to rounding. The first writes checkpoints, from which any number of ranks
            resumes, and calls `metrics`.

    Pyro's param store, torch's random generators and the modules' training mode are left as they were found, but for
    bare parameters.

    Raises `ValueError`, before the first step, for a pair that breaks the contract of `check_training`, data that are
    empty, of unequal length or outside of their support, a last batch of one for BatchNorm, patience without validation
    data, checkpoints of another run or all damaged, and checkpoints with an optimiser other than a `OneOptimizer`; on
    several ranks also for what takes the data of a batch together (BatchNorm, `FreeBits`, `GaussianOptimal`), and for
    draws by rejection sampling (Gamma, Poisson). `OSError` where a checkpoint can't be written, and where another
    process trains in its folder; `ConnectionError` within 30 seconds of the end of another rank, which it names; and
    `DivergedError` when the loss, a parameter or the ELBO that is logged turns NaN or infinite, with what is to blame
    and what to try: the weights are then those after the last epoch for which it was finite, or the best. Warns by
    `RuntimeWarning` of a posterior that has collapsed, with a KL next to 0, and of a run that ends far below where it
    began.
    """
    batch_size, drop_last = _batching(x, batch_size, drop_last)
    _check(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, patience=patience)
    ranks = Ranks(process_group)
    with seeded(seed):  # items of a dataset may be random
        data, held_out = _tensors(model, guide, (x, *args), validation, patience)
        device = common_device(p for m in modules_of(model, guide) for p in m.parameters()) or data[0].device
        monitored = _monitored(data, held_out, encode, seed, device)
    options = {"weight_decay": weight_decay or None, "clip_norm": clip_norm, "schedule": schedule}
    objective, optim = objective_of(elbo), pyro_optimizer(optim, learning_rate, **options)
    compiled = True if compiled is None and isinstance(elbo, CompiledTrace_ELBO) else compiled
    num_steps = max(1, len(data[0]) // batch_size) if drop_last else math.ceil(len(data[0]) / batch_size)
    first = tuple(t[:batch_size] for t in monitored["train"])
    checkpoints = checkpoints if ranks.is_first else None
    with (
        ranks,
        nullcontext() if checkpoints is None else locked(checkpoints.folder),
        seeded(seed),
        _param_store(model, guide, objective, first) as bare,
        progress(description, epochs * num_steps, enabled=show_progress and ranks.is_first) as report,
    ):
        generator, modules = Generator().manual_seed(seed), all_modules(model, guide, objective)
        keeping: dict[str, Any] = {"ema_decay": ema_decay, "keep_best": patience is not None}
        state = _of_first(ranks, TrainingState(modules, optim, generator, num_steps, device, bare, **keeping))
        _plan(objective, optim, epochs, state)
        make_step = Step if ranks.size == 1 else partial(ParallelStep, ranks=ranks)
        step = make_step(model, guide, objective, optim, compiled=bool(compiled))
        steps = _Steps(step, state, data, encode, batch_size, epochs * num_steps if compiled is None else None)
        steps.check(first, held_out, seed, ranks)
        settings = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "compiled": compiled}
        saving = _Saving(checkpoints, steps, {**settings, "ema_decay": ema_decay, "patience": patience})
        if (saved := saving.load(resume, (*data, *held_out), ranks)) is not None:
            steps.resume(saved)
            report((state.epoch - 1) * num_steps + state.step, f"resumes {_place(state, epochs)}")
        while state.epoch <= epochs and not is_over(state.rows, patience, state.since):
            start = time.perf_counter() - state.seconds
            batches = _run_epoch(saving, lambda: ranks.agreed(stop()), report, start)
            row = steps.measured(batches, monitored, seed) | {"seconds": time.perf_counter() - start}
            row = ranks.first(partial(dict, row))  # to the last bit, for what it decides
            state.end_epoch(row)
            end_epoch(optim, row["loss"])
            report(0, _line(row, epochs))
            if metrics is not None and ranks.is_first:
                with torch.random.fork_rng():
                    metrics(dict(row))
            saving.save_if_due(state.epoch - 1)
        if state.epoch <= epochs:
            report(0, f"stops: the validation ELBO was best after epoch {state.kept_epoch}, {patience} epochs ago")
        saving.save_last()
        state.restore(state.kept)
    if ranks.is_first:
        warn_of_end(state.rows[: state.kept_epoch], first[0], model, guide)
    return History(state.rows)


def _batching(x: Any, batch_size: int | None, drop_last: bool) -> tuple[int, bool]:
    """Those that are asked for, or a `DataLoader`'s own."""
    if isinstance(x, DataLoader):
        batch_size = x.batch_size if batch_size is None else batch_size
        drop_last = drop_last or x.drop_last
    return 128 if batch_size is None else batch_size, drop_last


def _of_first(ranks: Ranks, state: TrainingState) -> TrainingState:
    """The state, with the weights of the first rank."""
    ranks.give(t for tensors in state.weights for t in tensors.values())
    state.restore(state.weights)
    return state


def _run_epoch(
    saving: _Saving, stop: Callable[[], object], report: Callable[[], object], start: float
) -> Sequence[Tensor]:
    """The steps of an epoch that are left. Returns the rows of its batches. Raises `Stopped` when `stop` says so."""
    steps, state = saving.steps, saving.steps.state
    batches = steps.batches()
    with mode(steps.step.model, steps.step.guide, training=True):
        for rows in batches[state.step :]:
            state.end_step(steps.take(rows, first=state.num_steps == 0), start)
            report()
            if state.num_steps == 1 and not state.losses[0].isfinite():
                break  # no step can make it better: the rest of the epoch is spared
            if reason := stop():
                saving.save()
                raise Stopped(f"stopped {_place(state, saving.settings['epochs'])}", reason, History(state.rows))
            saving.save_if_due()
    return batches


def _plan(objective: ELBO, optim: PyroOptim, epochs: int, state: TrainingState) -> None:
    """Tells the weight of the KL and the learning rate's schedule what an epoch is."""
    num_steps = len(state.losses)
    if isinstance(kl_weight := getattr(objective, "kl_weight", None), KLWeight):
        kl_weight.begin(num_steps)
        state.since = math.ceil(kl_weight.warm_up / num_steps)
    if isinstance(optim, OneOptimizer):
        optim.plan(epochs * num_steps, num_steps, state.rows, state.since)


@contextmanager
def _param_store(model: Program, guide: Program, objective: ELBO, batch: tuple[Tensor, ...]) -> Iterator[list[str]]:
    """Inside, a param store for this training alone: with the bare parameters of the one that is there, whose names it
    yields, and to which they are handed back. Raises `ValueError` for a pair that can't be trained."""
    store = pyro.get_param_store()
    outer: Any = store.get_state()
    with store.scope(), torch.random.fork_rng(), evaluating(model, guide):
        names = check_training(model, guide, *batch, enumerates=isinstance(objective, TraceEnum_ELBO))

    def bare(state: Any) -> Any:
        return {part: {name: of[name] for name in names if name in of} for part, of in state.items()}

    trained: Any = bare(outer)
    try:
        with store.scope(bare(outer)):
            if names:  # declares them, so that the state of training has them before the first step
                with mode(model, guide, training=False), torch.no_grad():
                    plain_trace(model, *batch, latents=plain_trace(guide, *batch))
            try:
                yield names
            finally:
                trained = bare(store.get_state())
    finally:
        store.set_state(trained)


@dataclass
class _Steps:
    """Steps on batches of `data`, encoded anew for each. `num_planned` is how many there will be, if that decides
    whether they are compiled."""

    step: Step
    state: TrainingState
    data: tuple[Tensor, ...]
    encode: Encode
    batch_size: int
    num_planned: int | None

    @property
    def are_streamed(self) -> bool:
        return any(isinstance(t, Rows) and t.are_streamed for t in self.data)

    def batches(self) -> Sequence[Tensor]:
        """The rows of the batches of this epoch."""
        order = self.state.order(len(self.data[0])).to(self.data[0].device)
        for t in self.data:
            if isinstance(t, Rows):
                t.read_anew()
        if self.are_streamed:
            order = order.sort().values
        return order.split(self.batch_size)[: len(self.state.losses)]

    @property
    def fewest(self) -> int:
        """The data of the smallest batch."""
        return min(self.batch_size, len(self.data[0]) - (len(self.state.losses) - 1) * self.batch_size)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        # index_select copies rows in a tenth of the time that t[rows] takes
        parts = (t.index_select(0, rows) for t in self.data)
        return self.encoded(*parts, generator=self.state.noise_of(rows.device))

    def encoded(self, *batch: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Where the parameters are."""
        return _to(self.state.losses.device, self.encode(*batch, generator=generator))

    def take(self, rows: Tensor, *, first: bool) -> Tensor:
        """The loss of a step. Raises `ValueError` for what Pyro's validation finds in the first."""
        batch = self.batch(rows)
        # The first batch is validated: a wrong shape is a clear error there, and costs time later.
        with pyro.validation_enabled(first), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # an error, in `fit`
            try:
                loss = self.step(*batch)
            except ValueError:
                if first_nonfinite(self.step.model, self.step.guide, *batch) is None:
                    raise
                raise self.restored(f"step {self.state.step + 1}: expected a finite loss", batch) from None
        if first and self.num_planned is not None:
            self.step.compiled = repays(self.num_planned, self.step.flops)
        return loss

    def check(self, first: tuple[Tensor, ...], held_out: tuple[Tensor, ...], seed: int, ranks: Ranks) -> None:
        """Raises `ValueError` for data that the programs can't score, all of them looked at, and for a last batch of
        one that BatchNorm can't take; on several ranks for what takes a batch together. `first` are the first
        data, encoded."""
        for part in (self.data, held_out) if held_out else (self.data,):
            encode = partial(self.encoded, generator=Generator(part[0].device).manual_seed(seed))
            check_batches(self.step.model, self.step.guide, part, encode, self.batch_size)
        if self.fewest == 1:
            self._check_single(tuple(t[:1] for t in first))
        check_parallel(self.step.model, self.step.guide, self.step.objective, ranks, self.fewest)

    def _check_single(self, datum: tuple[Tensor, ...]) -> None:
        """Leaves buffers as they were."""
        model, guide = self.step.model, self.step.guide
        if not any(isinstance(m, _BatchNorm) for module in modules_of(model, guide) for m in module.modules()):
            return
        try:
            with torch.random.fork_rng(), own_param_store(), torch.no_grad(), mode(model, guide, training=True):
                plain_trace(model, *datum, latents=plain_trace(guide, *datum))
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise ValueError(
                    "the last batch: expected two data or more for BatchNorm; got 1. Take drop_last=True, or another "
                    "batch_size"
                ) from None
        finally:
            self.state.restore(self.state.weights)

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Takes on a saved state. Taken again, the first steps leave the same graph (the second step's, or the third's
        where the second batch is a shorter one); the state is then written into the tensors that it holds."""
        self.state.check(saved)
        self.state.restore(saved["modules"])
        batches = self.batches()
        with mode(self.step.model, self.step.guide, training=True):
            num_steps = min(3 if len(batches) == 2 else 2, saved["num_steps"])
            for i, rows in enumerate((*batches, *batches)[:num_steps]):
                self.take(rows, first=i == 0)
        self.state.load_state_dict(saved)

    def measured(
        self, batches: Sequence[Tensor], monitored: Mapping[str, tuple[Tensor, ...]], seed: int
    ) -> dict[str, float]:
        """The row of an epoch whose steps are taken, but for its seconds. Raises `DivergedError`."""
        state, step = self.state, self.step
        if not state.is_finite():  # read once an epoch, so that no step waits for a loss
            raise self.diverged(batches)
        row: dict[str, float] = {"epoch": state.epoch, "loss": state.losses.sum().item() / sum(map(len, batches))}
        with state.averaged():
            for name, arguments in monitored.items():
                parts = mean_parts(step.model, step.guide, arguments, seed, step.objective)
                row |= {f"{name}_{k}": v for k, v in parts.items()}
        if not math.isfinite(row["train_elbo"]):
            raise self.diverged(batches, row["train_elbo"])
        return row

    def diverged(self, batches: Sequence[Tensor], elbo: float | None = None) -> DivergedError:
        """The error of an epoch with a loss or, after its last step, a parameter or an ELBO that is not finite."""
        bad = (~self.state.losses.isfinite()).nonzero().flatten().tolist()
        if bad:
            what = f"step {bad[0] + 1}: expected a finite loss; got {self.state.losses[bad[0]].item()}"
        else:
            what = "its end: expected finite parameters and a finite ELBO; got " + (
                "NaN" if elbo is None else f"{elbo}"
            )
        return self.restored(what, self.batch(batches[bad[0] if bad else -1]))

    def restored(self, what: str, batch: tuple[Tensor, ...]) -> DivergedError:
        """An error, with what is to blame; the weights are then those that are kept."""
        state, pair = self.state, (self.step.model, self.step.guide)
        after = first_nonfinite(*pair, *batch)
        state.restore(state.weights)
        before = first_nonfinite(*pair, *batch)
        state.restore(state.kept)
        return DivergedError(
            f"epoch {state.epoch}, {what}{blame(before, after, batch, learning_rate_of(self.step.optim), *pair)}. The "
            f"weights are those after epoch {state.kept_epoch}",
            History(state.rows),
        )


@dataclass
class _Saving:
    """Checkpoints of the state of a training, if they are wanted, and the settings that must be the same in a run that
    resumes."""

    checkpoints: Checkpoints | None
    steps: _Steps
    settings: dict[str, Any]

    def load(self, resume: bool, data: tuple[Tensor, ...], ranks: Ranks) -> dict[str, Any] | None:
        """The state to resume from, if there is one, the same on all ranks."""
        if ranks.size > 1:
            ranks.agree({**self.settings, "optimiser": repr(self.steps.step.optim), "data": fingerprint(*data)})
        return ranks.first(lambda: self._load(resume, data))

    def _load(self, resume: bool, data: tuple[Tensor, ...]) -> dict[str, Any] | None:
        if self.checkpoints is None:
            return None
        optim = self.steps.step.optim
        if not isinstance(optim, OneOptimizer):
            raise ValueError(
                f"optim: expected a OneOptimizer, whose state checkpoints can hold; got {type(optim).__name__}"
            )
        objective = type(self.steps.step.objective).__name__
        self.settings |= {"objective": objective, "optimiser": repr(optim), "data": fingerprint(*data)}
        if not resume and (paths := self.checkpoints.paths()):
            raise ValueError(f"checkpoints: expected resume=True, or a folder without checkpoints; got {paths[0]}")
        return self.checkpoints.load(**self.settings) if resume else None

    def save(self) -> None:
        """Not within an epoch of a stream."""
        state = self.steps.state
        if self.checkpoints is not None and not (self.steps.are_streamed and state.step):
            self.checkpoints.save({**self.settings, **state.state_dict()}, state.num_steps)

    def save_if_due(self, epoch: int | None = None) -> None:
        """After `epoch`, if that is given, or else after a step."""
        if self.checkpoints is not None and self.checkpoints.is_due(epoch):
            self.save()

    def save_last(self) -> None:
        """Unless it is there."""
        if self.checkpoints is not None and not self.checkpoints.path(self.steps.state.num_steps).exists():
            self.save()


def _tensors(
    model: Program, guide: Program, data: tuple[Any, ...], validation: Any, patience: int | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The data and the held-out data, which are () for none."""
    if validation is None and patience is not None:
        raise ValueError("patience: expected validation data beside it, whose ELBO decides; got none")
    held_out = () if validation is None else validation if isinstance(validation, tuple) else (validation,)
    return tensors_of(model, guide, *data), tensors_of(model, guide, *held_out)


def _monitored(
    data: tuple[Tensor, ...], held_out: tuple[Tensor, ...], encode: Encode, seed: int, device: torch.device
) -> dict[str, tuple[Tensor, ...]]:
    """The programs' arguments whose ELBO is logged. Encoded once, so that epochs differ by the weights alone."""
    are_items = any(isinstance(t, Rows) and t.are_items for t in data)
    num_data = len(held_out[0]) if held_out else min(len(data[0]), MONITORED_ITEMS if are_items else len(data[0]))
    parts = {"train": tuple(t[:num_data] for t in data)}
    if held_out:
        parts["validation"] = tuple(t[:] for t in held_out)
    return {
        name: _to(device, encode(*part, generator=Generator(part[0].device).manual_seed(seed)))
        for name, part in parts.items()
    }


def _to(device: torch.device, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.to(device, non_blocking=True) for t in batch)


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
    elbo, kl = row[f"{name}_elbo"], row.get(f"{name}_kl")
    parts = f"ELBO {elbo:.2f} nats"
    if kl:
        parts += f" = reconstruction {row[f'{name}_reconstruction']:.2f} - KL {kl:.2f}"
    elif kl == 0:  # an autoencoder has no latent, and no ELBO
        parts = f"loss {-elbo:.2f}"
    return f"epoch {row['epoch']:.0f}/{epochs}  {name} {parts}  {row['seconds']:.1f} s, {duration(left)} left"


def _check(**positive: float | None) -> None:
    for name, value in positive.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a number above 0; got {value}")
