"""Configs: what a model is, in a frozen dataclass; from the command line or from JSON, checked."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn
from tyro.conf import arg

from ppl_vae.components import UnknownComponentError, UsageError, choices, create, describe, kebab, unknown
from ppl_vae.encodings import Encoding, Identity, Levels, check_observable, default_encoding
from ppl_vae.kinds import KINDS, Kind
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Network, Shape
from ppl_vae.noise import Noise
from ppl_vae.objectives import Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded

NO_NOISE = "no-noise"


def _one_of(base: type, text: str, which: str = "One of") -> Any:
    """Help that lists the components when it is shown, those of a plugin with them."""
    return arg(help=text, help_behavior_hint=lambda default: f"{which} {describe(base)}. (default: {default})")


@dataclass(frozen=True)
class TrainConfig:
    """One model on one data set. Components are written as name:key=value,key=value."""

    model: Annotated[
        str,
        _one_of(
            Network,
            "NETWORK-KIND, as in dense-vae or gated-dense-vae:hidden=300+300, or ppca. KIND is one of "
            f"{', '.join(f'{name} ({kind.about})' for name, kind in KINDS.items() if kind.has_network)}.",
            "NETWORK is one of",
        ),
    ] = "conv-vae"
    dataset: str = "mnist-mini"
    """A name from `ppl-vae datasets`, or a path to .npz, .npy or a folder of images; arrays (N, D) are vectors."""
    likelihood: Annotated[
        str | None,
        _one_of(
            Likelihood,
            "p(x|z). Default: bernoulli for a VAE, the squared error (gaussian:scale=0.7071) for an autoencoder.",
        ),
    ] = None
    prior: Annotated[str, _one_of(Prior, "p(z).")] = "standard-normal"
    posterior: Annotated[str, _one_of(Posterior, "q(z|x).")] = "diagonal-normal"
    encoding: Annotated[
        str | None,
        _one_of(
            Encoding,
            "What the likelihood observes of 8-bit images. Default: what the likelihood's support asks for; scale for "
            "an autoencoder, unless it is levels. Vectors are observed as they are, by identity.",
        ),
    ] = None
    objective: Annotated[str, _one_of(Objective, "What training maximises.")] = "elbo"
    kl_weight: Annotated[str, _one_of(KLWeight, "beta, the weight of the KL in training alone.")] = "constant"
    noise: Annotated[str, _one_of(Noise, "What is done to the images that the encoder sees, to learn to undo it.")] = (
        NO_NOISE
    )
    latent_size: int = 20
    """Numbers in the code z (the code of conv-ae is 8 feature maps of an eighth of the image)."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers of dense networks, in the encoder; the decoder has them in reverse. Default: the
    network's own."""
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 1e-3
    seed: int = 0
    """Of the weights, the split, the order of the data, and all noise."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate: constant, or down to 0 by half a cosine."""
    train_images: int | None = None
    """Use the first so many training images only."""
    num_labels: int | None = None
    """Of m2: use the labels of so many training images only, as many of each class. Default: all."""
    compiled: bool | None = None
    """Whether training steps are compiled. Default: where the number of steps repays it."""

    def __post_init__(self) -> None:
        for name in ("latent_size", "epochs", "batch_size", "train_images", "num_labels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1; got {value}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate: expected a number above 0; got {self.learning_rate}")
        if self.hidden is not None and (not self.hidden or min(self.hidden) < 1):
            raise ValueError(f"hidden: expected widths of at least 1; got {self.hidden}")
        if self.schedule not in ("constant", "cosine"):
            raise UsageError(unknown("schedule", self.schedule, ["constant", "cosine"]))
        name, _, arguments = self.model.partition(":")
        if name not in model_names():
            networks, kinds = ", ".join(choices(Network)), ", ".join(k for k in KINDS if KINDS[k].has_network)
            others = [name for name, kind in KINDS.items() if not kind.has_network]
            written = ", ".join([f"({networks})-({kinds})", *others])
            raise UnknownComponentError(unknown("model", name, model_names(), written))
        if self.kind.has_network:
            self.network()
        elif arguments:
            raise UsageError(f"model {name}: expected no arguments; got {arguments!r}")
        create(Noise, self.noise)
        with seeded(0):  # some draw their weights
            posterior = create(Posterior, self.posterior, latent_size=self.latent_size)
            sizes = {"latent_size": self.latent_size, "event_shape": ()}
            prior = create(Prior, self.prior, **sizes, encoder=nn.Identity(), posterior=posterior)
        create(Objective, self.objective)
        create(KLWeight, self.kl_weight)
        likelihood = create(Likelihood, self.resolved().likelihood or "")
        encoding = create(Encoding, self.resolved().encoding or "")
        if not isinstance(encoding, Identity):  # of data whose values are checked when they are there
            check_observable(encoding, likelihood.support, kebab(type(likelihood)))
        self._check_kind(prior)

    def _check_kind(self, prior: Prior) -> None:
        """That the components have a meaning together, in a model of this kind."""
        about = f"{self.model} ({self.kind.about})"
        for name, value in self.kind.fixed.items():
            if getattr(self.resolved(), name) != value:
                raise UsageError(f"{name}: expected {value!r} for {about}; got {getattr(self, name)!r}")
        if not self.kind.shares_encoder and "encoder" in inspect.signature(type(prior)).parameters:
            raise UsageError(
                f"prior: expected one without pseudo-inputs, which have no label, for {about}; got {self.prior!r}"
            )
        if self.num_labels is not None and not self.kind.enumerates:
            raise UsageError(f"num_labels: expected a semi-supervised model (m2); got {about}")

    @property
    def kind(self) -> Kind:
        """What is built of the network."""
        return KINDS[self._names[1]]

    @property
    def _names(self) -> tuple[str, str]:
        network, _, kind = self.model.partition(":")[0].rpartition("-")
        return network, kind

    def network(self) -> Network:
        return create(Network, self._network_spec, **({} if self.hidden is None else {"hidden": self.hidden}))

    @property
    def _network_spec(self) -> str:
        _, colon, arguments = self.model.partition(":")
        return self._names[0] + colon + arguments

    def resolved(self) -> TrainConfig:
        """The config with the defaults of likelihood and encoding written out, and without a `hidden` that says
        nothing: of a network that has none, or the network's own."""
        likelihood = self.likelihood or self.kind.likelihood
        by_support = default_encoding(create(Likelihood, likelihood).support)
        of_kind = None if isinstance(by_support, Levels) else self.kind.encoding  # scaled, they would be outside of it
        encoding = self.encoding or of_kind or kebab(type(by_support))
        hidden = self.hidden
        if hidden is not None and self.kind.has_network and self.network() == create(Network, self._network_spec):
            hidden = None
        if (likelihood, encoding, hidden) == (self.likelihood, self.encoding, self.hidden):
            return self
        return dataclasses.replace(self, likelihood=likelihood, encoding=encoding, hidden=hidden)


