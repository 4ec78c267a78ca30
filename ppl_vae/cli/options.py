"""What `ppl-vae` can be told to do: a dataclass for each command, whose fields are its flags.

Nothing here imports torch: a command's own module is imported once its flags are known to be good, so that `--help` and
what is refused take no seconds.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from ppl_vae.components import UsageError
from ppl_vae.experiments.config import BY_NAME, TrainConfig, check_model, check_name, check_names, read_config
from ppl_vae.experiments.folders import check_run
from ppl_vae.experiments.settings import (
    ImputationConfig,
    ReferenceConfig,
    StudyConfig,
    SwapsConfig,
    SweepConfig,
    TrustConfig,
)
from ppl_vae.system.executors import check_executor

if TYPE_CHECKING:
    from ppl_vae.experiments.runs import Run


@dataclass(frozen=True, kw_only=True)
class WithModels:
    """What every command has that builds or loads a model."""

    data_dir: Path | None = None
    """Where torchvision's datasets are or go. Default: $PPL_VAE_DATA, else the user's cache folder."""
    device: str = "auto"
    """Where models and their data go: cpu, cuda, cuda:1, or auto, which is CUDA where there is one."""
    plugin: str | None = None
    """A module of yours, by name or as a .py file: its likelihoods, priors, networks, ... are choices too."""


@dataclass(frozen=True, kw_only=True)
class OfRun(WithModels):
    """What every command has that uses a trained model."""

    run: tyro.conf.Positional[Path]
    """The folder of a finished run."""
    dataset: str | None = None
    """Where the data are, if not where they were in training; or other data, by name or path."""
    output: Path | None = None
    """The folder for the results. Default: RUN; for other data than those of the training, RUN/on-DATASET."""

    def load(self) -> Run:
        """The run, with its data and where they go."""
        from ppl_vae.experiments.runs import load_run

        return load_run(self.run, data_dir=self.data_dir, dataset=self.dataset, device=self.device)


@dataclass(frozen=True, kw_only=True)
class WithExecutor:
    """What a command has whose work can be done in parts."""

    executor: str | None = None
    """Where parts are done: processes[:N] of this machine; dask[:N or ADDRESS]; slurm[:KEY=VALUE,...], a job for each
    part, with parameters of submitit (partition, timeout_min, cpus_per_task, gpus_per_node, mem_gb, ...); slurm:local
    or slurm:debug. Default: in this process, one after another. Results are the same for all, if this process has as
    many threads as a worker: $OMP_NUM_THREADS, by default 1."""

    def check_executor(self) -> None:
        try:
            check_executor(self.executor)
        except ValueError as error:
            raise UsageError(f"--{error}") from None


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(WithModels):
    """What every experiment has."""

    dataset: tuple[str, ...] = ("mnist-mini",)
    """Names from `ppl-vae datasets`, or paths to your own images."""
    output: Path = Path("runs")
    """Folder for the results: OUTPUT/EXPERIMENT/DATASET."""
    folder: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class StudyOptions(ExperimentOptions):
    """The study: autoencoders, VAEs and PCA; denoising, samples and log-likelihoods, with their errors.

    On small sets, such as the bundled ones, in a short form of a few minutes; on full sets (`--dataset mnist
    fashion-mnist`) with the report's models and epochs."""

    config: tyro.conf.OmitArgPrefixes[StudyConfig] = field(default_factory=StudyConfig)
    folder = "study"


@dataclass(frozen=True, kw_only=True)
class TrustOptions(ExperimentOptions):
    """Accuracy and cost of every estimate of log p(x), on the models of a finished study."""

    config: tyro.conf.OmitArgPrefixes[TrustConfig] = field(default_factory=TrustConfig)
    folder = "study"


