"""What `ppl-vae` can be told to do: a dataclass for each command, whose fields are its options."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro

from ppl_vae.cli.terminal import console, fail, grid_of, say, show_denoising, show_log_likelihood
from ppl_vae.components import UsageError, create
from ppl_vae.data.loading import names
from ppl_vae.data.noise import Noise
from ppl_vae.evaluation.comparison import Unit, compare
from ppl_vae.experiments.config import TrainConfig, read_shape
from ppl_vae.experiments.decoding import sample_data, sample_images
from ppl_vae.experiments.denoising import denoise_run
from ppl_vae.experiments.evaluating import (
    anneal_run,
    evaluate_run,
    gaps_run,
    load_evaluation,
    sandwich_run,
    save_evaluation,
)
from ppl_vae.experiments.imputing import ImputationConfig, impute_images
from ppl_vae.experiments.preparation import assemble
from ppl_vae.experiments.runs import finished, load_run, unfinished
from ppl_vae.experiments.study import StudyConfig, run_study
from ppl_vae.experiments.swaps import SwapsConfig, run_swaps
from ppl_vae.experiments.training import train
from ppl_vae.experiments.trust import TrustConfig, run_trust
from ppl_vae.plots import figure, images, save
from ppl_vae.report.figures import draw_denoising, draw_imputation, draw_study, draw_swaps, draw_trust
from ppl_vae.report.gallery import draw_run
from ppl_vae.report.page import write_page
from ppl_vae.report.sections import gaps_lines
from ppl_vae.report.tables import swap_table, trust_table
from ppl_vae.system.files import check, locked, read_json, write_json
from ppl_vae.system.signals import attempted
from ppl_vae.training.trackers import TensorBoard

RunFolder = tyro.conf.Positional[Path]


@dataclass(frozen=True, kw_only=True)
class WithModels:
    """What every command has that builds or loads a model."""

    data_dir: Path | None = None
    """Where torchvision's datasets are or go. Default: $PPL_VAE_DATA, else the user's cache folder."""
    plugin: str | None = None
    """A module of yours, by name or as a .py file: its likelihoods, priors, networks, ... are choices too."""


@dataclass(frozen=True, kw_only=True)
class Experiment(WithModels):
    """What every experiment has."""

    dataset: tuple[str, ...] = ("mnist-mini", "fashion-mnist-mini")
    """Names from `ppl-vae datasets`, or paths to your own images."""
    output: Path = Path("runs")
    """Folder for the results: OUTPUT/EXPERIMENT/DATASET."""
    folder: ClassVar[str]

    def run(self, name: str, folder: Path) -> dict[str, str]:
        """Runs it on one dataset; returns what failed, and why."""
        raise NotImplementedError

    def __call__(self) -> None:
        folders = {name: self.output / self.folder / folder_of(name) for name in self.dataset}
        if len({*folders.values()}) < len(self.dataset):
            raise UsageError(f"--dataset: expected names that differ; got {', '.join(self.dataset)}")
        start = time.perf_counter()
        failed: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            for folder in folders.values():
                stack.enter_context(locked(folder))
            for name, folder in folders.items():
                with attempted(name, failed, lambda text: None):
                    failed |= {f"{name} {part}": why for part, why in self.run(name, folder).items()}
        if failed:
            what = "; ".join(f"{part} ({why})" for part, why in failed.items())
            fail(f"failed: {what}. What did not is kept, and not done again", 1)
        say(f"Done in {(time.perf_counter() - start) / 60:.1f} min.")


@dataclass(frozen=True, kw_only=True)
class StudyCommand(Experiment):
    """The report's study: autoencoders, VAEs, PCA; denoising, samples and log-likelihoods, with their errors.

    On full sets (`--dataset mnist fashion-mnist`) with the report's 20 and 15 epochs."""

    config: tyro.conf.OmitArgPrefixes[StudyConfig] = field(default_factory=StudyConfig)
    folder = "study"

    def __call__(self) -> None:
        create(Noise, self.config.noise)  # refused before anything is loaded
        super().__call__()

    def run(self, name: str, folder: Path) -> dict[str, str]:
        say(f"ppl-vae run study on {name}, into {folder}")
        config = dataclasses.replace(self.config, dataset=name)
        metrics = run_study(config, folder, data_dir=self.data_dir, say=say, after_run=draw_run)
        draw_study(folder)
        show_denoising(f"{name}: removing {config.noise}", metrics["denoising"]["rows"])
        if metrics["log_likelihood"]:
            show_log_likelihood(name, metrics["log_likelihood"])
        say(f"Pictures: {folder / 'figures'} and {folder}/*/figures. Numbers: {folder / 'metrics.json'}")
        return metrics["failed"]


