"""`fit`, compiled for one seed of several, against a training loop written by hand in plain torch."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit

SHAPE, LATENT, EPOCHS, BATCH, SEEDS = (1, 5, 5), 2, 15, 20, range(4)


def train_by_hand(encoder: nn.Module, decoder: nn.Module, x: torch.Tensor) -> None:
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(EPOCHS):
        for batch in x[torch.randperm(len(x))].split(BATCH):
            mean, log_variance = encoder(batch).chunk(2, -1)
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            logits = decoder(z)[..., 0]
            reconstruction = -F.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            log_p = -z.square().sum() / 2
            log_q = -((z - mean).square() / log_variance.exp() + log_variance).sum() / 2
            adam.zero_grad()
            (log_q - log_p - reconstruction).backward()
            adam.step()


def test_the_same_test_log_likelihood_after_the_same_number_of_steps(graphs: list[object]) -> None:
    """Means over seeds, with noise of their own, within three standard errors; and both have learned a lot."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(280, LATENT, generator=generator)
    x = (2 * z @ torch.randn(LATENT, 25, generator=generator)).sigmoid().bernoulli(generator=generator)
    train, test = x.reshape(-1, *SHAPE).split([200, 80])
    config = TrainConfig(model="dense-vae", latent_size=LATENT, hidden=(16,))

    def test_log_p(vae: nn.Module) -> float:
        return log_likelihood(vae.model, vae.guide, test, num_samples=100).mean

    ours, by_hand, untrained = [], [], []
    for seed in SEEDS:
        vae, other = build(config, SHAPE), build(config, SHAPE)
        untrained.append(test_log_p(vae))
        fit(vae.model, vae.guide, train, epochs=EPOCHS, batch_size=BATCH, learning_rate=1e-2, seed=seed,
            compiled=seed == 0, show_progress=False)  # fmt: skip
        with seeded(1000 + seed):
            train_by_hand(other.encoder, other.decoder, train)
        ours.append(test_log_p(vae))
        by_hand.append(test_log_p(other))
    a, b = torch.tensor(ours), torch.tensor(by_hand)
    se = math.sqrt((a.var() + b.var()).item() / len(SEEDS))
    assert abs(a.mean() - b.mean()) < 3 * se
    assert a.mean() > sum(untrained) / len(untrained) + 3 * se + 1
