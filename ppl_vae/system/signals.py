"""Work that is told to stop, or of which a part fails: what is left, and what goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from ppl_vae.system.errors import one_line

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: ContextVar[list[int] | None] = ContextVar("raised", default=None)  # by the `terminable` that is open


@contextmanager
def stoppable() -> Iterator[Callable[[], int | None]]:
    """Within it SIGINT and SIGTERM don't end the work: the function that it yields returns the first that came, for
    the work to end itself where it can go on from. SIGINT after that raises `KeyboardInterrupt` at once.

    The handlers are afterwards those from before; a signal that came then is raised again, for them. So is all of what
    draws pictures, as a decorator: matplotlib loses what is raised in its callbacks. In threads but the main one, where
    signals don't arrive, it does nothing.
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
    """Within it SIGTERM raises `KeyboardInterrupt` as SIGINT does, also where compiled code, as that of pictures, made
    another error of it. Yields a list of those that came.
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
        # what is ignored, as in a shell's background, stays so
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
    """Part of a work whose other parts go on though this one fails: why it did is said, and in `failed`, in one line.
    What was told to stop stops all of it.
    """
    try:
        yield
    except Exception as error:
        _raise_again(error)
        failed[part] = one_line(error)
        say(f"{part}: failed: {failed[part]}")
