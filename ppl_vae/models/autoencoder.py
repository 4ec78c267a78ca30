"""A deterministic autoencoder, a baseline for denoising."""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.pair import PyroPair


class Autoencoder(PyroPair):
    """A deterministic autoencoder, x' = g(f(x)), as a pair with no latent variable and an empty guide.

    The same SVI and `Trace_ELBO` train it, and its loss is the negative log-likelihood of its reconstruction,
    -log p(x | g(f(x))), in nats: under `Gaussian(scale)` the squared error over 2 scale^2, and a constant.
    It has no log p(x): x stands on both sides of the bar.
    """

    has_log_p = False

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
