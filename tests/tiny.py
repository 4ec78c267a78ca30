"""What the tests train: a tiny VAE of any likelihood, prior and posterior, by name, between small dense networks, a
pair of one parameter, images, and torch's datasets of a tensor."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from ppl_vae.components import create
from ppl_vae.data.encodings import Levels, default_encoding
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import VAE
from ppl_vae.networks import DenseDecoder, DenseEncoder, Divided
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import ExemplarPrior, Prior
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
                if isinstance(p_z, ExemplarPrior):
                    p_z.means.normal_()
                for parameter in vae.parameters():
                    parameter += noise * torch.randn_like(parameter)
                for buffer in vae.buffers():
                    if buffer.is_floating_point():
                        buffer *= 1 + 10 * noise * torch.rand(())  # a variance; zeros stay
    return vae


class Scaled(nn.Module):
    """z ~ N(0, 1) and x ~ N(z, scale), with a guide whose scale is exp(log_scale)."""

    def __init__(self, scale=1.0, log_scale=0.0):
        super().__init__()
        self.scale, self.log_scale = scale, nn.Parameter(torch.tensor(log_scale))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        pyro.module("scaled", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, self.log_scale.exp()))


class Items(Dataset):
    """The rows of a tensor as a map-style dataset."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


class Stream(IterableDataset):
    """The same as an iterable one."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


def tiny_images(n=60):
    """8-bit images of 6 by 6 pixels."""
    return torch.randint(0, 256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
