"""From a config and a dataset to objects, once: the model, what is observed, the objective, and the data, split."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot

from ppl_vae.components import UnknownComponentError, UsageError, choices, create, kebab, parse
from ppl_vae.contract import support_in_words
from ppl_vae.data.dataset import Dataset, select, split
from ppl_vae.data.encodings import Encoding, Identity, Levels, check_observable, default_encoding
from ppl_vae.data.noise import Noise, NoNoise
from ppl_vae.data.observation import Indexed, Observe
from ppl_vae.experiments.architectures import KINDS, Kind, Model, Parts, model_names
from ppl_vae.experiments.config import MOST_CLASSES, TrainConfig, unknown_model
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import GaussianOptimal, Likelihood, Rescaled, Seen
from ppl_vae.models import SemiSupervisedVAE
from ppl_vae.networks import Dense, Divided, Filled, Log1p, Network, Shape, Standardized
from ppl_vae.objectives import Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import ExemplarPrior, Prior
from ppl_vae.programs import seeded
from ppl_vae.system.hashing import chunks
from ppl_vae.training.schedules import Schedule

NUM_FIRST = 10_000  # training images that a prior may begin from; the split has put them in random order


@dataclass(frozen=True, eq=False)
class Assembly:
    """The components that a config names, made once. `config` has its defaults written out."""

    config: TrainConfig
    kind: Kind
    settings: Mapping[str, Any]
    """Of the kind."""
    network: Network
    likelihood: Likelihood
    make_prior: Callable[..., Prior]
    make_posterior: Callable[..., Posterior]
    observe: Observe
    objective: ELBO

    @property
    def _is_of_counts(self) -> bool:
        """... in vectors."""
        is_of_vectors, support = isinstance(self.observe.encoding, Identity), self.likelihood.support
        return is_of_vectors and support.is_discrete and support is not constraints.boolean

    def _rescale(self, event_shape: Shape) -> Callable[[], nn.Module] | None:
        """What the encoder's input passes through first. An image with noise is in [0, 1] already."""
        encoding = self.observe.encoding
        if isinstance(encoding, Levels) and isinstance(self.observe.noise, NoNoise):
            return partial(Divided, encoding.white)
        if not isinstance(encoding, Identity):
            return None
        parts: list[Callable[[], nn.Module]] = [Filled] if self.config.missing else []
        if self.likelihood.support is not constraints.boolean:
            parts.insert(0, Log1p if self._is_of_counts else partial(Standardized, event_shape))
        if len(parts) < 2:
            return next(iter(parts), None)
        return lambda: nn.Sequential(*(part() for part in parts))

    def build(self, event_shape: Shape, num_classes: int = 0) -> Model:
        """The untrained model for data of this shape, with the components themselves: they serve one model."""
        if num_classes < self.kind.model.labelled:
            about = f"{self.config.model} ({self.kind.about})"
            raise ValueError(f"num_classes: expected a number of classes for {about}; got {num_classes}")
        make_rescale = self._rescale(event_shape)
        likelihood = Rescaled(self.likelihood, event_shape) if self.config.standardize else self.likelihood
        if self.config.missing:
            likelihood = Seen(likelihood)
        with seeded(self.config.seed):
            parts = Parts(
                self.network,
                likelihood,
                self.make_prior,
                self.make_posterior,
                self.config.latent_size,
                event_shape,
                num_classes,
                make_rescale,
                is_quiet=self._is_of_counts,
            )
            return self.kind.build(parts, **self.settings)


