"""Files of images for the tests of what reads them, and what `load` says of those that it refuses."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppl_vae.data.loading import load


def pixels(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = struct.pack(f">{1 + array.ndim}I", code * 256 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_raw(root: Path, folder: str, prefix: str = "", parts: tuple[str, str] = ("train", "t10k")) -> dict[str, Any]:
    arrays = {}
    for seed, (part, count) in enumerate(zip(parts, (14, 6), strict=True)):
        arrays[part] = pixels(count, 5, 4, seed=seed)
        arrays[f"{part}_labels"] = pixels(count, seed=seed + 2) % 10
        write_idx(root / folder / "raw" / f"{prefix}{part}-images-idx3-ubyte", arrays[part])
        write_idx(root / folder / "raw" / f"{prefix}{part}-labels-idx1-ubyte", arrays[f"{part}_labels"])
    return arrays


def write_images(folder: Path, names: list[str], array: np.ndarray[Any, Any]) -> None:
    for name, image in zip(names, array, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def assert_raises(name: str | Path, error: type[Exception], *fragments: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        load(str(name), **options)
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    for fragment in ("expected", "; got", *fragments):
        assert fragment in message
