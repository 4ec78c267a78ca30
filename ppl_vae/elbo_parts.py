"""The ELBO in its two parts: ELBO = reconstruction - KL."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.distributions import kl_divergence
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    seeded,
)


class ElboParts(NamedTuple):
    """The ELBO's two parts for each datum, in nats, shape (data,): ELBO = reconstruction - kl."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        return self.reconstruction - self.kl


def elbo_parts(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_samples: int = 1,
    seed: int = 0,
    chunk: int = 512,
) -> ElboParts:
    """E_q[log p(x|z)] and KL(q(z|x) || p(z)) for each datum, in nats, by `num_samples` draws from the guide.

    A latent site's KL is in closed form where there is one for the two distributions (given the latent sites
    above it), else the same draws' mean of log q - log p. Programs run in evaluation mode, on `chunk` data at a
    time. For a guide without latent sites (an autoencoder) the KL is 0.

    Raises `ValueError` for a site that is masked or not independent per datum.
    """
    with seeded(seed), evaluating(model, guide):
        chunks = zip(*(t.split(chunk) for t in (x, *args)), strict=True)
        parts = [_elbo_parts(model, guide, *data, num_samples=num_samples) for data in chunks]
    return ElboParts(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _elbo_parts(model: Program, guide: Program, *data: Tensor, num_samples: int) -> ElboParts:
    shape = (num_samples, len(data[0]))
    guide_trace = guide_trace_of(guide, *data, num_samples=num_samples)
    model_trace = model_trace_of(model, guide_trace, *data, num_samples=num_samples)
    log_p, log_q = log_prob_per_datum(model_trace, shape), log_prob_per_datum(guide_trace, shape)
    reconstruction = sum(log_p[name] for name in sample_sites(model_trace, observed=True))
    kl = torch.zeros(shape, device=data[0].device)
    for name, q in sample_sites(guide_trace, observed=False).items():
        try:
            kl = kl + kl_divergence(q["fn"], model_trace.nodes[name]["fn"]).expand(shape)
        except NotImplementedError:
            kl = kl + log_q[name] - log_p[name]
    assert isinstance(reconstruction, Tensor)
    return ElboParts(reconstruction.mean(0), kl.mean(0))
