"""What a model is: a Pyro pair, its `model` p(x, z) and its `guide` q(z|x), side by side.

Every program takes the data x, shape (data, *event), then arguments batched with it, in a plate "data" at
dim -1. Particles may stand to the left of it. A network of several arguments sees them concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppl_vae.programs import Program


class PyroPair(nn.Module):
    """A model and a guide, which say what can be done with them.

    Class attributes: `has_log_p`, whether there is a p(x), and a prior to sample from; `labelled`, whether p(x|z) and
    q(z|x) depend on a label, so that z says the rest once the label is known; `needs_labels`, whether the programs take
    a label for each datum, always; `enumerates`, whether its objective is the ELBO with a class summed out;
    `has_real_latents`, whether z is a vector of real numbers, of whose space there are pictures.
    """

    has_log_p: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    enumerates: ClassVar[bool] = False
    has_real_latents: ClassVar[bool] = True

    model: Program
    guide: Program
    encode: Callable[..., TorchDistribution]
    decode: Callable[..., Tensor]
    reconstruct: Callable[..., Tensor]
    generate: Callable[..., TorchDistribution]

    @property
    def num_classes(self) -> int:
        """Of the labels; 0 for a model without."""
        return 0

    @property
    def programs(self) -> tuple[Program, Program]:
        """Model and guide for log p(x)."""
        return self.model, self.guide

    def initialise(self, x: Tensor, *labels: Tensor) -> None:
        """Takes from training data what starts from them: pseudo-inputs, and units. x (data, *event) is what the
        encoder sees of some of them; labels are those of all."""
        for part in self.children():
            for module in part.modules():
                if callable(initialise := getattr(module, "initialise", None)):
                    initialise(x)


class JointEncoder(nn.Module):
    """head([features(x), c]), of a datum x (*, *event) and a vector c (*, C), as the parameters of a distribution.

    `features` is any encoder, to (*, num_features), and `head` any network on vectors, from (*, num_features + C).
    """

    def __init__(self, features: nn.Module, head: nn.Module):
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.head(concatenate(self.features(x), c))


def concatenate(a: Tensor, b: Tensor) -> Tensor:
    """Vectors (*, A) and (*, B) to (*, A + B), where the leading dimensions broadcast."""
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*batch, -1), b.expand(*batch, -1)], -1)
