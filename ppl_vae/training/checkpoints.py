"""Checkpoints: files of the state that training resumes from, bit for bit as if it had not stopped.

Each is one safetensors file: the tensors, and, as its metadata, the rest in JSON and a checksum of both. A state whose
checksum holds is taken for what `Checkpoints.save` was given.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppl_vae.system.errors import one_line
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
        every_epochs: one is written after each so many epochs; None for not by epoch.
        every_minutes: one is written after the first step that ends so many minutes after the last checkpoint, also in
            the middle of an epoch; None for not by time.
        config: further settings that must be the same in a run that resumes, as JSON has them.

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

    def path(self, num_steps: int) -> Path:
        """Of the file after so many steps."""
        return self.folder / f"checkpoint-{num_steps:012}.safetensors"

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
        path = self.path(num_steps)
        write_whole(path, to_bytes({**state, "config": dict(self.config), "version": torch.__version__}))
        for old in self.paths()[KEPT:]:
            old.unlink()
        self._last = time.monotonic()
        return path

    def load(self, **expected: Any) -> dict[str, Any] | None:
        """The newest undamaged state, or None if there are no files. Warns of a damaged file, and takes the one before;
        warns of another version of torch, whose numbers may differ in their last bits.

        Raises `ValueError` where all are damaged, and where `config`, or an entry of the state that is `expected` to be
        what it is now, differs.
        """
        for partial in self.folder.glob("*.tmp"):  # of a process that ended while it wrote
            partial.unlink()
        damaged: list[Path] = []
        for path in self.paths():
            try:
                state = from_file(path)
                if not isinstance(state.get("config"), dict):
                    raise ValueError("no config")
            except ValueError as error:
                damaged.append(path)
                reason = str(error)
                continue
            self._check(path, state, expected)
            for other in damaged:
                _warn(f"{other}: expected a whole checkpoint; got a damaged one ({reason}): resumes from {path.name}")
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
        version = state.get("version", torch.__version__)
        if differing := difference(then, now):
            raise ValueError(
                f"{path}: expected a checkpoint of this run; got one of another, stored -> given: {differing} "
                f"(to begin anew, remove {self.folder})"
            )
        if version != torch.__version__:
            _warn(
                f"{path}: expected torch {version}, which wrote it; got "
                f"{torch.__version__}: resumes, but not bit for bit"
            )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


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
        is_whole = metadata["sha256"] == _digest(metadata["state"], tensors)
        state = _with_tensors(json.loads(metadata["state"]), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(one_line(error, foreign=True)) from None
    if not is_whole:
        raise ValueError("another checksum")
    return state


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    parts = [f"{name} {fingerprint(tensors[name])}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join([text, *parts]).encode()).hexdigest()


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # none shares memory
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
