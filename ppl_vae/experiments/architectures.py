"""The kinds of model that go by name, each put together from the same parts: networks, prior, likelihood, posterior."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ppl_vae.components import UsageError, choices, parse_arguments, refuse_taken
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import (
    PPCA,
    VAE,
    Autoencoder,
    ConditionalVAE,
    DiscreteVAE,
    HierarchicalVAE,
    JointEncoder,
    LadderLayer,
    LadderVAE,
    PyroPair,
    SemiSupervisedVAE,
)
from ppl_vae.models.ladder import Residual
from ppl_vae.networks import Network, Shape
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior

Model = PyroPair

NUM_FEATURES = 300  # of x, where an encoder joins it to something else


@dataclass(frozen=True)
class Parts:
    """What models are put together from. Priors and posteriors are made when they are asked for: some models have
    two."""

    network: Network
    likelihood: Likelihood
    make_prior: Callable[..., Prior]
    make_posterior: Callable[..., Posterior]
    latent_size: int
    event_shape: Shape
    num_classes: int = 0
    make_rescale: Callable[[], nn.Module] | None = None
    """What x passes through before each encoder sees it."""
    is_quiet: bool = False
    """Whether outputs are a tenth as far from 0 at first. The rate of a count is the exponential of an output, after
    that of a latent scale: from unit variance at each of them the loss can begin infinite. Images learn faster
    without."""

    def prior(self, **shared: Any) -> Prior:
        return self.make_prior(latent_size=self.latent_size, event_shape=self.event_shape, **shared)

    def posterior(self, latent_size: int | None = None) -> Posterior:
        return self.make_posterior(latent_size=latent_size or self.latent_size)

    def encoder(self, num_outputs: int) -> nn.Module:
        return self._begun(self.features(num_outputs))

    def features(self, num_features: int) -> nn.Module:
        return self._seeing(self.network.encoder(self.event_shape, num_features))

    def joint_encoder(self, size: int, num_outputs: int) -> nn.Module:
        """Of x and a vector (*, size)."""
        head = self.network.dense(NUM_FEATURES + size, num_outputs)
        return JointEncoder(self.features(NUM_FEATURES), self._begun(head))

    def dense(self, num_inputs: int, num_outputs: int, gain: float = 1.0) -> nn.Module:
        return self._begun(self.network.dense(num_inputs, num_outputs), gain)

    def decoder(self, num_inputs: int) -> nn.Module:
        return self._begun(self.network.decoder(num_inputs, self.event_shape, self.likelihood.params_per_dim))

    def autoencoder(self) -> tuple[nn.Module, nn.Module]:
        params_per_dim = self.likelihood.params_per_dim
        encoder, decoder = self.network.autoencoder(self.event_shape, self.latent_size, params_per_dim)
        return self._seeing(encoder), self._begun(decoder)

    def _seeing(self, encoder: nn.Module) -> nn.Module:
        return encoder if self.make_rescale is None else nn.Sequential(self.make_rescale(), encoder)

    def _begun(self, network: nn.Module, gain: float = 1.0) -> nn.Module:
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        with torch.no_grad():
            for layer in layers[-1:]:
                layer.weight *= gain * (0.1 if self.is_quiet else 1.0)
        return network


def _autoencoder(parts: Parts) -> Autoencoder:
    return Autoencoder(*parts.autoencoder(), likelihood=parts.likelihood)


def _vae(parts: Parts) -> VAE:
    posterior = parts.posterior()
    encoder = parts.encoder(posterior.num_params)
    return VAE(
        encoder,
        parts.decoder(parts.latent_size),
        prior=parts.prior(encoder=encoder, posterior=posterior),
        likelihood=parts.likelihood,
        posterior=posterior,
    )


def _hierarchical(parts: Parts) -> HierarchicalVAE:
    posterior2, posterior1 = parts.posterior(), parts.posterior()
    encoder2 = parts.encoder(posterior2.num_params)
    size = parts.latent_size
    return HierarchicalVAE(
        encoder2,
        parts.joint_encoder(size, posterior1.num_params),
        parts.dense(size, 2 * size),
        parts.decoder(2 * size),
        prior=parts.prior(encoder=encoder2, posterior=posterior2),
        likelihood=parts.likelihood,
        posterior2=posterior2,
        posterior1=posterior1,
    )


def _ladder(parts: Parts, *, layers: tuple[int, ...] = (32, 16, 8)) -> LadderVAE:
    sizes, F = layers, NUM_FEATURES  # from the bottom up; the state is as wide as the features
    gain = len(sizes) ** -0.5  # so that the residual paths keep their scale at any depth
    posterior = parts.posterior()
    encoder, ups = parts.features(F), [Residual(parts.dense(F, F, gain)) for _ in sizes[1:]]
    head = parts.dense(F, posterior.num_params)
    below: list[LadderLayer] = []
    for size, above in zip(sizes[-2::-1], sizes[:0:-1], strict=True):
        q, num_inputs = parts.posterior(size), F * bool(below) + above
        step = parts.dense(num_inputs, F, gain if below else 1.0)
        below.append(LadderLayer(step, parts.dense(F, 2 * size), parts.dense(2 * F, q.num_params), q))
    return LadderVAE(
        encoder,
        ups,
        head,
        below,
        parts.decoder(F * bool(below) + sizes[0]),
        prior=parts.prior(encoder=nn.Sequential(encoder, *ups, head), posterior=posterior),
        likelihood=parts.likelihood,
        posterior=posterior,
    )


def _discrete(parts: Parts, *, categories: int = 10) -> DiscreteVAE:
    size = parts.latent_size * categories
    return DiscreteVAE(
        parts.encoder(size),
        parts.decoder(size),
        num_latents=parts.latent_size,
        num_categories=categories,
        likelihood=parts.likelihood,
    )


def _conditional(parts: Parts) -> ConditionalVAE:
    posterior = parts.posterior()
    return ConditionalVAE(
        parts.joint_encoder(parts.num_classes, posterior.num_params),
        parts.decoder(parts.latent_size + parts.num_classes),
        num_classes=parts.num_classes,
        prior=parts.prior(),
        likelihood=parts.likelihood,
        posterior=posterior,
    )


def _semi_supervised(parts: Parts) -> SemiSupervisedVAE:
    return SemiSupervisedVAE(_conditional(parts), parts.encoder(parts.num_classes))


def _ppca(parts: Parts) -> PPCA:
    return PPCA(parts.event_shape, parts.latent_size)


@dataclass(frozen=True)
class Kind:
    """A kind of model: how it is built, and what of a config it takes."""

    about: str
    model: type[PyroPair]
    """The class of what is built; its class attributes say what it can do."""
    build: Callable[..., Model]
    """Of `Parts`, and of keyword arguments with a type and a default: settings, in `--model NETWORK-KIND:key=value`.
    Where there is one named `layers`, it has the sizes of the latents from the bottom up."""
    likelihood: str = "bernoulli"
    """The default."""
    encoding: str | None = None
    """The default: what the likelihood's support asks for, if None."""
    objective: str = "elbo"
    """The default."""
    has_network: bool = True
    shares_encoder: bool = True
    """Whether its encoder takes x alone, as a prior of pseudo-inputs wants."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a config that can't have another value."""

    def split(self, text: str, where: str) -> tuple[dict[str, Any], str]:
        """The settings, with their defaults, that "key=value,key=value" has for `build`, and the rest of the text."""
        parameters = inspect.signature(self.build).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        items = [(item.partition("=")[0].replace("-", "_") in defaults, item) for item in text.split(",") if item]
        own, rest = (",".join(item for is_own, item in items if is_own == wanted) for wanted in (True, False))
        settings = defaults | parse_arguments(self.build, own, where)
        if (layers := settings.get("layers")) is not None and not (layers and min(layers) >= 1):
            raise UsageError(f"{where}: layers: expected sizes of at least 1; got {layers}")
        return settings, rest


