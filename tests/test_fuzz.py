"""Files that lie: every reader takes a file or refuses it in one line, and takes no more memory than it may.

More inputs: FUZZ_EXAMPLES=20000 pytest -n 0 tests/test_fuzz.py. A fuzzer that follows the code: tests/fuzz.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, checkpoint, read
from safetensors.torch import save

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.training.checkpoints import to_bytes

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
ROOM = 2**30 + 2**28  # bytes: the gigabyte that an archive may hold, and what is left over from others
modest = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Inside, who asks for more than `ROOM` gets a MemoryError, which no reader may hide."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, little_memory():
        yield Path(name)


def changed(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file that is almost right: some bytes are others, some are gone, or there are more."""
    places = st.integers(0, len(whole) - 1)

    def overwrite(changes: list[tuple[int, bytes]]) -> bytes:
        content = bytearray(whole)
        for place, part in changes:
            content[place : place + len(part)] = part
        return bytes(content)

    near_the_start = st.integers(0, min(len(whole), 256) - 1)
    some = st.binary(min_size=1, max_size=8)
    return st.one_of(
        st.lists(st.tuples(st.one_of(places, near_the_start), some), min_size=1, max_size=4).map(overwrite),
        places.map(lambda place: whole[:place]),
        st.tuples(places, places).map(lambda cut: whole[: min(cut)] + whole[max(cut) :]),
        st.tuples(places, some).map(lambda more: whole[: more[0]] + more[1] + whole[more[0] :]),
        st.binary(max_size=200),
    )


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name: str, folder: Path) -> None:
    assert read(name, READERS[name].whole, folder)


@pytest.mark.filterwarnings("ignore:.*expected a whole checkpoint")
@pytest.mark.parametrize("name", READERS)
@modest
@given(random=st.data())
def test_a_changed_file_is_read_or_refused(name: str, folder: Path, random: st.DataObject) -> None:
    read(name, random.draw(changed(READERS[name].whole)), folder)


sizes = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1))


@modest
@given(sizes=st.tuples(sizes, sizes, sizes), rest=st.binary(max_size=100))
def test_idx_headers(folder: Path, sizes: tuple[int, ...], rest: bytes) -> None:
    taken = read("idx", struct.pack(">4I", 2051, *sizes) + rest, folder)
    assert taken == (sizes[0] * sizes[1] * sizes[2] == len(rest) > 0)


def npy_header(text: str, rest: bytes, version: int = 1) -> bytes:
    header = text.encode("latin1", "replace") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + rest


shapes = st.one_of(st.lists(st.integers(-3, 40), max_size=5), st.lists(st.integers(-(2**65), 2**65), max_size=40))
dtypes = st.one_of(
    st.sampled_from(["|u1", "<f4", ">f8", "|O", "|V8", "<U3", "|b1", "<M8[s]", "<c8", "|u1,|O", "|S0", "<f16"]),
    st.text(max_size=6),
    st.lists(st.tuples(st.text(max_size=2), st.sampled_from(["<f4", "|O"])), max_size=2),
)


@pytest.mark.parametrize("name", ["npy", "npy-mapped"])
@modest
@given(dtype=dtypes, order=st.sampled_from([True, False, 3]), shape=shapes, rest=st.binary(max_size=300))
def test_npy_headers(name: str, folder: Path, dtype: object, order: object, shape: list[int], rest: bytes) -> None:
    read(name, npy_header(str({"descr": dtype, "fortran_order": order, "shape": tuple(shape)}), rest), folder)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**30)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
specs = st.builds(
    "{}:{}={}".format,
    st.sampled_from(
        ["dense-vae", "gaussian", "vamp-prior", "normalizing-flow", "low-rank-normal", "neural-spline-flow"]
    ),
    st.sampled_from(["hidden", "scale", "num_components", "num_transforms", "hidden_size", "rank", "num_bins", "x"]),
    st.one_of(st.integers(-5, 70_000), st.floats(), st.just(10**12), st.text(max_size=5)),
)
config_values = st.one_of(json_values, specs, st.integers(-1, 2**40))
fields = st.sampled_from([*(f.name for f in dataclasses.fields(TrainConfig)), "event_shape", "num_classes", "epohcs"])


@modest
@given(values=st.dictionaries(fields, config_values, max_size=3))
def test_config_values(folder: Path, values: dict[str, object]) -> None:
    read("config", json.dumps({"event_shape": [1, 4, 4], "model": "dense-vae", **values}).encode(), folder)


@modest
@given(
    tensors=st.dictionaries(
        st.sampled_from(["a", "prior.mean", "encoder.layers.0.weight"]),
        st.tuples(
            st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.float8_e4m3fn]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=3,
    )
)
def test_other_weights(folder: Path, tensors: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    assert not read(
        "weights", save({k: torch.zeros(shape, dtype=dtype) for k, (dtype, shape) in tensors.items()}), folder
    )


@pytest.mark.filterwarnings("ignore:.*expected a whole checkpoint")
@modest
@given(
    changes=st.dictionaries(st.sampled_from([*checkpoint()]), json_values, min_size=1, max_size=2),
    without=st.booleans(),
)
def test_states_with_a_right_checksum(folder: Path, changes: dict[str, object], without: bool) -> None:
    state = checkpoint()
    if without:
        for name in changes:
            del state[name]
    else:
        state |= changes
    read("resume", to_bytes(state), folder)
