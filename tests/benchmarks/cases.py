"""What is timed: networks and batches that contenders share, in plain torch, and the pair as Pyro's users write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_vae.data.loading import load

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """Training an architecture at a batch size (`num_samples` is 0), or importance sampling with K samples."""

    architecture: str
    batch_size: int = 0
    num_samples: int = 0

    def __str__(self) -> str:
        size = f"batch {self.batch_size}" if self.batch_size else f"K = {self.num_samples:,}"
        return f"{self.architecture}, {size}"


class Gated(nn.Module):
    """(A x + b) * sigmoid(C x + d)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.linear, self.gate = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gate(x).sigmoid()


def networks(architecture: str) -> tuple[nn.Module, nn.Module, int]:
    """Encoder (*, 784) -> (*, 2 latent), decoder (*, latent) -> (*, 784), and the size of the code."""
    if architecture == "dense 400-20":
        encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        return encoder, nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)), 20
    if architecture == "gated 300-300-40":
        encoder = nn.Sequential(Gated(784, 300), Gated(300, 300), nn.Linear(300, 80))
        return encoder, nn.Sequential(Gated(40, 300), Gated(300, 300), nn.Linear(300, 784)), 40
    encoder = nn.Sequential(
        nn.Unflatten(-1, (1, 28, 28)),
        nn.Conv2d(1, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 16),
        nn.ReLU(),
        nn.Linear(16, 40),
    )
    decoder = nn.Sequential(
        nn.Linear(20, 3136),
        nn.ReLU(),
        nn.Unflatten(-1, (64, 7, 7)),
        nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, 2, 1, 1),
        nn.ReLU(),
        nn.Conv2d(32, 1, 3, 1, 1),
        nn.Flatten(),
    )
    return encoder, decoder, 20


class Pair(nn.Module):
    """A VAE as a Pyro pair, with no class of this package."""

    def __init__(self, architecture: str):
        super().__init__()
        self.encoder, self.decoder, self.latent_size = networks(architecture)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            zeros = x.new_zeros(len(x), self.latent_size)
            z = pyro.sample("latent", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            mean, log_variance = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))

    def loss(self, x: Tensor) -> Tensor:
        """-ELBO of the batch by hand, in nats, with one draw from the guide."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(mean)
        z = mean + (0.5 * log_variance).exp() * noise
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return reconstruction + 0.5 * (z.square() - noise.square() - log_variance).sum()

    def log_weights(self, x: Tensor, num_samples: int) -> Tensor:
        """log p(x, z) - log q(z|x) by hand, shape (samples, data), in nats."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        noise = torch.randn(num_samples, *mean.shape)
        z = mean + (0.5 * log_variance).exp() * noise
        logits = self.decoder(z)
        log_p = (x * logits - F.softplus(logits)).sum(-1)
        return log_p - 0.5 * (z.square() - noise.square() - log_variance).sum(-1)


def images() -> Tensor:
    """The bundled digits, six times over: as many as MNIST has, uint8 (60,000, 784)."""
    return load("mnist-mini").train.flatten(1).repeat(6, 1)


def batches(data: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Rows of the data in a new random order each time around, without the last, shorter batch."""
    while True:
        for rows in torch.randperm(len(data)).split(batch_size):
            if len(rows) == batch_size:
                yield data.index_select(0, rows)


def binarized(levels: Tensor) -> Tensor:
    return (torch.rand(levels.shape) * 255 < levels).float()


def products(architecture: str) -> list[tuple[int, int]]:
    """(inputs, outputs) of every matrix product of the dense networks, the encoder's first."""
    encoder, decoder, _ = networks(architecture)
    linear = [m for net in (encoder, decoder) for m in net.modules() if isinstance(m, nn.Linear)]
    return [(m.in_features, m.out_features) for m in linear]


def convolutions(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
