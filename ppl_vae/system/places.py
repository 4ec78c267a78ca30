"""Where programs find what they use besides their arguments: the modules, and the numbers that a trace makes constants.

Nothing is run: what is seen is what the code of the programs names, as far as that can be followed.
"""

from __future__ import annotations

import functools
import io
import itertools
import random
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where something is: its path, and the item of a container, or the attribute of an object, that it is."""

    path: str
    holder: Any
    key: Any

    def read(self) -> Any:
        try:
            if isinstance(self.holder, type):
                return vars(self.holder)[self.key]
            return self.holder[self.key] if isinstance(self.holder, _CONTAINERS) else getattr(self.holder, self.key)
        except (LookupError, AttributeError, ValueError):  # it was there; a variable may not have been set yet
            return None

    def write(self, value: Any) -> None:
        """Raises `TypeError` for what can't be written to, the item of a tuple."""
        if hasattr(self.holder, "__setitem__"):
            self.holder[self.key] = value
        else:
            setattr(self.holder, self.key, value)


def places_of(*programs: Any) -> list[Place]:
    """Where programs find what they use: the variables and globals that their functions name, the attributes of their
    objects and classes, the arguments of partials, the items of containers, and in turn what these use. What libraries
    hold, and what a function gets at in other ways, is not seen."""
    return [place for place, _ in _walked(programs)]


def modules_of(*programs: Any) -> list[nn.Module]:
    """The `nn.Module`s that programs use, as far as `places_of` sees them, without the submodules of others."""
    modules = {id(m): m for place in places_of(*programs) if isinstance(m := place.read(), nn.Module)}
    inner = {id(child) for m in modules.values() for child in m.modules() if child is not m}
    return [m for i, m in modules.items() if i not in inner]


class Constants:
    """The numbers and strings that programs find in Python, as far as `places_of` sees them, of which a trace makes
    constants; and the tensors there, one of which takes another's place where a program doesn't change it in place."""

    def __init__(self, *programs: Any):
        walked = _walked(programs)
        numbers = [place for place, has_numbers in walked if has_numbers and _can_change(place)]
        self._numbers = [_read(place) for place in numbers]
        self._tensors = [place for place, _ in walked if isinstance(place.read(), Tensor) and _can_change(place)]
        self._now: list[Any] = []
        self._in_graphs: list[tuple[Place, Tensor]] = []
        # what is looked at before each call
        self._quick = [(*_reader(place), value, place, before) for place, value, before in self._numbers]

    def changed(self) -> str:
        """Which is another than when this was made, or a graph was, and what to do; "" for none."""
        self._now = [place.read() for place in self._tensors]
        for read, key, value, place, before in self._quick:
            if (now := read(key)) is value and before is value:
                continue
            now = _content(now)
            if now is _MOVES:
                return f"{place.path!r} gives another value at each call, {_FROZEN}"
            if _is_another(before, now):
                words = f"from {before} to {now}" if isinstance(before, _NUMBERS) else "what it holds"
                return f"{place.path!r} changed {words}, {_FROZEN}"
        if other := [place.path for place, tensor in self._in_graphs if place.read() is not tensor]:
            return f"{other[0]!r} became another tensor, {_FROZEN}"
        return ""

    def are_in_graph(self, tensors: Iterable[Tensor]) -> None:
        """Takes down which tensors a graph holds: those that were found when `changed` was last called."""
        ids = {id(t) for t in tensors}
        self._in_graphs += [(place, t) for place, t in zip(self._tensors, self._now, strict=False) if id(t) in ids]

    def kept(self) -> Callable[[], None]:
        """A function that writes back what is in all places now, but for large tensors, which hold data."""
        numbers = [_read(place) for place, *_ in self._numbers]
        tensors = [(place, place.read()) for place in self._tensors]
        small = (t for _, t in tensors if isinstance(t, Tensor) and t.numel() <= _DATA and not t.is_inference())
        write_tensors = kept(dict.fromkeys(small))

        def write() -> None:
            write_tensors()
            for place, value, content in numbers:
                if isinstance(content, _Array):
                    value[...] = content.of(value)
                elif _is_another(value, place.read()):
                    place.write(value)
            for place, t in tensors:
                if place.read() is not t:
                    place.write(t)

        return write


