"""Configs: what a model is, in a frozen record that pydantic checks, from Python, the command line or JSON alike.
Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import pydantic
from pydantic import AfterValidator, Field, ValidationError
from tyro.conf import arg

from ppl_vae.components import UsageError, unknown
from ppl_vae.system.files import read_json, shown

# Upper limits on config values, to protect memory.
LARGEST_LATENT, LARGEST_SIZE, LARGEST_COUNT, MOST_DIMS, MOST_CLASSES = 4096, 65_536, 2**31 - 1, 2**22, 10_000

T = TypeVar("T", bound=type)
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]


@dataclass_transform(frozen_default=True)
def record(cls: T) -> T:
    """A frozen dataclass whose fields are checked when it is made: types strictly, and bounds. Raises `UsageError`,
    in one line, for what does not fit."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True, extra="forbid"))(
        cls
    )
    init = made.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise UsageError(in_one_line(error)) from None

    made.__init__ = __init__
    return made


def in_one_line(error: ValidationError) -> str:
    """The first of what pydantic found: the field, what is wrong, and what came.

    >>> TrainConfig(latent_size=0)
    Traceback (most recent call last):
    ppl_vae.components.UsageError: latent_size: input should be greater than or equal to 1; got 0
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple", "nullable")))
    return f"{field}: {message[:1].lower()}{message[1:]}; got {shown(first['input'])}"


def _moderate(spec: str) -> str:
    numbers = [int(n) for n in re.findall(r"(?<![\w.])\d{1,20}(?![\w.])", spec)]
    if max(numbers, default=0) > LARGEST_SIZE:
        raise ValueError(f"expected sizes of at most {LARGEST_SIZE}")
    return spec


Spec = Annotated[str, AfterValidator(_moderate)]


def one_of(kind: str, text: str, which: str = "One of") -> Any:
    """Help that lists the components when it is shown, those of a plugin with them."""
    return arg(help=text, help_behavior_hint=lambda default: f"{which} {listed(kind)}. (default: {default})")


def listed(kind: str) -> str:
    """The components of a kind, as --help lists them: from a file, so that it does not wait for torch, but with a
    plugin's where one has been loaded."""
    if (listing := sys.modules.get("ppl_vae.experiments.listing")) is not None:
        return listing.components()[kind]
    return read_json(Path(__file__).parent / "components.json")[kind]


