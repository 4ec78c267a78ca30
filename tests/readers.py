"""Everything in the package that reads a file, as a function of the file's bytes, with files that it reads: for the
tests that try to break it. What a reader may raise is `REFUSALS`, in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import torch
from safetensors.torch import save
from torch import Generator, nn

from ppl_vae.data import readers
from ppl_vae.data.loading import load
from ppl_vae.data.torchvision_sets import read_idx
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.evaluating import PER_IMAGE, load_evaluation
from ppl_vae.experiments.preparation import assemble, build
from ppl_vae.experiments.runs import history_of, load_run, load_weights
from ppl_vae.system.archives import to_zip
from ppl_vae.system.hashing import fingerprint
from ppl_vae.training.checkpoints import Checkpoints, from_file, to_bytes
from ppl_vae.training.optimizers import adam
from ppl_vae.training.state import TrainingState

REFUSALS = (ValueError, OSError)
CONFIG = TrainConfig(model="dense-vae:hidden=3", latent_size=2)
SHAPE = (1, 4, 4)


@dataclass(frozen=True)
class Reader:
    name: str  # of the file
    read: Callable[[Path], object]
    whole: bytes  # a file that is read


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _mapped(path: Path) -> object:
    before, readers.MAPPED_FROM = readers.MAPPED_FROM, 0
    try:
        dataset = load(str(path))
        return fingerprint(dataset.train, dataset.test)
    finally:
        readers.MAPPED_FROM = before


def training_state() -> TrainingState:
    """Of a small module, after a step."""
    module = nn.Linear(2, 2)
    optim = adam(0.1)
    with pyro.get_param_store().scope():
        loss = module(torch.ones(2)).sum()
        loss.backward()
        optim([*module.parameters()])
    return TrainingState([module], optim, Generator().manual_seed(0), 3, torch.device("cpu"))


def _resumed(path: Path) -> object:
    with torch.random.fork_rng():
        state = training_state()
        saved = Checkpoints(path.parent).load(epochs=2)
        if saved is not None:
            state.check(saved)
            state.load_state_dict(saved)
        return saved


def checkpoint() -> dict[str, object]:
    with torch.random.fork_rng():
        return {"epochs": 2, "config": {}, **training_state().state_dict()}


def _weights() -> bytes:
    return save({name: t.contiguous() for name, t in build(CONFIG, SHAPE).state_dict().items()})


RUN = {
    "config.json": json.dumps({"event_shape": SHAPE, **dataclasses.asdict(CONFIG)}).encode(),
    "metrics.json": b"{}",
}
_per_image = {name: np.ones(5, np.int64 if name == "num_samples" else np.float64) for name in PER_IMAGE}
_summary = {
    **dict.fromkeys(("measure", "encoding", "fingerprint", "bound", "source", "space"), "mass"),
    "decoder_rows": 3,
}


def _evaluation(path: Path) -> object:
    others = {"log_likelihood.json": json.dumps(_summary).encode(), "log_likelihood.npz": _npz(**_per_image)}
    for name, content in others.items():
        if name != path.name:
            (path.parent / name).write_bytes(content)
    result = load_evaluation(path.parent)
    return str(result)


READERS = {
    "idx": Reader(
        "t10k-images-idx3-ubyte",
        read_idx,
        struct.pack(">4I", 2051, 3, 4, 5) + _pixels(60).tobytes(),
    ),
    "idx-labels": Reader("t10k-labels-idx1-ubyte", read_idx, struct.pack(">2I", 2049, 20) + _pixels(20).tobytes()),
    "npy": Reader("x.npy", lambda path: load(str(path)), _npy(_pixels(12, 4, 4))),
    "npy-mapped": Reader("x.npy", _mapped, _npy(_pixels(12, 4, 4))),
    "npz": Reader("x.npz", lambda path: load(str(path)), _npz(images=_pixels(12, 4, 4), labels=np.arange(12))),
    "csv": Reader("x.csv", lambda path: load(str(path)), b"a,b\n" + b"1,2.5\n" * 12),
    "config": Reader(
        "config.json",
        lambda path: assemble(read_config(path)[0]),
        json.dumps({"event_shape": SHAPE, "model": "dense-vae", "hidden": [3]}).encode(),
    ),
    "weights": Reader("weights.safetensors", lambda path: load_weights(assemble(CONFIG), SHAPE, 0, path), _weights()),
    "checkpoint": Reader("checkpoint-000000000003.safetensors", from_file, to_bytes(checkpoint())),
    "resume": Reader("checkpoint-000000000003.safetensors", _resumed, to_bytes(checkpoint())),
    "archive": Reader("run.zip", load_run, to_zip({**RUN, "weights.safetensors": _weights()})),
    "evaluation": Reader("log_likelihood.npz", _evaluation, _npz(**_per_image)),
    "evaluation-summary": Reader("log_likelihood.json", _evaluation, json.dumps(_summary).encode()),
    "history": Reader("history.csv", lambda path: history_of(path.parent), b"epoch,loss\n1,2.5\n2,nan\n"),
}


def read(name: str, content: bytes, folder: Path) -> bool:
    """Whether the reader takes the content: one of `REFUSALS` says no, in a line."""
    reader = READERS[name]
    path = folder / reader.name
    path.write_bytes(content)
    try:
        reader.read(path)
    except REFUSALS as error:
        message = str(error)
    else:
        return True
    assert message.strip()
    assert "\n" not in message, message
    return False
