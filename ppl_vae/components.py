"""Components by name: the concrete subclasses of a base class, and their keyword arguments, are the choices.

A component is written `name` or `name:key=value,key=value`, with the class name in kebab case:
`gaussian:scale=0.1` is `Gaussian(scale=0.1)`, and `dense:hidden=200+100` is `Dense(hidden=(200, 100))`.
"""

from __future__ import annotations

import difflib
import gc
import inspect
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class UsageError(ValueError):
    """A name or an argument that does not exist: what was typed is wrong, and not the data."""


class UnknownComponentError(UsageError):
    """A component of a name that no class has: perhaps it is in a module that has not been imported."""


class Component:
    """What goes by name. A direct subclass is a kind of component, `class Prior(Component, ...)`; every concrete class
    below it registers when it is made, under its name in kebab case, for as long as it exists, unless it says
    `by_name=False`, or another name, `by_name="tensorboard"`.

    Raises `UsageError` for a name that another class has. The same class made again (a notebook's cell, say) replaces
    the one before.
    """

    _choices: ClassVar[weakref.WeakValueDictionary[str, type]]

    def __init_subclass__(cls, *, by_name: bool | str = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not by_name:
            return
        if Component in cls.__bases__:
            cls._choices = weakref.WeakValueDictionary()
        elif not inspect.isabstract(cls):
            name = by_name if isinstance(by_name, str) else kebab(cls)
            if _is_other(cls._choices.get(name), cls):
                gc.collect()  # a class that nothing refers to any more has no name
            if _is_other(taken := cls._choices.get(name), cls):
                base = next(b for b in cls.__mro__ if Component in b.__bases__)
                refuse_taken(base.__name__.lower(), name, cls, taken)
            cls._choices[name] = cls


def _is_other(taken: type | None, cls: type) -> bool:
    return taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__)


def refuse_taken(what: str, name: str, new: Any, taken: Any) -> None:
    """Raises `UsageError`, which says where both, classes or functions, are from."""

    def place(thing: Any) -> str:
        file = getattr(sys.modules.get(thing.__module__), "__file__", None)
        return f"{thing.__module__}.{thing.__qualname__}" + (f" ({file})" if file else "")

    raise UsageError(f"{what} {name}: expected a name that is not taken; got {place(new)}, and there is {place(taken)}")


def kebab(cls: type) -> str:
    """The name of a class on the command line.

    >>> class SaltAndPepper: ...
    >>> kebab(SaltAndPepper)
    'salt-and-pepper'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()


def choices(base: type[T]) -> dict[str, type[T]]:
    """Every component of this kind by its name, in the order of definition."""
    return dict(base._choices)  # type: ignore[attr-defined]


def unknown(what: str, name: str, known: list[str], written: str = "") -> str:
    """One line that says what was expected, with the nearest name if there is one. `written` says it shorter.

    >>> unknown("model", "vae", ["dense-ae", "dense-vae", "conv-vae"], "NETWORK-KIND")
    "model: expected one of NETWORK-KIND; got 'vae' (did you mean 'dense-vae' or 'conv-vae'?)"
    """
    words = {*re.split("[-_]", name.lower())}
    near = [k for k in known if k == name.lower()]
    near = near or [k for k in known if words <= {*re.split("[-_]", k)}]  # `vae` is a part of several
    near = near or difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" (did you mean {' or '.join(map(repr, near[:3]))}?)" if near else ""
    return f"{what}: expected one of {written or ', '.join(known)}; got {name!r}{hint}"


def parse(base: type[T], spec: str, *, given: tuple[str, ...] = ()) -> Callable[..., T]:
    """What makes components of kind `base` as `spec` describes them: a function of the arguments named in `given`,
    which a spec can't set; each component gets those that its `__init__` names.

    Raises `UsageError` for an unknown name (then `UnknownComponentError`) or argument or a value of the wrong type. The
    function raises it for a value that the component refuses.
    """
    what = base.__name__.lower()
    name, _, rest = spec.partition(":")
    known: dict[str, Any] = choices(base)
    if name not in known:
        raise UnknownComponentError(unknown(what, name, list(known)))
    cls = known[name]
    kwargs, named = parse_arguments(cls, rest, f"{what} {name}", given=given), _named(cls)

    def make(**values: Any) -> T:
        try:
            return cls(**{key: value for key, value in values.items() if key in named}, **kwargs)
        except ValueError as error:
            raise UsageError(str(error)) from error

    return make


def parse_arguments(function: Any, text: str, where: str, *, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keyword arguments that `text`, "key=value,key=value", has for a function or class, but for those in `given`.
    Raises `UsageError`, which begins with `where`, as `parse` does."""
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    named = _named(function)
    accepted = [name for name in named if name in hints and name not in given]
    kwargs: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        key = key.replace("-", "_")
        if equals and key in named and key not in hints:
            raise UsageError(f"{where}: expected a type at the argument {key} of {function.__name__}; got none")
        if not equals or key not in accepted:
            expected = ", ".join(f"{p}=..." for p in accepted) or "no arguments"
            raise UsageError(f"{where}: expected {expected}; got {item!r}")
        kwargs[key] = _parse(hints[key], value, f"{where}: {key}")
    return kwargs


def _named(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def create(base: type[T], spec: str, **given: Any) -> T:
    """The component of kind `base` that `spec` describes, made with the arguments `given`: see `parse`.

    >>> from ppl_vae.likelihoods import Likelihood
    >>> create(Likelihood, "gaussian:scale=0.2")
    Gaussian(scale=0.2)
    """
    return parse(base, spec, given=tuple(given))(**given)


def describe(base: type) -> str:
    """The choices with their arguments and defaults, for `--help`."""

    known: dict[str, Any] = choices(base)
    return ", ".join(with_defaults(name, component) for name, component in known.items())


def with_defaults(name: str, function: Any) -> str:
    """name:key=default,key=default, of a function or class."""
    parameters = inspect.signature(function).parameters.values()
    arguments = ",".join(f"{p.name}={_written(p.default)}" for p in parameters if p.default is not p.empty)
    return f"{name}:{arguments}" if arguments else name


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(kind: Any, text: str, where: str) -> Any:
    if get_origin(kind) is tuple:  # of any length, all of one type
        return tuple(_parse(get_args(kind)[0], part, where) for part in text.split("+"))
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        raise UsageError(unknown(where, text, list(get_args(kind))))
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"{where}: expected true or false; got {text!r}")
    try:
        if kind in (int, float) and ("_" in text or len(text) > 30):  # which Python would read as a number
            raise ValueError
        return kind(text)
    except ValueError:
        raise UsageError(f"{where}: expected {kind.__name__}; got {text[:50]!r}") from None