@dataclass(frozen=True, kw_only=True)
class TrustCommand(Experiment):
    """Accuracy and cost of every estimate of log p(x), on the models of a finished study."""

    config: tyro.conf.OmitArgPrefixes[TrustConfig] = field(default_factory=TrustConfig)
    folder = "study"

    def run(self, name: str, folder: Path) -> dict[str, str]:
        run_trust(folder, self.config, data_dir=self.data_dir, say=say)
        trust = read_json(folder / "trust.json")
        if trust["models"]:
            draw_trust(folder)
            say(trust_table(trust))
        return trust.get("failed", {})


@dataclass(frozen=True, kw_only=True)
class SwapsCommand(Experiment):
    """Every prior, posterior, objective and likelihood in the place of the usual one: what each is worth."""

    config: tyro.conf.OmitArgPrefixes[SwapsConfig] = field(default_factory=SwapsConfig)
    folder = "swaps"

    def run(self, name: str, folder: Path) -> dict[str, str]:
        metrics = run_swaps(name, self.config, folder, data_dir=self.data_dir, say=say, after_each=draw_swaps)
        for group in metrics["groups"].values():
            say(swap_table(group))
        say(f"Pictures: {folder / 'figures'}. Numbers: {folder / 'metrics.json'}")
        return metrics["failed"]


@dataclass(frozen=True)
class RunCommand:
    """A whole experiment. `ppl-vae run` alone is `ppl-vae run study`: on the two datasets that the package carries, in
    a few minutes.

    What is finished in the output folder is not done again: the same command resumes where it was interrupted, also in
    the middle of a training. A model that fails does not stop the others, and is named at the end."""

    experiment: (
        Annotated[StudyCommand, tyro.conf.subcommand("study")]
        | Annotated[TrustCommand, tyro.conf.subcommand("trust")]
        | Annotated[SwapsCommand, tyro.conf.subcommand("swaps")]
    )

    def __call__(self) -> None:
        self.experiment()


@dataclass(frozen=True)
class TrainCommand(WithModels):
    """Train one model and write a run folder: config.json, weights.safetensors, history.csv, metrics.json, figures.

    Example: ppl-vae train --model conv-vae --dataset mnist --likelihood bernoulli --latent-size 20 --epochs 15
    --batch-size 128 --learning-rate 1e-3 --seed 0 --output runs/conv-vae"""

    config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    output: Path | None = None
    """The run folder. Default: runs/MODEL-DATASET."""
    resume: bool = False
    """Go on with an unfinished run in the output folder, from its newest checkpoint, or begin if there is none. The
    weights will be bit for bit those of a run that was never stopped. A finished run stays as it is."""
    overwrite: bool = False
    """Begin anew where the output folder has a run. A finished one is there until this one is finished too."""
    checkpoint_epochs: int | None = 1
    """Write a checkpoint after every so many epochs, to OUTPUT/checkpoints, where the last two are kept until the run
    is finished; None for not by epoch. An interrupt (Ctrl-C, SIGTERM) writes one too."""
    checkpoint_minutes: float | None = 5.0
    """... and where so many minutes have gone by since the last one, also in the midst of an epoch; None for not by
    time."""
    tensorboard: Path | None = None
    """A folder for TensorBoard, which is told of each epoch (pip install 'ppl-vae[tensorboard]')."""

    def __call__(self) -> None:
        with usage():
            at_least_one(checkpoint_epochs=self.checkpoint_epochs)
            if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
                raise UsageError(f"--checkpoint-minutes: expected minutes above 0; got {self.checkpoint_minutes}")
            if self.resume and self.overwrite:
                raise UsageError("--resume: expected without --overwrite, which begins anew; got both")
        with usage():
            assemble(self.config, of_images=self.config.encoding != "identity")
        output = self.output or Path("runs") / f"{self.config.model}-{folder_of(self.config.dataset)}".replace(":", "-")
        with locked(output):
            self._check(output)
            run = train(
                self.config,
                output,
                data_dir=self.data_dir,
                resume=self.resume,
                overwrite=self.overwrite,
                checkpoint_epochs=self.checkpoint_epochs,
                checkpoint_minutes=self.checkpoint_minutes,
                metrics=self.tensorboard and TensorBoard(self.tensorboard),
            )
            draw_run(run, output, seed=self.config.seed)
        say(f"Run folder: {output}")

    def _check(self, output: Path) -> None:
        """Raises `UsageError` for a run in the folder that is neither to be gone on with nor replaced."""
        if self.resume or self.overwrite:
            return
        if unfinished(output):
            raise UsageError(
                f"--output: expected a new folder; got {output}, an unfinished run (--resume goes on with it, "
                "--overwrite begins anew)"
            )
        if (output / "metrics.json").exists():
            same = "with this config" if finished(output, self.config) else "with another config"
            raise UsageError(f"--output: expected a new folder; got {output}, a finished run {same} (see --overwrite)")


