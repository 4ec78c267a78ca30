"""The pictures of a run: what it learned, to look at."""

from __future__ import annotations

from pathlib import Path

import torch

from ppl_vae import plots
from ppl_vae.experiments.decoding import decode, encode, restore, sample_images
from ppl_vae.experiments.runs import Run, history_of
from ppl_vae.system.signals import stoppable


@stoppable()
def draw_run(run: Run, folder: Path, *, num_samples: int = 64, seed: int = 0) -> list[Path]:
    """Draws `training` and, of images, `reconstructions`, for a VAE also `samples` and `interpolations`, and for a 2-d
    latent space `latent-grid` and `latent-codes`, as PNG under `folder/figures`. Returns the paths."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    name = f"{run.config.dataset}: {folder.name}"
    paths: list[Path] = []

    def save(figure: plots.Figure, stem: str, title: str) -> None:
        paths.append(figures / f"{stem}.png")
        plots.save(figure, paths[-1], title=title)

    fig, axes = plots.figure(10, 3, ncols=3)
    plots.training_curves(axes, history_of(folder))
    save(fig, "training", name)

    if not run.dataset.is_images:
        return paths
    grey = run.dataset.test[:10] / 255
    fig, ax = plots.figure(8, 1.8)
    plots.rows_of_images(ax, {"original": grey, "reconstruction": restore(run, grey)})
    save(fig, "reconstructions", f"{name}, reconstructions")
    if not run.model.has_log_p:
        return paths

    fig, ax = plots.figure(6, 6)
    plots.images(ax, sample_images(run, num_samples, seed=seed))
    save(fig, "samples", f"{name}, E[x|z] for z from the prior")

    if run.model.labelled:  # z says the rest, once the label is known
        return paths
    z = encode(run, grey)
    t = torch.linspace(0, 1, 10)[:, None]
    half = len(z) // 2
    between = torch.stack([(1 - t) * a + t * b for a, b in zip(z[:half], z[half:], strict=False)])
    fig, ax = plots.figure(8, 0.8 * half + 0.4)
    plots.interpolations(ax, decode(run, between))
    save(fig, "interpolations", f"{name}, from one test image to another")

    if run.config.latent_size == 2:
        quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.01, 0.99, 20))
        grid = torch.stack(torch.meshgrid(quantiles, quantiles, indexing="xy"), -1)  # [i, j] is (z1[j], z2[i])
        fig, ax = plots.figure(8, 8)
        plots.latent_grid(ax, decode(run, grid), quantiles, quantiles)
        save(fig, "latent-grid", f"{name}, E[x|z] at normal quantiles of z")
        labels = run.dataset.test_labels
        if labels is not None and int(labels.max()) < len(plots.LABEL_COLOURS):
            z = encode(run, run.dataset.test[:2000] / 255)
            fig, ax = plots.figure(7, 6)
            plots.latent_scatter(ax, z, labels[:2000])
            save(fig, "latent-codes", f"{name}, means of q(z|x) by label")
    return paths
