"""Data-parallel training: each process, a rank, takes its rows of every batch, and all take the same steps.

N ranks with B / N rows each leave the weights of one process with B rows, to rounding, for any Pyro pair whose loss is
a sum over the data:

- every rank has all data, puts them in the same order, and encodes the whole batch, of which it takes its rows;
- the programs of a step run on those rows alone. What they draw at random, in sample sites and elsewhere (dropout), is
  drawn for the whole batch, and each rank takes its rows of it, so that all generators agree at every step;
- the step, compiled or not, yields one vector of gradients, which is summed by one `all_reduce`, and the optimiser then
  does the same on every rank. Modules are not wrapped: handlers, graphs, and parameters that a step does not use are as
  in one process.

The first batch of each size is also run whole, without gradients. It shows which draws are by row; and its loss has to
be the sum of the ranks' losses, and its buffers theirs, so that what takes the data of a batch together is refused and
never wrong in silence.
"""

from __future__ import annotations

import functools
import os
import pickle
import sys
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import pyro
import torch
import torch.distributed as dist
from pyro.infer import ELBO, TraceGraph_ELBO
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.graphs import Graph, generator_states, layout
from ppl_vae.likelihoods import GaussianOptimal
from ppl_vae.objectives import FreeBits, Objective
from ppl_vae.programs import Program
from ppl_vae.system.errors import one_line
from ppl_vae.system.machine import device_of, num_launched
from ppl_vae.system.places import modules_of
from ppl_vae.training.checkpoints import difference
from ppl_vae.training.compilation import Params, Step, gradients
from ppl_vae.training.history import DivergedError, Stopped

T = TypeVar("T")

BEAT, SILENCE, GRACE = 1.0, 15.0, 8.0  # seconds: a sign of life, without which a rank is lost, and until the others end


