"""The pictures of a run: what it learned, to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ppl_vae import plots
from ppl_vae.experiments.runs import Run, history_of
from ppl_vae.models import LadderVAE
from ppl_vae.system.signals import stoppable


@stoppable()
def draw_run(
    run: Run,
    folder: Path,
    *,
    output: Path | None = None,
    num_samples: int = 64,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> list[Path]:
    """Draws `training` and, of images, `reconstructions`, for a VAE also `samples` and `interpolations`, for a 2-d
    latent space `latent-grid` and `latent-codes`, and for a ladder `layers`, as PNG under `figures` in the run's
    `folder`, or in `output`. Returns the paths. Where the data can't be loaded it says so, and draws what needs
    none."""
    figures = (output or folder) / "figures"
    figures.mkdir(exist_ok=True)
    name = f"{run.config.dataset}: {folder.name}"
    paths: list[Path] = []

    def save(figure: plots.Figure, stem: str, title: str) -> None:
        paths.append(figures / f"{stem}.png")
        plots.save(figure, paths[-1], title=title)

    history = history_of(folder)
    if run.model.has_log_p and "train_kl" in history.rows[0]:
        fig, axes = plots.figure(10, 3, ncols=3)
        plots.training_curves(axes, history)
    else:  # an autoencoder, or an ELBO that sums over labels, and has no parts
        fig, ax = plots.figure(5, 3)
        plots.loss_curve(ax, history)
    save(fig, "training", name)

    if not run.is_of_images:
        return paths
    # z says the rest, once the label is known
    is_drawn_from = run.model.has_log_p and run.model.has_real_latents and not run.model.labelled
    if run.model.has_log_p:
        fig, ax = plots.figure(6, 6)
        plots.images(ax, run.sample(num_samples, seed=seed))
        save(fig, "samples", f"{name}, E[x|z] for z from the prior")
    if is_drawn_from and run.config.latent_size == 2:
        quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.01, 0.99, 20))
        grid = torch.stack(torch.meshgrid(quantiles, quantiles, indexing="xy"), -1)  # [i, j] is (z1[j], z2[i])
        fig, ax = plots.figure(8, 8)
        plots.latent_grid(ax, run.decode(grid), quantiles, quantiles)
        save(fig, "latent-grid", f"{name}, E[x|z] at normal quantiles of z")
    try:
        dataset = run.dataset
    except (OSError, ValueError) as error:
        say(f"No reconstructions: {error}")
        return paths

    x = dataset.test[:10]
    fig, ax = plots.figure(8, 1.8)
    plots.rows_of_images(ax, {"original": x / 255, "reconstruction": run.reconstruct(x, *run.test_labels(len(x)))})
    save(fig, "reconstructions", f"{name}, reconstructions")
    if not is_drawn_from:
        return paths
    if isinstance(run.model, LadderVAE):
        L = run.model.num_layers
        fig, ax = plots.figure(8, 0.8 * (L + 1) + 0.2)
        rows = {f"top {k}": run.reconstruct(x, num_layers=k) for k in range(1, L + 1)}
        plots.rows_of_images(ax, {"original": x / 255} | rows)
        save(fig, "layers", f"{name}, E[x|z] with the top layers of {L} inferred, the rest p(z)'s")
    z = run.encode(x)
    t = torch.linspace(0, 1, 10)[:, None]
    half = len(z) // 2
    between = torch.stack([(1 - t) * a + t * b for a, b in zip(z[:half], z[half:], strict=False)])
    fig, ax = plots.figure(8, 0.8 * half + 0.4)
    plots.interpolations(ax, run.decode(between))
    save(fig, "interpolations", f"{name}, from one test image to another")

    labels = dataset.test_labels
    if run.config.latent_size == 2 and labels is not None and int(labels.max()) < len(plots.LABEL_COLOURS):
        fig, ax = plots.figure(7, 6)
        plots.latent_scatter(ax, run.encode(dataset.test[:2000]), labels[:2000])
        save(fig, "latent-codes", f"{name}, means of q(z|x) by label")
    return paths
