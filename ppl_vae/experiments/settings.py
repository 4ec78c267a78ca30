"""The settings of each experiment, which are its flags on the command line. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import Field
from tyro.conf import OmitArgPrefixes, Suppress

from ppl_vae.experiments.config import Count, TrainConfig, record

Part = Literal["top", "bottom", "left", "right", "random"]


SHORT = ("dense-ae", "dense-vae", "dense-vae-2d")


@record
class StudyConfig:
    """The study on one dataset. What is left out follows from the size of the set: from 20,000 training images on the
    report's models, 20 and 15 epochs; below that a short form."""

    dataset: Suppress[str] = "mnist-mini"
    noise: str = "gaussian-noise:scale=0.5"
    """What to remove: gaussian-noise:scale=0.5, salt-and-pepper:fraction=0.3 or masking:fraction=0.5."""
    autoencoder_epochs: Count | None = None
    """Default: 20 on full sets, 10 on small ones."""
    vae_epochs: Count | None = None
    """Default: 15 on full sets, 12 on small ones."""
    batch_size: Count | None = None
    """Default: 128 on full sets, 64 on small ones."""
    num_images: Count | None = None
    """Test images whose log p(x) is estimated. Default: 1000 on full sets, 50 on small ones."""
    num_samples: Count | None = None
    """Importance samples for each of them. Default: 500."""
    num_restored: Count | None = None
    """Test images that VAEs restore by inference. Default: 200 on full sets, at 9 noises; 20 on small ones."""
    seed: int = 0
    train_images: Count | None = None
    """Use the first so many training images only."""
    short: bool | None = None
    """Whether to train four models alone (dense-ae, dense-vae, dense-vae-2d, and vamp-vae with a learned prior), at a
    falling learning rate. Default: on small sets."""

    def for_set_of(self, num_train: int) -> StudyConfig:
        """With what was left out filled in for a set of `num_train` training images."""
        full = min(num_train, self.train_images or num_train) >= 20_000
        defaults: dict[str, Any] = {
            "short": not full,
            "autoencoder_epochs": 20 if full else 10,
            "vae_epochs": 15 if full else 12,
            "batch_size": 128 if full else 64,
            "num_images": 1000 if full else 50,
            "num_samples": 500,
            "num_restored": 200 if full else 20,
        }
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def models(self) -> dict[str, TrainConfig]:
        """The runs of the study by name; `-denoising` learned noisy -> clean, as the autoencoders did."""
        common: dict[str, Any] = {
            "dataset": self.dataset,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "train_images": self.train_images,
            "schedule": "cosine" if self.short else "constant",
        }
        ae = {**common, "epochs": self.autoencoder_epochs, "noise": self.noise}
        vae = {**common, "epochs": self.vae_epochs}
        models = {
            "dense-ae": TrainConfig(model="dense-ae", latent_size=32, **ae),
            "conv-ae": TrainConfig(model="conv-ae", **ae),
            "conv-vae-denoising": TrainConfig(model="conv-vae:hidden=16", noise=self.noise, **vae),
            "conv-vae": TrainConfig(model="conv-vae:hidden=16", **vae),  # the report's own network
            "conv-vae-256": TrainConfig(model="conv-vae", **vae),
            "dense-vae": TrainConfig(model="dense-vae", **vae),
            "dense-vae-2d": TrainConfig(model="dense-vae", latent_size=2, **vae),
            "dense-vae-gaussian": TrainConfig(model="dense-vae", likelihood="gaussian-learned", **vae),
            "dense-vae-per-pixel": TrainConfig(model="dense-vae", likelihood="gaussian-per-pixel", **vae),
        }
        if not self.short:
            return models
        vamp = TrainConfig(model="gated-dense-vae", prior="vamp-prior:num_components=100", **vae)
        return {name: models[name] for name in SHORT} | {"vamp-vae": vamp}


