"""Where work is done that can be done apart: in this process, or by a `concurrent.futures.Executor` over processes of
this machine, a dask cluster, or SLURM.

Each part computes with as many threads as $OMP_NUM_THREADS says, by default with one: so results are the same, bit for
bit, for all engines and numbers of workers, and as in this process where it has as many threads.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from ppl_vae.system.errors import needed, one_line

T = TypeVar("T")

Setup = Callable[[], object]
Run = Callable[[bytes], bytes]
"""Makes a call, as `outcome` does, in another process, and waits for it. Raises `ChildProcessError` if that dies."""

ENGINES = "processes[:N], dask[:N or ADDRESS], slurm[:KEY=VALUE,...], slurm:local or slurm:debug"
MOST_AT_ONCE = 256  # calls that a cluster has in its queue
MINUTES = 24 * 60  # of a job, by default


def apart(
    executor: Executor | None, function: Callable[..., T], parts: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, Callable[[], T]]]:
    """The calls `function(*parts[name])`, by name, each as what returns its result or raises its error: without an
    executor in their order, and made when that is called; else in the order in which they are done."""
    if executor is None:
        for name, arguments in parts.items():
            yield name, partial(function, *arguments)
        return
    futures = {executor.submit(function, *arguments): name for name, arguments in parts.items()}
    for future in as_completed(futures):
        yield futures[future], future.result


@contextmanager
def executor_of(spec: str | None, folder: Path, setup: Setup | None = None) -> Iterator[Executor | None]:
    """The executor that a spec names; None for none, which is this process.

    - `processes:N`: N worker processes of this machine, by default as many as it has cores for their threads;
    - `dask:ADDRESS`: a dask cluster, or one of N processes of this machine, `dask:N`. It needs the extra dask;
    - `slurm:partition=gpu,timeout_min=600`: a SLURM job for each call, with parameters of submitit, by default of a
      day; `slurm:local` runs them as processes of this machine, and `slurm:debug` in this one. Logs and results of jobs
      go to `folder`/slurm. It needs the extra slurm.

    Functions and arguments are pickled; on other machines, paths have to lead to the same files. A call whose worker
    dies is made again, once (by dask three times), and then raises `ChildProcessError`; the others go on. Where an
    interrupt or an error leaves the context, workers get SIGTERM, at which a training writes a checkpoint.

    Arguments:
        setup: called in a worker before each call, to import plugins, say.

    Raises `ValueError` for a spec that is none, `ImportError` where an extra is missing, and `OSError` for a cluster
    that is not there.
    """
    engine = check_executor(spec)
    if engine is None:
        yield None
        return
    with engine(folder, num_threads(), setup) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
        executor.shutdown()


def check_executor(spec: str | None) -> Callable[[Path, int, Setup | None], AbstractContextManager[Executor]] | None:
    """What makes the executor that a spec names, or None for none. Raises `ValueError` for anything else."""
    if spec is None:
        return None
    name, colon, rest = spec.partition(":")
    engine: Any = {"processes": _processes, "dask": _dask, "slurm": _slurm}.get(name)
    known = engine is not None and (bool(rest) or not colon)
    if known and (name == "processes" or rest.isdecimal()):
        known = name != "slurm" and (not rest or (rest.isdecimal() and int(rest) > 0))
    if not known:
        raise ValueError(f"executor: expected {ENGINES}; got {spec!r}")
    return partial(engine, rest)


def num_threads() -> int:
    """The threads that a part computes with."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() and int(text) > 0 else 1


class Apart(Executor):
    """Makes calls by `run`, so many at once, each in a thread that waits for it. Calls go as bytes, so that tensors are
    copied, and not shared. One whose process dies is made again, unless `run` does that itself."""

    def __init__(self, run: Run, num_at_once: int, stop: Callable[[], object], *, again: bool = True):
        self.run, self.stop, self.again = run, stop, again
        self.is_closing = threading.Event()
        self._threads = ThreadPoolExecutor(num_at_once, "apart")

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._threads.submit(self._make, pickle.dumps((fn, args, kwargs)))

    def _make(self, call: bytes) -> Any:
        try:
            result, error = pickle.loads(self.run(call))
        except ChildProcessError:
            if self.is_closing.is_set() or not self.again:
                raise
            result, error = pickle.loads(self.run(call))
        if error is not None:
            raise error
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for the calls; or stops them."""
        if cancel_futures:
            self.is_closing.set()
            self._threads.shutdown(wait=False, cancel_futures=True)
            self.stop()
        self._threads.shutdown(wait=wait)


_ALONE = threading.Lock()  # Pyro's parameters and torch's generator are the process's, in which dask may have threads


def outcome(call: bytes, threads: int, setup: Setup | None) -> bytes:
    """What a call comes to, in a worker: the result and the error, of which one is None."""
    with _ALONE, _threads(threads):
        try:
            if setup is not None:
                setup()
            function, args, kwargs = pickle.loads(call)
            return pickle.dumps((function(*args, **kwargs), None))
        except KeyboardInterrupt:
            if threading.current_thread() is threading.main_thread():
                os._exit(128 + signal.SIGTERM)  # a worker whose training has written a checkpoint
            raise
        except Exception as error:
            try:
                content = pickle.dumps((None, error))
                pickle.loads(content)
                return content
            except Exception:
                return pickle.dumps((None, ValueError(one_line(error))))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Inside, torch computes with so many threads, also where it is yet to be imported."""
    before, torch = os.environ.get("OMP_NUM_THREADS"), sys.modules.get("torch")
    had = torch.get_num_threads() if torch else number
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        if torch and had != number:
            torch.set_num_threads(number)
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        if torch and had != number:
            torch.set_num_threads(had)


