"""`ppl-vae run`: experiments, each on one or several datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from ppl_vae.cli.main import fail
from ppl_vae.cli.options import ExperimentOptions, ReferenceOptions, StudyOptions, SwapsOptions, TrustOptions
from ppl_vae.cli.plugins import setup_of
from ppl_vae.cli.terminal import say, show_denoising, show_log_likelihoods
from ppl_vae.cli.training import folder_of
from ppl_vae.components import UsageError, create
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.folders import best_evaluations
from ppl_vae.experiments.reference import models_of, run_reference
from ppl_vae.experiments.study import run_study
from ppl_vae.experiments.swaps import run_swaps
from ppl_vae.experiments.trust import run_trust
from ppl_vae.report.figures import draw_reference, draw_study, draw_swaps, draw_trust
from ppl_vae.report.gallery import draw_run
from ppl_vae.report.tables import reference_table, swap_table, trust_table
from ppl_vae.system.executors import executor_of
from ppl_vae.system.files import locked, read_json, writable
from ppl_vae.system.machine import device_of
from ppl_vae.system.signals import attempted


def run_experiment(options: ExperimentOptions) -> None:
    """Runs it on each dataset: one that fails does not stop the others; the end says what failed, and why."""
    folders = {name: options.output / options.folder / folder_of(name) for name in options.dataset}
    if len({*folders.values()}) < len(options.dataset):
        raise UsageError(f"--dataset: expected names that differ; got {', '.join(options.dataset)}")
    if isinstance(options, StudyOptions):
        create(Noise, options.config.noise)  # refused before anything is loaded
    if isinstance(options, ReferenceOptions):
        for name in options.dataset:
            models_of(options.config, name)
    device_of(options.device)
    start = time.perf_counter()
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for folder in folders.values():
            stack.enter_context(locked(folder))
            writable(folder)
        for name, folder in folders.items():
            with attempted(name, failed, lambda text: None):
                failed |= {f"{name} {part}": why for part, why in run_on(options, name, folder).items()}
    if failed:
        what = "; ".join(f"{part} ({why})" for part, why in failed.items())
        fail(f"failed: {what}. The others are kept, and not done again", 1)
    say(f"Done in {(time.perf_counter() - start) / 60:.1f} min.")


def run_on(options: ExperimentOptions, name: str, folder: Path) -> dict[str, str]:
    """Runs an experiment on one dataset; returns what failed, and why."""
    shared: dict[str, Any] = {"data_dir": options.data_dir, "device": options.device, "say": say}
    match options:
        case StudyOptions():
            return _study(options, name, folder, shared)
        case TrustOptions():
            run_trust(folder, options.config, **shared)
            trust = read_json(folder / "trust.json")
            if trust["models"]:
                draw_trust(folder)
                say(trust_table(trust))
            return trust.get("failed", {})
        case SwapsOptions():
            with executor_of(options.executor, folder, setup_of(options.plugin)) as executor:
                metrics = run_swaps(name, options.config, folder, executor=executor, **shared, after_each=draw_swaps)
            for group in metrics["groups"].values():
                say(swap_table(group))
            say(f"Pictures: {folder / 'figures'}. Numbers: {folder / 'metrics.json'}")
            return metrics["failed"]
        case ReferenceOptions():
            with executor_of(options.executor, folder, setup_of(options.plugin)) as executor:
                metrics = run_reference(name, options.config, folder, executor=executor, **shared)
            draw_reference(folder)
            say(reference_table(metrics))
            say(f"Numbers: {folder / 'metrics.json'}")
            return metrics["failed"]
    raise TypeError(f"options: expected those of an experiment; got {type(options).__name__}")


def _study(options: StudyOptions, name: str, folder: Path, shared: dict[str, Any]) -> dict[str, str]:
    say(f"ppl-vae run study on {name}, into {folder}")
    config = dataclasses.replace(options.config, dataset=name)
    metrics = run_study(config, folder, after_run=draw_run, **shared)
    draw_study(folder)
    show_denoising(f"{name}: removing {config.noise}", metrics["denoising"]["rows"])
    for noise, rows in metrics["restoration"].items():
        first = next(iter(rows.values()))
        each = {f"{name}, by inference": row["inference"] for name, row in rows.items()}
        show_denoising(f"{name}: removing {noise} by inference, {first['inference']['num_images']} images", each)
    if metrics["log_likelihood"]:
        show_log_likelihoods(name, best_evaluations(metrics["log_likelihood"], folder.joinpath))
    say(f"Pictures: {folder / 'figures'} and {folder}/*/figures. Numbers: {folder / 'metrics.json'}")
    say(f"All on one page: ppl-vae report {folder} --output {folder.name}.html")
    return metrics["failed"]
