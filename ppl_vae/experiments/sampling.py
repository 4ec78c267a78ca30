"""Samples of a run, kept beside it: for figures without its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from ppl_vae.experiments.folders import SAMPLES
from ppl_vae.experiments.runs import Run
from ppl_vae.system.arrays import to_npz
from ppl_vae.system.files import write_checked

NUM_SAMPLED = 10


def save_samples(run: Run, folder: Path) -> None:
    """Writes E[x|z] for z from the prior, as levels (samples, C, H, W), to `SAMPLES` in the folder of a run."""
    levels = (run.sample(NUM_SAMPLED, seed=run.config.seed) * 255).round().to(torch.uint8)
    write_checked(folder, {SAMPLES: to_npz({"samples": levels.numpy()})})
