"""The figures of an experiment, from the files that it wrote."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ppl_vae import plots
from ppl_vae.experiments.folders import CURVES, SAMPLES, best_evaluations
from ppl_vae.experiments.sweep import title_of
from ppl_vae.system.arrays import read_npz
from ppl_vae.system.files import read_json
from ppl_vae.system.signals import stoppable
from ppl_vae.training.history import History


@stoppable()
def draw_study(folder: Path) -> list[Path]:
    """Draws `denoising` (of what is in `denoising.npz`, if there is one), `denoising-quality` and, for each measure,
    `log-likelihood-MEASURE`, as PNG under `folder/figures`. Returns the paths."""
    metrics = read_json(folder / "metrics.json")
    name, rows = metrics["config"]["dataset"], metrics["denoising"]["rows"]
    figures = _figures(folder)
    paths = [figures / "denoising-quality.png"]

    if (folder / "denoising.npz").is_file():
        denoised = read_npz(folder / "denoising.npz", ["original", *rows])
        paths.insert(0, figures / "denoising.png")
        fig, ax = plots.figure(8, 0.62 * len(denoised) + 0.5)
        plots.rows_of_images(ax, denoised)
        plots.save(fig, paths[0], title=f"{name}: {metrics['config']['noise']}, removed")

    if (folder / "restoration-shown.npz").is_file():
        paths.append(draw_restoration(folder, f"{name}: {metrics['config']['noise']}, removed by inference"))

    if (folder / CURVES).is_file():
        paths.append(draw_restoration_curves(folder, name))

    fig, axes = plots.figure(10, 0.4 * len(rows) + 1.2, ncols=3, sharey=True)
    quality = {
        metric.upper(): (
            [row[metric]["mean"] for row in rows.values()],
            [row[metric]["se"] for row in rows.values()],
        )
        for metric in ("mse", "psnr", "ssim")
    }
    plots.denoising_dots(axes, list(rows), quality)
    plots.save(fig, figures / "denoising-quality.png", title=f"{name}: quality of denoising, mean and s.e.")

    likelihoods = best_evaluations(metrics["log_likelihood"], folder.joinpath)
    for measure in sorted({row["measure"] for row in likelihoods.values()}):
        part = {k: row for k, row in likelihoods.items() if row["measure"] == measure}
        means, errors = ([row[key] for row in part.values()] for key in ("log_p", "data_se"))
        fig, ax = plots.figure(7, 0.45 * len(part) + 1.2)
        plots.log_likelihood_bars(ax, list(part), means, errors)
        paths.append(figures / f"log-likelihood-{measure}.png")
        plots.save(fig, paths[-1], title=f"{name}: log p(x), a {measure}, mean and s.e. over test images")
    return paths


@stoppable()
def draw_swaps(folder: Path) -> list[Path]:
    """Draws for each group of components the differences to the best one, `GROUP`, and samples of each, from the run
    folders, `GROUP-samples`, as PNG under `folder/figures`. Returns the paths."""
    metrics = read_json(folder / "metrics.json")
    figures, dataset, seeds = _figures(folder), metrics["dataset"], metrics["config"]["seeds"]
    paths = []
    for group, compared in metrics["groups"].items():
        rows = compared["rows"]
        names = [row["component"] for row in rows]
        means, errors = ([row[key] for row in rows] for key in ("difference", "difference_se"))
        fig, ax = plots.figure(7, 0.4 * len(rows) + 1.2)
        plots.differences(ax, names, means, errors, unit=compared["unit"])
        paths.append(figures / f"{group}.png")
        plots.save(fig, paths[-1], title=f"{dataset}: each {group} against the best")

        samples = {name: _samples(folder / row["name"], seeds) for name, row in zip(names, rows, strict=True)}
        fig, ax = plots.figure(8, 0.62 * len(samples) + 0.5)
        plots.rows_of_images(ax, samples)
        paths.append(figures / f"{group}-samples.png")
        plots.save(fig, paths[-1], title=f"{dataset}: E[x|z], z from the prior")
    return paths


@stoppable()
def draw_trust(folder: Path) -> list[Path]:
    """Draws log p(x) of each VAE by each method, from `trust.json`, to `folder/figures/trust.png`; nothing where there
    are none. Returns the paths."""
    models = read_json(folder / "trust.json")["models"]
    if not models:
        return []
    dataset = Path(read_json(folder / "metrics.json")["config"]["dataset"])
    name = dataset.stem if dataset.suffix.lower() in (".npy", ".npz") else dataset.name
    fig, axes = plots.figure(3.2 * len(models), 3.4, ncols=len(models), squeeze=False)
    for ax, (model, row) in zip(axes[0], models.items(), strict=True):
        K, log_p, errors = ([r[key] for r in row["importance"]] for key in ("num_samples", "log_p", "mc_se"))
        plots.convergence(ax, K, log_p, errors, elbo=row["elbo"], annealed=row["annealed"]["guide"]["log_p"])
        ax.set_title(f"{model}\nsandwich gap {row['sandwich']['gap']:.2f}", fontsize=9)
    path = _figures(folder) / "trust.png"
    plots.save(fig, path, title=f"{name}: log p(x) by method, nats per image")
    return [path]


@stoppable()
def draw_reference(folder: Path) -> list[Path]:
    """Draws what was published beside ours, and the validation ELBO by epoch, to `figures/reference.png` in the folder
    of an experiment, and samples of each row's model to `figures/samples.png`. Returns the paths; none for no rows."""
    metrics = read_json(folder / "metrics.json")
    rows, dataset, seed = metrics["reference"], metrics["dataset"], metrics["config"]["seeds"][0]
    if not rows:
        return []
    names, unit = [row["title"] for row in rows.values()], next(iter(rows.values()))["unit"]

    values: dict[str, Any] = {"published": [[row[key] for row in rows.values()] for key in ("published", "error")]}
    for method, title in {"importance": "ours, importance sampling", "ladder": "ours, the ladder"}.items():
        values[title] = [[row[method][key] for row in rows.values()] for key in ("value", "mc_se")]
    fig, (dots, curves) = plots.figure(11, 0.55 * len(rows) + 2.2, ncols=2)
    plots.side_by_side(dots, names, values, f"- log p(x) [{unit}]")
    histories = [History.load(folder / name / f"seed-{seed}" / "history.csv") for name in rows]
    for title, history in zip(names, histories, strict=True):
        curves.plot(history["epoch"], history["validation_elbo"], label=title, lw=1)
    curves.set(xlabel="epoch", ylabel="validation ELBO [nats]")
    last = min(history["validation_elbo"][-1] for history in histories)
    curves.set_ylim(bottom=last - 0.15 * abs(last))
    curves.grid(alpha=0.3)
    curves.legend(frameon=False, fontsize=8)
    paths = [_figures(folder) / "reference.png", _figures(folder) / "samples.png"]
    plots.save(fig, paths[0], title=f"{dataset}: published, and ours")
    samples = {row["title"]: _samples(folder / name, metrics["config"]["seeds"]) for name, row in rows.items()}
    fig, ax = plots.figure(8, 0.62 * len(samples) + 0.5)
    plots.rows_of_images(ax, samples)
    plots.save(fig, paths[1], title=f"{dataset}: E[x|z], z from the prior")
    return paths


