"""Configs: what a model is, in a frozen dataclass; from the command line or from JSON, checked."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from torch import nn
from tyro.conf import arg

from ppl_vae.components import UnknownComponentError, UsageError, choices, create, describe, kebab, unknown
from ppl_vae.data.encodings import Encoding, Identity, Levels, check_observable, default_encoding
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.architectures import KINDS, Kind
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Network, Shape
from ppl_vae.objectives import Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded
from ppl_vae.system.files import read_json, shown

NO_NOISE = "no-noise"

# What a model may be told to be: far above what is of use, and far below what takes the memory of a machine.
LARGEST_LATENT, LARGEST_SIZE, LARGEST_COUNT, MOST_DIMS, MOST_CLASSES = 4096, 65_536, 2**31 - 1, 2**22, 10_000
MOST_PARAMETERS = 10**8  # of prior and posterior, which a config makes to see that they can be made


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
            value, largest = getattr(self, name), LARGEST_LATENT if name == "latent_size" else LARGEST_COUNT
            if value is not None and not 1 <= value <= largest:
                bounds = "at least 1" if value < 1 else f"at most {largest}"
                raise ValueError(f"{name}: expected {bounds}; got {value}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to 2^32 - 1; got {self.seed}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate: expected a number above 0; got {self.learning_rate}")
        if self.hidden is not None and (not self.hidden or min(self.hidden) < 1):
            raise ValueError(f"hidden: expected widths of at least 1; got {self.hidden}")
        for name in ("model", "prior", "posterior", "likelihood"):
            numbers = map(int, re.findall(r"(?<![\w.])\d{1,20}(?![\w.])", getattr(self, name) or ""))
            if (largest := max(*numbers, *(self.hidden or ()), 0, 0)) > LARGEST_SIZE:
                raise ValueError(f"{name}: expected sizes of at most {LARGEST_SIZE}; got {largest}")
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
        with seeded(0), at_most(MOST_PARAMETERS):  # some draw their weights
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


@contextmanager
def at_most(num_parameters: int) -> Iterator[None]:
    """Inside, modules can be made of so many numbers together: `ValueError` is raised before more are filled."""
    left = num_parameters

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise ValueError(f"expected a model of at most {num_parameters:,} parameters; got one of more")

    handle = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def read_shape(path: Path) -> Shape:
    """The shape of a datum from a config in JSON: (C, H, W) of an image, (D,) of a vector."""
    values = read_json(path)
    shape = values.get("event_shape", values.get("image_shape"))  # as it once was
    if not (isinstance(shape, list) and len(shape) in (1, 3) and all(type(s) is int and s > 0 for s in shape)):
        raise ValueError(f"{path}: event_shape: expected [C, H, W] or [D]; got {shown(shape)}")
    if math.prod(shape) > MOST_DIMS:
        raise ValueError(f"{path}: event_shape: expected at most {MOST_DIMS} numbers a datum; got {shown(shape)}")
    return tuple(shape)


def read_config(path: Path) -> tuple[TrainConfig, Shape, int]:
    """A config, the shape of a datum and the number of classes (0: no labels) from JSON, checked: an unknown key, a
    wrong type or a value out of range is a `ValueError` that names the key."""
    values = read_json(path)
    shape = read_shape(path)
    values = {key: value for key, value in values.items() if key not in ("event_shape", "image_shape")}
    num_classes = values.pop("num_classes", 0)
    hints = get_type_hints(TrainConfig)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{path}: {unknown('key', key, list(hints))}")
        if not _fits(value, hints[key]):
            raise ValueError(f"{path}: {key}: expected {_expected(hints[key])}; got {shown(value)}")
    if values.get("hidden") is not None:
        values["hidden"] = tuple(values["hidden"])
    try:
        config = TrainConfig(**values)
    except UnknownComponentError as error:
        raise ValueError(f"{path}: {error} (if it is one of yours, name its module with --plugin)") from None
    except (ValueError, RuntimeError, MemoryError) as error:  # torch's for want of memory is the second
        raise ValueError(f"{path}: {' '.join(str(error).split())[:500]}") from None
    if type(num_classes) is not int or not config.kind.learns_labels <= num_classes <= MOST_CLASSES:
        raise ValueError(
            f"{path}: num_classes: expected a number of classes for {config.model}; got {shown(num_classes)}"
        )
    return config, shape, num_classes


_IN_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def _expected(hint: Any) -> str:
    """A type of a config's field, as JSON has it, in words.

    >>> _expected(tuple[int, ...] | None)
    'a list of whole numbers or null'
    """
    if get_origin(hint) is tuple:
        return "a list of whole numbers"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return _IN_WORDS.get(hint) or " or ".join(_expected(part) for part in get_args(hint))


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(type(v) is int for v in value)
    if get_origin(hint) is Literal:
        return type(value) is str and value in get_args(hint)
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**63)
    return type(value) is hint if hint in _IN_WORDS else any(_fits(value, part) for part in get_args(hint))
