"""Graphs: a function of tensors, traced once per shape, compiled, and replayed with fresh noise.

A trace makes constants of Python values: a float that a function changes from call to call has to be a tensor.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, get_proxy_mode, make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ppl_vae.system.errors import one_line
from ppl_vae.system.places import Constants

Tensors = tuple[Tensor, ...]


CALLS_BEFORE_ANOTHER_SHAPE = 200  # a last, shorter batch is compiled when it has come so often


class Replay:
    """A function of tensors as a compiled graph. It is traced by running it, once: `first` is what it returned.

    Everything else that the function touches (parameters, buffers, constants) is the same tensor at each replay,
    in-place changes included. Arguments are inputs of their own, also where one tensor is given twice. Noise is sampled
    by torch's own generators in the same order as when not compiled, so that a seed gives the same noise. Raises what
    the tracing raises: a function that branches on values has no graph.
    """

    def __init__(self, function: Callable[..., Tensors], *args: Tensor):
        kept: list[Tensors] = []

        def run(*args: Tensor) -> Tensors:
            with _NoValues():
                kept.append(function(*args))
            return kept[-1]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):  # or each operation makes one
                self.graph = make_fx(run, DECOMPOSITIONS, tracing_mode="real")(*(t.detach() for t in args))
        self.first = tuple(t.detach() for t in kept[-1])
        self.constants = _lift_constants(self.graph)
        # The callers' keys say what a graph is good for, so that its guards need not be looked up at each call.
        options: dict[str, Any] = {"fallback_random": True, "guard_filter_fn": lambda guards: [False for _ in guards]}
        validates = Distribution._validate_args
        self._is_compiled = False
        self._compiled = torch.compile(self.graph, dynamic=False, options=options)
        Distribution.set_default_validate_args(validates)  # the first in a process turns it off, for good

    @torch.no_grad()
    def __call__(self, *args: Tensor) -> Tensors:
        inputs = *self.constants, *(t.detach() for t in args)
        if self._is_compiled:
            return self._compiled(*inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, which runs at the first call
            self._is_compiled = True
            return self._compiled(*inputs)


def _bernoulli_loss(logits: Tensor, x: Tensor, weight: Any = None, pos_weight: Any = None, reduction: int = 1) -> Any:
    """log(1 + e^-|l|) as it stands, to 6e-8 nats in float32: `log1p` takes ten times as long, half of all that isn't a
    matrix product, for digits that are lost when it is added to the rest."""
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return (1 - x) * logits + (-logits).relu() + (1 + (-logits.abs()).exp()).log()


DECOMPOSITIONS = {torch.ops.aten.binary_cross_entropy_with_logits.default: _bernoulli_loss}


class _NoValues(TorchDispatchMode):
    """Raises `RuntimeError` where a tensor from outside of the trace becomes a Python value: `make_fx` raises for the
    tensors of the trace, and makes constants of others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            traced = cast(ProxyTorchDispatchMode, get_proxy_mode()).tracer.tensor_tracker
            if any(isinstance(t, Tensor) and t not in traced for t in pytree.tree_leaves(args)):
                raise RuntimeError(f"expected no branch on a value; got {func}, of a parameter or buffer")
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


def generator_states() -> list[Tensor]:
    """The states of torch's random generators, of the CPU first and then of each CUDA device that is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.random.get_rng_state(), *cuda]


def set_generator_states(states: list[Tensor]) -> None:
    torch.random.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


class Graph(NamedTuple):
    """A call that was traced: what it returned, the function that replays it, and whether it may still be replayed."""

    result: Any
    replay: Callable[..., Any]
    is_valid: Callable[[], bool] = lambda: True


class Graphs:
    """Graphs by key, and the rule when a call is traced: the first of a key runs as it is, the second is traced, and
    the next are replayed; a key other than the first is traced when it has come `CALLS_BEFORE_ANOTHER_SHAPE` times.

    Where a call cannot be traced or replayed, it warns once, and from then on all calls run as they are.

    Arguments:
        only_one: the first call is traced already, and calls of other keys are never.

    Attributes: `failed`, whether it has warned.
    """

    def __init__(self, *, only_one: bool = False):
        self.failed = False
        self._only_one = only_one
        self._graphs: dict[Hashable, Graph] = {}
        self._eager_calls: Counter[Hashable] = Counter()

    def call(
        self,
        key: Hashable,
        tensors: Sequence[Tensor],
        eager: Callable[[], Any],
        trace: Callable[[], Graph],
        *,
        keep: Callable[[], Callable[[], None]] = lambda: lambda: None,
        is_ready: Callable[[], bool] = lambda: True,
    ) -> Any:
        """What `eager()` returns, by a graph where there is one.

        Arguments:
            key: what a graph depends on.
            tensors: the arguments of a replay.
            eager, trace: run the call, or run and trace it.
            keep: makes what writes back, where tracing fails, what it may have changed; the random generators are
                written back anyway.
            is_ready: whether the call may be traced, but for the number of calls.
        """
        graph = self._graphs.get(key)
        if graph is not None and not graph.is_valid():
            del self._graphs[key]
            graph = None
        if self.failed or (graph is None and not (self._is_due(key) and is_ready())):
            self._eager_calls[key] += 1
            return eager()
        write_back = keep() if graph is None else None
        generators = generator_states()
        try:
            if graph is None:
                graph = self._graphs[key] = trace()
                return graph.result
            return graph.replay(*tensors)
        except Exception as error:
            set_generator_states(generators)
            if write_back is not None:
                write_back()
            self.fail(one_line(error, foreign=True))
            return eager()

    def fail(self, reason: str) -> None:
        """Warns, once, and has all calls run as they are from now on."""
        if not self.failed:
            warnings.warn(f"not compiled, the results are the same but slower: {reason}", RuntimeWarning, stacklevel=4)
        self.failed = True

    def _is_due(self, key: Hashable) -> bool:
        if not self._graphs:
            return self._only_one or self._eager_calls[key] >= 1
        return not self._only_one and self._eager_calls[key] >= CALLS_BEFORE_ANOTHER_SHAPE


class Compiled:
    """A function of tensors, without gradients, compiled for each shape of theirs and each choice of keywords.

    The first call runs as it is, the second is traced, and the next are replayed; another shape than the first is
    compiled when it has come 200 times. Where it cannot be traced, or one of its `constants` is another now, it warns
    once and runs uncompiled.
    """

    def __init__(self, function: Callable[..., Tensors], constants: Constants | None = None):
        self.function, self.constants = function, constants or Constants()
        self._graphs = Graphs()

    def __call__(self, *tensors: Tensor, **static: Hashable) -> Tensors:
        function = functools.partial(self.function, **static)

        def trace() -> Graph:
            replay = Replay(function, *tensors)
            self.constants.are_in_graph(replay.constants)
            return Graph(replay.first, replay)

        if not self._graphs.failed and (changed := self.constants.changed()):
            self._graphs.fail(changed)
        key = tuple(map(layout, tensors)), tuple(static.items())
        return self._graphs.call(key, tensors, lambda: function(*tensors), trace, keep=self.constants.kept)


def layout(t: Tensor) -> Hashable:
    """The tensor properties that a compiled graph depends on."""
    return t.shape, t.stride(), t.dtype, t.device


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
