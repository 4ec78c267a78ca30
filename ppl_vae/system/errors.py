"""Errors as one line, for a user to read."""

from __future__ import annotations

import importlib
import textwrap
from typing import Any


def needed(module: str, extra: str, what: object) -> Any:
    """An optional package's module. Raises `ImportError`, which says how to install it, where it is missing.

    >>> needed("no_such_package", "tables", "a.csv")
    Traceback (most recent call last):
    ImportError: a.csv: expected the package no_such_package; got none (pip install 'ppl-vae[tables]')
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what}: expected the package {error.name or module}; got none (pip install 'ppl-vae[{extra}]')"
        ) from None


def one_line(error: BaseException, *, foreign: bool = False) -> str:
    """The error as one line: its text alone where its type says that it is raised to be read, else type and text.

    `foreign` is for errors of libraries, whose text is not ours: always with the type, and at most 200 characters.

    >>> one_line(ValueError("x: expected\\n  1"))
    'x: expected 1'
    >>> one_line(KeyError("x"))
    "KeyError: 'x'"
    >>> one_line(ValueError("a\\nb"), foreign=True)
    'ValueError: a b'
    """
    name = type(error).__name__
    if foreign:
        return textwrap.shorten(f"{name}: {error}", 200, placeholder="...")
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    without_shapes = str(error).partition("Trace Shapes:")[0]  # Pyro's, a screenful
    text = " ".join(without_shapes.split())
    if isinstance(error, ValueError | OSError | ArithmeticError | MemoryError | ImportError):
        return text or name
    return f"{name}: {text}"
