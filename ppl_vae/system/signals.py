"""Graceful handling of SIGINT and SIGTERM, and of failing parts of a batch job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from ppl_vae.system.errors import one_line

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: ContextVar[list[int] | None] = ContextVar("raised", default=None)  # signals received inside `terminable`


@contextmanager
def stoppable() -> Iterator[Callable[[], int | None]]:
    """Inside it, SIGINT and SIGTERM do not end the work. It yields a function that returns the first signal received,
    or None: the work polls it, and ends where it can be resumed. A further SIGINT raises `KeyboardInterrupt` at once.

    Afterwards the previous handlers are restored, and a signal that was received is raised again for them. Functions
    that draw figures have it as a decorator, since matplotlib swallows exceptions raised in its callbacks. It does
    nothing outside of the main thread, where signals don't arrive.
    """
    received: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            if (raised := _raised.get()) is not None:
                raised.append(number)
            raise KeyboardInterrupt
        received.append(number)

    with _handling(keep):
        yield lambda: received[0] if received else None
    if received:
        signal.raise_signal(received[0])


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Inside it, SIGTERM raises `KeyboardInterrupt` as SIGINT does, also where compiled code (matplotlib's, say) turned
    that into another exception. Yields the list of the signals received.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    token = _raised.set(received)
    try:
        with _handling(interrupt):
            yield received
    except Exception as error:
        _raise_again(error)
        raise
    finally:
        _raised.reset(token)


def _raise_again(error: Exception) -> None:
    if _raised.get():
        raise KeyboardInterrupt from error


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        # an ignored signal (as in a background job of a shell) stays ignored
        before = {s: old for s in SIGNALS if (old := signal.getsignal(s)) not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def attempted(part: str, failed: dict[str, str], say: Callable[[str], object]) -> Iterator[None]:
    """Runs one part of a batch job: if it fails, the error is reported by `say` and stored in `failed[part]`, as one
    line, and the other parts continue. An interrupt ends the whole job.
    """
    try:
        yield
    except Exception as error:
        _raise_again(error)
        failed[part] = one_line(error)
        say(f"{part}: failed: {failed[part]}")
