"""A latent space to move through: images decoded on a grid of latents, beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ppl_vae.data.dataset import Dataset
from ppl_vae.experiments.config import read_config
from ppl_vae.experiments.runs import Run, load_run
from ppl_vae.report.embedding import address

GRID = 25


@dataclass(frozen=True)
class Plane:
    """Latents z (up, right, latent) on a grid over a plane: where it lies, and its two axes, with their names."""

    z: Tensor
    right: list[float]
    up: list[float]
    names: tuple[str, str]
    where: str


@dataclass(frozen=True)
class Explorer:
    """All decoded images in one, in rows from the top, and the plane that they are of."""

    address: str
    plane: Plane


def explorer(folder: Path, dataset_of: Callable[..., Dataset]) -> Explorer | str | None:
    """E[x|z] on a grid of latents of the run in `folder`: at normal quantiles of a 2-d z, else on the plane of the two
    main directions of the test images' latents. None where there is no such space (an autoencoder, a model that takes
    labels, vectors, other than 1 or 3 channels); the reason where the run or its data can't be loaded."""
    try:
        config = read_config(folder / "config.json")[0]
        run = load_run(folder, dataset=dataset_of(config.dataset, **config.reading))
    except (OSError, ValueError) as error:
        return str(error)
    if not (run.is_of_images and run.model.has_log_p) or run.model.labelled:
        return None
    if run.event_shape[0] not in (1, 3):
        return None
    shown = plane(run)
    tiles = (run.decode(shown.z).clamp(0, 1) * 255).round().to(torch.uint8)  # (up, right, C, H, W)
    sprite = tiles.flip(0).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Explorer(address(Image.fromarray(sprite.squeeze(-1).numpy())), shown)


def plane(run: Run) -> Plane:
    """The plane of latents that is shown of a run."""
    if run.config.latent_size == 2:
        axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.01, 0.99, GRID))
        z = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        where = "normal quantiles of the two latent dimensions"
        return Plane(z, axis.tolist(), axis.tolist(), ("z1", "z2"), where)
    z = run.encode(run.dataset.test[:1000])
    centre = z.mean(0)
    _, scale, directions = torch.linalg.svd(z - centre, full_matrices=False)
    axis = torch.linspace(-2.5, 2.5, GRID)
    a, b = (scale[:2] / len(z) ** 0.5)[:, None] * directions[:2]  # one standard deviation along each
    grid = centre + axis[None, :, None] * a + axis[:, None, None] * b
    where = "the plane of the two main directions of the test images' latents, in standard deviations"
    return Plane(grid, axis.tolist(), axis.tolist(), ("first", "second"), where)