@dataclass(frozen=True, kw_only=True)
class SwapsOptions(ExperimentOptions, WithExecutor):
    """Every prior, posterior, objective and likelihood in the place of the usual one: what each is worth."""

    config: tyro.conf.OmitArgPrefixes[SwapsConfig] = field(default_factory=SwapsConfig)
    folder = "swaps"


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(ExperimentOptions, WithExecutor):
    """Published log-likelihoods of MNIST, Fashion-MNIST and Frey Faces beside this package's, of the same networks.

    Example: ppl-vae run reference --dataset mnist --rows vae vamp-prior --epochs 400

    A row takes hours; what was begun is resumed by the same command."""

    config: tyro.conf.OmitArgPrefixes[ReferenceConfig] = field(default_factory=ReferenceConfig)
    dataset: tuple[str, ...] = ("mnist",)
    """mnist, fashion-mnist, or the path to freyfaces.npz."""
    folder = "reference"


@dataclass(frozen=True)
class RunCommand:
    """A whole experiment. `ppl-vae run` alone is `ppl-vae run study`: on bundled data, in a few minutes.

    What is finished in the output folder is not done again: the same command resumes where it was interrupted, also in
    the middle of a training. A model that fails does not stop the others, and is named at the end."""

    experiment: (
        Annotated[StudyOptions, tyro.conf.subcommand("study")]
        | Annotated[TrustOptions, tyro.conf.subcommand("trust")]
        | Annotated[SwapsOptions, tyro.conf.subcommand("swaps")]
        | Annotated[ReferenceOptions, tyro.conf.subcommand("reference")]
    )

    def __call__(self) -> None:
        if isinstance(self.experiment, StudyOptions) and self.experiment.plugin is None:
            check_name("noise", self.experiment.config.noise)
        if isinstance(self.experiment, WithExecutor):
            self.experiment.check_executor()
        from ppl_vae.cli.running import run_experiment

        run_experiment(self.experiment)


@dataclass(frozen=True)
class SweepCommand(WithModels, WithExecutor):
    """Train and evaluate a grid of models: each option of `ppl-vae train` takes several values, and all combinations
    are tried. A table of log p(x), paired differences, and means over seeds with their spread; a plot of each setting.

    Example: ppl-vae sweep --dataset mnist --model gated-dense-vae --latent-size 10 20 40
    --prior standard-normal vamp-prior --seed 0 1 2 --output sweeps/a --executor processes:4

    A run folder for each, OUTPUT/SETTING=VALUE,.../seed-SEED. What is finished is not done again: the same command
    resumes, and one with more seeds, or more values of what is swept, adds to it. A run that fails does not stop the
    others."""

    config: tyro.conf.OmitArgPrefixes[SweepConfig] = field(default_factory=SweepConfig)
    output: Path | None = None
    """The folder of the sweep. Default: sweeps/DATASET."""

    def __call__(self) -> None:
        self.check_executor()
        if self.plugin is None:
            for model in self.config.grid.model:
                check_model(model)
            for kind in BY_NAME:
                for spec in getattr(self.config.grid, kind):
                    check_name(kind, spec)
        from ppl_vae.cli.sweeping import sweep

        sweep(self)


