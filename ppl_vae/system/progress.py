"""Progress of long computations: a bar in a terminal, plain lines otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Report(Protocol):
    """Called after each unit of work; `text` is the status to show, if any."""

    def __call__(self, advance: int = 1, text: str = "") -> None: ...


@contextmanager
def progress(description: str, total: int, *, enabled: bool = True, lines: bool = True) -> Iterator[Report]:
    """Yields a function that reports progress over `total` units, on standard error.

    In a terminal it moves a bar with the time left, and writes each non-empty `text` above it. Elsewhere it prints
    each as a line, if `lines`.
    """
    console = Console(stderr=True)

    def write(text: str) -> None:
        console.print(f"{description}: {text}", highlight=False, soft_wrap=True, markup=False)

    if not enabled:
        yield lambda advance=1, text="": None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total)

            def report(advance: int = 1, text: str = "") -> None:
                if text:
                    write(text)  # above the bar, which keeps its width
                bar.update(task, advance=advance)

            yield report
    else:

        def say(advance: int = 1, text: str = "") -> None:
            if text and lines:
                write(text)

        yield say
