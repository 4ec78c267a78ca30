"""Compiled SVI: the step of any Pyro pair, traced once per shape, compiled, and replayed with fresh noise.

Pyro's handlers run when a step is traced and never again: what is left is the tensor program, forward and backward
and, in `fit`, with the optimiser in it. `torch.compile` straight on the loss breaks at every handler and gains nothing.

What a trace bakes in are Python values: a float that the program changes from step to step has to be a tensor.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, get_proxy_mode, make_fx
from torch.optim import Adam, AdamW, Optimizer
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ppl_vae.objectives import Elbo, Objective
from ppl_vae.optimizers import OneOptimizer
from ppl_vae.programs import Program, modules_of

Tensors = tuple[Tensor, ...]

CALLS_BEFORE_ANOTHER_SHAPE = 200  # a last, shorter batch is compiled when it has come so often


class Replay:
    """A function of tensors as a compiled graph. It is traced by running it, once: `first` is what it returned.

    Everything else that the function touches (parameters, buffers, constants) is the very tensor at each replay,
    in-place changes included. Arguments are inputs of their own, also where one tensor is given twice. Noise is drawn
    by torch's own generators in the same order as when not compiled, so that a seed gives the same noise. Raises what
    the tracing raises: a function whose path hangs on values has no graph.
    """

    def __init__(self, function: Callable[..., Tensors], *args: Tensor):
        kept: list[Tensors] = []

        def run(*args: Tensor) -> Tensors:
            with _NoValues():
                kept.append(function(*args))
            return kept[-1]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.graph = make_fx(run, DECOMPOSITIONS, tracing_mode="real")(*(t.detach() for t in args))
        self.first = tuple(t.detach() for t in kept[-1])
        self.constants = _lift_constants(self.graph)
        # The callers' keys say what a graph is good for, so that its guards need not be looked up at each call.
        options: dict[str, Any] = {"fallback_random": True, "guard_filter_fn": lambda guards: [False for _ in guards]}
        validates = Distribution._validate_args
        self._compiled = torch.compile(self.graph, dynamic=False, options=options)
        Distribution.set_default_validate_args(validates)  # the first in a process turns it off, for good

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> Tensors:
        return self._compiled(*self.constants, *(t.detach() for t in args))


def _bernoulli_loss(logits: Tensor, x: Tensor, weight: Any = None, pos_weight: Any = None, reduction: int = 1) -> Any:
    """log(1 + e^-|l|) as it stands, to 6e-8 nats in float32: `log1p` takes ten times as long, half of all that isn't a
    matrix product, for digits that are lost when it is added to the rest."""
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return (1 - x) * logits + (-logits).relu() + (1 + (-logits.abs()).exp()).log()


DECOMPOSITIONS = {torch.ops.aten.binary_cross_entropy_with_logits.default: _bernoulli_loss}


class _NoValues(TorchDispatchMode):
    """Raises `RuntimeError` where a tensor from outside of the trace becomes a Python value: `make_fx` raises for the
    tensors of the trace, and takes the value of others once and for all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            traced = cast(ProxyTorchDispatchMode, get_proxy_mode()).tracer.tensor_tracker
            if any(isinstance(t, Tensor) and t not in traced for t in pytree.tree_leaves(args)):
                raise RuntimeError(f"expected a path that hangs on no value; got {func}, of a parameter or buffer")
        return func(*args, **(kwargs or {}))


def _lift_constants(graph: GraphModule) -> list[Tensor]:
    """Makes inputs of the tensors that a graph holds; each once, so that in-place changes of it are seen."""
    inputs: dict[int, tuple[Tensor, Any]] = {}
    first = next(iter(graph.graph.nodes))
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(graph, node.target)
        if id(tensor) not in inputs:
            with graph.graph.inserting_before(first):
                inputs[id(tensor)] = tensor, graph.graph.placeholder(f"constant_{len(inputs)}")
        node.replace_all_uses_with(inputs[id(tensor)][1])
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return [tensor for tensor, _ in inputs.values()]


