"""What a model sees of a data set under a config: which data, encoded how, with which labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot

from ppl_vae.components import create
from ppl_vae.configs import MOST_CLASSES, NO_NOISE, TrainConfig
from ppl_vae.dataset import Dataset, chunks, select, split
from ppl_vae.encodings import Encoding, Identity, Levels
from ppl_vae.evaluation.pairs import support_name
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Divided, Log1p
from ppl_vae.noise import Noise, NoNoise


def rescale(config: TrainConfig) -> nn.Module | None:
    """What the encoder's input passes through first. An image with noise is in [0, 1] already."""
    config = config.resolved()
    encoding, noise = create(Encoding, config.encoding or ""), create(Noise, config.noise)
    if isinstance(encoding, Levels) and isinstance(noise, NoNoise):
        return Divided(255)
    support = create(Likelihood, config.likelihood or "").support
    if isinstance(encoding, Identity) and support.is_discrete and support is not constraints.boolean:
        return Log1p()
    return None


def unscaled(config: TrainConfig, grey: Tensor) -> Tensor:
    """Images in [0, 1] as the encoder expects them."""
    return grey * 255 if isinstance(rescale(config), Divided) else grey


def suited(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The config with its defaults written out for this data set. Raises `ValueError` where the two don't fit."""
    if len(dataset.train) > 1 and all(bool((part == dataset.train[:1]).all()) for part in chunks(dataset.train)):
        raise ValueError(f"{dataset.name}: expected data that differ; got {len(dataset.train)} times the same")
    if dataset.is_images:
        config = config.resolved()
        if isinstance(create(Encoding, config.encoding or ""), Identity):
            raise ValueError(
                f"encoding: expected one for images ({dataset.name}); got {config.encoding!r}, for vectors"
            )
        return config
    for name, value in {"encoding": "identity", "noise": NO_NOISE}.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(
                f"{name}: expected {value!r} for vectors ({dataset.name}); got {getattr(config, name)!r}, for images"
            )
    config = dataclasses.replace(config, encoding="identity").resolved()
    support = create(Likelihood, config.likelihood or "").support
    is_loss = config.kind.encoding is not None  # of an autoencoder, for which cross entropy and squared error will do
    if is_loss and support is constraints.boolean:
        support = constraints.unit_interval
    if not is_loss and not support.is_discrete and not dataset.train.is_floating_point():
        raise ValueError(
            f"{dataset.name}: expected floats for {config.likelihood}; got whole numbers, on which a density is no "
            "likelihood (poisson is one; measurements that happen to be whole are stored as floats)"
        )
    for part in (*chunks(dataset.train), *chunks(dataset.test)):
        x = part.float()
        if not bool(support.check(x).all()):
            raise ValueError(
                f"{dataset.name}: expected values in {support_name(support)} for {config.likelihood}; got "
                f"some outside, in [{x.min():.4g}, {x.max():.4g}]"
            )
    return config


@dataclass(frozen=True)
class Observe:
    """From 8-bit images, perhaps with their labels, to the arguments of the programs: x, then the noisy image for the
    guide if there is noise, then the labels.

    x is drawn first, so that under one seed it is the same for models with and without noise.
    """

    encoding: Encoding
    noise: Noise

    def __call__(self, images: Tensor, *labels: Tensor, generator: Generator | None = None) -> tuple[Tensor, ...]:
        x = self.encoding(images, generator)
        noisy = () if isinstance(self.noise, NoNoise) else (self.noise(images / 255, generator),)
        return (x, *noisy, *labels)

    def frozen(self, images: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As observed once under a seed: validation and test data."""
        return self(images, generator=Generator().manual_seed(seed))


def observation(config: TrainConfig) -> Observe:
    config = config.resolved()
    return Observe(create(Encoding, config.encoding or ""), create(Noise, config.noise))


def num_classes(config: TrainConfig, dataset: Dataset) -> int:
    """Of the labels, if the model takes them. Raises `ValueError` if it does and there are none."""
    if not config.kind.learns_labels:
        return 0
    labels = dataset.train_labels
    if labels is None or int(labels.min()) < 0:
        got = "none" if labels is None else f"the label {int(labels.min())}"
        raise ValueError(f"{dataset.name}: expected labels 0, 1, ..., for {config.model}; got {got}")
    if int(labels.max()) >= MOST_CLASSES:
        raise ValueError(f"{dataset.name}: expected labels below {MOST_CLASSES}; got the label {int(labels.max())}")
    return int(labels.max()) + 1


def labelled(labels: Tensor, num_labels: int) -> Tensor:
    """The labels with -1 in place of all but `num_labels` of them: the first of each class, as many of each.

    >>> labelled(torch.tensor([0, 0, 0, 1, 1, 2]), 4)
    tensor([ 0,  0, -1,  1, -1,  2])
    """
    place = one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]  # 1 for the first of its class
    first = place.argsort(stable=True)[:num_labels]
    return torch.full_like(labels, -1).index_copy(0, first, labels[first])


def split_images(config: TrainConfig, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Training and validation images, uint8: the seed takes one sixth for validation (60,000 -> 50,000 + 10,000)."""
    train, validation = _split(config, dataset)
    return select(dataset.train, train), select(dataset.train, validation)


def split_labels(config: TrainConfig, dataset: Dataset) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The labels that training and validation are given beside the images: none, for most models, and -1 where the
    label is latent, as it always is in the validation of a semi-supervised model."""
    if not num_classes(config, dataset):
        return (), ()
    assert dataset.train_labels is not None
    train, validation = (dataset.train_labels[indices] for indices in _split(config, dataset))
    if config.kind.needs_labels:
        return (train,), (validation,)
    if config.num_labels is not None:
        train = labelled(train, config.num_labels)
    return (train,), (torch.full_like(validation, -1),)


def _split(config: TrainConfig, dataset: Dataset) -> tuple[Tensor, Tensor]:
    num_images = min(len(dataset.train), config.train_images or len(dataset.train))
    if num_images < 6:
        raise ValueError(f"training images: expected at least 6, to hold out one in six; got {num_images}")
    return split(num_images, num_images // 6, seed=config.seed)
