"""Models as Pyro pairs: a `model` p(x, z) and a `guide` q(z|x), side by side.

Every program takes the data x, shape (data, *event), then arguments batched with it, in a plate "data" at
dim -1. Particles may stand to the left of it.
"""

from __future__ import annotations

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.likelihoods import Likelihood
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior


class Autoencoder(nn.Module):
    """A deterministic autoencoder, x' = g(f(x)), as a pair with no latent variable and an empty guide.

    The same SVI and `Trace_ELBO` train it, and its loss is the negative log-likelihood of its reconstruction,
    -log p(x | g(f(x))), in nats: under `Gaussian(scale)` the squared error over 2 scale^2, and a constant.
    It has no log p(x): x stands on both sides of the bar.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, *, likelihood: Likelihood):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    def model(self, x: Tensor, given: Tensor | None = None) -> None:
        """Scores x given the code of `given` (a noisy image, to learn denoising), which is x if left out."""
        pyro.module("autoencoder", self)
        with pyro.plate("data", len(x), dim=-1):
            params = self.decoder(self.encoder(x if given is None else given))
            pyro.sample("x", self.likelihood(params).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None) -> None:
        """Empty: there is nothing to infer."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean of p(. | g(f(x))), shape (data, *event), of images, noisy or not, (data, *event)."""
        return self.likelihood(self.decoder(self.encoder(x))).mean


class VAE(nn.Module):
    """A variational autoencoder from its four parts: networks, prior, likelihood and posterior.

        p(x, z) = p(z) p(x | decoder(z)),    q(z | x) = q(z | encoder(x)).

    Diederik P. Kingma, Max Welling: Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        prior: Prior,
        likelihood: Likelihood,
        posterior: Posterior,
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    def model(self, x: Tensor, given: Tensor | None = None) -> None:
        """p(x, z). It scores x, whatever the guide is given."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z)).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None) -> None:
        """q(z | given), where given is x if left out, or for example a noisy version of it."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x if given is None else given))

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x), batch shape (data,) and event shape (latent,), of x (data, *event)."""
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of codes z (*, latent)."""
        return self.likelihood(self.decoder(z)).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z = E_q[z|x]], shape (data, *event), of images, noisy or not, (data, *event)."""
        return self.decode(self.encode(x).mean)
