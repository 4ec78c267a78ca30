"""Samples of a run, kept beside it: for figures without its weights."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from ppl_vae.experiments.folders import SAMPLES
from ppl_vae.experiments.runs import Run
from ppl_vae.system.files import write_checked

NUM_SAMPLED = 10


def save_samples(run: Run, folder: Path) -> None:
    """Writes E[x|z] for z from the prior, as levels (samples, C, H, W), to `SAMPLES` in the folder of a run."""
    levels = (run.sample(NUM_SAMPLED, seed=run.config.seed) * 255).round().to(torch.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, samples=levels.numpy())
    write_checked(folder, {SAMPLES: content.getvalue()})
