"""Checkpoints: all that training goes on from, so that a run that stopped ends bit for bit as one that did not.

Each is one safetensors file: the tensors, and, as its metadata, the rest in JSON and a checksum of both.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.optim import PyroOptim
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn

from ppl_vae.system.files import write_whole
from ppl_vae.system.hashing import fingerprint

KEPT = 2
_TENSOR = "$tensor"  # the key under which JSON names a tensor


@dataclass
class Checkpoints:
    """Where and how often `fit` writes checkpoints. The last two are kept.

        fit(model, guide, x, checkpoints=Checkpoints(Path("run")), resume=True)

    Arguments:
        folder: of the files `checkpoint-STEPS.safetensors`; made where it isn't there.
        every_epochs: written after so many epochs; None for not by epoch.
        every_minutes: written after the step at which so many minutes have gone by since the last, also in the middle
            of an epoch; None for not by time.
        config: what else must be the same in a run that goes on, as JSON has it.

    Raises `ValueError` for numbers that are not above 0.
    """

    folder: Path
    every_epochs: int | None = 1
    every_minutes: float | None = 10.0
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("every_epochs", "every_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number above 0; got {value}")
        self.folder = Path(self.folder)
        self._last = time.monotonic()

    def paths(self) -> list[Path]:
        """The files, the newest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True)

    def is_due(self, epoch: int | None = None) -> bool:
        """Whether to write one now: after `epoch`, if that is given, or else after a step."""
        if epoch is not None and self.every_epochs is not None and epoch % self.every_epochs == 0:
            return True
        return self.every_minutes is not None and time.monotonic() - self._last >= 60 * self.every_minutes

    def save(self, state: Mapping[str, Any], num_steps: int) -> Path:
        """Writes a state of tensors, numbers, strings, lists and dicts after `num_steps` steps, and keeps the last two.

        Raises `OSError` where it can't be written: those before are there then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"checkpoint-{num_steps:012}.safetensors"
        write_whole(path, to_bytes({**state, "config": dict(self.config), "version": torch.__version__}))
        for old in self.paths()[KEPT:]:
            old.unlink()
        self._last = time.monotonic()
        return path

    def load(self, **expected: Any) -> dict[str, Any] | None:
        """The newest state that is whole, or None if there are no files. One that is damaged is told by a warning,
        and the one before is taken; so is one of another version of torch, whose numbers may differ in their last
        bits.

        Raises `ValueError` where none is whole, and where `config`, or an entry of the state that is `expected` to be
        what it is now, differs.
        """
        for partial in self.folder.glob("*.tmp"):  # of a process that ended as it wrote
            partial.unlink()
        damaged = []
        for path in self.paths():
            try:
                state = from_file(path)
                if not (isinstance(state, dict) and isinstance(state.get("config"), dict)):
                    raise ValueError("it has no config")
            except ValueError as error:
                damaged.append(path)
                reason = str(error)
                continue
            self._check(path, state, expected)
            if (version := state.get("version", torch.__version__)) != torch.__version__:
                warnings.warn(
                    f"{path}: expected torch {version}, as it was written with; got {torch.__version__}: goes on, but "
                    "not bit for bit",
                    RuntimeWarning,
                    stacklevel=3,
                )
            for other in damaged:
                warnings.warn(
                    f"{other}: expected a whole checkpoint; got a damaged one ({reason}): goes on from {path.name}",
                    RuntimeWarning,
                    stacklevel=3,
                )
                other.replace(other.with_name(other.name + ".damaged"))  # out of the way of those to come
            return state
        if damaged:
            raise ValueError(
                f"{damaged[0]}: expected a whole checkpoint; got {len(damaged)} damaged ones ({reason}; to begin anew, "
                f"remove {self.folder})"
            )
        return None

    def _check(self, path: Path, state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps({**self.config, **expected}))
        then = {**state["config"], **{name: state.get(name) for name in expected}}
        if differing := difference(then, now):
            raise ValueError(
                f"{path}: expected a checkpoint of this run; got one of another, stored -> given: {differing} "
                f"(to begin anew, remove {self.folder})"
            )


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is stored and what is given where the two differ.

    >>> difference({"epochs": 3, "seed": 0}, {"epochs": 5, "seed": 0})
    'epochs: 3 -> 5'
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return ", ".join(f"{name}: {then.get(name)!r} -> {now.get(name)!r}" for name in names)


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state of tensors, numbers, strings, lists and dicts with names for keys, as the content of a file."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_without_tensors(state, "", tensors))
    return save(tensors, {"state": text, "sha256": _digest(text, tensors)})


def from_file(path: Path) -> dict[str, Any]:
    """The state. Raises `ValueError` for a file that is not as `to_bytes` made it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] != _digest(metadata["state"], tensors):
            raise ValueError("its checksum is another")
        return _with_tensors(json.loads(metadata["state"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(reason) from None


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    parts = [f"{name} {fingerprint(tensors[name])}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join([text, *parts]).encode()).hexdigest()


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # each a memory of its own
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(k): _without_tensors(v, f"{name}.{k}" if name else str(k), tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {k: _with_tensors(v, tensors) for k, v in value.items()}
    return [_with_tensors(v, tensors) for v in value] if isinstance(value, list) else value


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("epoch", "step", "num_steps"), (int,)),
    **dict.fromkeys(("losses", "generator", "before", "torch"), (Tensor,)),
    **dict.fromkeys(("rows", "modules", "cuda"), (list,)),
    "seconds": (float, int),
    "optim": (dict,),
    "weights": (list, type(None)),
}


def _values(part: Any) -> list[Any]:
    return list(part.values()) if isinstance(part, dict) else [part]


class TrainingState:
    """What training goes on from, as it changes: where it is, the parameters and buffers of `modules`, the optimiser's
    state, the generator of the data's order and noise, torch's own generators, and what is known of the epoch so far.

    `load_state_dict` writes into the very tensors that are there, since a graph that was traced holds them.

    Attributes: `epoch`, from 1; `step`, the steps taken of it; `seconds` spent on it; `losses` of its steps, float64
    (steps,); `rows` of the history; `weights` after the epoch before.
    """

    def __init__(
        self, modules: Sequence[nn.Module], optim: PyroOptim, generator: Generator, num_steps: int, device: Any
    ):
        self.modules, self.optim, self.generator = modules, optim, generator
        self.epoch, self.step, self.seconds = 1, 0, 0.0
        self.losses = torch.zeros(num_steps, dtype=torch.float64, device=device)
        self.rows: list[dict[str, float]] = []
        self.weights = self.snapshot()
        self._before = generator.get_state()

    @property
    def num_steps(self) -> int:
        """Taken in all."""
        return (self.epoch - 1) * len(self.losses) + self.step

    def order(self, num_data: int) -> Tensor:
        """The order of the data in this epoch, a permutation (data,): drawn as the epoch begins, and drawn again from
        the same state in the middle of it."""
        now = self.generator.get_state()
        if self.step == 0:
            self._before = now
        self.generator.set_state(self._before)
        order = torch.randperm(num_data, generator=self.generator)
        if self.step > 0:
            self.generator.set_state(now)
        return order

    def end_epoch(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.weights = self.snapshot()
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0

    def snapshot(self) -> list[dict[str, Tensor]]:
        return [{name: t.detach().clone() for name, t in tensors.items()} for tensors in self._tensors()]

    def restore(self, weights: Sequence[Mapping[str, Tensor]]) -> None:
        with torch.no_grad():
            for tensors, values in zip(self._tensors(), weights, strict=True):
                for name, t in tensors.items():
                    t.copy_(values[name])

    def _tensors(self) -> list[dict[str, Tensor]]:
        return [{**dict(module.named_parameters()), **dict(module.named_buffers())} for module in self.modules]

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
            "rows": self.rows,
            "modules": self._tensors(),
            "weights": self.weights if self.step else None,  # between epochs they are the modules' own
            "optim": self.optim.get_state(),
            "generator": self.generator.get_state(),
            "before": self._before,
            "torch": torch.random.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a state of other modules, or that is none."""
        for name, kind in _KINDS.items():
            if type(state.get(name)) not in kind:
                got = type(state.get(name)).__name__
                raise ValueError(f"checkpoint: {name}: expected {' or '.join(k.__name__ for k in kind)}; got {got}")
        if not all(isinstance(t, Tensor) for part in state["modules"] for t in _values(part)):
            raise ValueError("checkpoint: modules: expected tensors by name; got others")
        if not (state["epoch"] >= 1 and 0 <= state["step"] <= len(self.losses) and state["num_steps"] >= 0):
            at = f"epoch {state['epoch']}, step {state['step']}"
            raise ValueError(f"checkpoint: expected an epoch from 1 and a step up to {len(self.losses)}; got {at}")
        if not all(isinstance(v, int | float) for row in state["rows"] for v in _values(row)):
            raise ValueError("checkpoint: rows: expected numbers by name; got others")
        then, now = (
            [{name: list(t.shape) for name, t in tensors.items()} for tensors in modules]
            for modules in (state["modules"], self._tensors())
        )
        if len(then) != len(now):
            raise ValueError(f"checkpoint: expected the state of {len(now)} modules; got one of {len(then)}")
        for shapes_then, shapes_now in zip(then, now, strict=True):
            if differing := difference(shapes_then, shapes_now):
                raise ValueError(f"checkpoint: expected the state of these modules; got another's: {differing}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes on a state that `check` has let through. Raises `ValueError` where it doesn't fit all the same."""
        try:
            self._load(state)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError, ValueError, OverflowError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"checkpoint: expected the state of this training; got another ({reason})") from None

    def _load(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.losses.copy_(state["losses"])
        self.rows[:] = state["rows"]
        self.restore(state["modules"])
        self.weights = state["weights"] or self.snapshot()
        optim = state["optim"]
        moments = {int(i): s for i, s in optim["optimizer"]["state"].items()}  # JSON's keys are strings
        self.optim.set_state({**optim, "optimizer": {**optim["optimizer"], "state": moments}})
        self.generator.set_state(state["generator"])
        self._before = state["before"]
        torch.random.set_rng_state(state["torch"])
        torch.cuda.set_rng_state_all(state["cuda"])
