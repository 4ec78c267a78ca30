"""Compiled SVI: the step of any Pyro pair as a graph (`ppl_vae.graphs`).

Pyro's handlers run when a step is traced and never again: what is left is the tensor program, forward and backward
and, in `fit`, with the optimiser in it. `torch.compile` straight on the loss breaks at every handler and gains nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ppl_vae import graphs  # for the constant, which is looked up when it is used
from ppl_vae.graphs import Replay, Tensors, flop_counter, layout, uncompiled
from ppl_vae.objectives import Elbo, Objective
from ppl_vae.programs import Program, modules_of
from ppl_vae.training.optimizers import OneOptimizer, adam_of, adam_update


class _Params:
    """The parameters that a program declares, by name: leaves of autograd, in the order of their statements."""

    def __init__(self) -> None:
        self.leaves: dict[str, Tensor] = {}

    def capture(self) -> AbstractContextManager:
        return _Capture(self)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(dict.fromkeys(self.leaves.values()))  # once each: modules may share a parameter

    def declare(self) -> bool:
        """Shows them to Pyro as the program would; whether they are the ones that were captured."""
        store = pyro.get_param_store()
        return all(name in store and pyro.param(name).unconstrained() is leaf for name, leaf in self.leaves.items())


class _Capture(poutine.trace_messenger.TraceMessenger):
    def __init__(self, params: _Params):
        super().__init__(param_only=True)
        self.params = params

    def __exit__(self, *args: Any) -> Any:
        self.params.leaves = {name: site["value"].unconstrained() for name, site in self.trace.nodes.items()}
        return super().__exit__(*args)


class CompiledTrace_ELBO(ELBO):
    """An objective, compiled: used as Pyro's `JitTrace_ELBO` is, with any pair and any optimiser.

        svi = SVI(model, guide, adam(1e-3), loss=CompiledTrace_ELBO())

    The first call for each shape and state of the modules (mode of training, which parameters are trained) runs as it
    is, with Pyro's validation if that is on; the second is traced, and the next are replayed. Another than the first is
    compiled when it has come 200 times. A float that the program changes from step to step has to be a tensor: a trace
    takes its value once and for all. Where tracing fails, or there is no C++ compiler, it says so once and goes on
    uncompiled, with the same results.

    `objective` is `Elbo()` (Pyro's `Trace_ELBO`), or another of `ppl_vae.objectives`.
    """

    def __init__(self, objective: Objective | None = None):
        super().__init__()
        self.objective = objective or Elbo()
        self._calls: dict[Hashable, tuple[int, _Params]] = {}  # how many ran as they are, and what the last declared
        self._replays: dict[Hashable, tuple[Replay, _Params, list[Tensor]]] = {}
        self._failed = False

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return self.objective.differentiable_loss(model, guide, *args, **kwargs)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without gradients, not compiled."""
        return self.objective.loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, a tensor of shape () that nobody has waited for; gradients are added to the
        parameters'."""
        key, tensors, call = _keyed(model, guide, self.objective, args, kwargs)
        if key in self._replays:
            replay, params, with_grads = self._replays[key]
            if params.declare():
                try:
                    loss, *grads = replay(*tensors)
                except Exception as error:
                    del self._replays[key]
                    self._fail(error)
                    return self._eager(model, guide, *args, **kwargs)
                _accumulate(with_grads, grads)
                return loss
            del self._replays[key]
        count, params = self._calls.get(key, (0, _Params()))
        wanted = 1 if not self._replays else graphs.CALLS_BEFORE_ANOTHER_SHAPE
        # In another param store parameters are made anew, which must not become part of a graph.
        if self._failed or count < wanted or not params.declare():
            params = _Params()
            with params.capture():
                loss = self._eager(model, guide, *args, **kwargs)
            self._calls[key] = count + 1, params
            return loss
        return self._trace(key, model, guide, tensors, call)

    def _get_trace(self, *args: Any) -> Any:
        return self.objective._get_trace(*args)

    def _eager(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.objective.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def _trace(self, key: Hashable, model: Program, guide: Program, tensors: list[Tensor], call: Callable) -> Tensor:
        params = _Params()
        with_grads: list[Tensor] = []

        def step(*tensors: Tensor) -> Tensors:
            args, kwargs = call(tensors)
            with params.capture(), pyro.validation_enabled(False):
                loss = self.objective.differentiable_loss(model, guide, *args, **kwargs)
            leaves, grads = gradients(loss, params)
            with_grads[:] = leaves
            return loss.detach(), *grads

        args, kwargs = call(tensors)
        state = _State(model, guide, self.objective)
        try:
            replay = Replay(step, *tensors)
        except Exception as error:
            state.restore()
            self._fail(error)
            return self._eager(model, guide, *args, **kwargs)
        self._replays[key] = replay, params, with_grads
        loss, *grads = replay.first
        _accumulate(with_grads, grads)
        return loss

    def _fail(self, error: Exception) -> None:
        self._failed = True
        warnings.warn(uncompiled(error), RuntimeWarning, stacklevel=4)


class Step:
    """A step of training, with the optimiser in it: `step(*batch)` is the loss in nats, a tensor of shape () that
    nobody has waited for.

    The first call runs as it is; with `compiled`, the second is traced and batches of its shape are replayed. Of
    optimisers Adam and AdamW are part of the graph, unless they are told to do more than the papers; others run on
    its gradients. Where there is no graph it says so once and goes on uncompiled, with the same results.

    Attributes: `flops`, the floating-point operations of the first step's products and convolutions.
    """

    def __init__(self, model: Program, guide: Program, objective: ELBO, optim: PyroOptim, *, compiled: bool = False):
        self.model, self.guide, self.objective, self.optim = model, guide, objective, optim
        self.compiled = compiled
        self.params = _Params()
        self.flops = 0
        self._replay: tuple[Hashable, Replay, list[Tensor], Optimizer | None, Any] | None = None
        self._lr = torch.zeros((), dtype=torch.float64)

    def __call__(self, *batch: Tensor) -> Tensor:
        if not self.params.leaves:
            with flop_counter() as flops:
                loss = self._eager(*batch)
            self.flops = flops.get_total_flops()
            return loss
        if not (self.compiled and isinstance(self.objective, Objective)):
            return self._eager(*batch)
        key, tensors, _ = _keyed(self.model, self.guide, self.objective, batch, {})
        if self._replay is None:
            return self._trace(key, *batch)
        if self._replay[0] != key:
            return self._eager(*batch)
        _, replay, with_grads, adam, state = self._replay
        if adam is not None and adam.state is not state:  # loaded, into other tensors than the graph's
            return self._trace(key, *batch)
        if adam is not None:
            self._begin_step(adam)
        try:
            loss, *grads = replay(*tensors)
        except Exception as error:
            self._fail(error)
            if adam is not None:
                self.optim.num_steps -= 1  # counted, and not taken
            return self._eager(*batch)
        if adam is None:
            self._update(with_grads, grads)
        return loss

    def _eager(self, *batch: Tensor) -> Tensor:
        params = _Params()
        with params.capture():
            if isinstance(self.objective, Objective):
                loss = self.objective.differentiable_loss(self.model, self.guide, *batch)
                if loss.requires_grad:
                    loss.backward()
                loss = loss.detach()
            else:
                loss = torch.as_tensor(self.objective.loss_and_grads(self.model, self.guide, *batch))
        self.params.leaves |= params.leaves
        self._step_optimizer(list(params))
        return loss

    def _trace(self, key: Hashable, *batch: Tensor) -> Tensor:
        params = _Params()
        with_grads: list[Tensor] = []
        adam = adam_of(self.optim)
        state = _State(self.model, self.guide, self.objective, optim=self.optim)

        def step(*batch: Tensor) -> Tensors:
            with params.capture(), pyro.validation_enabled(False):
                loss = self.objective.differentiable_loss(self.model, self.guide, *batch)
            leaves, grads = gradients(loss, params)
            with_grads[:] = leaves
            if adam is None:
                return loss.detach(), *grads
            with torch.no_grad():
                adam_update(adam, leaves, grads, self._lr, self.optim.clip_norm)
            return (loss.detach(),)

        if adam is not None:
            self._begin_step(adam)
        try:
            replay = Replay(step, *batch)
        except Exception as error:
            state.restore()
            self._fail(error)
            return self._eager(*batch)
        self._replay = key, replay, with_grads, adam, None if adam is None else adam.state
        if adam is None:
            self._update(with_grads, replay.first[1:])
        return replay.first[0]

    def _begin_step(self, adam: Optimizer) -> None:
        self.optim.begin_step()
        self._lr.fill_(adam.param_groups[0]["lr"])

    def _update(self, params: list[Tensor], grads: Any) -> None:
        _accumulate(params, grads)
        self._step_optimizer(params)

    def _step_optimizer(self, params: list[Tensor]) -> None:
        if params:
            self.optim(params)
        for p in params:
            p.grad = None

    def _fail(self, error: Exception) -> None:
        self.compiled = False
        warnings.warn(uncompiled(error), RuntimeWarning, stacklevel=4)


def gradients(loss: Tensor, params: _Params) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that the loss has a gradient in, and the gradients."""
    if not loss.requires_grad:
        return [], []
    leaves = [p for p in params if p.requires_grad]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    pairs = [(p, grad) for p, grad in zip(leaves, grads, strict=True) if grad is not None]
    return [p for p, _ in pairs], [grad for _, grad in pairs]


class _State:
    """What a failed trace may have changed: random generators, buffers, and the optimiser's state."""

    def __init__(self, model: Program, guide: Program, objective: ELBO, *, optim: PyroOptim | None = None):
        modules = all_modules(model, guide, objective)
        self.tensors = [t for module in modules for t in module.buffers()]
        self.optim = optim if isinstance(optim, OneOptimizer) else None
        if self.optim is not None and self.optim.optimizer is not None:
            self.num_steps = self.optim.num_steps
            for p, state in self.optim.optimizer.state.items():
                self.tensors += [p, *(t for t in state.values() if isinstance(t, Tensor))]
        self.values = [t.detach().clone() for t in self.tensors]
        self.rng = torch.random.get_rng_state()

    @torch.no_grad()
    def restore(self) -> None:
        torch.random.set_rng_state(self.rng)
        for t, value in zip(self.tensors, self.values, strict=True):
            t.copy_(value)
        if self.optim is not None:
            self.optim.num_steps = self.num_steps


def all_modules(model: Program, guide: Program, objective: ELBO) -> list[nn.Module]:
    """The programs' modules, and the objective's weight of the KL, which counts steps."""
    kl_weight = getattr(objective, "kl_weight", None)
    return [*modules_of(model, guide), *([] if kl_weight is None else [kl_weight])]


def _keyed(
    model: Program, guide: Program, objective: ELBO, args: Any, kwargs: Any
) -> tuple[Hashable, list[Tensor], Callable]:
    """What a graph is good for, the tensors that it takes, and the arguments of the programs from such tensors."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    shapes = tuple(layout(t) if isinstance(t, Tensor) else (type(t), t) for t in leaves)
    modules = tuple(_state_of(m) for module in all_modules(model, guide, objective) for m in module.modules())

    def call(tensors: Any) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return (model, guide, str(spec), shapes, modules, _torch_settings()), tensors, call


def _state_of(module: nn.Module) -> Hashable:
    """What of a module alone a graph hangs on: its mode, which tensors it has, and which of them are trained."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    return module.training, *((id(t), t.dtype, t.requires_grad) for t in tensors if t is not None)


def _torch_settings() -> Hashable:
    autocast = tuple(torch.get_autocast_dtype(d) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))
    return torch.is_grad_enabled(), torch.get_default_dtype(), autocast


def _accumulate(params: list[Tensor], grads: Any) -> None:
    """As `backward` does: a graph's gradients may be views of one another, while clipping writes to them, and fused
    optimisers take them to lie in memory as the parameter does."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = torch.empty_like(p).copy_(grad) if p.grad is None else p.grad + grad