@dataclass(frozen=True)
class EvaluateCommand(WithModels):
    """log p(x) of held-out images, in nats per image, with its errors and warnings.

    Writes RUN/log_likelihood.json, and per image RUN/log_likelihood.npz. With --method sandwich it brackets log p(x) on
    data simulated from the model instead, where alone an upper bound holds, and writes RUN/sandwich.json."""

    run: RunFolder
    """The folder of a finished run of a VAE."""
    method: Literal["importance", "annealed", "sandwich"] = "importance"
    """Importance sampling from the guide, annealing from the guide, or both bounds on simulated data."""
    num_samples: int = 1000
    """K, importance samples for each image."""
    tolerance: float | None = None
    """Nats. K doubles for each image until its Monte Carlo error is below; what stays above is annealed."""
    gaps: bool = False
    """Also say where log p(x) - ELBO comes from (approximation, amortisation), by how much training images are
    ahead, and what the codes tell of their images. Writes RUN/gaps.json. Costs 4,000 gradients of the decoder for each
    image: see --num-images."""
    num_chains: int = 16
    """Chains for each image, when annealing."""
    num_steps: int = 200
    """Temperatures of each chain, when annealing."""
    num_images: int | None = None
    """The first so many test images. Default: all (of simulated data 64)."""
    seed: int = 0
    """Of the samples, and of what is drawn to encode the images (binarisation, dequantisation, noise)."""

    def __call__(self) -> None:
        with usage():
            names = ("num_samples", "num_images", "num_chains", "num_steps")
            at_least_one(**{name: getattr(self, name) for name in names})
            if self.tolerance is not None and not self.tolerance > 0:
                raise UsageError(f"--tolerance: expected nats above 0; got {self.tolerance}")
            if self.tolerance is not None and self.method != "importance":
                raise UsageError(f"--tolerance: expected --method importance beside it; got {self.method}")
            if self.gaps and self.method != "importance":
                raise UsageError(f"--gaps: expected --method importance beside it; got {self.method}")
            if self.gaps and self.num_images == 1:
                raise UsageError("--gaps: expected 2 images or more; got --num-images 1")
        run = load_run(self.run, data_dir=self.data_dir)
        shared: dict[str, Any] = {"num_images": self.num_images, "seed": self.seed, "show_progress": True}
        chains = {"num_chains": self.num_chains, "num_steps": self.num_steps}
        if self.method == "sandwich":
            sandwich = sandwich_run(run, **chains, **shared)
            bounds = {"lower": sandwich.lower.mean, "upper": sandwich.upper.mean, "gap_se": sandwich.gap_se}
            write_json(
                self.run / "sandwich.json", {**bounds, **chains, "seed": self.seed, "num_data": len(sandwich.lower)}
            )
            say(str(sandwich))
            return
        if self.method == "annealed":
            result, summary = anneal_run(run, **chains, **shared)
        else:
            result, summary = evaluate_run(run, num_samples=self.num_samples, tolerance=self.tolerance, **shared)
        save_evaluation(self.run, result, summary)
        say(str(result))
        say(f"Per image: {self.run / 'log_likelihood.npz'}")
        show_log_likelihood(str(self.run), {self.run.name: summary})
        if self.gaps:
            gaps = gaps_run(run, result, num_samples=self.num_samples, tolerance=self.tolerance, **shared)
            write_json(self.run / "gaps.json", gaps)
            for line in gaps_lines(gaps):
                say(line)