_FROZEN = "of which a trace makes a constant: make it a buffer"


def kept(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """A function that writes back the values that tensors have now."""
    before = [(t, t.detach().clone()) for t in tensors]

    @torch.no_grad()
    def write() -> None:
        for t, value in before:
            t.copy_(value)

    return write


class _State(NamedTuple):
    """The state of what gives a number at each call."""

    content: bytes


_MOVES = object()  # stands for an iterator, whose state isn't looked at


class _Array(NamedTuple):
    """The content of a NumPy array."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    def of(self, array: np.ndarray) -> np.ndarray:
        return np.frombuffer(self.content, array.dtype).reshape(self.shape)


def _read(place: Place) -> tuple[Place, Any, Any]:
    value = place.read()
    return place, value, _content(value)


def _content(value: Any) -> Any:
    """What is compared: the value itself, but for what changes in place."""
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, np.ndarray) and value.size <= _DATA and not value.dtype.hasobject:
        return _Array(value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, _RANDOM):
        return _State(repr(_state_of(value)).encode())
    if isinstance(value, itertools.count):
        return _State(repr(value).encode())
    return _MOVES if _moves(value) else value


def _state_of(generator: Any) -> Any:
    """Of one of `_RANDOM`, in numbers alone."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    own = generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
    return {name: np.asarray(part).tolist() for name, part in own.state["state"].items()}


def _moves(value: Any) -> bool:
    """Whether it is a library's iterator or generator of random numbers."""
    is_source = isinstance(value, _RANDOM) or (isinstance(value, Iterator) and not isinstance(value, io.IOBase))
    return is_source and _is_foreign(type(value).__module__)


def _is_another(before: Any, now: Any) -> bool:
    comparable = (*_NUMBERS, _Array, _State)
    if now is before or not (isinstance(before, comparable) and isinstance(now, comparable)):
        return now is not before
    return type(now) is not type(before) or now != before


def _reader(place: Place) -> tuple[Callable[[Any], Any], Any]:
    """A function and its argument that read a place, fast where it is in a dict."""
    return (place.holder.get, place.key) if isinstance(place.holder, dict) else (lambda _: place.read(), None)


def _can_change(place: Place) -> bool:
    """Whether something else can take its place, or it changes in place. The mode of training is part of a graph's
    key."""
    if isinstance(place.holder, tuple):
        return isinstance(value := place.read(), np.ndarray) or _moves(value)
    return place.key != "training"


_NUMBERS = (bool, int, float, complex, str, np.generic, type(None))
_LEAVES = (Tensor, type, ModuleType, np.ndarray, *_NUMBERS)
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState)
_CONTAINERS = (list, dict, tuple, deque)
_FOREIGN = {*sys.stdlib_module_names, "torch", "pyro", "numpy", "zuko"}  # packages that use no modules of a user's
_LARGE = 100  # a container of more items holds data
_DATA = 1 << 20  # as does a tensor of more elements


def _walked(programs: tuple[Any, ...]) -> list[tuple[Place, bool]]:
    """The places that programs use, and whether there is a number: itself, or inside of what is there."""
    places: list[tuple[Place, bool]] = []
    seen: dict[Hashable, tuple[Any, bool]] = {}  # the values are kept, so that no id comes twice

    def walk(value: Any, path: str) -> bool:
        is_method = isinstance(value, MethodType)  # another object at each access
        identity = (id(value.__func__), id(value.__self__)) if is_method else id(value)
        if isinstance(value, _LEAVES):
            return isinstance(value, (np.ndarray, *_NUMBERS))
        if identity not in seen:
            seen[identity] = value, _moves(value)
            for name, holder, key in _held(value):
                place, at = Place(f"{path}.{name}".strip("."), holder, key), len(places)
                has_numbers = walk(place.read(), place.path)
                places.insert(at, (place, has_numbers))
                seen[identity] = value, seen[identity][1] or has_numbers
        return seen[identity][1]

    walk(programs, "")
    return places