def _num_workers(threads: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads)


DIED = "expected its worker to live; got one that died (killed, or out of memory)"


@contextmanager
def _processes(rest: str, folder: Path, threads: int, setup: Setup | None) -> Iterator[Executor]:
    """Each thread has a pool of one process, so that the death of one is not that of the others."""
    of_thread = threading.local()
    pids: list[int] = []

    def run(call: bytes) -> bytes:
        try:
            if getattr(of_thread, "pool", None) is None:
                pool = of_thread.pool = ProcessPoolExecutor(1, get_context("spawn"), _begin)
                stack.callback(pool.shutdown)
                pids.append(pool.submit(os.getpid).result())
                if executor.is_closing.is_set():
                    stop()
            return of_thread.pool.submit(outcome, call, threads, setup).result()
        except BrokenProcessPool:
            of_thread.pool = None
            raise ChildProcessError(DIED) from None

    def stop() -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    executor = Apart(run, int(rest or _num_workers(threads)), stop)
    with ExitStack() as stack:
        yield executor


def _begin() -> None:
    """In a worker process: interrupts are its parent's, with whom it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()


@contextmanager
def _dask(rest: str, folder: Path, threads: int, setup: Setup | None) -> Iterator[Executor]:
    distributed = needed("distributed", "dask", "executor dask")
    with ExitStack() as stack:
        cluster: Any = rest
        if not rest or rest.isdecimal():
            sizes = {"n_workers": int(rest or _num_workers(threads)), "threads_per_worker": 1}
            cluster = stack.enter_context(distributed.LocalCluster(**sizes, dashboard_address=None))
        client = stack.enter_context(distributed.Client(cluster))
        futures: list[Any] = []

        def run(call: bytes) -> bytes:
            futures.append(client.submit(outcome, call, threads, setup, pure=False))
            try:
                return futures[-1].result()
            except distributed.KilledWorker:
                raise ChildProcessError(DIED) from None

        yield Apart(run, MOST_AT_ONCE, lambda: client.cancel(futures), again=False)


@contextmanager
def _slurm(rest: str, folder: Path, threads: int, setup: Setup | None) -> Iterator[Executor]:
    submitit = needed("submitit", "slurm", "executor slurm")
    is_here = rest in ("local", "debug")
    cluster = rest if is_here else "slurm"
    try:
        jobs = submitit.AutoExecutor(folder / "slurm", cluster=cluster)
        jobs.update_parameters(**_parameters("" if is_here else rest, threads))
    except (RuntimeError, NameError, AssertionError, ValueError) as error:
        raise ValueError(f"executor slurm: {' '.join(str(error).split())}") from None
    started: list[Any] = []
    one_at_a_time = threading.Lock()

    def run(call: bytes) -> bytes:
        with one_at_a_time:
            job = jobs.submit(outcome, call, threads, setup)
            started.append(job)
        try:
            return job.result()
        except submitit.core.utils.UncompletedJobError:
            raise ChildProcessError(f"{DIED}; its log is {job.paths.stderr}") from None

    def stop() -> None:
        for job in started:
            if not job.done():
                job.cancel(check=False)

    num_at_once = {"local": _num_workers(threads), "debug": 1}.get(cluster, MOST_AT_ONCE)
    yield Apart(run, num_at_once, stop)


def _parameters(text: str, threads: int) -> dict[str, Any]:
    """Those of submitit, of which the ones that are SLURM's alone are named slurm_*.

    >>> _parameters("partition=gpu,timeout_min=60", 1)
    {'name': 'ppl-vae', 'timeout_min': 60, 'cpus_per_task': 1, 'slurm_partition': 'gpu'}
    """
    found: dict[str, Any] = {"name": "ppl-vae", "timeout_min": MINUTES, "cpus_per_task": threads}
    shared = (*found, "mem_gb", "gpus_per_node")
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"expected KEY=VALUE; got {item!r}")
        key = key if key in shared else f"slurm_{key.removeprefix('slurm_')}"
        found[key] = int(value) if value.isdecimal() else value
    return found