def assemble(config: TrainConfig, *, of_images: bool = True) -> Assembly:
    """The components of a config. Of vectors the default encoding is `identity`.

    Raises `UsageError` for components that do not exist, that refuse their arguments, or that have no meaning together
    in a model of this kind.
    """
    name, colon, arguments = config.model.partition(":")
    if name not in model_names():
        raise UnknownComponentError(unknown_model(name, model_names()))
    of_network, _, of_kind = name.rpartition("-")
    kind, hidden = KINDS[of_kind], config.hidden
    settings, arguments = kind.split(arguments, f"model {name}")
    network: Network = Dense()
    if kind.has_network:
        own = create(Network, of_network + colon + arguments)
        of_maps = kind.build is KINDS["ae"].build and type(own).autoencoder is not Network.autoencoder
        if of_maps and (hidden is not None or "hidden" in arguments):
            raise UsageError(f"hidden: expected none for {name}, whose code is feature maps; got {hidden or arguments}")
        if hidden is not None and not hasattr(own, "hidden"):
            raise UsageError(f"hidden: expected none for {of_network}, which has no dense layers; got {hidden}")
        network = own if hidden is None else create(Network, of_network + colon + arguments, hidden=hidden)
        hidden = None if network == own else hidden
    elif arguments:
        raise UsageError(f"model {name}: expected no arguments; got {arguments!r}")
    likelihood = create(Likelihood, config.likelihood or kind.likelihood)
    by_support = default_encoding(likelihood.support)
    if not of_images:
        by_support = Identity()
    of_kind_encoding = None if isinstance(by_support, Levels | Identity) else kind.encoding
    encoding = create(Encoding, config.encoding or of_kind_encoding or kebab(type(by_support)))
    if not isinstance(encoding, Identity):  # of data whose values are checked when they are there
        try:
            check_observable(encoding, likelihood.support, kebab(type(likelihood)))
        except ValueError as error:
            raise UsageError(str(error)) from None
    of_objective = kind.objective if config.objective == TrainConfig.objective else config.objective
    resolved = dataclasses.replace(
        config,
        likelihood=config.likelihood or kind.likelihood,
        encoding=config.encoding or of_kind_encoding or kebab(type(by_support)),
        objective=of_objective,
        hidden=hidden,
        latent_size=_latent_size(config, settings),
    )
    make_posterior = parse(Posterior, config.posterior, given=("latent_size",))
    make_prior = parse(Prior, config.prior, given=("latent_size", "event_shape", "encoder", "posterior"))
    objective = create(Objective, of_objective).weighted(create(KLWeight, config.kl_weight))
    create(Schedule, config.schedule)  # refused before anything is loaded
    assembly = Assembly(
        resolved,
        kind,
        settings,
        network,
        likelihood,
        make_prior,
        make_posterior,
        Observe(encoding, create(Noise, config.noise)),
        TraceEnum_ELBO(max_plate_nesting=1) if kind.model.enumerates else objective,
    )
    _check_kind(assembly, config)
    return assembly


def _latent_size(config: TrainConfig, settings: Mapping[str, Any]) -> int:
    """That of the top layer, where a kind of model has settings for its layers."""
    *_, size = settings.get("layers", (config.latent_size,))
    if config.latent_size not in (size, TrainConfig.latent_size):
        raise UsageError(f"latent_size: expected none for {config.model}, which has `layers`; got {config.latent_size}")
    return size


def _check_kind(assembly: Assembly, config: TrainConfig) -> None:
    """That the components have a meaning together, in a model of this kind."""
    kind, resolved = assembly.kind, assembly.config
    about = f"{config.model} ({kind.about})"
    for name, value in kind.fixed.items():
        if getattr(resolved, name) != value:
            raise UsageError(f"{name}: expected {value!r} for {about}; got {getattr(config, name)!r}")
    prior = choices(Prior)[config.prior.partition(":")[0]]
    if not kind.shares_encoder and "encoder" in inspect.signature(prior).parameters:
        raise UsageError(
            f"prior: expected one without pseudo-inputs or exemplars, which have no label, for {about}; got "
            f"{config.prior!r}"
        )
    if config.standardize and assembly.likelihood.support is not constraints.real:
        raise UsageError(f"standardize: expected a density on the real line; got {resolved.likelihood}")
    if config.missing and isinstance(assembly.likelihood, GaussianOptimal):
        raise UsageError(f"missing: expected a likelihood of each value alone; got {resolved.likelihood}")
    for name in ("num_labels", "alpha"):
        if getattr(config, name) is not None and not kind.model.enumerates:
            raise UsageError(f"{name}: expected a semi-supervised model (m2); got {about}")


def build(config: TrainConfig, event_shape: Shape, num_classes: int = 0) -> Model:
    """The untrained model of a config for data of this shape, (C, H, W) for images, its weights drawn from the
    config's seed. Models that take labels want their `num_classes`.

    What starts from training data is given them by `model.initialise(x)`: the units of vectors, pseudo-inputs.
    Raises `ValueError` as `assemble` does.
    """
    return assemble(config, of_images=len(event_shape) == 3).build(event_shape, num_classes)