def _held(value: Any) -> Iterator[Place]:
    """What a value holds itself, by its name there."""
    if isinstance(value, functools.partial):
        yield from _fixed(value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from _fixed(value.__self__, value.__func__)
        yield from _of_class(value.__self__, _names(value.__func__))
    elif isinstance(value, FunctionType):
        yield from _named(value)
        defaults = *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()
        yield from _fixed(getattr(value, "__wrapped__", None), *defaults)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from _fixed(value.__wrapped__)
    elif isinstance(value, tuple | set | frozenset):
        yield from _fixed(*[*value][:_LARGE])
    elif isinstance(value, list | dict | deque):
        keys = [*value] if isinstance(value, dict) else range(len(value))
        yield from (Place(str(key), value, key) for key in keys[:_LARGE])
    elif isinstance(value, nn.Module | SimpleNamespace | Namespace) or not _is_foreign(type(value).__module__):
        for attributes in (getattr(value, "__dict__", {}), getattr(value, "_modules", {})):
            yield from (Place(name, attributes, name) for name in attributes if name not in _OF_MODULES)
        for cls in _own_classes(type(value)):
            slots = (name for name, found in vars(cls).items() if isinstance(found, MemberDescriptorType))
            yield from (Place(name, value, name) for name in slots)
        yield from _of_class(value, ["forward" if isinstance(value, nn.Module) else "__call__"])


_OF_MODULES = {*vars(nn.Module())}


def _fixed(*parts: Any) -> Iterator[Place]:
    return (Place("", parts, i) for i in range(len(parts)))


def _of_class(owner: Any, names: list[str]) -> Iterator[Place]:
    """What the owner's class, or the owner that is one, has by these names, or inherits from a user's: functions as
    methods of the owner. Where `super` is a name, also what is overridden."""
    classes = _own_classes(owner if isinstance(owner, type) else type(owner))
    for name in names:
        for cls in [c for c in classes if name in vars(c)][: None if "super" in names else 1]:
            if function := _function_of(vars(cls)[name], owner):
                yield from _fixed(function)
            else:
                yield Place(name, cls, name)


def _own_classes(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if not _is_foreign(c.__module__)]


def _function_of(found: Any, owner: Any) -> Any:
    """The function that an attribute of a class runs, as the owner's; None for what is no function."""
    if isinstance(found, staticmethod):
        return found.__func__
    if isinstance(found, classmethod):
        return MethodType(found.__func__, owner if isinstance(owner, type) else type(owner))
    getter = found.fget if isinstance(found, property) else getattr(found, "func", None)
    function = getter if isinstance(found, property | functools.cached_property) else found
    return MethodType(function, owner) if isinstance(function, FunctionType) else None


def _named(function: FunctionType) -> Iterator[Place]:
    """The variables that a function captured, and the globals that it names, also as `module.name`."""
    captured = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    names = _names(function)
    places = [Place(name, cell, "cell_contents") for name, cell in captured]
    if not _is_foreign(function.__module__):
        places += [Place(name, function.__globals__, name) for name in names if name in function.__globals__]
    for place in places:
        found = place.read()
        if isinstance(found, ModuleType) and not _is_foreign(found.__name__):
            yield from (Place(f"{place.path}.{n}", vars(found), n) for n in names if n in vars(found))
        elif isinstance(found, type):
            yield from (Place(f"{place.path}.{p.path}".strip("."), *p[1:]) for p in _of_class(found, names))
        else:
            yield place
            yield from _of_class(found, names)  # the methods and properties that are named


def _names(function: Any) -> list[str]:
    """The names of globals and attributes in a function's code, and in that of the functions inside of it."""
    names: dict[str, None] = {}
    codes = [getattr(function, "__code__", None)]
    for code in codes:
        if isinstance(code, CodeType):
            names |= dict.fromkeys(code.co_names)
            codes += code.co_consts
    return [*names]


def _is_foreign(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _FOREIGN
