"""A VAE of discrete latents."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.distributions import OneHot
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models.pair import PyroPair


class DiscreteVAE(PyroPair):
    """L latent variables of K categories each, z_l a unit vector of K numbers:

        p(x, z) = prod_l p(z_l) p(x | decoder(z)),    q(z|x) = prod_l q(z_l | encoder(x)_l),    all p(z_l) learned.

    Draws of z have no gradient. The objective says what stands for it, and nothing else does: `LeaveOneOut` (the score
    function with a control variate, unbiased), or `GumbelSoftmax` (relaxed in training alone, or straight-through).
    Both programs are those of discrete z at all times, and so are ELBO and log p(x).

    Eric Jang, Shixiang Gu, Ben Poole: Categorical Reparameterization with Gumbel-Softmax, 2016, arXiv:1611.01144.

    Arguments:
        encoder: x to logits, (*, *event) -> (*, L K).
        decoder: z to the parameters of p(x|z): any decoder of latents (*, L K).
    Raises `ValueError` unless num_latents >= 1 and num_categories >= 2.
    """

    has_real_latents = False

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        num_latents: int,
        num_categories: int,
        likelihood: Likelihood,
    ):
        super().__init__()
        if num_latents < 1:
            raise ValueError(f"num_latents: expected at least 1; got {num_latents}")
        if num_categories < 2:
            raise ValueError(f"num_categories: expected at least 2; got {num_categories}")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.prior_logits = nn.Parameter(torch.zeros(num_latents, num_categories))

    def model(self, x: Tensor, given: Tensor | None = None) -> None:
        """p(x, z). It scores x, whatever the guide is given."""
        pyro.module("discrete_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self._prior())
            pyro.sample("x", self._p_x(z).to_event(x.dim() - 1), obs=x)

    def guide(self, x: Tensor, given: Tensor | None = None) -> None:
        """q(z | given), where given is x if left out."""
        pyro.module("discrete_vae", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encode(x if given is None else given))

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x), batch shape (data,) and event shape (L, K), of x (data, *event): its mean are probabilities."""
        return _one_hot(self.encoder(x).unflatten(-1, self.prior_logits.shape))

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z], shape (*, *event), of latents z (*, L, K)."""
        return self._p_x(z).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the likeliest z of q(z|x), shape (data, *event), of images (data, *event)."""
        return self.decode(self.encode(x).mode)

    def generate(self, num_samples: int) -> TorchDistribution:
        """p(x|z) for draws z ~ p(z), batch shape (num_samples, *event)."""
        return self._p_x(self._prior().sample((num_samples,)))

    def _prior(self) -> TorchDistribution:
        return _one_hot(self.prior_logits)

    def _p_x(self, z: Tensor) -> TorchDistribution:
        return self.likelihood(self.decoder(z.flatten(-2)))


def _one_hot(logits: Tensor) -> TorchDistribution:
    return OneHot(logits=logits).to_event(1)
