"""Test images, corrupted in several ways and restored by inference beforehand: for a page to pick from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor

from ppl_vae.data.operators import corruption
from ppl_vae.experiments.folders import PANEL, made_of
from ppl_vae.experiments.restoring import restore_run
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.system.arrays import to_npz
from ppl_vae.system.files import to_json, write_checked

CORRUPTIONS = {
    "noise": ("gaussian-noise:scale=0.5",),
    "salt and pepper": ("salt-and-pepper:fraction=0.3",),
    "lower half missing": ("missing:part=bottom,fraction=0.5",),
    "blur": ("blur:sigma=1.5",),
    "a quarter of the pixels": ("downsampling:factor=2",),
}
NUM_DRAWS = 4
STAGES = ["original", "corrupted", "network", "by inference", "std x 2", *(f"draw {i + 1}" for i in range(NUM_DRAWS))]


def restoration_panel(
    folder: Path, run: Run, *, num_images: int = 8, seed: int = 0, say: Callable[[str], object] = print
) -> None:
    """Writes `PANEL`, an array (stages, images, C, H, W) of levels for each of `CORRUPTIONS`, and what it is to the
    JSON file of this name, to a folder; unless it is there, of the same weights."""
    summary_path = (folder / PANEL).with_suffix(".json")
    specs = {name: list(parts) for name, parts in CORRUPTIONS.items()}
    asked = {"corruptions": specs, "stages": STAGES, "num_images": num_images, "seed": seed}
    asked["weights"] = run.weights
    if made_of(summary_path, asked) is not None:
        return
    say(f"{folder.name}: {num_images} images, corrupted in {len(CORRUPTIONS)} ways, by inference")
    images = {name: _restored(run, parts, num_images, seed) for name, parts in CORRUPTIONS.items()}
    levels = {name: (t.clamp(0, 1) * 255).round().to(torch.uint8).numpy() for name, t in images.items()}
    summary = to_json(asked | {"versions": versions()})
    write_checked(folder, {PANEL: to_npz(levels), summary_path.name: summary})


def _restored(run: Run, parts: tuple[str, ...], num_images: int, seed: int) -> Tensor:
    """All stages, (stages, images, C, H, W)."""
    how, clean = corruption(parts), run.dataset.test[:num_images] / 255
    y = how(clean, Generator().manual_seed(seed))
    result = restore_run(run, y, how, clean="mean", seed=seed, num_draws=NUM_DRAWS)  # draws without the misfit
    guess = how.guess(y).nan_to_num(nan=0.0)
    network = run.reconstruct(guess, *run.test_labels(len(guess)))
    return torch.stack([clean, guess, network, result.mean, 2 * result.std, *result.samples])