@dataclass(frozen=True)
class TrainCommand(WithModels):
    """Train one model and write a run folder: config.json, weights.safetensors, history.csv, metrics.json, figures;
    state.safetensors, for --extend; and last.safetensors, where the weights are those of the best epoch.

    Example: ppl-vae train --model conv-vae --dataset mnist --likelihood bernoulli --latent-size 20 --epochs 15
    --batch-size 128 --learning-rate 1e-3 --seed 0 --output runs/conv-vae

    To train until it no longer helps: --epochs 2000 --patience 50. For 500 epochs more: ppl-vae train --extend 500
    --output RUN. From the weights of another run: ppl-vae train --from RUN --learning-rate 1e-4 --output NEW

    On several GPUs, or processes of a CPU, each with its part of every batch, and with the same result to rounding:
    torchrun --nproc-per-node 2 -m ppl_vae train ..."""

    config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    output: Path | None = None
    """The run folder. Default: runs/MODEL-DATASET."""
    resume: bool = False
    """Resume an unfinished run in the output folder from its newest checkpoint, or begin if there is none. The weights
    will be bit for bit those of a run that was never stopped. A finished run stays as it is."""
    overwrite: bool = False
    """Start again where the output folder has a run. A finished one stays until this one is finished too."""
    extend: int | None = None
    """Go on with the finished run in the output folder for so many more epochs, as if it had been one run of them all:
    with its options, none of which are given. Its patience counts from here; a schedule of its learning rate is that of
    all epochs together. The run stays as it is until they are done."""
    checkpoint_epochs: int | None = 1
    """Write a checkpoint after every so many epochs, to OUTPUT/checkpoints, where the last two are kept until the run
    is finished; None for not by epoch. An interrupt (Ctrl-C, SIGTERM) writes one too."""
    checkpoint_minutes: float | None = 5.0
    """... and when so many minutes have passed since the last one, also within an epoch; None for not by time."""
    tracker: str | None = None
    """What is told of config, epochs and samples: tensorboard:FOLDER, wandb:PROJECT, mlflow:URI, or a plugin's
    (pip install 'ppl-vae[tensorboard]', and so on). `ppl-vae evaluate` with the same adds log p(x)."""

    def __call__(self) -> None:
        at_least_one(checkpoint_epochs=self.checkpoint_epochs)
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise UsageError(f"--checkpoint-minutes: expected minutes above 0; got {self.checkpoint_minutes}")
        if self.resume and self.overwrite:
            raise UsageError("--resume: expected without --overwrite, which starts again; got both")
        if self.extend is not None:
            self._check_extension()
        check_tracker(self.tracker)
        if self.plugin is None:
            check_names(self.config)
        from ppl_vae.cli.training import train_model

        train_model(self)

    def _check_extension(self) -> None:
        at_least_one(extend=self.extend)
        if self.output is None:
            raise UsageError("--extend: expected --output beside it, the folder of a finished run; got none")
        if self.overwrite or self.config != TrainConfig():
            raise UsageError("--extend: expected no options of the model or its training, which the run has; got some")
        check_run(self.output)