@dataclass(frozen=True)
class CompareCommand:
    """A table of the evaluations of several runs, with paired differences per image and their standard errors.

    Refused where data or measures differ; see `ppl-vae evaluate`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of evaluated runs."""
    bits_per_dim: bool = False
    """In bits per dimension instead of nats."""
    levels: bool = False
    """Turn densities of dequantised images into bounds on the mass of their levels, exactly, by D ln 256."""

    def __call__(self) -> None:
        if not self.runs:
            raise UsageError("runs: expected folders of evaluated runs; got none")
        results = {str(folder): load_evaluation(folder) for folder in self.runs}
        for folder in self.runs:
            check(folder, "config.json", "metrics.json")
        num_dims = math.prod(read_shape(self.runs[0] / "config.json"))
        unit: Unit = "bits per dimension" if self.bits_per_dim else "nats"
        say(str(compare(results, unit=unit, num_dims=num_dims, levels=self.levels)))
        trained_on = {str(folder): num_trained_on(folder) for folder in self.runs}
        if len(set(trained_on.values())) > 1:
            counts = ", ".join(f"{name} {count:,}" for name, count in trained_on.items())
            say(f"warning: trained on different numbers of images: {counts}")


def num_trained_on(folder: Path) -> int:
    num_images = read_json(folder / "metrics.json").get("train_images")
    if type(num_images) is not int:
        raise ValueError(f"{folder / 'metrics.json'}: expected train_images, a number; got {num_images!r}")
    return num_images


@dataclass(frozen=True)
class SampleCommand(WithModels):
    """Draw images: samples from the prior, reconstructions, interpolations, and the grid over a 2-d latent space.

    Of vectors, samples x ~ p(x|z) to RUN/samples.npy."""

    run: RunFolder
    """The folder of a finished run of a VAE."""
    num_images: int = 64
    """Samples from the prior."""
    seed: int = 0
    output: Path | None = None
    """PNG file for the samples, .npy for vectors. Default: all pictures, to RUN/figures."""

    def __call__(self) -> None:
        with usage():
            at_least_one(num_images=self.num_images)
            if self.output is not None and self.output.suffix.lower() not in (".png", ".npy"):
                raise UsageError(f"--output: expected a path that ends in .png, or .npy for vectors; got {self.output}")
        run = load_run(self.run, data_dir=self.data_dir)
        suffix = ".png" if run.dataset.is_images else ".npy"
        if self.output is not None and self.output.suffix.lower() != suffix:
            raise UsageError(f"--output: expected a path that ends in {suffix} for {run.dataset!r}; got {self.output}")
        if self.output is not None:
            self.output.parent.mkdir(parents=True, exist_ok=True)
        if not run.dataset.is_images:
            output = self.output or self.run / "samples.npy"
            np.save(output, sample_data(run, self.num_images, seed=self.seed).numpy())
            say(str(output))
            return
        samples = sample_images(run, self.num_images, seed=self.seed)
        if self.output is None:
            for path in draw_run(run, self.run, num_samples=self.num_images, seed=self.seed):
                say(str(path))
            return
        fig, ax = figure(6, 6)
        images(ax, samples)
        save(fig, self.output, title=f"{run.config.dataset}: {self.run.name}")
        say(str(self.output))