class Ranks:
    """The processes of a group, which train together: a context, in which the end of one ends all. Without a group,
    this process alone.

    Attributes: `rank`, of this process, from 0; `size`, their number.
    """

    def __init__(self, group: ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())
        self._watch: _Watch | None = None
        self._reason: object = None
        self._flags: list[Tensor] = []  # of the last two sums

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def __enter__(self) -> Self:
        if self.group is not None and self.size > 1:
            name = self.first(lambda: uuid.uuid4().hex)  # all are here: none is missed before it has begun
            store = distributed_c10d._get_process_group_store(self.group).clone()
            self._watch = _Watch(dist.PrefixStore(name, store), self.rank, self.size)
            self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._watch is not None:
            if error is None or isinstance(error, Stopped | DivergedError):  # as all ranks do
                self._watch.end(None)
            else:
                self._watch.end(f"{self._watch.name_of(self.rank)} ended: {one_line(error)}")

    def rows(self, num_rows: int) -> range:
        """Those of a batch that are this rank's."""
        return range(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def first(self, function: Callable[[], T]) -> T:
        """What the function returns on the first rank, or the error that it raises there, on all."""
        if self.size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = function()
            except Exception as error:
                outcome[1] = _sendable(error)
        source = dist.get_global_rank(self._group, 0)
        self._together(lambda: dist.broadcast_object_list(outcome, source, self.group))
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def agree(self, values: Mapping[str, Any]) -> None:
        """Raises `ValueError`, on all ranks, where those of one are others."""
        of_all: list[Any] = [values] * self.size
        if self.size > 1:
            self._together(lambda: dist.all_gather_object(of_all, values, self.group))
        for rank, others in enumerate(of_all):
            if differing := difference(of_all[0], others):
                raise ValueError(f"process_group: expected the same on every rank; got, rank 0 -> {rank}: {differing}")

    @torch.no_grad()
    def give(self, tensors: Iterable[Tensor]) -> None:
        """Those of the first rank, to all, in place."""
        for t in tensors if self.size > 1 else ():
            values, source = t.detach().contiguous(), dist.get_global_rank(self._group, 0)
            self._together(functools.partial(dist.broadcast, values, source, self.group))
            t.copy_(values)

    def sum(self, flat: Tensor) -> Tensor:
        """A vector, summed over the ranks in place. Its last number, which is 0, is that of ranks that are to stop."""
        if self._reason:
            flat[-1] = 1.0
        self._together(lambda: dist.all_reduce(flat, group=self.group))
        self._flags = [*self._flags[-1:], flat[-1]]
        return flat

    def agreed(self, reason: object) -> object:
        """The reason to stop, at the same step on all ranks: two steps after one has a reason, so that none waits for
        the step that its device is at; True where it is another rank's. One process stops at once."""
        if self.size == 1:
            return reason
        self._reason = self._reason or reason
        if len(self._flags) == 2 and self._flags[0].item() > 0:
            return self._reason or True
        return None

    @property
    def _group(self) -> ProcessGroup:
        assert self.group is not None
        return self.group

    def _together(self, collective: Callable[[], object]) -> None:
        """Raises `ConnectionError` where a rank is lost, which says which."""
        try:
            collective()
        except RuntimeError as error:
            text = "" if self._watch is None else self._watch.wait()
            raise ConnectionError(text or f"process_group: {one_line(error, foreign=True)}") from None


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(one_line(error))
    return error


class _Watch(Thread):
    """Gives a sign of life, and looks for those of the others, in the group's store. Where one is missing, or a rank
    has said that it ends, this process ends: by the error of its next collective, or, where that does not come, as with
    NCCL, at once."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        super().__init__(daemon=True, name="ranks")
        store.set_timeout(timedelta(seconds=SILENCE))
        self.store, self.rank, self.size = store, rank, size
        self._lost, self._found, self._over = "", Event(), Event()
        self._beats = dict.fromkeys(range(size), -1)
        self._missed = dict.fromkeys(range(size), 0)

    def name_of(self, rank: int) -> str:
        return f"rank {rank} of {self.size}"

    def run(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._lost = self._look()
            except RuntimeError:
                self._lost = f"{self.name_of(0)} ended, or what launched it: its store is gone"
            if self._lost:
                self._found.set()
                if not self._over.wait(GRACE):
                    print(f"ppl-vae: error: {self._lost}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _look(self) -> str:
        """Which rank is lost; "" for none. Looks are counted and no time is taken: a process that was itself held up
        has missed nothing."""
        self.store.add(f"beat {self.rank}", 1)
        if self.store.check(["lost"]):
            return self.store.get("lost").decode()
        for rank in {*range(self.size)} - {self.rank}:
            beats = self.store.add(f"beat {rank}", 0)
            self._missed[rank] = self._missed[rank] + 1 if beats == self._beats[rank] else 0
            self._beats[rank] = beats
            if self._missed[rank] * BEAT >= SILENCE and not self.store.check([f"done {rank}"]):
                return self._tell(f"{self.name_of(rank)} ended: no sign of life for {SILENCE:.0f} s")
        return ""

    def _tell(self, lost: str) -> str:
        """What all are told: the first that was."""
        return self.store.compare_set("lost", "", lost).decode()

    def wait(self) -> str:
        """Which rank is lost, when that is known."""
        self._found.wait(2 * SILENCE)  # its looks take a little longer than the beat
        return self._lost

    def end(self, lost: str | None) -> None:
        """This rank is done, or is lost to the others."""
        self._over.set()
        self.join()
        try:
            if lost is None:
                self.store.add(f"done {self.rank}", 1)
            elif not self._lost:
                self._tell(lost)
        except RuntimeError:
            pass  # with the store, they are gone


@contextmanager
def launched(device: str) -> Iterator[tuple[ProcessGroup | None, str]]:
    """The group of the processes that `torchrun` launched, and each one's device; without it None, and the device as it
    is. NCCL joins GPUs, of which each rank takes its own, and gloo CPUs.

    Raises `ValueError` for one GPU by number, and for more ranks than GPUs.
    """
    if num_launched() == 1:
        yield None, device
        return
    place = device_of(device)
    if place.type == "cuda":
        if place.index is not None:
            raise ValueError(f"device: expected cuda, of which each rank takes its own; got {device}")
        place = device_of(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    yield dist.group.WORLD, str(place)
    dist.destroy_process_group()  # not after an error, when it may wait for a rank that is lost


def check_parallel(model: Program, guide: Program, objective: ELBO, ranks: Ranks, fewest: int) -> None:
    """Raises `ValueError` for what takes the data of a batch together, and for a batch of fewer data than ranks."""
    if ranks.size == 1:
        return
    modules = [m for module in modules_of(model, guide) for m in module.modules()]
    together = [part for part in (objective, *modules) if isinstance(part, _TOGETHER)]
    if together:
        raise ValueError(
            f"process_group: expected what is of each datum alone; got {type(together[0]).__name__}, which takes the "
            "data of a batch together. Train it in one process"
        )
    if fewest < ranks.size:
        raise ValueError(
            f"process_group: expected a datum or more for each of {ranks.size} ranks; got a batch of {fewest}. Take "
            "drop_last=True, or another batch_size"
        )


_TOGETHER = (_BatchNorm, GaussianOptimal, FreeBits, TraceGraph_ELBO)


class _Draw(NamedTuple):
    """A call of a random operation: which, the shape of what is drawn, and whether a generator moved."""

    operation: Any
    shape: tuple[int, ...]
    drew: bool


class _Recorded(TorchDispatchMode):
    """Keeps a list of what is drawn inside."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[_Draw] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        before = generator_states()
        drawn = func(*args, **(kwargs or {}))
        drew = any(not a.equal(b) for a, b in zip(before, generator_states(), strict=True))
        self.draws.append(_Draw(func, _shape(args), drew))
        return drawn


class _OfRows(TorchDispatchMode):
    """Inside, programs that run on some rows of a batch draw for all of its rows, and see their own.

    Arguments:
        draws: what they draw when they run on the whole batch.
        rows, num_rows: which rows are theirs, of how many.
        num_particles: which are outside of the data where the two dims are one, as for `torch.multinomial`.

    Raises `ValueError` for other draws, and for those whose values depend on the parameters of other rows: rejection
    sampling takes more or fewer numbers from the generator.
    """

    def __init__(self, draws: list[_Draw], rows: range, num_rows: int, num_particles: int):
        super().__init__()
        self.draws, self.rows, self.num_rows, self.num_particles = iter(draws), rows, num_rows, num_particles

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        whole, shape = next(self.draws, None), _shape(args)
        if whole is None or whole.operation is not func or len(whole.shape) != len(shape):
            raise ValueError(f"process_group: {_SAME_DRAWS}; got another {_name(func)}, of shape {shape}")
        dims = [d for d, (n, m) in enumerate(zip(shape, whole.shape, strict=True)) if n != m]
        if not (whole.drew and dims):
            return func(*args, **(kwargs or {}))
        if _name(func).removesuffix("_").removesuffix("_like") not in _BY_ELEMENT:
            raise ValueError(
                "process_group: expected draws that take as many random numbers for each datum; got those of "
                f"{_name(func)}. Train it in one process"
            )
        dim, n = dims[0], len(self.rows)
        if len(dims) > 1 or shape[dim] % n or whole.shape[dim] * n != shape[dim] * self.num_rows:
            got = f"{shape} of {whole.shape} for {n} of {self.num_rows} rows"
            raise ValueError(f"process_group: {_SAME_DRAWS}; got {got}")
        return self._drawn(func, args, kwargs or {}, shape, whole.shape, dim)

    def _drawn(self, func: Any, args: Any, kwargs: Any, shape: Any, whole: Any, dim: int) -> Any:
        n = len(self.rows)
        outer = self.num_particles if shape[dim] % (n * self.num_particles) == 0 and shape[dim] > n else 1
        inner = shape[dim] // (n * outer)

        def widened(t: Any) -> Any:
            """To all rows, by copies; its own stay where they are."""
            if isinstance(t, list | tuple):
                return list(whole)
            if not isinstance(t, Tensor) or (at := t.dim() - len(shape) + dim) < 0 or t.shape[at] != shape[dim]:
                return t
            index = (torch.arange(self.num_rows, device=t.device) - self.rows.start) % n
            return t.unflatten(at, (outer, n, inner)).index_select(at + 1, index).flatten(at, at + 2)

        def narrowed(t: Tensor) -> Tensor:
            parts = t.unflatten(dim, (outer, self.num_rows, inner)).narrow(dim + 1, self.rows.start, n)
            return parts.flatten(dim, dim + 2).contiguous()

        if not func._schema.is_mutable:
            return pytree.tree_map(narrowed, func(*map(widened, args), **kwargs))
        into, *rest = args
        in_memory = sorted(range(into.dim()), key=into.stride, reverse=True)  # the order in which it is filled
        all_rows = torch.empty_permuted(whole, in_memory, dtype=into.dtype, device=into.device)
        return into.copy_(narrowed(func(all_rows, *map(widened, rest), **kwargs)))


_SAME_DRAWS = "expected a step to draw what it draws of the whole batch, by row"
_BY_ELEMENT = {  # what takes as many numbers from the generator for each element, whatever its parameters
    *("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "native_dropout", "normal"),
    *("rand", "randint", "randn", "random", "uniform"),
}


@functools.cache
def _is_random(operation: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in operation.tags


def _name(operation: Any) -> str:
    return operation._schema.name.removeprefix("aten::")


def _shape(args: Any) -> tuple[int, ...]:
    """Of what is drawn: the size that is asked for, or that of the tensors."""
    sizes = [tuple(a) for a in args if isinstance(a, list | tuple)]
    return sizes[0] if sizes else tuple(torch.broadcast_shapes(*(a.shape for a in args if isinstance(a, Tensor))))


@dataclass
class _Whole:
    """What is known of batches of one size, by a run of the first, whole: what is drawn, the parameters that are
    declared, the loss, and the buffers afterwards. `used` are the parameters with a gradient, when that is known."""

    num_rows: int
    draws: list[_Draw]
    params: Params
    loss: float
    buffers: list[Tensor]
    used: set[Tensor] | None = None
    leaves: list[Tensor] = field(init=False)  # in an order that is the same on all ranks

    def __post_init__(self) -> None:
        named = self.params.leaves
        self.leaves = [p for p in dict.fromkeys(named[name] for name in sorted(named)) if p.requires_grad]


class ParallelStep(Step):
    """A `Step` on a batch of which each rank takes its rows, with the loss of the whole batch. What is compiled ends
    with the gradients, as one vector.

    The first batch of each size raises `ValueError` where the loss is no sum over its data, or a buffer depends on
    them. A parameter that only some batches use has the gradient 0 in the others.
    """

    def __init__(self, *args: Any, ranks: Ranks, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ranks = ranks
        self._wholes: dict[Hashable, _Whole] = {}
        self._whole: _Whole

    def __call__(self, *batch: Tensor) -> Tensor:
        key = tuple(map(layout, batch))
        if key not in self._wholes:
            self._wholes[key] = self._run_whole(*batch)
        self._whole = self._wholes[key]
        rows = self.ranks.rows(len(batch[0]))
        part = tuple(t[rows.start : rows.stop] for t in batch)
        of_first = self._whole is next(iter(self._wholes.values()))  # a graph draws for whole batches of one size
        flat = self.ranks.sum(super().__call__(*part) if of_first else self._eager(*part))
        leaves = self._whole.leaves
        *grads, have_grads, loss, _ = flat.split([*(p.numel() for p in leaves), len(leaves), 1, 1])
        if self._whole.used is None:
            self._check(loss.item())
            self._whole.used = {p for p, num in zip(leaves, have_grads.tolist(), strict=True) if num}
        for p, grad in zip(leaves, grads, strict=True):
            if p in self._whole.used:
                p.grad = torch.empty_like(p).copy_(grad.view(p.shape))
        self._step_optimizer(list(self._whole.params))
        return loss.squeeze()

    def _run_whole(self, *batch: Tensor) -> _Whole:
        """Leaves the random generators and the buffers as they were."""
        params, buffers = Params(), self._buffers()
        before = [b.clone() for b in buffers.values()]
        with torch.random.fork_rng(), torch.no_grad(), params.capture(), _Recorded() as recorded:
            loss = self.objective.loss(self.model, self.guide, *batch)
        after = [b.clone() for b in buffers.values()]
        for b, values in zip(buffers.values(), before, strict=True):
            b.copy_(values)
        return _Whole(len(batch[0]), recorded.draws, params, float(loss), after)

    def _buffers(self) -> dict[str, Tensor]:
        return {name: b for module in modules_of(self.model, self.guide) for name, b in module.named_buffers()}

    def _check(self, loss: float) -> None:
        """Raises `ValueError` for a loss or buffers of the ranks together that are not those of the whole batch."""
        whole = self._whole
        is_exact = whole.leaves and whole.leaves[0].device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        rounding = 1e-5 if is_exact else 1e-3  # that of TF32 and bfloat16
        if abs(loss - whole.loss) > rounding * max(abs(whole.loss), 10 * whole.num_rows):
            raise ValueError(
                f"process_group: expected a loss that is a sum over the data; got {loss:.8g} as the sum of the "
                f"{self.ranks.size} ranks', and {whole.loss:.8g} of the batch whole. Something takes the data of a "
                "batch together, or draws from another generator than torch's own. Train it in one process"
            )
        for (name, b), values in zip(self._buffers().items(), whole.buffers, strict=True):
            if not torch.allclose(b, values, rtol=100 * rounding, equal_nan=True):
                raise ValueError(
                    f"process_group: expected buffers that do not depend on the rows of a batch; got {name!r}, which "
                    "does. Train it in one process"
                )

    def _eager(self, *batch: Tensor) -> Tensor:
        return self._flat(*batch)

    def _trace(self, *batch: Tensor) -> Graph:
        replay = self._replay(lambda *batch: (self._flat(*batch),), *batch)
        return Graph(replay.first[0], lambda *batch: replay(*batch)[0])

    def _flat(self, *batch: Tensor) -> Tensor:
        """This rank's part, as one vector: the gradients of all parameters, 0 where there is none; whether there is
        one, for each; the loss; and a 0."""
        whole = self._whole
        of_rows = _OfRows(whole.draws, self.ranks.rows(whole.num_rows), whole.num_rows, self.objective.num_particles)
        try:
            with of_rows:
                loss, have = self._gradients(*batch)
        except ValueError as error:
            raise ValueError(one_line(error)) from None  # without the shapes that Pyro adds to it
        if (left := next(of_rows.draws, None)) is not None:
            raise ValueError(f"process_group: {_SAME_DRAWS}; got no {_name(left.operation)}, of shape {left.shape}")
        if not have.keys() <= {*(whole.leaves if whole.used is None else whole.used)}:
            raise ValueError(
                "process_group: expected the gradients of the same parameters in every batch; got one of another"
            )
        parts = [have[p] if p in have else torch.zeros_like(p) for p in whole.leaves]
        have_grads = loss.new_tensor([float(p in have) for p in whole.leaves])
        return torch.cat([*(part.reshape(-1) for part in parts), have_grads, loss.reshape(1), loss.new_zeros(1)])

    def _gradients(self, *batch: Tensor) -> tuple[Tensor, dict[Tensor, Tensor]]:
        """The loss, and the gradients that there are."""
        params = Params()
        if isinstance(self.objective, Objective):
            loss, leaves, grads = gradients(self.objective, self.model, self.guide, params, batch, {})
            return loss, dict(zip(leaves, grads, strict=True))
        with params.capture(), pyro.validation_enabled(False):
            loss = torch.as_tensor(self.objective.loss_and_grads(self.model, self.guide, *batch))
        have = {p: p.grad for p in params if p.grad is not None}
        for p in have:
            p.grad = None
        return loss, have