class Compiled:
    """A function of tensors, without gradients, compiled for each shape of theirs and each choice of keywords.

    The first call runs as it is, the second is traced, and the next are replayed; another shape than the first is
    compiled when it has come 200 times. Where there is no graph it says so once and goes on uncompiled.
    """

    def __init__(self, function: Callable[..., Tensors]):
        self.function = function
        self._calls: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Replay] = {}
        self._failed = False

    def __call__(self, *tensors: Tensor, **static: Hashable) -> Tensors:
        key = tuple(map(_layout, tensors)), tuple(static.items())
        self._calls[key] = self._calls.get(key, 0) + 1
        first = not self._replays or key in self._replays
        if self._failed or self._calls[key] <= (1 if first else CALLS_BEFORE_ANOTHER_SHAPE):
            return self.function(*tensors, **static)
        rng = torch.random.get_rng_state()
        try:
            if key in self._replays:
                return self._replays[key](*tensors)
            self._replays[key] = Replay(functools.partial(self.function, **static), *tensors)
            return self._replays[key].first
        except Exception as error:
            torch.random.set_rng_state(rng)
            self._failed = True
            warnings.warn(uncompiled(error), RuntimeWarning, stacklevel=2)
            return self.function(*tensors, **static)


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
    compiled when it has come 200 times. Where
    tracing fails, or there is no C++ compiler, it says so once and goes on uncompiled, with the same results.

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
        wanted = 1 if not self._replays else CALLS_BEFORE_ANOTHER_SHAPE
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
        adam = _adam_of(self.optim)
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


def _adam_of(optim: PyroOptim) -> Optimizer | None:
    """The torch optimiser of which `adam_update` is the step, if it is one."""
    optimizer = optim.optimizer if isinstance(optim, OneOptimizer) else None
    if optimizer is None or type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) > 1:
        return None
    return None if any(optimizer.param_groups[0].get(name) for name in ("amsgrad", "maximize")) else optimizer


def adam_update(
    optimizer: Optimizer, params: list[Tensor], grads: list[Tensor], lr: Tensor, clip_norm: float | None = None
) -> None:
    """A step of Adam or AdamW on the optimiser's own state, in operations that fuse in a graph; lr has shape ().

    For each parameter, with g its gradient and t its count of steps,

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,
        p <- p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).
    """
    (group,) = optimizer.param_groups
    (b1, b2), eps, weight_decay = group["betas"], group["eps"], group["weight_decay"]
    if clip_norm is not None:
        norm = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
        factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        grads = [grad * factor for grad in grads]
    for p, g in zip(params, grads, strict=True):
        state = optimizer.state[p]
        m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
        if weight_decay and (isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay")):
            p.mul_(1 - lr * weight_decay)
        elif weight_decay:
            g = g + weight_decay * p
        t.add_(1)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        rate, scale = lr / (1 - b1 ** t.double()), (1 - b2 ** t.double()).sqrt()  # 1 - 0.999^t cancels in float32
        p.sub_(rate * m / (v.sqrt() / scale + eps))


def flop_counter() -> FlopCounterMode:
    """Counts the floating-point operations of what runs inside: `get_total_flops()`.

    Without torch's tracker of modules, which fails under `no_grad` where a module's input is a parameter.
    """
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = cast(Any, _NoModules())
    return counter


class _NoModules(nullcontext):
    parents = frozenset({"Global"})


def repays(num_steps: int, flops: int) -> bool:
    """Whether compiling a step of so many floating-point operations pays back in `num_steps`.

    From the counts alone and not from a clock, so that a run is the same each time. What a step saves was measured
    on two cores: the handlers' time, and about a third of the arithmetic's.
    """
    return num_steps * (SAVED_PER_STEP + SAVED_PER_FLOP * flops) > COMPILE_SECONDS


COMPILE_SECONDS, SAVED_PER_STEP, SAVED_PER_FLOP = 20.0, 4e-3, 0.3 / 50e9


def uncompiled(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"not compiled, the results are the same but slower: {type(error).__name__}: {reason[:200]}"


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
    shapes = tuple(_layout(t) if isinstance(t, Tensor) else (type(t), t) for t in leaves)
    modules = tuple(_state_of(m) for module in all_modules(model, guide, objective) for m in module.modules())

    def call(tensors: Any) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return (model, guide, str(spec), shapes, modules, _torch_settings()), tensors, call


def _layout(t: Tensor) -> Hashable:
    return t.shape, t.stride(), t.dtype, t.device


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