@stoppable()
def draw_sweep(folder: Path) -> list[Path]:
    """Draws log p(x) by the values of each setting of a sweep, a line for each choice of the others, as PNG under
    `folder/figures`: SETTING, and SETTING-2 where there is a second table. Returns the paths."""
    metrics = read_json(folder / "metrics.json")
    paths = []
    for number, table in enumerate(metrics["sweep"]["tables"], 1):
        for setting, all_values in metrics["sweep"]["settings"].items():
            values = [v for v in all_values if any(row["settings"][setting] == v for row in table["rows"])]
            if len(values) < 2:
                continue
            flag = setting.replace("_", "-")
            curves = _curves(table["rows"], setting, values, len(metrics["config"]["seeds"]))
            fig, ax = plots.figure(6, 3.8)
            plots.by_setting(ax, flag, values, {name: curves[name] for name in sorted(curves)})
            ax.set_ylabel(f"log p(x) [{table['unit']}]")
            paths.append(_figures(folder) / (flag + f"-{number}" * (number > 1) + ".png"))
            plots.save(fig, paths[-1], title=f"{metrics['dataset']}: log p(x) by {flag}")
    return paths


def _curves(rows: list[dict[str, Any]], setting: str, values: list[Any], num_seeds: int) -> dict[str, Any]:
    """For each choice of the other settings what `plots.by_setting` draws, by the values of this one."""
    curves: dict[str, Any] = {}
    for row in rows:
        others = title_of({name: value for name, value in row["settings"].items() if name != setting})
        unknown = [math.nan] * len(values)
        nothing = [*unknown], [*unknown], [[math.nan] * num_seeds for _ in values]
        means, errors, of_seeds = curves.setdefault(others, nothing)
        i = values.index(row["settings"][setting])
        means[i], errors[i] = row["value"], row["difference_se"]
        of_seeds[i][: row["num_seeds"]] = row["of_seeds"]
    return curves