class Assembled:
    """What is made of an assembly."""

    assembly: Assembly

    @property
    def config(self) -> TrainConfig:
        return self.assembly.config

    @property
    def observe(self) -> Observe:
        return self.assembly.observe


@dataclass(frozen=True, eq=False)
class Prepared(Assembled):
    """All that training needs, made from a config and a dataset. `train` and `validation` are images, uint8, or
    vectors, with the labels that the programs are given beside them: none, for most models; or, for an exemplar prior,
    the index of each."""

    assembly: Assembly
    dataset: Dataset
    num_classes: int
    model: Model
    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]

    @property
    def encode(self) -> Observe:
        """What makes the programs' arguments of a batch in training."""
        is_indexed = _leaves_out_its_own(self.model)
        return Indexed(self.observe.encoding, self.observe.noise) if is_indexed else self.observe

    def initialise(self) -> None:
        """Gives the model what it starts from in the training data."""
        images, *labels = self.train
        number = max(NUM_FIRST, getattr(getattr(self.model, "prior", None), "num_exemplars", 0))
        self.model.initialise(self.observe.frozen(images[:number], self.config.seed)[-1], *labels)
        if isinstance(self.model, SemiSupervisedVAE) and self.config.alpha is not None:
            self.model.alpha = self.config.alpha


def prepare(config: TrainConfig, dataset: Dataset) -> Prepared:
    """The objects of a config, its defaults written out for this dataset, and the data, split: the seed takes one sixth
    of the training images for validation (60,000 -> 50,000 + 10,000).

    Raises `UsageError` as `assemble` does, and `ValueError` where config and data don't fit.
    """
    if len(dataset.train) > 1 and all(bool((part == dataset.train[:1]).all()) for part in chunks(dataset.train)):
        raise ValueError(f"{dataset.name}: expected data that differ; got {len(dataset.train)} times the same")
    assembly = fitted(config, dataset)
    config, num_classes = assembly.config, _num_classes(assembly, dataset)
    indices = split_of(config, dataset)
    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    train, validation = ((select(dataset.train, part),) for part in indices)
    if num_classes:
        assert dataset.train_labels is not None
        y_train, y_validation = (dataset.train_labels[part] for part in indices)
        if not assembly.kind.model.needs_labels:  # -1 where the label is latent
            y_train = y_train if config.num_labels is None else labelled(y_train, config.num_labels)
            y_validation = torch.full_like(y_validation, -1)
        train, validation = (*train, y_train), (*validation, y_validation)
    model = assembly.build(dataset.event_shape, num_classes)
    if _leaves_out_its_own(model):
        train = (*train, torch.arange(len(train[0])))
    return Prepared(assembly, dataset, num_classes, model, train, validation)


def _leaves_out_its_own(model: Model) -> bool:
    return isinstance(getattr(model, "prior", None), ExemplarPrior)


def fitted(config: TrainConfig, dataset: Dataset) -> Assembly:
    """The components of a config for this dataset. Raises `ValueError` where the two don't fit."""
    if dataset.is_images:
        assembly = assemble(config)
        if isinstance(assembly.observe.encoding, Identity):
            raise ValueError(
                f"encoding: expected one for images ({dataset.name}); got {config.encoding!r}, for vectors"
            )
        if config.missing:
            raise ValueError(f"missing: expected vectors, which may have NaN; got images ({dataset.name})")
        if config.standardize:
            raise ValueError(f"standardize: expected vectors; got images ({dataset.name}), whose units are known")
        return assembly
    for name, value in {"encoding": "identity", "noise": "no-noise"}.items():
        if getattr(config, name) not in (None, value):
            raise ValueError(
                f"{name}: expected {value!r} for vectors ({dataset.name}); got {getattr(config, name)!r}, for images"
            )
    assembly = assemble(config, of_images=False)
    _check_vectors(assembly, dataset)
    return assembly


