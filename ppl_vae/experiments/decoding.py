"""What a run makes of latents and of noisy images: pictures, as brightness in [0, 1]."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl_vae.experiments.runs import Run
from ppl_vae.programs import evaluating, seeded


def restore(run: Run, noisy: Tensor, *, chunk: int = 512) -> Tensor:
    """The model's reconstruction of noisy images in [0, 1], shape (data, C, H, W), as brightness in [0, 1]. A model
    that takes labels sees those of the test images."""
    seen = (run.observe.for_encoder(noisy), *run.test_labels(len(noisy)))
    with evaluating(run.model.model):
        chunks = zip(*(t.split(chunk) for t in seen), strict=True)
        return torch.cat([run.observe.encoding.grey(run.model.reconstruct(*part)) for part in chunks])


def generate(run: Run, num_samples: int) -> TorchDistribution:
    """p(x|z) for z from the prior, batch shape (num_samples, *event), of a model that takes labels for each class in
    turn. Raises `ValueError` for an autoencoder."""
    if not run.model.has_log_p:
        raise ValueError(f"{run.config.model}: expected a VAE; got an autoencoder, which has no prior to sample from")
    return run.model.generate(num_samples)


def sample_images(run: Run, num_images: int, *, seed: int = 0) -> Tensor:
    """E[x|z] for z from the prior, as brightness in [0, 1], shape (num_images, C, H, W); see `generate`."""
    with seeded(seed), evaluating(run.model.model):
        return run.observe.encoding.grey(generate(run, num_images).mean)


def sample_data(run: Run, num_data: int, *, seed: int = 0) -> Tensor:
    """x ~ p(x|z) for z from the prior, shape (num_data, *event); see `generate`."""
    with seeded(seed), evaluating(run.model.model):
        return generate(run, num_data).sample()


def encode(run: Run, grey: Tensor) -> Tensor:
    """E_q[z|x], of the top layer if there are two, shape (data, latent), of images in [0, 1], (data, C, H, W), for a
    model without labels."""
    with evaluating(run.model.model):
        return run.model.encode(run.observe.for_encoder(grey)).mean


def decode(run: Run, z: Tensor) -> Tensor:
    """E[x|z] as brightness in [0, 1], shape (*, C, H, W), of latents (*, latent), for a model without labels."""
    with evaluating(run.model.model):
        return run.observe.encoding.grey(run.model.decode(z))