@record
class TrainConfig:
    """One model on one dataset. Components are written as name:key=value,key=value."""

    model: Annotated[
        Spec,
        one_of(
            "network",
            "NETWORK-KIND, as in dense-vae or gated-dense-ladder:hidden=300+300,layers=32+16+8, or ppca.",
            "NETWORK is one of",
        ),
    ] = "conv-vae"
    dataset: str = "mnist-mini"
    """A name from `ppl-vae datasets`, or a path to .npz, .npy, .zarr or a folder of images; to a table (.csv, .parquet)
    or counts (.h5ad). Arrays (N, D) are vectors."""
    label: str | None = None
    """Of a table, or of the obs of .h5ad: the column of the labels. Default: none."""
    layer: str | None = None
    """Of .h5ad: the layer. Default: X."""
    resize: tuple[Count, Count] | None = None
    """Of a folder of images: bring them to height H and width W. Default: they are of one size."""
    channels: Literal[1, 3] | None = None
    """Of a folder of images: 1 makes all of them grey, 3 in colour. Default: 1 if all are grey, else 3."""
    likelihood: Annotated[
        Spec | None,
        one_of(
            "likelihood",
            "p(x|z). Default: bernoulli for a VAE, the squared error (gaussian:scale=0.7071) for an autoencoder.",
        ),
    ] = None
    prior: Annotated[Spec, one_of("prior", "p(z).")] = "standard-normal"
    posterior: Annotated[Spec, one_of("posterior", "q(z|x).")] = "diagonal-normal"
    encoding: Annotated[
        str | None,
        one_of(
            "encoding",
            "What the likelihood observes of 8-bit images. Default: what the likelihood's support asks for; scale for "
            "an autoencoder, unless it is levels. Vectors are observed as they are, by identity.",
        ),
    ] = None
    objective: Annotated[str, one_of("objective", "What training maximises. Of dvae the default is leave-one-out.")] = (
        "elbo"
    )
    kl_weight: Annotated[
        str,
        one_of(
            "kl_weight",
            "beta, the weight of the KL in training alone; what is monitored has beta = 1. To warm up for 100 epochs: "
            "linear-warm-up:epochs=100.",
        ),
    ] = "constant"
    noise: Annotated[str, one_of("noise", "Added to the images that the encoder sees, to learn to remove it.")] = (
        "no-noise"
    )
    latent_size: Annotated[int, Field(ge=1, le=LARGEST_LATENT)] = 20
    """Dimensions of the latent z (that of conv-ae is 8 feature maps of an eighth of the image; a ladder has layers)."""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=LARGEST_SIZE)], ...], Field(min_length=1)] | None = None
    """Widths of the dense layers of the encoder; a dense decoder has them in reverse. Default: the network's own."""
    standardize: bool = False
    """Of vectors under a density on the real line: the model learns them with mean 0 and standard deviation 1. log p(x)
    stays that of x in its own units."""
    missing: bool = False
    """Of vectors: NaN is a value that is missing. The model is trained and scored on what is seen, log p(x) is that of
    the values that are there, and the encoder sees the mean for the others."""
    start_from: Annotated[str | None, arg(aliases=["--from"])] = None
    """The folder of a finished run of the same model: begin with its weights, and a new optimiser. On the command line
    its options are then the defaults of all others. Default: begin with random weights."""
    epochs: Count = 15
    """At most, with --patience."""
    patience: Count | None = None
    """Early stopping: training ends when the ELBO of the validation data has not been better for so many epochs, and
    the weights are those after the best one. With as many as --epochs none is left out, and the best are kept. Epochs
    of a --kl-weight linear-warm-up are not counted. Default: all epochs, and the last weights."""
    batch_size: Count = 128
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), arg(aliases=["--lr"])] = 1e-3
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the weights, the split, the order of the data, and all noise."""
    schedule: Annotated[
        Spec,
        one_of(
            "schedule",
            "Of the learning rate: constant; down to 0 at the last epoch, by half a cosine or linearly; times FACTOR "
            "after each of the epochs AT; or times FACTOR at each plateau, which is PATIENCE epochs without a better "
            "ELBO of the validation data.",
        ),
    ] = "constant"
    warm_up_steps: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] = 0
    """Steps in which the learning rate rises from 0 at first. (The KL's warm-up is --kl-weight linear-warm-up.)"""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep, and monitor, an exponential moving average of the weights instead of the last step's own: over about
    1 / (1 - DECAY) steps; 0.999, say, for epochs of hundreds of steps. Default: none."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Of AdamW; at 0 it is Adam."""
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The largest norm of all gradients together: larger ones are scaled down to it. Default: none."""
    train_images: Count | None = None
    """Use the first so many training images only."""
    num_labels: Count | None = None
    """Of m2: use the labels of so many training images only, as many of each class. Default: all. A label of -1 in the
    data says that there is none."""
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of m2: the weight of log q(y|x) of each labelled image in training. Default: 0.1 N / (number of labels)."""
    compiled: bool | None = None
    """Whether training steps are compiled. Default: where the number of steps repays it."""

    @property
    def reading(self) -> dict[str, Any]:
        """How data of one's own are read: options of `load`."""
        return {name: getattr(self, name) for name in ("label", "layer", "resize", "channels")}


BY_NAME = ("likelihood", "prior", "posterior", "encoding", "noise", "objective", "kl_weight", "schedule")


def check_names(config: TrainConfig) -> None:
    """Raises `UsageError` for a component that the package does not have, in the words of `assemble`, which imports
    torch first."""
    check_model(config.model)
    for kind in BY_NAME:
        check_name(kind, getattr(config, kind))


def check_model(spec: str) -> None:
    """The same for the model, NETWORK-KIND:ARGUMENTS."""
    known = listed("model").split(", ")
    if (name := spec.partition(":")[0]) not in known:
        raise UsageError(unknown_model(name, known))


def check_name(kind: str, spec: str | None) -> None:
    """The same for one component, NAME:ARGUMENTS."""
    name = (spec or "").partition(":")[0]
    known = [component.partition(":")[0] for component in listed(kind).split(", ")]
    if name and name not in known:
        raise UsageError(unknown(kind.replace("_", ""), name, known))


def unknown_model(name: str, known: list[str]) -> str:
    """
    >>> unknown_model("vae", ["dense-ae", "dense-vae", "conv-ae", "conv-vae", "ppca"])
    "model: expected one of (dense, conv)-(ae, vae), ppca; got 'vae' (did you mean 'dense-vae' or 'conv-vae'?)"
    """
    parts = [k.rpartition("-") for k in known]
    networks, kinds = (", ".join(dict.fromkeys(p[i] for p in parts if p[1])) for i in (0, 2))
    written = ", ".join([f"({networks})-({kinds})", *(p[2] for p in parts if not p[1])])
    return unknown("model", name, known, written)


def read_shape(path: Path) -> tuple[int, ...]:
    """The shape of a datum from a config in JSON: (C, H, W) of an image, (D,) of a vector."""
    values = read_json(path)
    shape = values.get("event_shape", values.get("image_shape"))  # as it once was
    if not (isinstance(shape, list) and len(shape) in (1, 3) and all(type(s) is int and s > 0 for s in shape)):
        raise ValueError(f"{path}: event_shape: expected [C, H, W] or [D]; got {shown(shape)}")
    if math.prod(shape) > MOST_DIMS:
        raise ValueError(f"{path}: event_shape: expected at most {MOST_DIMS} numbers a datum; got {shown(shape)}")
    return tuple(shape)


def read_config(path: Path) -> tuple[TrainConfig, tuple[int, ...], int]:
    """A config, the shape of a datum and the number of classes (0: no labels) from JSON. An unknown key, a wrong type
    or a value out of range is a `ValueError` that names the file and the key."""
    values, shape = read_json(path), read_shape(path)
    values = {key: value for key, value in values.items() if key not in ("event_shape", "image_shape")}
    num_classes = values.pop("num_classes", 0)
    if type(num_classes) is not int or not 0 <= num_classes <= MOST_CLASSES:
        raise ValueError(f"{path}: num_classes: expected a number of classes; got {shown(num_classes)}")
    config = from_json(TrainConfig, values, path)
    if "standardize" not in values and config.model.startswith("conv-"):
        # a config of before conv had a width that could be set
        model = config.model if config.model == "conv-ae" else f"{config.model}:hidden=16"
        config = dataclasses.replace(config, hidden=None, model=model)
    if config.model == "conv-ae":  # which once took a width, and left it
        config = dataclasses.replace(config, hidden=None)
    return config, shape, num_classes


R = TypeVar("R")


def from_json(cls: Callable[..., R], values: dict[str, Any], path: Path) -> R:
    """A record from a JSON object's values, in which tuples are lists. Raises `ValueError`, which names the file."""
    known = [*inspect.signature(cls).parameters]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}: {unknown('key', key, known)}")
    try:
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
