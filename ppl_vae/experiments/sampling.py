"""Samples of a run, kept beside it or shown: for figures without its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from ppl_vae.experiments.folders import SAMPLES
from ppl_vae.experiments.runs import Run
from ppl_vae.plots.mosaics import grid
from ppl_vae.system.arrays import to_npz
from ppl_vae.system.files import write_checked

NUM_SAMPLED, NUM_SHOWN = 10, 64


def save_samples(run: Run, folder: Path) -> None:
    """Writes E[x|z] for z from the prior, as levels (samples, C, H, W), to `SAMPLES` in the folder of a run."""
    levels = (run.sample(NUM_SAMPLED, seed=run.config.seed) * 255).round().to(torch.uint8)
    write_checked(folder, {SAMPLES: to_npz({"samples": levels.numpy()})})


def picture_of_samples(run: Run) -> Image.Image | None:
    """E[x|z] for z from the prior, side by side; None for a model of vectors, and for an autoencoder."""
    if not (run.is_of_images and run.model.has_log_p):
        return None
    return Image.fromarray((grid(run.sample(NUM_SHOWN, seed=run.config.seed)) * 255).round().astype("uint8"))
