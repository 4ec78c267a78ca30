"""Optimisers for SVI."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim import LBFGS, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ppl_vae.training.schedules import Schedule


class OneOptimizer(PyroOptim):
    """One torch optimiser for all parameters, as a `PyroOptim`.

    Pyro's own wrapper holds an optimiser for each tensor; one for all, fused, makes a step 1.3 to 1.4 times
    faster. Parameters that appear later join as a new group.

        svi = SVI(model, guide, OneOptimizer(torch.optim.Adam, lr=1e-3, fused=True), loss=Trace_ELBO())

    Arguments:
        constructor, kwargs: of the torch optimiser.
        schedule: of its learning rate: for `fit`, one of `ppl_vae.training.schedules`, in epochs; or the factor from
            the number of steps taken, such as `Cosine().by_step(1000)`.
        clip_norm: the largest norm of all gradients together; larger ones are scaled down to it.

    `get_state` and `set_state` carry everything that a run continues from, whether compiled or not.
    Raises `ValueError` unless clip_norm > 0.
    """

    def __init__(
        self,
        constructor: Callable[..., Optimizer],
        *,
        schedule: Schedule | Callable[[int], float] | None = None,
        clip_norm: float | None = None,
        **kwargs: Any,
    ):
        if clip_norm is not None and not (clip_norm > 0 and math.isfinite(clip_norm)):
            raise ValueError(f"clip_norm: expected a number above 0; got {clip_norm}")
        super().__init__(constructor, kwargs)
        self._make = lambda params: constructor(params, **kwargs)
        self._settings = f"{getattr(constructor, '__name__', constructor)}, {kwargs}"
        self.schedule, self.clip_norm, self.num_steps = schedule, clip_norm, 0
        self.optimizer: Optimizer | None = None
        self._factor: Callable[[int], float] | None = None if isinstance(schedule, Schedule) else schedule
        self._seen: set[Tensor] = set()
        self._base_lr: list[float] = []
        self._loaded: dict[str, Any] | None = None

    def __repr__(self) -> str:
        schedule = f", schedule={self.schedule}" if isinstance(self.schedule, Schedule) else ""
        return f"OneOptimizer({self._settings}, clip_norm={self.clip_norm}{schedule})"

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        params = list(params)
        self.join(params)
        if self.optimizer is None:
            return
        self.begin_step()
        given = set(params)  # a set already under SVI, in an order of its own: the norm's sum takes the optimiser's
        if self.clip_norm is not None:
            ours = [p for group in self.optimizer.param_groups for p in group["params"] if p in given]
            torch.nn.utils.clip_grad_norm_([p for p in ours if p.grad is not None], self.clip_norm)
        others = {p: p.grad for p in self._seen - given}  # momentum would move them, frozen ones among them
        for p in others:
            p.grad = None
        self.optimizer.step(*args, **kwargs)
        for p, grad in others.items():
            p.grad = grad

    def join(self, params: Sequence[Tensor]) -> None:
        """Parameters that are new become the optimiser's."""
        name_of = pyro.get_param_store().param_name
        # By name, for SVI hands over a set, whose order differs from run to run, while torch's state dict is by number.
        new = sorted((p for p in dict.fromkeys(params) if p not in self._seen), key=lambda p: name_of(p) or "")
        if not new:
            return
        self._seen.update(new)
        if self.optimizer is None:
            self.optimizer = self._make(new)
        else:
            self.optimizer.add_param_group({"params": new})
        self._base_lr += [group["lr"] for group in self.optimizer.param_groups[len(self._base_lr) :]]
        if self._loaded is not None and len(self._loaded["base_lr"]) == len(self._base_lr):
            self._load(self._loaded)

    def _load(self, state: dict[str, Any]) -> None:
        assert self.optimizer is not None
        if not _load_in_place(self.optimizer, state["optimizer"]):
            self.optimizer.load_state_dict(state["optimizer"])
        self._base_lr, self._loaded = list(state["base_lr"]), None

    def plan(self, num_steps: int, per_epoch: int, rows: Sequence[Mapping[str, float]], since: int) -> None:
        """Says what its schedule is over: see `Schedule.by_step`."""
        if isinstance(self.schedule, Schedule):
            self._factor = self.schedule.by_step(num_steps, per_epoch, rows, since)

    def begin_step(self) -> None:
        """Counts a step, and sets its learning rate. Raises `ValueError` for a schedule in epochs outside of `fit`."""
        assert self.optimizer is not None
        if self.schedule is not None:
            if self._factor is None:
                raise ValueError(
                    f"schedule: expected {self.schedule}.by_step(num_steps) outside of fit; got it as it is"
                )
            factor = self._factor(self.num_steps)
            for group, lr in zip(self.optimizer.param_groups, self._base_lr, strict=True):
                group["lr"] = factor * lr
        self.num_steps += 1

    def get_state(self) -> dict[str, Any]:
        """The number of steps and the torch optimiser's state dict."""
        if self.optimizer is None:
            return self._loaded or {"num_steps": self.num_steps, "base_lr": [], "optimizer": None}
        return {
            "num_steps": self.num_steps,
            "base_lr": list(self._base_lr),
            "optimizer": self.optimizer.state_dict(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state()`; the torch optimiser's part is loaded when the parameters are there."""
        self.num_steps, self._loaded = state["num_steps"], None
        if state["optimizer"] is None:
            return
        if self.optimizer is None:
            self._loaded = state
        else:
            self._load(state)


def _load_in_place(optimizer: Optimizer, state: dict[str, Any]) -> bool:
    """Writes a state into the tensors that the optimiser has, which a graph may hold; whether it could, since nothing
    differs but numbers and the learning rate."""

    def settings(group: dict[str, Any]) -> dict[str, Any]:
        others = {k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k not in ("params", "lr")}
        return others | {"params": len(group["params"])}

    groups, loaded = optimizer.param_groups, state["param_groups"]
    if [settings(group) for group in groups] != [settings(group) for group in loaded]:
        return False
    into = [optimizer.state.get(p, {}) for group in groups for p in group["params"]]
    values = [state["state"].get(i, {}) for group in loaded for i in group["params"]]
    for ours, theirs in zip(into, values, strict=True):
        if ours.keys() != theirs.keys() or not all(
            isinstance(t, Tensor) and isinstance(theirs[k], Tensor) and t.shape == theirs[k].shape
            for k, t in ours.items()
        ):
            return False
    for ours, theirs in zip(into, values, strict=True):
        for k, t in ours.items():
            t.copy_(theirs[k])
    for group, of_loaded in zip(groups, loaded, strict=True):
        group["lr"] = of_loaded["lr"]
    return True


def adam(learning_rate: float = 1e-3, *, weight_decay: float = 0.0, **options: Any) -> OneOptimizer:
    """Fused Adam over all parameters, with `weight_decay` apart from the gradient's moments (AdamW).

    Diederik P. Kingma, Jimmy Ba: Adam, 2014, arXiv:1412.6980. Ilya Loshchilov, Frank Hutter: Decoupled Weight Decay
    Regularization, 2017, arXiv:1711.05101. `options` are those of `OneOptimizer`.
    """
    if weight_decay:
        return OneOptimizer(torch.optim.AdamW, lr=learning_rate, weight_decay=weight_decay, fused=True, **options)
    return OneOptimizer(torch.optim.Adam, lr=learning_rate, fused=True, **options)


def pyro_optimizer(optim: PyroOptim | type[Optimizer] | None, learning_rate: float, **options: Any) -> PyroOptim:
    """The optimiser that `fit` is given: a `PyroOptim` itself; a class of torch.optim, or Adam for None, of that
    learning rate and with the options that are not None. Raises `ValueError` for another, and for an option beside
    a `PyroOptim`."""
    options = {name: value for name, value in options.items() if value is not None}
    if optim is None:
        return adam(learning_rate, **options)
    if isinstance(optim, type) and issubclass(optim, Optimizer):
        if issubclass(optim, LBFGS | SparseAdam):
            wants = "the loss again within a step" if issubclass(optim, LBFGS) else "sparse gradients"
            raise ValueError(f"optim: expected an optimiser of SVI; got {optim.__name__}, which wants {wants}")
        return OneOptimizer(optim, lr=learning_rate, **options)
    if not isinstance(optim, PyroOptim):
        is_torchs, name = isinstance(optim, Optimizer), type(optim).__name__
        got = f"an instance of {name}" if is_torchs else name
        remedy = f"OneOptimizer(torch.optim.{name if is_torchs else 'Adam'}, lr=1e-3)"
        raise ValueError(f"optim: expected a PyroOptim or a class of torch.optim; got {got}. Give {remedy}")
    for name in options:
        raise ValueError(f"{name}: expected it in the optimiser, adam(1e-3, {name}=...); got it beside one")
    return optim


def end_epoch(optim: PyroOptim, loss: float) -> None:
    """Steps a scheduler of `pyro.optim`, by the loss if it is one of plateaus; others have no epochs."""
    if isinstance(optim, PyroLRScheduler):
        optim.step(*[loss] * (optim.pt_scheduler_constructor is ReduceLROnPlateau))


def learning_rate_of(optim: PyroOptim) -> float | None:
    """The learning rate that it was made with, if that is one for all parameters.

    >>> learning_rate_of(adam(0.01)), learning_rate_of(pyro.optim.Adam({"lr": 0.1}))
    (0.01, 0.1)
    """
    return optim.pt_optim_args.get("lr") if isinstance(optim.pt_optim_args, dict) else None


def adam_of(optim: PyroOptim) -> Optimizer | None:
    """The torch optimiser of which `adam_update` is the step, if it is one."""
    optimizer = optim.optimizer if isinstance(optim, OneOptimizer) else None
    if optimizer is None or type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) > 1:
        return None
    return None if any(optimizer.param_groups[0].get(name) for name in ("amsgrad", "maximize")) else optimizer


def adam_rates(optimizer: Optimizer) -> Tensor:
    """The learning rate a of the step that comes, a / (1 - b1^t) and 1 / sqrt(1 - b2^t), of each parameter in
    `optimizer.state`: shape (3, params). In a graph they would be computed once for each weight."""
    (group,) = optimizer.param_groups
    b1, b2 = group["betas"]
    t = torch.stack([state["step"] for state in optimizer.state.values()]).double() + 1  # float32 rounds 1 - 0.999^t
    rates = torch.stack([torch.full_like(t, group["lr"]), group["lr"] / (1 - b1**t), (1 - b2**t).rsqrt()])
    return rates.to(functools.reduce(torch.promote_types, (p.dtype for p in optimizer.state)))


def adam_update(
    optimizer: Optimizer, params: list[Tensor], grads: list[Tensor], rates: Tensor, clip_norm: float | None = None
) -> None:
    """A step of Adam or AdamW on the optimiser's own state, in operations that fuse in a graph; `rates` are the
    `adam_rates` of it.

    For each parameter, with g its gradient, t its count of steps and a the learning rate,

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,
        p <- p - a / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps).
    """
    (group,) = optimizer.param_groups
    (b1, b2), eps, weight_decay = group["betas"], group["eps"], group["weight_decay"]
    rates_of = dict(zip(optimizer.state, rates.unbind(-1), strict=True))
    if clip_norm is not None:
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        grads = [grad * factor for grad in grads]
    for p, g in zip(params, grads, strict=True):
        state, (lr, rate, scale) = optimizer.state[p], rates_of[p].unbind()
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if weight_decay and (isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay")):
            p.mul_(1 - lr * weight_decay)
        elif weight_decay:
            g = g + weight_decay * p
        state["step"].add_(1)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        p.sub_(rate * m / (v.sqrt() * scale + eps))