def draw_denoising(run: Path, title: str) -> Path:
    """Draws test images as they are, noisy and restored, from `denoising.npz` in the folder of a run, to its
    `figures/denoising.png`. Returns the path."""
    return _draw_rows(run, "denoising", 2.6, title)


def draw_imputation(run: Path, title: str) -> Path:
    """Draws test images as they are, as seen and as filled in, from `imputation.npz` in the folder of a run, to its
    `figures/imputation.png`. Returns the path."""
    return _draw_rows(run, "imputation", 4, title)


def draw_restoration(run: Path, title: str) -> Path:
    """Draws images as they are, if that is known, corrupted, by the network alone and by inference, their standard
    deviation by pixel, and draws, from `restoration.npz` in the folder of a run, to its `figures/restoration.png`.
    Returns the path."""
    return _draw_rows(run, "restoration-shown", 5.6, title, "restoration")


@stoppable()
def draw_histograms(folder: Path, values: dict[str, Any], title: str) -> Path:
    """Draws histograms of log p(x) of named sets to `figures/log-likelihoods.png` in a folder. Returns the path."""
    fig, ax = plots.figure(6, 3.4)
    plots.histograms(ax, values)
    path = _figures(folder) / "log-likelihoods.png"
    plots.save(fig, path, title=title)
    return path


@stoppable()
def draw_before_and_after(run: Path, samples: dict[str, Any]) -> Path:
    """Draws rows of samples, by name, to `figures/samples-before-and-after.png` in the folder of a run. Returns the
    path."""
    fig, ax = plots.figure(8, 0.62 * len(samples) + 0.5)
    plots.rows_of_images(ax, samples)
    path = _figures(run) / "samples-before-and-after.png"
    plots.save(fig, path, title="E[x|z], z from the prior")
    return path


@stoppable()
def draw_restoration_curves(folder: Path, name: str) -> Path:
    """Draws quality against CPU time and estimated against true scales of noise, from `restoration-curves.json` in the
    folder of a study, to its `figures/restoration-curves.png`. Returns the path."""
    curves = read_json(folder / CURVES)
    fig, (quality, scales) = plots.figure(9, 3.6, ncols=2)
    steps = curves["steps"]
    num_steps, ms = ([row[key] for row in steps] for key in ("num_steps", "cpu_seconds_per_image"))
    means, errors = ([row["ssim"][key] for row in steps] for key in ("mean", "se"))
    plots.error_lines(quality, {"by inference": (num_steps, means, errors)})
    quality.set(xlabel="Adam's steps from each start, and CPU time an image", ylabel="SSIM", title=curves["noise"])
    quality.set_xscale("log", base=2)
    labels = [f"{n}\n{1e3 * seconds:.0f} ms" for n, seconds in zip(num_steps, ms, strict=True)]
    quality.set_xticks(num_steps, labels, fontsize=8)
    of_each = {}
    for kind, rows in curves["scales"].items():
        true, estimates, se = ([row[key] for row in rows] for key in ("scale", "estimate", "se"))
        of_each[kind] = true, estimates, se
    plots.error_lines(scales, of_each)
    ends = [min(true), max(true)]
    scales.plot(ends, ends, "--", color=plots.OKABE_ITO["black"], lw=1)
    scales.set(xlabel="true scale of Gaussian noise", ylabel="estimated", title=f"of {curves['num_scaled']} images")
    path = _figures(folder) / "restoration-curves.png"
    plots.save(fig, path, title=f"{name}: restoration against time, and the scale of noise that nobody gave")
    return path


@stoppable()
def _draw_rows(run: Path, source: str, height: float, title: str, name: str = "") -> Path:
    stem = name or source
    fig, ax = plots.figure(8, height)
    plots.rows_of_images(ax, read_npz(run / f"{source}.npz"))
    path = _figures(run) / f"{stem}.png"
    plots.save(fig, path, title=title)
    return path


def _figures(folder: Path) -> Path:
    (folder / "figures").mkdir(exist_ok=True)
    return folder / "figures"


def _samples(model: Path, seeds: list[int]) -> Any:
    """Samples of the prior, as brightness in [0, 1], of the first seed that has them."""
    folders = [model / f"seed-{seed}" for seed in seeds]
    found = next((f for f in folders if (f / SAMPLES).is_file()), folders[0])
    return read_npz(found / SAMPLES, ["samples"])["samples"] / 255
