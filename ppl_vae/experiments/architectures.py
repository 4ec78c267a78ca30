"""The kinds of model that go by name, each put together from the same parts: networks, prior, likelihood, posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ppl_vae.components import create
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import PPCA, VAE, Autoencoder, ConditionalVAE, HierarchicalVAE, JointEncoder, SemiSupervisedVAE
from ppl_vae.networks import Network, Shape
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior

Model = Autoencoder | VAE | HierarchicalVAE | ConditionalVAE | SemiSupervisedVAE | PPCA

NUM_FEATURES = 300  # of x, where an encoder joins it to something else


@dataclass(frozen=True)
class Parts:
    """What models are put together from. Prior and posterior are specs, for some models have two."""

    network: Network
    likelihood: Likelihood
    prior_spec: str
    posterior_spec: str
    latent_size: int
    event_shape: Shape
    num_classes: int = 0
    rescale: nn.Module | None = None
    """What x passes through before encoders see it."""
    is_quiet: bool = False
    """Whether outputs are a tenth as far from 0 at first. The rate of a count is the exponential of an output, after
    that of a latent scale: from unit variance at each of them the loss can begin infinite. Images learn faster
    without."""

    def prior(self, **shared: Any) -> Prior:
        return create(Prior, self.prior_spec, latent_size=self.latent_size, event_shape=self.event_shape, **shared)

    def posterior(self) -> Posterior:
        return create(Posterior, self.posterior_spec, latent_size=self.latent_size)

    def encoder(self, num_outputs: int) -> nn.Module:
        return self._begun(self._features(num_outputs))

    def joint_encoder(self, size: int, num_outputs: int) -> nn.Module:
        """Of x and a vector (*, size)."""
        head = self.network.dense(NUM_FEATURES + size, num_outputs)
        return JointEncoder(self._features(NUM_FEATURES), self._begun(head))

    def dense(self, num_inputs: int, num_outputs: int) -> nn.Module:
        return self._begun(self.network.dense(num_inputs, num_outputs))

    def decoder(self, num_inputs: int) -> nn.Module:
        return self._begun(self.network.decoder(num_inputs, self.event_shape, self.likelihood.params_per_dim))

    def autoencoder(self) -> tuple[nn.Module, nn.Module]:
        params_per_dim = self.likelihood.params_per_dim
        encoder, decoder = self.network.autoencoder(self.event_shape, self.latent_size, params_per_dim)
        return self._seeing(encoder), self._begun(decoder)

    def _features(self, num_outputs: int) -> nn.Module:
        return self._seeing(self.network.encoder(self.event_shape, num_outputs))

    def _seeing(self, encoder: nn.Module) -> nn.Module:
        return encoder if self.rescale is None else nn.Sequential(self.rescale, encoder)

    def _begun(self, network: nn.Module) -> nn.Module:
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        with torch.no_grad():
            for layer in layers[-1:] if self.is_quiet else ():
                layer.weight *= 0.1
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
    build: Callable[[Parts], Model]
    likelihood: str = "bernoulli"
    """The default."""
    encoding: str | None = None
    """The default: what the likelihood's support asks for, if None."""
    has_network: bool = True
    learns_labels: bool = False
    """Whether training takes labels."""
    needs_labels: bool = False
    """Whether the programs take a label for each datum, always."""
    shares_encoder: bool = True
    """Whether its encoder takes x alone, as a prior of pseudo-inputs wants."""
    enumerates: bool = False
    """Whether its objective is the ELBO with the class summed out."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a config that can't have another value."""


_NO_NOISE = {"noise": "no-noise"}

KINDS: dict[str, Kind] = {
    "ae": Kind(
        "autoencoder",
        _autoencoder,
        likelihood=f"gaussian:scale={math.sqrt(0.5):.4f}",
        encoding="scale",
        fixed={  # there is no z
            "prior": "standard-normal",
            "posterior": "diagonal-normal",
            "objective": "elbo",
            "kl_weight": "constant",
        },
    ),
    "vae": Kind("VAE", _vae),
    "hvae": Kind("VAE of two latent layers", _hierarchical),
    "cvae": Kind(
        "conditional VAE, given the label",
        _conditional,
        learns_labels=True,
        needs_labels=True,
        shares_encoder=False,
        fixed=_NO_NOISE,
    ),
    "m2": Kind(
        "semi-supervised VAE, its class summed out",
        _semi_supervised,
        learns_labels=True,
        shares_encoder=False,
        enumerates=True,
        fixed=_NO_NOISE | {"objective": "elbo", "kl_weight": "constant"},
    ),
    "ppca": Kind(
        "probabilistic PCA",
        _ppca,
        likelihood="gaussian-learned",
        has_network=False,
        fixed=_NO_NOISE
        | {
            "likelihood": "gaussian-learned",
            "prior": "standard-normal",
            "posterior": "diagonal-normal",
            "hidden": None,
        },
    ),
}
