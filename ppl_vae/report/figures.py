"""Draws what experiments left in their folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ppl_vae import plots
from ppl_vae.system.arrays import read_npz
from ppl_vae.system.files import read_json
from ppl_vae.system.signals import stoppable

FIGURES = "figures"  # their folder in that of an experiment, or a run


@stoppable()
def draw_study(folder: Path) -> list[Path]:
    """The comparisons of a study, as PNG under `figures/`; returns the paths."""
    metrics, figures = read_json(folder / "metrics.json"), _figures(folder)
    name, paths = metrics["config"]["dataset"], []
    if (folder / "denoising.npz").is_file():
        denoised = read_npz(folder / "denoising.npz")
        fig, ax = plots.figure(8, 0.62 * len(denoised) + 0.5)
        plots.rows_of_images(ax, denoised)
        paths.append(figures / "denoising.png")
        plots.save(fig, paths[-1], title=f"{name}: {metrics['config']['noise']}, removed")

    rows = metrics["denoising"]["rows"]
    fig, axes = plots.figure(10, 0.4 * len(rows) + 1.2, ncols=3, sharey=True)
    quality = {
        metric.upper(): (
            [row[metric]["mean"] for row in rows.values()],
            [_or_nan(row[metric]["se"]) for row in rows.values()],
        )
        for metric in ("mse", "psnr", "ssim")
    }
    plots.denoising_dots(axes, list(rows), quality)
    paths.append(figures / "denoising-quality.png")
    plots.save(fig, paths[-1], title=f"{name}: quality of denoising, mean and s.e.")

    likelihoods = metrics["log_likelihood"]
    for measure in sorted({row["measure"] for row in likelihoods.values()}):
        part = {k: row for k, row in likelihoods.items() if row["measure"] == measure}
        fig, ax = plots.figure(7, 0.45 * len(part) + 1.2)
        values, errors = ([_or_nan(row[key]) for row in part.values()] for key in ("log_p", "data_se"))
        plots.log_likelihood_bars(ax, list(part), values, errors)
        paths.append(figures / f"log-likelihood-{measure}.png")
        plots.save(fig, paths[-1], title=f"{name}: log p(x), a {measure}, mean and s.e. over test images")
    return paths


@stoppable()
def draw_swaps(folder: Path) -> list[Path]:
    """For each group of swapped components their differences to the best, and samples of each; returns the paths."""
    metrics, figures = read_json(folder / "metrics.json"), _figures(folder)
    name, paths = metrics["dataset"], []
    for group, table in metrics["groups"].items():
        rows = table["rows"]
        names = [row["component"] for row in rows]
        fig, ax = plots.figure(7, 0.4 * len(rows) + 1.2)
        differences, errors = ([_or_nan(row[key]) for row in rows] for key in ("difference", "difference_se"))
        plots.differences(ax, names, differences, errors, unit=table["unit"])
        paths.append(figures / f"{group}.png")
        plots.save(fig, paths[-1], title=f"{name}: each {group} against the best")
        samples: dict[str, Tensor] = {}
        for row, component in zip(rows, names, strict=True):
            runs = [folder / row["name"] / f"seed-{seed}" / "samples.npz" for seed in metrics["config"]["seeds"]]
            first = next(path for path in runs if path.is_file())
            samples[component] = torch.from_numpy(read_npz(first)["samples"]) / 255
        fig, ax = plots.figure(8, 0.62 * len(samples) + 0.5)
        plots.rows_of_images(ax, samples)
        paths.append(figures / f"{group}-samples.png")
        plots.save(fig, paths[-1], title=f"{name}: E[x|z], z from the prior")
    return paths


@stoppable()
def draw_trust(folder: Path) -> list[Path]:
    """log p(x) against the number of samples, a panel for each model of a study; returns the path."""
    models = read_json(folder / "trust.json")["models"]
    name = read_json(folder / "metrics.json")["config"]["dataset"]
    fig, axes = plots.figure(3.2 * len(models), 3.4, ncols=len(models), squeeze=False)
    for ax, (model, row) in zip(axes[0], models.items(), strict=True):
        K, log_p, errors = ([r[key] for r in row["importance"]] for key in ("num_samples", "log_p", "mc_se"))
        errors = [_or_nan(error) for error in errors]
        plots.convergence(ax, K, log_p, errors, elbo=row["elbo"], annealed=row["annealed"]["guide"]["log_p"])
        ax.set_title(f"{model}\nsandwich gap {row['sandwich']['gap']:.2f}", fontsize=9)
    path = _figures(folder) / "trust.png"
    plots.save(fig, path, title=f"{name}: log p(x) by method, nats per image")
    return [path]


def draw_denoising(run: Path, title: str) -> Path:
    """The first test images as they are, noisy, and restored."""
    return _draw_rows(run, "denoising", 2.6, title)


def draw_imputation(run: Path, title: str) -> Path:
    """The first test images as they are, as seen, and as filled in."""
    return _draw_rows(run, "imputation", 4, title)


@stoppable()
def _draw_rows(run: Path, stem: str, height: float, title: str) -> Path:
    fig, ax = plots.figure(8, height)
    plots.rows_of_images(ax, read_npz(run / f"{stem}.npz"))
    path = _figures(run) / f"{stem}.png"
    plots.save(fig, path, title=title)
    return path


def _figures(folder: Path) -> Path:
    figures = folder / FIGURES
    figures.mkdir(exist_ok=True)
    return figures


def _or_nan(value: float | None) -> float:
    """A number from JSON, which has null for NaN."""
    return float("nan") if value is None else value
