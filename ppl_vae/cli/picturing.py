"""`ppl-vae sample`, `encode`, `denoise`, `restore` and `impute`: what a run makes of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ppl_vae.cli.options import DenoiseCommand, EncodeCommand, ImputeCommand, OfRun, RestoreCommand, SampleCommand
from ppl_vae.cli.terminal import say, show_denoising
from ppl_vae.components import UsageError, create
from ppl_vae.data.noise import Noise
from ppl_vae.data.operators import corruption
from ppl_vae.data.readers import grey_values
from ppl_vae.experiments.denoising import FEW, denoise_run, noise_of
from ppl_vae.experiments.evaluating import output_of
from ppl_vae.experiments.imputing import impute_images
from ppl_vae.experiments.restoring import restore_images
from ppl_vae.experiments.runs import Run
from ppl_vae.plots import figure, images, save
from ppl_vae.report.figures import draw_denoising, draw_imputation, draw_restoration
from ppl_vae.report.gallery import draw_run
from ppl_vae.system.arrays import to_npz
from ppl_vae.system.files import read_json, writable, write_whole


def sample(options: SampleCommand) -> None:
    run = options.load()
    suffix, output = (".png" if run.is_of_images else ".npy"), options.output
    if output is not None and output.suffix and output.suffix.lower() != suffix:
        kind = "images" if run.is_of_images else "vectors"
        raise UsageError(f"--output: expected a path that ends in {suffix}, for a model of {kind}; got {output}")
    to_file = output is not None and bool(output.suffix)
    folder = writable(output.parent if output is not None and to_file else output or options.run)
    if not run.is_of_images:
        path = output if output is not None and to_file else folder / "samples.npy"
        np.save(path, run.sample(options.num_images, seed=options.seed, mean=False).numpy())
        say(str(path))
    elif output is not None and to_file:
        fig, ax = figure(6, 6)
        images(ax, run.sample(options.num_images, seed=options.seed))
        save(fig, output, title=f"{run.config.dataset}: {options.run.name}")
        say(str(output))
    else:
        paths = draw_run(run, options.run, output=folder, num_samples=options.num_images, seed=options.seed, say=say)
        for path in paths:
            say(str(path))


def encode(options: EncodeCommand) -> None:
    run = options.load()
    if run.model.needs_labels:
        raise ValueError(f"{run.config.model}: expected a model whose encoder sees x alone; got one that sees labels")
    output = options.output or options.run / "latents.npz"
    writable(output.parent)
    x, labels = run.dataset.test[: options.num_images], run.dataset.test_labels
    arrays = {"z": run.encode(x)} | ({} if labels is None else {"labels": labels[: len(x)]})
    write_whole(output, to_npz({name: t.numpy() for name, t in arrays.items()}))
    size = arrays["z"].shape[1:].numel()
    say(f"{' and '.join(arrays)} of {len(x)} test data of {run.dataset.name}, in {size} dimensions: {output}")


def denoise(options: DenoiseCommand) -> None:
    create(Noise, options.noise or "no-noise")
    run, output = _prepared(options)
    name = options.run.name
    noise, by_inference = noise_of(run, options.noise), options.method == "inference"
    num_images = options.num_images or (FEW if by_inference else len(run.dataset.test))
    same = {"noise": noise, "by_inference": by_inference}
    _check_replaced(options, output / "denoising.json", same, {"num_images": min(num_images, len(run.dataset.test))})
    asked: dict[str, Any] = {"noise": noise, "num_images": num_images, "seed": options.seed}
    summary = denoise_run(run, output, name=name, by_inference=by_inference, **asked)
    show_denoising(f"{options.run}: removing {summary['noise']}, {summary['num_images']} test images", summary["rows"])
    say(str(draw_denoising(output, f"{run.dataset.name}: {summary['noise']}, removed by {name}")))


def restore(options: RestoreCommand) -> None:
    spoils = corruption(options.corruption)
    y = None if options.input is None else grey_values(options.input)[: options.num_images]
    run, output = _prepared(options)
    sizes = {"num_images": options.num_images or (20 if y is None else len(y)), "num_samples": options.num_samples}
    _check_replaced(options, output / "restoration.json", {"corruption": repr(spoils)}, sizes)
    asked: dict[str, Any] = {"num_images": options.num_images, "num_samples": options.num_samples, "seed": options.seed}
    result = restore_images(run, spoils, output, y=y, misfit=options.misfit, climb=options.climb, **asked)
    say(str(result))
    say(str(draw_restoration(output, f"{options.run.name}: {' '.join(options.corruption)}, restored")))


def impute(options: ImputeCommand) -> None:
    run, output = _prepared(options)
    config = options.config
    same = {"missing": config.missing, "fraction": config.fraction}
    sizes = {"num_images": config.num_images, "num_samples": config.num_samples}
    _check_replaced(options, output / "imputation.json", same, sizes)
    result = impute_images(run, config, output)
    say(str(result))
    title = f"{run.dataset.name}: {options.run.name}, {config.missing} {config.fraction:.0%} missing"
    say(str(draw_imputation(output, title)))


def _check_replaced(
    options: DenoiseCommand | RestoreCommand | ImputeCommand, path: Path, same: dict[str, Any], sizes: dict[str, int]
) -> None:
    """Raises `UsageError` for a result at `path` of something else, or of more, which nobody asked to replace."""
    if options.overwrite or not path.is_file():
        return
    stored = read_json(path)
    other = [name for name, value in same.items() if stored.get(name, value) != value]
    other += [name for name, size in sizes.items() if stored.get(name, size) > size]
    if other:
        got = ", ".join(f"{name} {stored[name]}" for name in other)
        raise UsageError(
            f"{path}: expected no result there of something else or of more; got one with {got}. --overwrite replaces "
            "it, --output FOLDER writes elsewhere"
        )


def _prepared(options: OfRun) -> tuple[Run, Path]:
    """The run, and the folder for the results, which can be written to."""
    run = options.load()
    return run, writable(options.output or output_of(run, options.run))