_kinds: dict[str, Kind] = {}
KINDS: Mapping[str, Kind] = MappingProxyType(_kinds)
"""The kinds by name. `register` adds one."""


def register(name: str, kind: Kind) -> None:
    """Gives a kind of model a name, as in `--model dense-NAME`. Raises `UsageError` for a name that is taken."""
    taken = _kinds.get(name)
    same = ("__module__", "__qualname__")
    if taken is not None and [getattr(taken.build, k) for k in same] != [getattr(kind.build, k) for k in same]:
        refuse_taken("kind of model", name, kind.build, taken.build)
    _kinds[name] = kind


_NO_NOISE = {"noise": "no-noise"}
# There is no z.
_OF_AUTOENCODERS = {
    "prior": "standard-normal",
    "posterior": "diagonal-normal",
    "objective": "elbo",
    "kl_weight": "constant",
}

register(
    "ae",
    Kind(
        "autoencoder",
        Autoencoder,
        _autoencoder,
        likelihood=f"gaussian:scale={math.sqrt(0.5):.4f}",
        encoding="scale",
        fixed=_OF_AUTOENCODERS,
    ),
)
register("vae", Kind("VAE", VAE, _vae))
register("hvae", Kind("VAE of two latent layers", HierarchicalVAE, _hierarchical))
register("ladder", Kind("VAE of any number of layers, bottom to top", LadderVAE, _ladder))
register(
    "dvae",
    Kind(
        "VAE of `latent_size` discrete latents",
        DiscreteVAE,
        _discrete,
        objective="leave-one-out",
        shares_encoder=False,
        fixed={"prior": "standard-normal", "posterior": "diagonal-normal"},  # neither is there: both are categorical
    ),
)
register(
    "cvae",
    Kind("conditional VAE, given the label", ConditionalVAE, _conditional, shares_encoder=False, fixed=_NO_NOISE),
)
register(
    "m2",
    Kind(
        "semi-supervised VAE, its class summed out",
        SemiSupervisedVAE,
        _semi_supervised,
        shares_encoder=False,
        fixed=_NO_NOISE | {"objective": "elbo", "kl_weight": "constant"},
    ),
)
register(
    "ppca",
    Kind(
        "probabilistic PCA",
        PPCA,
        _ppca,
        likelihood="gaussian-learned",
        has_network=False,
        fixed=_NO_NOISE
        | {
            "likelihood": "gaussian-learned",
            "prior": "standard-normal",
            "posterior": "diagonal-normal",
            "hidden": None,
            "standardize": False,
        },
    ),
)


def model_names() -> list[str]:
    """Every network with every kind of model that has one, dense-ae, dense-vae, ..., and those without."""
    with_networks = [name for name, kind in KINDS.items() if kind.has_network]
    names = [f"{network}-{kind}" for network in choices(Network) for kind in with_networks]
    return names + [name for name, kind in KINDS.items() if not kind.has_network]
