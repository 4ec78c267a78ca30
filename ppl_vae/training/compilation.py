"""Compiled SVI: the step of any Pyro pair as a graph (`ppl_vae.graphs`).

Pyro's handlers run when a step is traced and never again: what is left is the tensor program, forward and backward
and, in `fit`, with the optimiser in it. `torch.compile` straight on the loss breaks at every handler and gains nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ppl_vae.graphs import Graph, Graphs, Replay, Tensors, flop_counter, layout
from ppl_vae.objectives import Elbo, Objective
from ppl_vae.programs import Program
from ppl_vae.system.places import Constants, kept, modules_of
from ppl_vae.training.optimizers import OneOptimizer, adam_of, adam_rates, adam_update


class Params:
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
    def __init__(self, params: Params):
        super().__init__(param_only=True)
        self.params = params

    def __exit__(self, *args: Any) -> Any:
        self.params.leaves = {name: site["value"].unconstrained() for name, site in self.trace.nodes.items()}
        return super().__exit__(*args)


class _Used:
    """What the programs and the objective use besides their arguments: their modules, and their `Constants`."""

    def __init__(self, model: Program, guide: Program, objective: ELBO):
        self.modules = all_modules(model, guide, objective)
        self.constants = Constants(model, guide, objective)

    def kept(self, *optim: PyroOptim) -> Callable[[], None]:
        """A function that writes back what a step may change."""
        buffers = (buffer for module in self.modules for buffer in module.buffers())
        write_tensors = kept(itertools.chain(buffers, *map(_moments, optim)))
        write_constants = self.constants.kept()

        def write() -> None:
            write_constants()
            write_tensors()

        return write


class CompiledTrace_ELBO(ELBO):
    """An objective, compiled: used as Pyro's `JitTrace_ELBO` is, with any pair and any optimiser.

        svi = SVI(model, guide, adam(1e-3), loss=CompiledTrace_ELBO())

    The first call for each shape and state of the modules (mode of training, which parameters are trained) runs as it
    is, with Pyro's validation if that is on; the second is traced, and the next are replayed. Another shape or state
    than the first is compiled when it has come 200 times. Where tracing fails, there is no C++ compiler, or a number
    changes that the programs find in an attribute, a global or a captured variable, of which a trace makes a constant,
    or another tensor takes the place of one there, it warns once and runs uncompiled, with the same results.

    `objective` is `Elbo()` (Pyro's `Trace_ELBO`), or another of `ppl_vae.objectives`.
    """

    def __init__(self, objective: Objective | None = None):
        super().__init__()
        self.objective = objective or Elbo()
        self._graphs = Graphs()
        self._params: dict[Hashable, Params] = {}  # what the last uncompiled call of each key declared
        self._used: dict[Hashable, _Used] = {}

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return self.objective.differentiable_loss(model, guide, *args, **kwargs)

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, without gradients, not compiled."""
        return self.objective.loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, a 0-d tensor, not yet synchronised with the device; gradients are added to the
        parameters'."""
        used = self._used.get((model, guide)) or _Used(model, guide, self.objective)
        if not self._graphs.failed and (changed := used.constants.changed()):
            self._graphs.fail(changed)
        key, tensors, call = _keyed(model, guide, used, args, kwargs)

        def eager() -> Tensor:
            self._params[key] = Params()
            with self._params[key].capture():
                return _backward(self.objective, model, guide, args, kwargs)

        def trace() -> Graph:
            params, with_grads = Params(), list[Tensor]()

            def step(*tensors: Tensor) -> Tensors:
                args, kwargs = call(tensors)
                loss, with_grads[:], grads = gradients(self.objective, model, guide, params, args, kwargs)
                return loss, *grads

            def added(loss: Tensor, *grads: Tensor) -> Tensor:
                _accumulate(with_grads, grads)
                return loss

            replay = Replay(step, *tensors)
            used.constants.are_in_graph(replay.constants)
            return Graph(added(*replay.first), lambda *tensors: added(*replay(*tensors)), params.declare)

        # In another param store parameters are made anew, which must not become part of a graph.
        is_ready = lambda: self._params[key].declare()  # noqa: E731
        loss = self._graphs.call(key, tensors, eager, trace, keep=used.kept, is_ready=is_ready)
        if (model, guide) not in self._used:  # the first call may set what is set once
            self._used[model, guide] = _Used(model, guide, self.objective)
        return loss

    def _get_trace(self, *args: Any) -> Any:
        return self.objective._get_trace(*args)


class Step:
    """A step of training, with the optimiser in it: `step(*batch)` is the loss in nats, a 0-d tensor, not yet
    synchronised with the device.

    The first call runs as it is; with `compiled`, the next of its shape is traced, and those after that are replayed;
    another shape, such as that of a shorter last batch, is not. Of optimisers Adam and AdamW are part of the graph,
    unless they have options beyond the papers'; others run on its gradients. Where there is no graph it warns once and
    runs uncompiled, with the same results.

    Attributes: `flops`, the floating-point operations of the first step's products and convolutions.
    """

    def __init__(self, model: Program, guide: Program, objective: ELBO, optim: PyroOptim, *, compiled: bool = False):
        self.model, self.guide, self.objective, self.optim = model, guide, objective, optim
        self.compiled = compiled
        self.flops = 0
        self._graphs = Graphs(only_one=True)
        self._rates: Tensor  # of Adam's next step
        self._shapes: list[Hashable] = []  # of the first batch
        self._used: _Used

    def __call__(self, *batch: Tensor) -> Tensor:
        torch.clear_autocast_cache()  # which holds the weights before the last step, where torch.autocast is around all
        if not self._shapes:
            with flop_counter() as flops:
                loss = self._eager(*batch)
            self.flops = flops.get_total_flops()
            self._shapes = [*map(layout, batch)]
            self._used = _Used(self.model, self.guide, self.objective)  # now, for the call may set what is set once
            return loss
        if not (self.compiled and isinstance(self.objective, Objective) and self._shapes == [*map(layout, batch)]):
            return self._eager(*batch)
        if not self._graphs.failed and (changed := self._used.constants.changed()):
            self._graphs.fail(changed)
        key, tensors, _ = _keyed(self.model, self.guide, self._used, batch, {})
        keep = functools.partial(self._used.kept, self.optim)
        return self._graphs.call(key, tensors, lambda: self._eager(*batch), lambda: self._trace(*batch), keep=keep)

    def _eager(self, *batch: Tensor) -> Tensor:
        params = Params()
        with params.capture():
            if isinstance(self.objective, Objective):
                loss = _backward(self.objective, self.model, self.guide, batch, {})
            else:
                loss = torch.as_tensor(self.objective.loss_and_grads(self.model, self.guide, *batch))
        self._step_optimizer(list(params))
        return loss

    def _trace(self, *batch: Tensor) -> Graph:
        adam = adam_of(self.optim)
        if adam is None:
            return self._trace_gradients(*batch)
        params = Params()
        self._rates = adam_rates(adam)

        def step(*batch: Tensor) -> Tensors:
            loss, leaves, grads = gradients(self.objective, self.model, self.guide, params, batch, {})
            with torch.no_grad():
                adam_update(adam, leaves, grads, self._rates, self.optim.clip_norm)
            return (loss,)

        with self._begun(adam):
            replay = self._replay(step, *batch)

        def again(*batch: Tensor) -> Tensor:
            with self._begun(adam):
                return replay(*batch)[0]

        state = adam.state  # another where one was loaded, into other tensors than the graph's
        return Graph(replay.first[0], again, lambda: adam.state is state)

    def _trace_gradients(self, *batch: Tensor) -> Graph:
        params, with_grads = Params(), list[Tensor]()

        def step(*batch: Tensor) -> Tensors:
            loss, with_grads[:], grads = gradients(self.objective, self.model, self.guide, params, batch, {})
            return loss, *grads

        def updated(loss: Tensor, *grads: Tensor) -> Tensor:
            _accumulate(with_grads, grads)
            self._step_optimizer(with_grads)
            return loss

        replay = self._replay(step, *batch)
        return Graph(updated(*replay.first), lambda *batch: updated(*replay(*batch)))

    def _replay(self, step: Callable[..., Tensors], *batch: Tensor) -> Replay:
        replay = Replay(step, *batch)
        self._used.constants.are_in_graph(replay.constants)
        return replay

    @contextmanager
    def _begun(self, adam: Optimizer) -> Iterator[None]:
        """Counts a step, at its learning rate, unless it fails."""
        self.optim.begin_step()
        self._rates.copy_(adam_rates(adam))
        try:
            yield
        except BaseException:
            self.optim.num_steps -= 1
            raise

    def _step_optimizer(self, params: list[Tensor]) -> None:
        if params:
            self.optim(params)
        for p in params:
            p.grad = None


def _backward(objective: Objective, model: Program, guide: Program, args: Any, kwargs: Any) -> Tensor:
    """The loss; gradients are added to the parameters'."""
    loss = objective.differentiable_loss(model, guide, *args, **kwargs)
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def gradients(
    objective: Any, model: Program, guide: Program, params: Params, args: Any, kwargs: Any
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The loss, the parameters that it has a gradient in, and the gradients, as functions to be traced; `params`
    captures the parameters that the programs declare."""
    with params.capture(), pyro.validation_enabled(False):
        loss = objective.differentiable_loss(model, guide, *args, **kwargs)
    if not loss.requires_grad:
        return loss.detach(), [], []
    leaves = [p for p in params if p.requires_grad]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    pairs = [(p, grad) for p, grad in zip(leaves, grads, strict=True) if grad is not None]
    return loss.detach(), [p for p, _ in pairs], [grad for _, grad in pairs]


def _moments(optim: PyroOptim) -> Iterator[Tensor]:
    """The parameters and the tensors that the optimiser has for each."""
    if isinstance(optim, OneOptimizer) and optim.optimizer is not None:
        for p, state in optim.optimizer.state.items():
            yield from (p, *(t for t in state.values() if isinstance(t, Tensor)))


def all_modules(model: Program, guide: Program, objective: ELBO) -> list[nn.Module]:
    """The programs' modules, and the objective's weight of the KL, which counts steps."""
    kl_weight = getattr(objective, "kl_weight", None)
    return [*modules_of(model, guide), *([] if kl_weight is None else [kl_weight])]


def _keyed(
    model: Program, guide: Program, used: _Used, args: Any, kwargs: Any
) -> tuple[Hashable, list[Tensor], Callable]:
    """What a graph depends on, the tensors that it takes, and the arguments of the programs from such tensors."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    shapes = tuple(layout(t) if isinstance(t, Tensor) else (type(t), t) for t in leaves)
    modules = tuple(_state_of(m) for module in used.modules for m in module.modules())

    def call(tensors: Any) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return (model, guide, str(spec), shapes, modules, _torch_settings()), tensors, call


def _state_of(module: nn.Module) -> Hashable:
    """The properties of one module that a graph depends on: its mode, its tensors, and which of them are trained."""
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
