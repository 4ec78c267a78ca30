"""Errors as one line, for a user to read."""

from __future__ import annotations

import textwrap


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
