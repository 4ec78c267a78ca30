"""Every engine, with real processes: results and errors are those of none, and a worker that is killed is replaced."""

import contextlib
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest
from apart_calls import call, die, die_once, end_by_signal, look, outlive, set_up, stop_once, wait_for

from ppl_vae.system.executors import apart, check_executor, executor_of, num_threads

MODULE = {"processes": "torch", "dask": "distributed", "slurm": "submitit"}


@pytest.fixture(scope="module")
def executor(request, tmp_path_factory):
    """Of an engine, whose workers find what the tests call."""
    name = request.param.partition(":")[0]
    pytest.importorskip(MODULE[name])
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "3")
        with executor_of(request.param, tmp_path_factory.mktemp(name), set_up) as executor:
            yield executor


def of_one(executor, function, *arguments):
    ((_, result),) = apart(executor, function, {"": arguments})
    return result()


def test_without_an_executor_calls_are_made_when_asked_for_and_in_order(tmp_path):
    made = []
    with executor_of(None, tmp_path) as executor:
        assert executor is None
        for name, result in apart(executor, made.append, {"b": (1,), "a": (2,)}):
            assert name == "ba"[len(made)]
            result()
    assert made == [1, 2]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of submitit, in this process
@pytest.mark.parametrize("executor", ["processes:2", "dask:2", "slurm:local", "slurm:debug"], indirect=True)
def test_every_engine_has_the_results_and_errors_of_none(executor, request):
    results = dict(apart(executor, look, {error: (error,) for error in ("none", "zero", "unpicklable")}))
    threads, was_set_up, process = results["none"]()
    assert (threads, was_set_up) == ("3", True)
    assert (process == os.getpid()) == ("debug" in request.node.name)
    with pytest.raises(ZeroDivisionError, match="zero"):
        results["zero"]()
    with pytest.raises(ValueError, match="UnpicklableError: no pickle"):
        results["unpicklable"]()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("executor", ["processes:2", "dask:2"], indirect=True)
def test_the_part_of_a_worker_that_is_killed_is_done_again_and_no_other(executor, tmp_path):
    folder = str(tmp_path)
    begun = executor.submit(outlive, folder)
    wait_for(tmp_path / "begun")
    assert of_one(executor, die_once, folder) == "lives"
    assert begun.result() == 1


@pytest.mark.parametrize("executor", ["processes:2"], indirect=True)
def test_a_part_that_a_signal_has_stopped_is_gone_on_with(executor, tmp_path):
    assert of_one(executor, stop_once, str(tmp_path)) == "lives"


@pytest.mark.parametrize("executor", ["processes:2"], indirect=True)
def test_one_that_is_killed_twice_fails_and_the_others_go_on(executor):
    parts = {f"{a} + 1": (operator.add, a, 1) for a in (1, 2)} | {"death": (die,)}
    results = dict(apart(executor, call, parts))
    assert [results[f"{a} + 1"]() for a in (1, 2)] == [2, 3]
    with pytest.raises(ChildProcessError, match=r"got one that died \(killed, or out of memory\)"):
        results["death"]()


@pytest.mark.parametrize("executor", ["slurm:local"], indirect=True)
def test_a_job_that_is_killed_is_submitted_again(executor, tmp_path, monkeypatch):
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)
    assert of_one(executor, die_once, str(tmp_path)) == "lives"


def test_an_interrupt_terminates_the_workers(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), executor_of("processes:1", tmp_path) as executor:
        futures = [executor.submit(end_by_signal, str(tmp_path)) for _ in range(2)]
        wait_for(tmp_path / "begun")
        raise KeyboardInterrupt
    assert (tmp_path / "ended").exists()
    assert futures[1].cancelled()


def test_workers_end_with_their_parent(tmp_path):
    code = (
        "import sys; from pathlib import Path; from apart_calls import end_by_signal;"
        "from ppl_vae.system.executors import executor_of\n"
        "if __name__ == '__main__':\n"
        "    with executor_of('processes:1', Path()) as executor: executor.submit(end_by_signal, '.').result()"
    )
    where = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])}
    (tmp_path / "parent.py").write_text(code)
    with subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=os.environ | where, stderr=subprocess.DEVNULL
    ) as parent:
        wait_for(tmp_path / "begun")
        parent.kill()
    wait_for(tmp_path / "ended")


@pytest.mark.parametrize("spec", ["", "process", "processes:", "processes:0", "processes:a", "dask:0", "slurm:2"])
def test_another_spec_is_refused(spec):
    with pytest.raises(ValueError, match=r"executor: expected processes\[:N\], dask.*; got '"):
        check_executor(spec)


def test_parameters_and_clusters_that_are_not_there_are_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    for spec in ("slurm", "slurm:gpu", "slurm:local,partition=a"):
        with pytest.raises(ValueError, match=r"executor slurm: .") as error, executor_of(spec, tmp_path):
            pass
        assert "\n" not in str(error.value)


def test_threads_are_those_of_the_environment(monkeypatch):
    for text, number in {"4": 4, "": 1, "0": 1, "two": 1}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert num_threads() == number
