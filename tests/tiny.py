"""The tiny VAE of the tests: any likelihood, prior and posterior, by name, between small dense networks."""

import torch
from torch import nn

from ppl_vae.components import create
from ppl_vae.data.encodings import Levels, default_encoding
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import VAE
from ppl_vae.networks import DenseDecoder, DenseEncoder, Divided
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded

LATENT = 2


def tiny_vae(
    likelihood="bernoulli",
    prior="standard-normal",
    posterior="diagonal-normal",
    *,
    event_shape=(1, 4, 4),
    hidden=8,
    divided=False,
    noise=0.0,
    seed=0,
):
    """A VAE with z in R^2. `divided` has the encoder see levels 0..255 divided by 255.

    Noise moves every parameter from where it begins: zeros, equal weights and the identity would hide what is left out.
    """
    with seeded(seed):
        p_x = create(Likelihood, likelihood)
        q = create(Posterior, posterior, latent_size=LATENT)
        encoder = DenseEncoder(event_shape, q.num_params, (hidden,))
        if divided and isinstance(default_encoding(p_x.support), Levels):
            encoder = nn.Sequential(Divided(255), encoder)
        p_z = create(Prior, prior, latent_size=LATENT, encoder=encoder, posterior=q, event_shape=event_shape)
        decoder = DenseDecoder(LATENT, event_shape, p_x.params_per_dim, (hidden,))
        vae = VAE(encoder, decoder, prior=p_z, likelihood=p_x, posterior=q)
        if noise:
            with torch.no_grad():
                for parameter in vae.parameters():
                    parameter += noise * torch.randn_like(parameter)
                for buffer in vae.buffers():
                    if buffer.is_floating_point():
                        buffer *= 1 + 10 * noise * torch.rand(())  # a variance; zeros stay
    return vae
