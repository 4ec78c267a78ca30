"""A latent space to move through: images decoded on a grid of two latents, beforehand, or a walk among more of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ppl_vae.data.dataset import Dataset
from ppl_vae.experiments.config import read_config
from ppl_vae.experiments.runs import load_run
from ppl_vae.report.walk import Walk, sprite, walk

GRID = 25


@dataclass(frozen=True)
class Plane:
    """All images decoded on a grid of two latents, in one, in rows from the top; and the values of each latent."""

    address: str
    axis: list[float]


def explorer(folder: Path, dataset_of: Callable[..., Dataset]) -> Plane | Walk | str | None:
    """E[x|z] of the run in `folder`: at normal quantiles of a 2-d z, or on walks between test images. None where there
    is no such space (an autoencoder, a model that takes labels, discrete latents, vectors, other than 1 or 3 channels);
    the reason where the run or its data can't be loaded."""
    try:
        config = read_config(folder / "config.json")[0]
        run = load_run(folder, dataset=dataset_of(config.dataset, **config.reading))
    except (OSError, ValueError) as error:
        return str(error)
    if not (run.is_of_images and run.model.has_log_p and run.model.has_real_latents) or run.model.labelled:
        return None
    if run.event_shape[0] not in (1, 3):
        return None
    if run.config.latent_size != 2:
        return walk(run)
    axis, z = plane()
    return Plane(sprite(run.decode(z).flip(0)), axis.tolist())


def plane() -> tuple[Tensor, Tensor]:
    """Normal quantiles, and the two latents at them, (up, right, 2)."""
    axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.01, 0.99, GRID))
    return axis, torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
