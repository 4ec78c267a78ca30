"""Schedules of the learning rate, by name: functions of where a training is."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

from ppl_vae.components import Component
from ppl_vae.training.history import monitored


class Moment(NamedTuple):
    """Where a training is, before a step: the share `done` of its steps after the warm-up, in [0, 1]; the `epochs` that
    are done, with the part of this one; and the history's `rows` of the whole ones, from that on which counts."""

    done: float
    epochs: float
    rows: Sequence[Mapping[str, float]]


class Schedule(Component, ABC):
    """The factor of the learning rate, at most 1: `fit(..., schedule=Cosine())`.

    Subclass it to add one: `schedule(moment)` is a function of the moment alone, so that a run that resumes has
    nothing to restore. Attributes: `warm_up`, the steps in which the factor rises from 0 at first.
    """

    warm_up: int = 0

    @abstractmethod
    def __call__(self, now: Moment) -> float: ...

    def warmed(self, num_steps: int) -> Self:
        """The same after a warm-up: the factor rises from 0, on a line, in the first `num_steps` steps."""
        other = copy.copy(self)
        other.warm_up = num_steps
        return other

    def by_step(
        self, num_steps: int, per_epoch: int | None = None, rows: Sequence[Mapping[str, float]] = (), since: int = 0
    ) -> Callable[[int], float]:
        """The factor from the number of steps taken, of `num_steps` in all: what an optimiser wants outside of `fit`.

        Arguments:
            per_epoch: steps; by default all are one epoch.
            rows: of the history, as it grows; those of the first `since` epochs don't count.

        Raises `ValueError` unless 0 <= warm_up < num_steps.
        """
        warm_up = self.warm_up
        if not 0 <= warm_up < num_steps:
            raise ValueError(f"schedule: expected 0 <= warm_up < num_steps; got {warm_up} and {num_steps}")

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            done = min(1.0, (step - warm_up) / (num_steps - warm_up))
            return self(Moment(done, step / (per_epoch or num_steps), rows[since:]))

        return factor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


class Constant(Schedule):
    """1 throughout."""

    def __call__(self, now: Moment) -> float:
        return 1.0


class Cosine(Schedule):
    """From 1 to 0 at the end of training, by half a cosine.

    Ilya Loshchilov, Frank Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, 2016, arXiv:1608.03983.

    >>> [round(Cosine().by_step(4)(step), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def __call__(self, now: Moment) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * now.done)


class Linear(Schedule):
    """From 1 to 0 at the end of training, on a line.

    >>> [Linear().warmed(1).by_step(5)(step) for step in range(6)]
    [1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __call__(self, now: Moment) -> float:
        return 1 - now.done


class Steps(Schedule):
    """Times `factor` after each of the epochs `at`.

    The schedule of the importance-weighted autoencoder, 3^i epochs at 10^(-i/7) for i = 0, ..., 7, 3,280 together, is
    `Steps(at=(1, 4, 13, 40, 121, 364, 1093), factor=0.7197)`: Yuri Burda, Roger Grosse, Ruslan Salakhutdinov:
    Importance Weighted Autoencoders, 2015, arXiv:1509.00519.
    Raises `ValueError` unless the epochs are at least 1, and 0 < factor < 1.

    >>> [Steps(at=(1, 3), factor=0.5)(Moment(0, epochs, [])) for epochs in (0, 0.9, 1, 2, 3, 9)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(self, at: tuple[int, ...] = (100, 200), factor: float = 0.1):
        if not at or min(at) < 1:
            raise ValueError(f"schedule steps: expected epochs from 1; got at={at}")
        self.at, self.factor = at, _between(0, factor, 1, "schedule steps: factor")

    def __call__(self, now: Moment) -> float:
        return self.factor ** sum(now.epochs >= epoch for epoch in self.at)


class Plateau(Schedule):
    """Times `factor` whenever the monitored ELBO, that of the validation data where there are some, has not been better
    than its best for `patience` epochs; they are counted anew then. Epochs of the KL's warm-up do not count.

    Raises `ValueError` unless patience >= 1 and 0 < factor < 1.

    >>> rows = [{"validation_elbo": elbo} for elbo in (-9.0, -7.0, -8.0, -7.0, -8.0, -8.0)]
    >>> [Plateau(patience=2, factor=0.5)(Moment(0, n, rows[:n])) for n in range(7)]
    [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, patience: int = 10, factor: float = 0.5):
        if patience < 1:
            raise ValueError(f"schedule plateau: expected patience >= 1; got {patience}")
        self.patience, self.factor = patience, _between(0, factor, 1, "schedule plateau: factor")

    def __call__(self, now: Moment) -> float:
        best, waited, factor = -math.inf, 0, 1.0
        for row in now.rows:
            if (elbo := monitored(row)) > best:
                best, waited = elbo, 0
            else:
                waited += 1
            if waited == self.patience:
                factor, waited = factor * self.factor, 0
        return factor


def _between(least: float, value: float, most: float, name: str) -> float:
    if not least < value < most:
        raise ValueError(f"{name}: expected a number between {least} and {most}; got {value}")
    return value
