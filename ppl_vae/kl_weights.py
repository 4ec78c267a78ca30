"""Weights of the KL in training: beta in E_q[log p(x|z)] - beta KL(q(z|x) || p(z)), constant or by schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ppl_vae.components import Component


class KLWeight(Component, nn.Module, ABC):
    """beta >= 0, a tensor of shape (). `forward()` returns the beta of this gradient step and, in training mode,
    advances to the next step.

    Subclass it to add one: `beta(step)` takes the number of steps before this one, an int64 tensor of shape (),
    and does not branch on its value. The count is a buffer, as BatchNorm's is: it is saved with the state, and a
    compiled step counts on.
    """

    step: Tensor
    warm_up: int = 0  # steps until beta stays: what waits for a better ELBO begins to count there

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def beta(self, step: Tensor) -> Tensor: ...

    def begin(self, num_steps: int) -> None:
        """Is told how many steps an epoch has, before the first."""

    def forward(self) -> Tensor:
        beta = self.beta(self.step)
        if self.training:
            self.step.add_(1)
        return beta


class Constant(KLWeight):
    """beta at every step: the beta-VAE, and the ELBO at beta = 1.

    Irina Higgins et al.: beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, ICLR
    2017. Raises `ValueError` unless beta >= 0 and finite.
    """

    def __init__(self, beta: float = 1.0):
        super().__init__()
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"kl weight constant: expected beta >= 0; got {beta}")
        self.value = beta

    def beta(self, step: Tensor) -> Tensor:
        return torch.full_like(step, self.value, dtype=torch.get_default_dtype())

    def extra_repr(self) -> str:
        return f"beta={self.value}"


class LinearWarmUp(KLWeight):
    """beta = min(1, t / steps) at step t = 0, 1, ...: from 0 to 1, and 1 from step `steps` on. With `epochs`, the steps
    are those of so many epochs, as `fit` counts them.

    Samuel R. Bowman et al.: Generating Sentences from a Continuous Space, 2016, arXiv:1511.06349.
    Casper Kaae Sønderby et al.: Ladder Variational Autoencoders, 2016, arXiv:1602.02282.
    Raises `ValueError` unless steps >= 1 and epochs >= 0.
    """

    def __init__(self, steps: int = 10_000, epochs: int = 0):
        super().__init__()
        if steps < 1:
            raise ValueError(f"kl weight linear-warm-up: expected steps >= 1; got {steps}")
        if epochs < 0:
            raise ValueError(f"kl weight linear-warm-up: expected epochs >= 0; got {epochs}")
        self.warm_up, self.epochs = steps, epochs

    def begin(self, num_steps: int) -> None:
        if self.epochs:
            self.warm_up = self.epochs * num_steps

    def beta(self, step: Tensor) -> Tensor:
        return (step / self.warm_up).clamp(max=1)

    def extra_repr(self) -> str:
        return f"epochs={self.epochs}" if self.epochs else f"steps={self.warm_up}"


class CyclicalWarmUp(KLWeight):
    """A linear warm-up over the first part `rise` of each cycle, then 1 until the next: at step t = 0, 1, ...

        beta = min(1, tau / rise),    tau = (t mod steps_per_cycle) / steps_per_cycle.

    The cycles repeat until training ends; the paper has four, with rise = 1/2.
    Hao Fu et al.: Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing, 2019,
    arXiv:1903.10145. Raises `ValueError` unless steps_per_cycle >= 1 and 0 < rise <= 1.
    """

    def __init__(self, steps_per_cycle: int = 10_000, rise: float = 0.5):
        super().__init__()
        if steps_per_cycle < 1:
            raise ValueError(f"kl weight cyclical-warm-up: expected steps_per_cycle >= 1; got {steps_per_cycle}")
        if not 0 < rise <= 1:
            raise ValueError(f"kl weight cyclical-warm-up: expected 0 < rise <= 1; got {rise}")
        self.steps_per_cycle, self.rise = steps_per_cycle, rise

    def beta(self, step: Tensor) -> Tensor:
        return (step % self.steps_per_cycle / (self.rise * self.steps_per_cycle)).clamp(max=1)

    def extra_repr(self) -> str:
        return f"steps_per_cycle={self.steps_per_cycle}, rise={self.rise}"
