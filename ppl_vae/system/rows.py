"""Data that are read by rows, when they are used: of files larger than memory, and of torch's datasets."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from ppl_vae.system.errors import one_line

STREAMED = 256  # items of an iterable dataset that are read together


class Source(Protocol):
    """Where rows are read: a tensor is one. `source[index]` are the rows at an index (n,), on the CPU."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def __getitem__(self, index: Tensor) -> Tensor: ...


class Rows(Tensor):
    """The rows `at` (N,) of a source (M, ...), read lazily: `rows[i]` and `rows[i:j]` are plain tensors of just those
    rows, and any other operation reads all rows. So a split of a memory-mapped file is not a copy.
    """

    source: Source
    at: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl  # operations go straight to __torch_dispatch__

    @staticmethod
    def __new__(
        cls, source: Source, at: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Rows:
        """Rows are given as another dtype, or on another device than the CPU, if one is named."""
        shape = (len(at), *source.shape[1:])
        rows = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype or source.dtype, device=device or torch.device("cpu")
        )
        rows.source, rows.at = source, at
        return rows

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Rows({self.dtype}, {tuple(self.shape)})"

    def rows(self, index: Tensor | slice) -> Tensor:
        at = self.at[index.cpu() if isinstance(index, Tensor) else index]
        return self.source[at].to(self.device, self.dtype).contiguous()

    @property
    def are_items(self) -> bool:
        """Whether they are those of a torch dataset, which may make them anew at each use."""
        return isinstance(self.source, _Part)

    @property
    def are_streamed(self) -> bool:
        """Whether to read them in another order than theirs is to begin again."""
        return isinstance(self.source, _Part) and isinstance(self.source.items, _Stream)

    def read_anew(self) -> None:
        """Begins another pass: what was read in the last one is not kept for it."""
        if isinstance(self.source, _Part):
            self.source.items.forget()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        match func, args:
            case torch.ops.aten.index.Tensor, (Rows() as x, [Tensor() as index]):
                return x.rows(index)
            case torch.ops.aten.index_select.default, (Rows() as x, 0, Tensor() as index):
                return x.rows(index)
            case torch.ops.aten.slice.Tensor, (Rows() as x, 0, int() as start, int() as end):
                return x.rows(slice(start, end))
            case torch.ops.aten.select.int, (Rows() as x, 0, int() as i):
                return x.rows(torch.tensor([i]))[0]
        args, kwargs = pytree.tree_map_only(Rows, lambda x: x.rows(slice(None)), (args, kwargs or {}))
        return func(*args, **kwargs)


def select(data: Tensor, index: Tensor) -> Tensor:
    """`data[index]` along dim 0, without a copy if the data are read lazily."""
    if not isinstance(data, Rows):
        return data[index]
    return Rows(data.source, data.at[index.cpu()], data.dtype, data.device)