@dataclass(frozen=True)
class TrustConfig:
    """How much of each method."""

    num_images: int = 16
    num_samples: tuple[int, ...] = (10, 100, 1000, 10_000)
    most_samples: int = 100_000
    """K to go up to where log p(x) is known exactly."""
    tolerances: tuple[float, ...] = (1.0, 0.1)
    """Nats per image, for `log_likelihood` where log p(x) is known exactly."""
    num_chains: int = 8
    num_steps: int = 100
    leapfrog_steps: int = 3
    seed: int = 0


@record
class SwapsConfig:
    """What all models have in common: gated dense networks 300-300 with 40 latent dimensions, as in the VampPrior's
    paper."""

    latent_size: Count = 40
    epochs: Count = 20
    batch_size: Count = 200
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """At first; it falls to 0 by half a cosine."""
    num_images: Count = 1000
    """Test images whose log p(x) is estimated."""
    num_samples: Count = 1000
    """Importance samples for each of them."""
    num_particles: Count = 5
    """Of the importance-weighted objectives."""
    seeds: tuple[int, ...] = (0,)
    train_images: Count | None = None


@record
class ReferenceConfig:
    """How long the models of published figures are trained, and how they are scored."""

    rows: tuple[str, ...] = ()
    """Which rows, by name, such as vae vamp-prior. Default: all of the dataset."""
    epochs: Count = 1000
    """At most."""
    patience: Count | None = None
    """Early stopping: epochs without a better ELBO of the validation data. Default: none, but the best weights."""
    warm_up: Annotated[int, Field(ge=0)] = 100
    """Epochs in which the weight of the KL rises from 0 to 1."""
    batch_size: Count = 128
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """At first; it falls to 0 by half a cosine."""
    num_images: Count = 10_000
    """Test images whose log p(x) is estimated, binarised once."""
    num_samples: Count = 5000
    """Importance samples from the guide for each of them, as papers have it."""
    num_refined_images: Count = 10_000
    """How many of them the ladder scores too, the first ones: the others are taken to gain as much by it."""
    num_refined_samples: Count = 1000
    """Samples for each of these in the ladder."""
    seeds: tuple[int, ...] = (0,)
    train_images: Count | None = None


ONCE = ("dataset", "hidden", "standardize", "missing", "start_from", "compiled")
"""What all trainings of a sweep have in common. (The widths of layers can be swept as --model dense-vae:hidden=300.)"""


def _options_of_grid() -> Iterator[tuple[str, Any, Any]]:
    hints = get_type_hints(TrainConfig, include_extras=True)
    for option in dataclasses.fields(TrainConfig):
        if option.name not in ONCE:
            hint = hints[option.name]
            kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            of_command = [note for note in notes if type(note).__module__.startswith("tyro")]  # bounds are a value's
            several: Any = tuple[kind, ...]  # type: ignore[valid-type]
            yield option.name, Annotated[several, *of_command] if of_command else several, (option.default,)


Grid: Any = make_dataclass("Grid", _options_of_grid(), bases=(TrainConfig,), frozen=True)
"""The options of `TrainConfig`, those of which a sweep tries several values as tuples of them."""


@record
class SweepSizes:
    """How the runs of a sweep are evaluated: by the ladder."""

    num_images: Count = 500
    """The first so many test data whose log p(x) is estimated."""
    num_samples: Count = 1000
    """K of the ladder, for each of them."""


@dataclass(frozen=True)
class SweepConfig:
    """A grid of trainings, and how they are evaluated."""

    grid: OmitArgPrefixes[Grid] = field(default_factory=Grid)
    sizes: OmitArgPrefixes[SweepSizes] = field(default_factory=SweepSizes)


@dataclass(frozen=True)
class ImputationConfig:
    """Which pixels are missing, and how they are filled in."""

    missing: Part = "bottom"
    """Which pixels are missing."""
    fraction: float = 0.5
    """How many of them."""
    num_images: int = 20
    """The first so many test images."""
    num_samples: int = 1000
    """Samples of the latents for each image."""
    climb: bool = True
    """Whether images for which these can't be trusted get more samples, and annealed chains."""
    seed: int = 0
    """Of all samples."""
