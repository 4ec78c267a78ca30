"""What tests of executors call in workers. Nothing here imports torch."""

import contextlib
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Executor, Future
from pathlib import Path

was_set_up = False


class Elsewhere(Executor):
    """Makes pickled calls in this process, and is done with them in an order of its own."""

    def __init__(self, scope=contextlib.nullcontext):
        self.num_calls, self.scope = 0, scope

    def submit(self, fn, /, *args, **kwargs):
        self.num_calls += 1
        function, args, kwargs = pickle.loads(pickle.dumps((fn, args, kwargs)))
        future = Future()
        with self.scope():
            future.set_result(pickle.loads(pickle.dumps(function(*args, **kwargs))))
        return future


def set_up():
    global was_set_up
    was_set_up = True


class UnpicklableError(Exception):
    def __init__(self):
        super().__init__("no pickle")
        self.lock = threading.Lock()


def look(error):
    """How many threads torch would have, whether `set_up` was called, and in which process; or an error."""
    if error == "none":
        return os.environ["OMP_NUM_THREADS"], was_set_up, os.getpid()
    raise UnpicklableError if error == "unpicklable" else ZeroDivisionError(error)


def call(function, *arguments):
    return function(*arguments)


def die_once(folder):
    """Kills its process, when called for the first time."""
    if not (Path(folder) / "died").exists():
        (Path(folder) / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lives"


def stop_once(folder):
    """The same by what a training raises after a checkpoint."""
    if not (Path(folder) / "stopped").exists():
        (Path(folder) / "stopped").touch()
        raise KeyboardInterrupt
    return "lives"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def outlive(folder):
    """Works until another has died; returns how often it was begun."""
    with (Path(folder) / "begun").open("a") as file:
        file.write("x")
    wait_for(Path(folder) / "died")
    time.sleep(0.2)
    return len((Path(folder) / "begun").read_text())


def end_by_signal(folder):
    """Works until SIGTERM, of which it leaves word."""

    def leave_word(number, frame):
        (Path(folder) / "ended").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, leave_word)
    (Path(folder) / "begun").touch()
    while True:
        time.sleep(0.01)


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