@dataclass(frozen=True)
class DenoiseCommand(WithModels):
    """Remove noise from test images: MSE, PSNR and SSIM against the clean ones, mean and standard error.

    Writes RUN/denoising.json and RUN/figures/denoising.png."""

    run: RunFolder
    """The folder of a finished run, autoencoder or VAE."""
    noise: str | None = None
    """gaussian-noise:scale=0.5, salt-and-pepper:fraction=0.3 or masking:fraction=0.5.
    Default: what the model learned to remove, else gaussian-noise:scale=0.5."""
    num_images: int | None = None
    """The first so many test images. Default: all."""
    seed: int = 0
    """Of the noise."""

    def __call__(self) -> None:
        with usage():
            at_least_one(num_images=self.num_images)
            create(Noise, self.noise or "no-noise")
        run = load_run(self.run, data_dir=self.data_dir)
        summary = denoise_run(run, self.run, noise=self.noise, num_images=self.num_images, seed=self.seed)
        path = draw_denoising(self.run, f"{run.config.dataset}: {summary['noise']}, removed by {self.run.name}")
        heading = f"{self.run}: removing {summary['noise']}, {summary['num_images']} test images"
        show_denoising(heading, summary["rows"])
        say(str(path))


@dataclass(frozen=True)
class ImputeCommand(WithModels):
    """Fill in missing pixels of test images given the others, by importance resampling under the model.

    Writes RUN/imputation.json and RUN/figures/imputation.png."""

    run: RunFolder
    """The folder of a finished run of a VAE."""
    config: tyro.conf.OmitArgPrefixes[ImputationConfig] = field(default_factory=ImputationConfig)

    def __call__(self) -> None:
        config = self.config
        with usage():
            at_least_one(num_images=config.num_images)
            if not 0 < config.fraction < 1:
                raise UsageError(f"--fraction: expected a number between 0 and 1; got {config.fraction}")
        run = load_run(self.run, data_dir=self.data_dir)
        result = impute_images(run, config, self.run)
        title = f"{run.config.dataset}: {self.run.name}, {config.missing} {config.fraction:.0%} missing"
        path = draw_imputation(self.run, title)
        say(str(result))
        say(str(path))


@dataclass(frozen=True)
class ReportCommand(WithModels):
    """One HTML page of finished runs or experiments, with all that it shows inside: it opens from a file.

    What was run, warnings first, tables with their errors, figures, a latent space to move through, and the commands
    that run it again. Example: ppl-vae report runs/study/mnist-mini --output study.html"""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders of an experiment with runs below."""
    output: Path = Path("report.html")
    """The page."""

    def __call__(self) -> None:
        if not self.folders:
            raise UsageError("folders: expected folders of runs or experiments; got none")
        if self.output.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--output: expected a path that ends in .html; got {self.output}")
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_page(self.folders, self.output, data_dir=self.data_dir, say=say)
        say(str(self.output))


@dataclass(frozen=True)
class DatasetsCommand:
    """List the datasets that go by name."""

    def __call__(self) -> None:
        grid = grid_of("", ["name"], [])
        grid.add_column("what it is")
        for name, text in names().items():
            grid.add_row(name, text)
        grid.add_row("PATH", "your own: .npz, .npy or a folder of images; arrays (N, D) are vectors")
        console().print(grid)


COMMANDS: dict[str, Any] = {
    "run": RunCommand,
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "compare": CompareCommand,
    "sample": SampleCommand,
    "denoise": DenoiseCommand,
    "impute": ImputeCommand,
    "report": ReportCommand,
    "datasets": DatasetsCommand,
}


def folder_of(dataset: str) -> str:
    """The name of a folder for what is made of a dataset, given by name or path: one below, wherever the data are.

    >>> folder_of("mnist"), folder_of("faces/../mine.npz"), folder_of("/data/..")
    ('mnist', 'mine', 'root')
    """
    return Path(dataset).resolve().stem or "root"


@contextlib.contextmanager
def usage() -> Any:
    """Within it, a value that is refused is bad usage."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def at_least_one(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1; got {value}")
