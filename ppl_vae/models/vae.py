"""A VAE of one latent vector."""

from __future__ import annotations

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.pair import PyroPair
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior


class VAE(PyroPair):
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

    def model(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """p(x, z). It scores x, whatever the guide is given. With an exemplar prior, `index` says which training data
        they are."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior(*index))
            pyro.sample("x", self.likelihood(self.decoder(z)).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """q(z | given), where given is x if left out, or for example a noisy version of it."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x), dim=-1):
            q_z = self.encode(x if given is None else given)
            if index:
                self.prior.remember(index[0], q_z.mean)
            pyro.sample("z", q_z)

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x), batch shape (data,) and event shape (latent,), of x (data, *event)."""
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of latents z (*, latent)."""
        return self.likelihood(self.decoder(z)).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z = E_q[z|x]], shape (data, *event), of images, noisy or not, (data, *event)."""
        return self.decode(self.encode(x).mean)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z) for draws z ~ p(z), batch shape (num_samples, *event): its `mean` to look at, `sample()` for data."""
        return self.likelihood(self.decoder(self.prior().sample((num_samples,))))
