"""An exponential moving average of weights as training changes them: it evens out the noise of the last steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Average:
    """The mean of tensors over the steps of a training, of weights that fall by `decay` for each step back: after step
    t, of values w_1, ..., w_t,

        a_t = sum_s decay^(t - s) w_s / sum_s decay^(t - s),    s = 1, ..., t,

    which has no part of where they began. It reaches about 1 / (1 - decay) steps back. BatchNorm's running statistics
    are averaged as weights are; what is not of floats, such as its count, is that of step t.

    Boris T. Polyak, Anatoli B. Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992.
    Attributes: `tensors`, by module and name, None before the first step. Raises `ValueError` unless 0 < decay < 1.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay: expected a number between 0 and 1; got {decay}")
        self.decay = decay
        self.tensors: list[dict[str, Tensor]] | None = None

    @torch.no_grad()
    def update(self, now: Sequence[Mapping[str, Tensor]], num_steps: int) -> None:
        """Takes in the tensors after `num_steps` steps."""
        if self.tensors is None or num_steps == 1:
            self.tensors = [{name: t.detach().clone() for name, t in tensors.items()} for tensors in now]
            return
        rate = (1 - self.decay) / (1 - self.decay**num_steps)
        pairs = [(a[name], t) for a, tensors in zip(self.tensors, now, strict=True) for name, t in tensors.items()]
        floats = [(a, t) for a, t in pairs if t.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [t.detach() for _, t in floats], rate)
        for a, t in pairs:
            if not t.is_floating_point():
                a.copy_(t)