def _check_vectors(assembly: Assembly, dataset: Dataset) -> None:
    support, likelihood = assembly.likelihood.support, assembly.config.likelihood
    is_loss = assembly.kind.encoding is not None  # of an autoencoder: cross entropy and squared error will do
    if is_loss and support is constraints.boolean:
        support = constraints.unit_interval
    if not is_loss and not support.is_discrete and not dataset.train.is_floating_point():
        raise ValueError(
            f"{dataset.name}: expected floats for {likelihood}; got whole numbers, on which a density is no "
            "likelihood (poisson is one; measurements that happen to be whole are stored as floats)"
        )
    if not assembly.config.missing and (got := _missing(dataset)):
        raise ValueError(
            f"{dataset.name}: expected numbers; got {got}. Where that means missing values, say so: --missing"
        )
    for part in (*chunks(dataset.train), *chunks(dataset.test)):
        x = part.float()
        if x.isnan().all(1).any():
            raise ValueError(f"{dataset.name}: expected something to be seen of each datum; got rows of NaN alone")
        x = x[~x.isnan()]
        if not bool(support.check(x).all()):
            raise ValueError(
                f"{dataset.name}: expected {support_in_words(support)} for {likelihood}; got "
                f"some outside, in [{x.min():.4g}, {x.max():.4g}]. Take a likelihood of such data: gaussian-learned of "
                "real numbers, poisson of counts"
            )


def _missing(dataset: Dataset) -> str:
    """How many rows have NaN, and in which columns; "" for none."""
    num_rows, at = 0, torch.zeros(dataset.event_shape, dtype=torch.bool)
    for part in (*chunks(dataset.train), *chunks(dataset.test)):
        missing = part.isnan()
        num_rows, at = num_rows + int(missing.any(1).sum()), at | missing.any(0)
    if not num_rows:
        return ""
    numbers = at.nonzero().flatten().tolist()
    names = [dataset.columns[i] if dataset.columns else str(i) for i in numbers[:5]] + ["..."] * (len(numbers) > 5)
    in_all = len(dataset.train) + len(dataset.test)
    return f"NaN in {num_rows} of {in_all} rows, in column{'s' * (len(numbers) > 1)} {', '.join(names)}"


def _num_classes(assembly: Assembly, dataset: Dataset) -> int:
    """Of the labels, if the model takes them. Raises `ValueError` if it does and there are none."""
    if not assembly.kind.model.labelled:
        return 0
    labels, model = dataset.train_labels, assembly.config.model
    least, known = (0, "") if assembly.kind.model.needs_labels else (-1, ", with -1 where there is none")
    if labels is None or int(labels.min()) < least or int(labels.max()) < 0:
        got = "none" if labels is None else f"the label {int(labels.min())}"
        raise ValueError(f"{dataset.name}: expected labels 0, 1, ...{known}, for {model}; got {got}")
    if int(labels.max()) >= MOST_CLASSES:
        raise ValueError(f"{dataset.name}: expected labels below {MOST_CLASSES}; got the label {int(labels.max())}")
    return int(labels.max()) + 1


def labelled(labels: Tensor, num_labels: int) -> Tensor:
    """The labels with -1, which says that there is none, in place of all but `num_labels` of them: the first of each
    class, as many of each.

    >>> labelled(torch.tensor([0, 0, 0, 1, 1, 2]), 4)
    tensor([ 0,  0, -1,  1, -1,  2])
    >>> labelled(torch.tensor([-1, 0, 0, 1]), 2)
    tensor([-1,  0, -1,  1])
    """
    known = labels >= 0
    classes = labels.clamp(min=0)[:, None]
    # 1 for the first of its class
    place = (one_hot(classes[:, 0]) * known[:, None]).cumsum(0).gather(1, classes)[:, 0]
    first = place.where(known, len(labels) + 1).argsort(stable=True)[: min(num_labels, int(known.sum()))]
    return torch.full_like(labels, -1).index_copy(0, first, labels[first])


def split_of(config: TrainConfig, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """The indices of training and validation data: the seed takes one sixth for validation."""
    num_images = min(len(dataset.train), config.train_images or len(dataset.train))
    if num_images < 6:
        raise ValueError(f"training images: expected at least 6, to hold out one in six; got {num_images}")
    return split(num_images, num_images // 6, seed=config.seed)


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
