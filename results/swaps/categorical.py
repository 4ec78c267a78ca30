"""Trains and evaluates the categorical likelihood of the swaps, in three fifths of the time of `ppl-vae run swaps`.

    python results/swaps/categorical.py DATASET DATA_DIR OUTPUT

It writes the run folder OUTPUT/DATASET/likelihood-categorical/seed-0, or goes on with it. With results/swaps for
OUTPUT, `ppl-vae run swaps --output results` then takes it for its own and writes the tables.

The decoder's last layer has 256 outputs for each of 784 pixels, 160 MB of logits a batch, which a step writes to memory
and reads again a dozen times. Here the last product, its softmax and their gradients are taken for 16 pixels at a time,
whose logits stay in the cache. Each step's loss and gradients, and log p(x) at given weights, are the same to float32
rounding; trained weights differ as those of two machines do.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

import ppl_vae.evaluation.importance
import ppl_vae.training.fitting
from ppl_vae.data.loading import load
from ppl_vae.distributions import LevelCategorical
from ppl_vae.experiments import swaps
from ppl_vae.experiments.batch import train_and_evaluate
from ppl_vae.likelihoods import Categorical
from ppl_vae.networks import Shape

NAME, SEED, LEVELS, PIXELS = "likelihood-categorical", 0, 256, 16


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a b, by NumPy: its OpenBLAS is faster than torch's MKL at these shapes, by up to a third."""
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy(), out=None if out is None else out.numpy()))


class LogProb(torch.autograd.Function):
    """log p(x), (rows, pixels), of levels x of that shape, under logits h W^T + b with h (rows, hidden).

    The gradients are taken on the way, for a loss of minus the sum over rows and pixels.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, W: Tensor, b: Tensor, x: Tensor, with_grads: bool) -> Tensor:
        h, W, b = h.detach(), W.detach(), b.detach()
        log_p = torch.empty(x.shape)
        if with_grads:
            ctx.grads = h_grad, W_grad, b_grad = torch.zeros_like(h), torch.empty_like(W), torch.empty_like(b)
        for start in range(0, x.shape[1], PIXELS):
            pixels = slice(start, start + PIXELS)
            part = slice(LEVELS * start, LEVELS * (start + PIXELS))
            log_probs = product(h, W[part].T).add_(b[part]).view(len(h), -1, LEVELS).log_softmax(-1)
            index = x[:, pixels, None]
            log_p[:, pixels] = log_probs.gather(-1, index)[..., 0]
            if with_grads:
                grad = log_probs.exp_().scatter_add_(-1, index, torch.full(index.shape, -1.0)).view(len(h), -1)
                product(grad.T, h, out=W_grad[part])
                torch.sum(grad, 0, out=b_grad[part])
                h_grad += product(grad, W[part])
        return log_p

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        torch.testing.assert_close(grad_outputs[0], torch.full_like(grad_outputs[0], -1.0))
        grads, ctx.grads = ctx.grads, None
        return *grads, None, None


@dataclass
class Product:
    """h W^T + b of the last layer, of this shape, (..., levels), before it is taken."""

    h: Tensor
    layer: nn.Linear
    shape: Shape

    def reshape(self, *shape: int) -> Product:
        return Product(self.h, self.layer, shape)


class Levels(LevelCategorical):
    """`LevelCategorical` with a `Product` for logits."""

    def __init__(self, logits: Product):
        self.product, self._num_events = logits, LEVELS
        TorchDistribution.__init__(self, torch.Size(logits.shape[:-1]), validate_args=False)  # type: ignore[misc]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Levels:
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError(f"expected {self.batch_shape}; got {batch_shape}")
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        h, layer = self.product.h, self.product.layer
        x = value.expand(self.batch_shape).reshape(len(h), -1).long()
        return LogProb.apply(h, layer.weight, layer.bias, x, torch.is_grad_enabled()).reshape(self.batch_shape)  # type: ignore[no-untyped-call]

    @property
    def mean(self) -> Tensor:
        layer = self.product.layer
        return LevelCategorical(logits=_linear(layer, self.product.h).reshape(self.product.shape)).mean


_linear = nn.Linear.forward


def in_parts(num_pixels: int) -> None:
    """From here on, in this process, the last layer returns a `Product`, `Categorical` makes `Levels` of it, and
    nothing is compiled."""

    def linear(layer: nn.Linear, h: Tensor) -> Any:
        last = layer.out_features == num_pixels * LEVELS
        return Product(h, layer, (*h.shape[:-1], layer.out_features)) if last else _linear(layer, h)

    nn.Linear.forward = linear  # type: ignore[method-assign,assignment]
    Categorical.forward = lambda self, params: Levels(params)  # type: ignore[method-assign,assignment]
    for module in (ppl_vae.training.fitting, ppl_vae.evaluation.importance):
        module.repays = lambda num_steps, flops: False  # type: ignore[attr-defined]


def main(name: str, data_dir: Path, output: Path) -> None:
    config, dataset = swaps.SwapsConfig(), load(name, data_dir)
    model = dataclasses.replace(swaps.models_of(config, name)[NAME], seed=SEED)
    folder = output / name / NAME / f"seed-{SEED}"
    in_parts(math.prod(dataset.event_shape))
    train_and_evaluate(model, folder, swaps.sizes_of(config, dataset), dataset=dataset)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
