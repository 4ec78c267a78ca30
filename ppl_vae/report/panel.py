"""Restored images to pick from: all stages of all of them in one image, computed beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ppl_vae.experiments.folders import PANEL, checked_json
from ppl_vae.report.embedding import address
from ppl_vae.system.arrays import read_npz
from ppl_vae.system.files import check


@dataclass(frozen=True)
class Panel:
    """An image with a column for each stage and a row for each image of each corruption, in this order."""

    address: str
    corruptions: list[str]
    stages: list[str]
    num_images: int


def panel(folder: Path) -> Panel | None:
    """What `restoration_panel` left in the folder of an experiment; None where there is none, or of other than 1 or 3
    channels. Raises `ValueError` for damaged files."""
    if not (folder / PANEL).is_file():
        return None
    check(folder, PANEL)
    summary = checked_json(folder, Path(PANEL).with_suffix(".json").name)
    names, stages, num_images = [*summary["corruptions"]], summary["stages"], summary["num_images"]
    arrays = read_npz(folder / PANEL, names)
    shape = len(stages), num_images
    if any(a.dtype != np.uint8 or a.ndim != 5 or a.shape[:2] != shape for a in arrays.values()) or len(arrays) < 1:
        raise ValueError(f"{folder / PANEL}: expected levels (stages, images, C, H, W) = {shape}; got other arrays")
    tiles = np.stack([arrays[name] for name in names])  # (corruptions, stages, images, C, H, W)
    if tiles.shape[3] not in (1, 3):
        return None
    height, width = tiles.shape[4:]
    sprite = tiles.transpose(0, 2, 4, 1, 5, 3).reshape(len(names) * num_images * height, len(stages) * width, -1)
    image = Image.fromarray(sprite[..., 0] if sprite.shape[-1] == 1 else sprite)
    return Panel(address(image), names, stages, num_images)
