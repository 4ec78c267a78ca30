"""Progress of long computations: a bar in a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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

SECONDS_BETWEEN_LINES = 10.0
FEWEST = 5  # units, after which the time left is told


class Report(Protocol):
    """Called after each unit of work; `text` is the status to show, if any."""

    def __call__(self, advance: int = 1, text: str = "") -> None: ...


@contextmanager
def progress(description: str, total: int, *, enabled: bool = True) -> Iterator[Report]:
    """Yields a function that reports progress over `total` units, on standard error.

    In a terminal it moves a bar with the time left, and writes each non-empty `text` above it. Elsewhere it prints each
    as a line, and where there was none for 10 seconds a line that says how far it is and the time left.
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
        yield _Lines(total, write)


class _Lines:
    """Reports progress in lines: each text, and one every 10 seconds without."""

    def __init__(self, total: int, write: Callable[[str], None]):
        self.total, self.write = total, write
        self.done = self.done_by_then = 0
        self.last = time.monotonic()

    def __call__(self, advance: int = 1, text: str = "") -> None:
        self.done += advance
        now = time.monotonic()
        if text:
            self.write(text)
        elif now - self.last < SECONDS_BETWEEN_LINES or self.done >= self.total:
            return
        else:
            done = self.done - self.done_by_then  # at the rate of late: the first units compile, say
            left = (now - self.last) / done * (self.total - self.done)
            known = f", about {duration(left)} left" if done >= FEWEST else ""  # a few tell too little
            self.write(f"{self.done:,} of {self.total:,}{known}")
        self.last, self.done_by_then = now, self.done


def duration(seconds: float) -> str:
    """
    >>> duration(8.4), duration(150), duration(9000)
    ('8 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
