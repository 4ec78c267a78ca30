"""A VAE of two layers of latent vectors."""

from __future__ import annotations

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.pair import PyroPair, concatenate
from ppl_vae.posteriors import DiagonalNormal, Posterior
from ppl_vae.priors import Prior


class HierarchicalVAE(PyroPair):
    """Two layers of latent variables, both programs from the top down:

        p(x, z1, z2) = p(z2) p(z1|z2) p(x|z1, z2),    q(z1, z2 | x) = q(z2|x) q(z1|x, z2).

    Jakub M. Tomczak, Max Welling: VAE with a VampPrior, 2017, arXiv:1705.07120, section 4.

    Arguments:
        encoder2: x to the parameters of q(z2|x); a VampPrior on z2 takes it and `posterior2`.
        encoder1: (x, z2) to the parameters of q(z1|x, z2), for example a `JointEncoder`.
        decoder2: z2 to mean and log-variance of p(z1|z2), a diagonal normal: (*, latent2) -> (*, 2 latent1).
        decoder1: [z1, z2] to the parameters of p(x|z1, z2): any decoder of latents (*, latent1 + latent2).
        prior: p(z2).
    """

    def __init__(
        self,
        encoder2: nn.Module,
        encoder1: nn.Module,
        decoder2: nn.Module,
        decoder1: nn.Module,
        *,
        prior: Prior,
        likelihood: Likelihood,
        posterior2: Posterior,
        posterior1: Posterior,
    ):
        super().__init__()
        self.encoder2, self.encoder1, self.decoder2, self.decoder1 = encoder2, encoder1, decoder2, decoder1
        self.prior, self.likelihood = prior, likelihood
        self.posterior2, self.posterior1 = posterior2, posterior1
        self.conditional = DiagonalNormal(posterior1.latent_size)

    def model(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """p(x, z1, z2). It scores x, whatever the guide is given."""
        pyro.module("hierarchical_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", self.prior(*index))
            z1 = pyro.sample("z1", self.conditional(self.decoder2(z2)))
            pyro.sample("x", self._p_x(z1, z2).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None, *index: Tensor) -> None:
        """q(z1, z2 | given), where given is x if left out."""
        pyro.module("hierarchical_vae", self)
        given = x if given is None else given
        with pyro.plate("data", len(x), dim=-1):
            q_z2 = self.encode(given)
            if index:
                self.prior.remember(index[0], q_z2.mean)
            z2 = pyro.sample("z2", q_z2)
            pyro.sample("z1", self.posterior1(self.encoder1(given, z2)))

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z2|x), of the top layer, batch shape (data,) and event shape (latent2,), of x (data, *event)."""
        return self.posterior2(self.encoder2(x))

    def decode(self, z2: Tensor, z1: Tensor | None = None) -> Tensor:
        """E[x|z1, z2], shape (*, *event), of latents (*, latent2) and (*, latent1): E[z1|z2] if z1 is left out."""
        return self._p_x(self.conditional(self.decoder2(z2)).mean if z1 is None else z1, z2).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z1, z2] at z2 = E_q[z2|x] and z1 = E_q[z1|x, z2], shape (data, *event), of images (data, *event)."""
        z2 = self.encode(x).mean
        return self.decode(z2, self.posterior1(self.encoder1(x, z2)).mean)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z1, z2) for draws z2 ~ p(z2), z1 ~ p(z1|z2), batch shape (num_samples, *event)."""
        z2 = self.prior().sample((num_samples,))
        return self._p_x(self.conditional(self.decoder2(z2)).sample(), z2)

    def _p_x(self, z1: Tensor, z2: Tensor) -> TorchDistribution:
        return self.likelihood(self.decoder1(concatenate(z1, z2)))
