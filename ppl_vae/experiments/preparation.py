"""What a model sees of a data set under a config: which data, encoded how, with which labels."""

from __future__ import annotations

import dataclasses
import math

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot

from ppl_vae.components import create
from ppl_vae.contract import support_name
from ppl_vae.data.dataset import Dataset, select, split
from ppl_vae.data.encodings import Encoding, Identity, Levels
from ppl_vae.data.noise import Noise, NoNoise
from ppl_vae.data.observation import Observe
from ppl_vae.experiments.architectures import Model, Parts
from ppl_vae.experiments.config import MOST_CLASSES, NO_NOISE, TrainConfig
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import PPCA, Autoencoder, SemiSupervisedVAE
from ppl_vae.networks import Dense, Divided, Log1p, Shape
from ppl_vae.objectives import Objective
from ppl_vae.programs import seeded
from ppl_vae.system.hashing import chunks


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


NUM_FIRST = 10_000  # training images that a prior may begin from; the split has put them in random order


def build(config: TrainConfig, event_shape: Shape, num_classes: int = 0) -> Model:
    """The untrained model of a config for data of this shape, (C, H, W) for images, its weights drawn from the
    config's seed. Models that take labels want their `num_classes`."""
    config = config.resolved()
    with seeded(config.seed):
        parts = Parts(
            config.network() if config.kind.has_network else Dense(),
            create(Likelihood, config.likelihood or ""),
            config.prior,
            config.posterior,
            config.latent_size,
            event_shape,
            num_classes,
            rescale(config),
            is_quiet=isinstance(rescale(config), Log1p),
        )
        return config.kind.build(parts)


def objective(config: TrainConfig) -> ELBO:
    """The objective of training, with its KL weight at its first step."""
    if config.kind.enumerates:
        return TraceEnum_ELBO(max_plate_nesting=1)
    return create(Objective, config.objective).weighted(create(KLWeight, config.kl_weight))


def initialise(model: Model, images: Tensor, labels: tuple[Tensor, ...], observe: Observe, seed: int) -> None:
    """What starts from the training data: pseudo-inputs, PPCA at its solution, the weight of m2's classifier."""
    x = observe.frozen(images[:NUM_FIRST], seed)[-1]  # what the encoder sees
    if isinstance(model, PPCA):
        latent_size = len(model.zeros)
        if latent_size < min(math.prod(x.shape[1:]), len(x)):
            model.load_state_dict(PPCA.maximum_likelihood(x, latent_size).state_dict())
    elif isinstance(model, SemiSupervisedVAE):
        # the paper's alpha, 0.1 N, weighs the mean over the labelled data, and this one their sum
        model.alpha = 0.1 * len(images) / int((labels[0] >= 0).sum())
    elif not isinstance(model, Autoencoder):
        model.prior.initialise(x)