def model_names() -> list[str]:
    """Every network with every kind of model that has one, dense-ae, dense-vae, ..., and those without."""
    with_networks = [name for name, kind in KINDS.items() if kind.has_network]
    names = [f"{network}-{kind}" for network in choices(Network) for kind in with_networks]
    return names + [name for name, kind in KINDS.items() if not kind.has_network]


def read_shape(path: Path) -> Shape:
    """The shape of a datum from a config in JSON: (C, H, W) of an image, (D,) of a vector."""
    values = read_json(path)
    shape = values.get("event_shape", values.get("image_shape"))  # as it once was
    if not (isinstance(shape, list) and len(shape) in (1, 3) and all(type(s) is int and s > 0 for s in shape)):
        raise ValueError(f"{path}: expected event_shape [C, H, W] or [D]; got {shape!r}")
    return tuple(shape)


def read_config(path: Path) -> tuple[TrainConfig, Shape, int]:
    """A config, the shape of a datum and the number of classes (0: no labels) from JSON, checked: an unknown key or a
    wrong type is a `ValueError`."""
    values = read_json(path)
    shape = read_shape(path)
    values = {key: value for key, value in values.items() if key not in ("event_shape", "image_shape")}
    num_classes = values.pop("num_classes", 0)
    fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{path}: {unknown('key', key, list(fields))}")
        if isinstance(value, list) and all(type(h) is int for h in value):
            value = values[key] = tuple(value)
        default = fields[key]
        optional = {"hidden": tuple, "train_images": int, "num_labels": int, "compiled": bool}.get(key, str)
        expected = (
            (optional, type(None)) if default is None else (int, float) if isinstance(default, float) else type(default)
        )
        if not isinstance(value, expected) or (isinstance(value, bool) and key != "compiled"):
            raise ValueError(f"{path}: {key}: expected a value like {default!r}; got {value!r}")
    try:
        config = TrainConfig(**values)
    except UnknownComponentError as error:
        raise ValueError(f"{path}: {error} (if it is one of yours, name its module with --plugin)") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if type(num_classes) is not int or num_classes < config.kind.learns_labels:
        raise ValueError(f"{path}: num_classes: expected a number of classes for {config.model}; got {num_classes!r}")
    return config, shape, num_classes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; anything else is a `ValueError` that names the file."""
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON; got {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object; got {type(values).__name__}")
    return values