def starting_from(run: Path) -> type[TrainCommand]:
    """The command whose options are by default those of a finished run."""
    check_run(run)
    config = read_config(run / "config.json")[0]
    return dataclasses.make_dataclass(
        "TrainCommand",
        [("config", tyro.conf.OmitArgPrefixes[TrainConfig], field(default=config))],
        bases=(TrainCommand,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": TrainCommand.__doc__},
    )


Method = Literal["importance", "ladder", "annealed", "quadrature", "sandwich"]


@dataclass(frozen=True)
class EvaluateCommand(OfRun, WithExecutor):
    """log p(x) of held-out data, in nats per datum, with its errors and warnings.

    Writes log_likelihood-ladder.json, and per datum log_likelihood-ladder.npz; other methods log_likelihood-METHOD.*,
    importance sampling log_likelihood.*, and --method sandwich, which computes a lower and an upper bound on data
    simulated from the model (valid only there), sandwich.json. A result of more images or samples than this one is
    kept. What was interrupted is named -partial. With --executor, blocks of 64 data are evaluated apart, not compiled:
    the result is the same for all executors and numbers of workers, and, where nothing is compiled, without one."""

    method: Method = "ladder"
    """A ladder that needs no warning, for each datum the first of guide, posterior refined for it, and annealing that
    can be trusted; importance sampling from the guide, as papers have it; annealing from the guide; quadrature, exact,
    for a latent of one or two dimensions; or both bounds on simulated data."""
    num_samples: int = 1000
    """K, importance samples for each datum."""
    tolerance: float | None = None
    """Nats. The ladder, with as many samples for each datum as bring its Monte Carlo error below."""
    gaps: bool = False
    """Also say where log p(x) - ELBO comes from (approximation, amortisation), the generalisation gap, and the mutual
    information of x and z. Writes gaps.json. Costs 2,400 gradients of the decoder for each datum and more."""
    num_chains: int = 16
    """Chains for each datum, when annealing."""
    num_steps: int = 200
    """Temperatures of each chain, when annealing."""
    num_images: int | None = None
    """The first so many test images. Default: all for importance sampling, 500 for the ladder, 100 with --gaps,
    --tolerance, annealing or quadrature; of simulated data 64."""
    seed: int = 0
    """Of the samples, and of what is drawn to encode the images (binarisation, dequantisation, noise)."""
    overwrite: bool = False
    """Replace also a result of more images or samples than this one."""
    tracker: str | None = None
    """What is told of log p(x) by the ladder, or another method that needs no chains, and its errors: as in `ppl-vae
    train`, and in the same place if it is the same."""

    def __call__(self) -> None:
        names = ("num_samples", "num_images", "num_chains", "num_steps")
        at_least_one(**{name: getattr(self, name) for name in names})
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise UsageError(f"--tolerance: expected nats above 0; got {self.tolerance}")
        if self.tolerance is not None and self.method != "ladder":
            raise UsageError(f"--tolerance: expected --method ladder beside it; got {self.method}")
        if self.gaps and self.method not in ("importance", "ladder"):
            raise UsageError(f"--gaps: expected --method ladder or importance beside it; got {self.method}")
        if self.executor is not None and self.method not in ("importance", "ladder"):
            raise UsageError(f"--executor: expected --method ladder or importance beside it; got {self.method}")
        self.check_executor()
        if self.gaps and self.num_images == 1:
            raise UsageError("--gaps: expected 2 images or more; got --num-images 1")
        if self.tracker is not None:
            self._check_tracked()
        check_run(self.run)
        from ppl_vae.cli.evaluating import evaluate

        evaluate(self)

    def _check_tracked(self) -> None:
        check_tracker(self.tracker)
        if self.method in ("annealed", "sandwich") or self.tolerance is not None:
            what = self.method if self.tolerance is None else "--tolerance"
            raise UsageError(f"--tracker: expected --method ladder, importance or quadrature beside it; got {what}")
        if self.output is not None:
            raise UsageError("--tracker: expected results in the folder of the run; got --output beside it")


@dataclass(frozen=True)
class CompareCommand:
    """A table of the evaluations of several runs, with paired differences per datum and their standard errors.

    Runs that are not comparable (other data, another measure) are in tables of their own. Runs that differ in their
    seed alone are averaged. Example: ppl-vae compare runs --output comparison.csv"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of evaluated runs, or folders of such folders."""
    method: Literal["importance", "ladder", "tolerance", "annealed", "quadrature"] | None = None
    """Which of their evaluations: see `ppl-vae evaluate`. Default: the ladder's where all that were evaluated have
    one, else importance sampling's."""
    dataset: str | None = None
    """Their evaluations on this dataset, as by `ppl-vae evaluate RUN --dataset`. Default: on the data of the
    training."""
    bits_per_dim: bool = False
    """In bits per dimension instead of nats."""
    levels: bool = False
    """Turn densities of dequantised images into bounds on the probability of their levels, exactly, by D ln 256."""
    output: Path | None = None
    """Also write the tables to a file: .csv, .json or .md."""
    plot: Path | None = None
    """Also draw the differences: .png."""

    def __call__(self) -> None:
        if not self.runs:
            raise UsageError("runs: expected folders of evaluated runs; got none")
        ends_in("--output", self.output, ".csv", ".json", ".md")
        ends_in("--plot", self.plot, ".png")
        for folder in self.runs:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: expected the folder of an evaluated run; got nothing there")
        from ppl_vae.cli.reporting import compare_runs

        compare_runs(self)


@dataclass(frozen=True)
class QualityCommand(WithModels):
    """How good samples are, beside log p(x), which ranks models otherwise: precision and recall, density and coverage,
    Fréchet and kernel distance of samples to test data, each with its error; and the same of training data.

    Figures are of features, and compare on the same alone: of images, the last hidden layer of a small classifier that
    is trained on the dataset itself (a minute), or torchvision's Inception v3. Writes quality.json into each run.
    Example: ppl-vae quality runs"""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs, or folders of such folders."""
    dataset: str | None = None
    """Where the data are, if not where they were in training."""
    features: Path | None = None
    """The classifier's file, .safetensors, written if there is none; or one with the weights of torchvision's Inception
    v3 (see `ppl_vae.experiments.features.inception`). Default: features-DATASET.safetensors beside the first run."""
    draws: bool = False
    """Judge x ~ p(x|z), against data as the likelihood sees them, and not E[x|z]; writes quality-draws.json."""
    num_samples: int = 5000
    """So many samples against as many test data, at most all."""
    num_neighbours: int = 5
    """k of the neighbours that precision, recall, density and coverage look at."""
    seed: int = 0
    overwrite: bool = False
    """Compute also what is there."""

    def __call__(self) -> None:
        if not self.runs:
            raise UsageError("runs: expected folders of finished runs; got none")
        at_least_one(num_samples=self.num_samples, num_neighbours=self.num_neighbours)
        ends_in("--features", self.features, ".safetensors")
        for folder in self.runs:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: expected the folder of a finished run; got nothing there")
        from ppl_vae.cli.quality import assess

        assess(self)


@dataclass(frozen=True)
class SampleCommand(OfRun):
    """Draw images: samples from the prior, reconstructions, interpolations, and the grid over a 2-d latent space.

    Of vectors, samples x ~ p(x|z) to RUN/samples.npy."""

    num_images: int = 64
    """Samples from the prior."""
    seed: int = 0
    output: Path | None = None
    """PNG file for the samples, .npy for vectors; or a folder for all pictures. Default: RUN/figures."""

    def __call__(self) -> None:
        at_least_one(num_images=self.num_images)
        if self.output is not None and self.output.suffix:
            ends_in("--output", self.output, ".png", ".npy")
        check_run(self.run)
        from ppl_vae.cli.picturing import sample

        sample(self)


@dataclass(frozen=True)
class EncodeCommand(OfRun):
    """Write the latents of test data, for other programs to use.

    An .npz file with z (data, latent), the posterior's mean, of the top layer if there are two, and labels where there
    are some.
    Example: ppl-vae encode RUN --dataset mine.npz --output latents.npz"""

    num_images: int | None = None
    """The first so many test data. Default: all."""
    output: Path | None = None
    """The file. Default: RUN/latents.npz."""

    def __call__(self) -> None:
        at_least_one(num_images=self.num_images)
        ends_in("--output", self.output, ".npz")
        check_run(self.run)
        from ppl_vae.cli.picturing import encode

        encode(self)


@dataclass(frozen=True)
class DenoiseCommand(OfRun):
    """Remove noise from test images: MSE, PSNR and SSIM against the clean ones, mean and standard error.

    Writes denoising.json and figures/denoising.png."""

    method: Literal["network", "inference"] = "network"
    """By one pass through the model's networks, or by inference: p(clean | noisy) under the model, with the noise as
    likelihood, whatever the networks were trained on."""

    noise: str | None = None
    """gaussian-noise:scale=0.5, salt-and-pepper:fraction=0.3 or masking:fraction=0.5.
    Default: what the model learned to remove, else gaussian-noise:scale=0.5."""
    num_images: int | None = None
    """The first so many test images. Default: all, and 100 by inference."""
    seed: int = 0
    """Of the noise."""
    overwrite: bool = False
    """Replace also an earlier result of something else, or of more images or samples."""

    def __call__(self) -> None:
        at_least_one(num_images=self.num_images)
        if self.plugin is None:
            check_name("noise", self.noise)
        check_run(self.run)
        from ppl_vae.cli.picturing import denoise

        denoise(self)


@dataclass(frozen=True)
class RestoreCommand(OfRun):
    """Restore corrupted images by inference: p(clean | corrupted) under a model of clean images.

    Test images, which are corrupted first, or corrupted images of your own. Writes restoration.npz (mean, std, samples,
    log p and k-hat of each image), restoration.json and figures/restoration.png.
    Example: ppl-vae restore RUN --corruption blur:sigma=2 gaussian-noise:scale=0.1"""

    corruption: tuple[str, ...] = ("gaussian-noise:scale=0.5",)
    """Operators in their order (blur:sigma=1, downsampling:factor=2, missing:part=bottom,fraction=0.5), then a noise
    (see `ppl-vae train --help`), or none."""
    input: Path | None = None
    """Images that are corrupted in this way: a folder, or a .npy file (N, C, H, W), where NaN is a missing pixel for
    the operator missing. Default: test images."""
    num_images: int | None = None
    """The first so many images. Default: 20 test images, or all that are given."""
    num_samples: int = 256
    """Samples of the latents for each image."""
    climb: bool = False
    """Whether images for which these can't be trusted get more samples, and annealed chains: for the sake of log p(y)
    and std; means hardly change. It takes several times as long."""
    misfit: float | None = None
    """Standard deviation of clean pixels around the decoder's mean. Default: 0, or 0.2 where noise leaves pixels as
    they are."""
    seed: int = 0
    """Of the corruption and of all samples."""
    overwrite: bool = False
    """Replace also an earlier result of something else, or of more images or samples."""

    def __call__(self) -> None:
        at_least_one(num_images=self.num_images, num_samples=self.num_samples)
        if not self.corruption:
            raise UsageError("--corruption: expected operators, then noise; got nothing")
        check_run(self.run)
        from ppl_vae.cli.picturing import restore

        restore(self)


@dataclass(frozen=True)
class ImputeCommand(OfRun):
    """Fill in missing pixels of test images given the others, from the posterior of the latents given what is seen.

    Writes imputation.json and figures/imputation.png."""

    config: tyro.conf.OmitArgPrefixes[ImputationConfig] = field(default_factory=ImputationConfig)
    overwrite: bool = False
    """Replace also an earlier result of something else, or of more images or samples."""

    def __call__(self) -> None:
        at_least_one(num_images=self.config.num_images)
        if not 0 < self.config.fraction < 1:
            raise UsageError(f"--fraction: expected a number between 0 and 1; got {self.config.fraction}")
        check_run(self.run)
        from ppl_vae.cli.picturing import impute

        impute(self)


@dataclass(frozen=True)
class RefitPriorCommand(OfRun):
    """Fit another prior to the latents of the training data, the rest of the model as it is: a new run, and how much
    log p(x) it gains.

    Both runs are evaluated by the ladder on the same test data, unless they have been, and compared in pairs. Writes
    figures/samples-before-and-after.png.
    Example: ppl-vae refit-prior RUN --prior normalizing-flow"""

    prior: str = "normalizing-flow"
    """As in `ppl-vae train --prior`: normalizing-flow, gaussian-mixture:num_components=100, vamp-prior, ..."""
    epochs: int = 100
    """At most."""
    patience: int = 10
    """Early stopping: epochs without a better fit to validation data."""
    batch_size: int = 500
    learning_rate: float = 1e-3
    num_images: int = 500
    """The first so many test data whose log p(x) is estimated."""
    num_samples: int = 1000
    """K of the ladder, for each of them."""
    seed: int = 0
    output: Path | None = None
    """The folder of the new run. Default: RUN-PRIOR."""
    overwrite: bool = False
    """Replace an earlier run there."""

    def __call__(self) -> None:
        names = ("epochs", "patience", "batch_size", "num_samples")
        at_least_one(**{name: getattr(self, name) for name in names})
        if self.num_images < 2:
            raise UsageError(f"--num-images: expected at least 2; got {self.num_images}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning-rate: expected a number above 0; got {self.learning_rate}")
        if self.plugin is None:
            check_name("prior", self.prior)
        check_run(self.run)
        from ppl_vae.cli.refitting import refit

        refit(self)


@dataclass(frozen=True)
class ReportCommand(WithModels):
    """One HTML page of finished runs or experiments, with all that it shows inside: it opens from a file.

    What was run, warnings first, a latent space to explore, tables with their errors, figures, and the commands to run
    it again. Example: ppl-vae report runs/study/mnist-mini --output study.html"""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, folders of runs, or folders of an experiment."""
    output: Path = Path("report.html")
    """The page."""

    def __call__(self) -> None:
        if not self.folders:
            raise UsageError("folders: expected folders of runs or experiments; got none")
        ends_in("--output", self.output, ".html", ".htm")
        for folder in self.folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: expected a folder of runs or of an experiment; got nothing there")
        from ppl_vae.cli.reporting import report

        report(self)


HUB = "hub:"


@dataclass(frozen=True)
class ExportCommand(WithModels):
    """A run to hand on, without what training resumes from: config, weights, history, evaluations, a picture of samples
    and a card, with checksums. Nobody who loads it runs code.

    Examples: ppl-vae export runs/vamp vamp.zip, and in Python pv.load_run("vamp.zip")
    ppl-vae export runs/vamp hub:OWNER/NAME, and in Python pv.from_pretrained("OWNER/NAME")"""

    run: tyro.conf.Positional[Path]
    """The folder of a finished run."""
    to: tyro.conf.Positional[str]
    """FILE.zip; or hub:OWNER/NAME, a repository on the Hugging Face Hub (pip install 'ppl-vae[hub]', hf auth login)."""
    private: bool = False
    """On the hub, where the repository is new: for you alone."""
    overwrite: bool = False
    """Replace a file that is there."""

    def __call__(self) -> None:
        if not self.to.startswith(HUB):
            ends_in("to", path := Path(self.to), ".zip")
            if self.private:
                raise UsageError(f"--private: expected hub:OWNER/NAME beside it; got {self.to}")
            if path.exists() and not self.overwrite:
                raise UsageError(f"to: expected a new file; got {path}, which is there (see --overwrite)")
        check_run(self.run)
        from ppl_vae.cli.sharing import export

        export(self)


@dataclass(frozen=True)
class DatasetsCommand:
    """List the datasets that go by name."""

    def __call__(self) -> None:
        from ppl_vae.cli.terminal import show_datasets

        show_datasets()


COMMANDS: dict[str, Any] = {
    "run": RunCommand,
    "train": TrainCommand,
    "sweep": SweepCommand,
    "evaluate": EvaluateCommand,
    "compare": CompareCommand,
    "quality": QualityCommand,
    "sample": SampleCommand,
    "encode": EncodeCommand,
    "denoise": DenoiseCommand,
    "restore": RestoreCommand,
    "impute": ImputeCommand,
    "refit-prior": RefitPriorCommand,
    "report": ReportCommand,
    "export": ExportCommand,
    "datasets": DatasetsCommand,
}


def at_least_one(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1; got {value}")


def check_tracker(spec: str | None) -> None:
    """Raises `UsageError` for a tracker that there is not."""
    if spec is not None:
        from ppl_vae.training.trackers import tracker_of

        tracker_of(spec)


def ends_in(flag: str, path: Path | None, *endings: str) -> None:
    if path is not None and path.suffix.lower() not in endings:
        raise UsageError(f"{flag}: expected a path that ends in {' or '.join(endings)}; got {path}")