def chunks_of_data(size: int, *data: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The arguments, `size` rows at a time."""
    for start in range(0, len(data[0]), size):
        yield tuple(t[start : start + size] for t in data)


@dataclass(frozen=True, eq=False)
class Stored:
    """A source whose rows are `read` from where they are stored, as an array for an index of whole numbers."""

    read: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
    shape: torch.Size
    dtype: torch.dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.read(index.numpy())))


def rows_of(data: Dataset[Any] | DataLoader[Any]) -> tuple[Tensor, ...]:
    """The parts of a torch dataset's items, batched: one `Rows` for each, or the tensors of a `TensorDataset`.

    Items are tensors, numbers or arrays, or tuples of them: what the collate function, torch's or a `DataLoader`'s own,
    makes a tensor or a tuple of tensors of. A map-style dataset is read in any order, whose sampler decides nothing; an
    iterable one, or a `DataLoader` with a sampler of its own, is a stream, read from its beginning again and again.

    Raises `ValueError` for items that are something else, or of several shapes, and for no items.
    """
    if type(data) is TensorDataset:
        return data.tensors
    with torch.random.fork_rng():
        items = _Stream(data) if _is_streamed(data) else _Items(data)
    at = torch.arange(items.num_items)
    return tuple(Rows(_Part(items, i), at) for i in range(len(items.example)))


def _is_streamed(data: Dataset[Any] | DataLoader[Any]) -> bool:
    if not isinstance(data, DataLoader):
        return isinstance(data, IterableDataset)
    if data.batch_sampler is None and data.batch_size is None:
        raise ValueError("DataLoader: expected one with a batch_size; got None, which leaves open what a datum is")
    shuffled = isinstance(data.sampler, RandomSampler) and not data.sampler.replacement
    plain = shuffled or isinstance(data.sampler, SequentialSampler)
    return isinstance(data.dataset, IterableDataset) or not plain or data.batch_size is None


class _Reader(ABC):
    """The items of a dataset by index, as a tuple of their parts, batched. What was read last is kept for the other
    parts of the same items, which may be random."""

    name: str
    num_items: int
    example: tuple[Tensor, ...]  # of one item
    last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    @abstractmethod
    def _read(self, index: Tensor) -> tuple[Tensor, ...]: ...

    def read(self, index: Tensor) -> tuple[Tensor, ...]:
        if not len(index):
            return tuple(t[:0] for t in self.example)
        if self.last is None or not self.last[0].equal(index):
            self.last = index, self._read(index)
        return self.last[1]

    def forget(self) -> None:
        self.last = None


class _Items(_Reader):
    """Of a map-style dataset."""

    def __init__(self, data: Any):
        self.name, self.dataset, self.collate = type(data).__name__, data, default_collate
        if isinstance(data, DataLoader):
            self.name, self.dataset, self.collate = type(data.dataset).__name__, data.dataset, data.collate_fn
            if data.num_workers:
                warnings.warn(
                    f"DataLoader: its {data.num_workers} workers are not used: items of a map-style dataset are read "
                    "in this process, in an order that can be resumed",
                    UserWarning,
                    stacklevel=4,
                )
        if not hasattr(self.dataset, "__len__") or not len(self.dataset):
            raise ValueError(f"{self.name}: expected a dataset with a length of 1 or more; got none")
        self.num_items = len(self.dataset)
        self.example = self.read(torch.tensor([0]))

    def _read(self, index: Tensor) -> tuple[Tensor, ...]:
        read = getattr(self.dataset, "__getitems__", None)
        items = read(index.tolist()) if read is not None else [self.dataset[i] for i in index.tolist()]
        try:
            return _checked(self.name, self.collate(items))
        except (TypeError, RuntimeError) as error:  # as torch's collate function raises
            raise _refused(self.name, one_line(error, foreign=True)) from error


class _Stream(_Reader):
    """Of an iterable dataset, or as a `DataLoader` orders them: read onwards, and from the beginning where an item
    before is asked for."""

    def __init__(self, data: Any):
        self.loader = data if isinstance(data, DataLoader) else DataLoader(data, STREAMED)
        self.name = type(self.loader.dataset).__name__
        self._begin()
        if not self.batch:
            raise ValueError(f"{self.name}: expected a stream of 1 item or more; got none")
        self.example = tuple(t[:1] for t in self.batch)
        self.num_items = self._count()

    def _begin(self) -> None:
        with torch.random.fork_rng():  # a DataLoader takes seeds for its workers and its sampler
            self.iterator, self.start, self.batch = iter(self.loader), 0, tuple[Tensor, ...]()
            self._advance()

    def _advance(self) -> bool:
        """To the next batch, if there is one."""
        try:
            read = next(self.iterator, None)
        except (TypeError, RuntimeError) as error:
            raise _refused(self.name, one_line(error, foreign=True)) from error
        self.start += len(self.batch[0]) if self.batch else 0
        self.batch = () if read is None else _checked(self.name, read)
        return read is not None

    def forget(self) -> None:
        self.last, self.batch = None, ()  # so that the next read begins again

    def _count(self) -> int:
        """Of a pass: that of a dataset that knows its length, else counted in one."""
        sized: Any = self.loader.dataset if isinstance(self.loader.dataset, IterableDataset) else self.loader.sampler
        if self.loader.batch_size is not None and hasattr(sized, "__len__"):
            size = self.loader.batch_size
            return len(sized) - (len(sized) % size if self.loader.drop_last else 0)
        while self._advance():
            pass
        return self.start

    def _read(self, index: Tensor) -> tuple[Tensor, ...]:
        wanted, order = index.sort()
        if int(wanted[0]) < self.start or not self.batch:
            self._begin()
        found, done = list[tuple[Tensor, ...]](), 0
        while True:
            end = int(torch.searchsorted(wanted, self.start + len(self.batch[0])))
            if end > done:
                found.append(tuple(t[wanted[done:end] - self.start] for t in self.batch))
            done = end
            if done == len(wanted):
                break
            if not self._advance():
                raise ValueError(
                    f"{self.name}: expected a stream of {self.num_items} items in each pass; got {self.start}"
                )
        back = order.argsort()
        return tuple(torch.cat(parts)[back] for parts in zip(*found, strict=True))


@dataclass(frozen=True, eq=False)
class _Part:
    """One part of items that have several, as a source."""

    items: _Reader
    number: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.items.num_items, *self.items.example[self.number].shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        return self.items.example[self.number].dtype

    def __getitem__(self, index: Tensor) -> Tensor:
        part = self.items.read(index)[self.number]
        if part.shape[1:] != self.shape[1:]:
            got = f"{tuple(self.shape[1:])}, and {tuple(part.shape[1:])}"
            raise ValueError(f"{self.items.name}: expected items of one shape; got {got}")
        return part.clone()  # what is kept stays as it was read


def _checked(name: str, batch: Any) -> tuple[Tensor, ...]:
    """A collated batch as a tuple of tensors."""
    parts = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(parts, tuple | list) or not parts or not all(isinstance(t, Tensor) and t.dim() for t in parts):
        got = "a dict" if isinstance(batch, dict) else ", ".join(type(t).__name__ for t in parts)
        raise _refused(name, got)
    return tuple(parts)


def _refused(name: str, got: str) -> ValueError:
    return ValueError(
        f"{name}: expected items that are tensors of one shape, or tuples of them; got {got}. A transform of the "
        "dataset, or a DataLoader's collate_fn, makes such of others"
    )
