"""The command is killed, told to stop, and out of disk at random moments, and every file of a run folder is damaged at
random places: what is finished in the end is byte for byte what an undisturbed run leaves, or one line of error.

The suite has a short form. The full one kills 50 times by each signal, and damages each file at 200 places, in some
minutes:

    PPL_VAE_KILLS=50 PPL_VAE_DAMAGES=200 pytest -n 0 -s tests/test_interruption.py
"""

import contextlib
import csv
import errno
import functools
import json
import math
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from ppl_vae import commands, experiments, study, swaps
from ppl_vae.cli.main import main
from ppl_vae.experiments.swaps import SwapsConfig
from ppl_vae.system.files import check, locked, write_whole
from ppl_vae.system.signals import SIGNALS, stoppable

KILLS, DAMAGES = (int(os.environ.get(f"PPL_VAE_{name}", 0)) for name in ("KILLS", "DAMAGES"))
TRAIN = shlex.split(
    "train --model dense-vae --hidden 8 --latent-size 3 --epochs 5 --batch-size 16 --train-images 300 "
    "--checkpoint-minutes 0.001 --output run"
)
FILES = ["config.json", "history.csv", "metrics.json", "weights.safetensors"]


@pytest.fixture(autouse=True)
def sigint():
    """As in a terminal, also where the tests are in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def results(folder):
    """What must be the same, byte for byte."""
    check(folder, *FILES)
    assert not (folder / "checkpoints").exists()
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    metrics = json.loads((folder / "metrics.json").read_text())
    seconds = [float(row.pop("seconds")) for row in rows]
    assert metrics.pop("seconds") == pytest.approx(sum(seconds), abs=0.01)
    return (folder / "weights.safetensors").read_bytes(), (folder / "config.json").read_bytes(), rows, metrics


@pytest.fixture
def ppl_vae(capsys, tmp_path, monkeypatch):
    """Runs a command in this process and in an empty folder: (exit status, standard error). Pictures are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "draw_run", lambda *args, **kwargs: [])
    monkeypatch.setattr(study, "draw_run", lambda *args, **kwargs: [])
    monkeypatch.setattr(study, "draw", lambda *args: None)
    monkeypatch.setattr(swaps, "_draw", lambda *args: None)

    def run(*arguments):
        status, before = 0, [signal.getsignal(s) for s in SIGNALS]
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code or 0
        assert [signal.getsignal(s) for s in SIGNALS] == before
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return status, err

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(commands, "draw_run", lambda *args, **kwargs: [])
        main(TRAIN)
    return results(folder / "run")


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("ppl-vae: error: ")]
    assert len(lines) == 1
    assert err.splitlines()[-1] == lines[0]
    return lines[0]


# --- killed at random moments


def serve(folder, arguments):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    for name, descriptor in ((os.devnull, 1), ("stderr", 2)):
        with open(name, "w") as file:
            os.dup2(file.fileno(), descriptor)
    main(arguments)


class Command:
    """The command as a process of its own, forked from one that has imported the package and done nothing else."""

    def __init__(self, folder, arguments):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["ppl_vae.cli.main"])
        self.process = context.Process(target=serve, args=(folder, arguments))
        self.process.start()
        self.begin, self.seconds = time.perf_counter(), 0.0

    def wait(self, seconds=math.inf):
        """The exit status, or None where it has worked for so many seconds: of the processor's time where the system
        says them, so that it has come as far on a busy machine."""
        while self.process.exitcode is None and self.seconds < seconds:
            try:
                self.seconds = int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9
            except (OSError, ValueError, IndexError):
                self.seconds = time.perf_counter() - self.begin
            self.process.join(0.002)
        return self.process.exitcode


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What an undisturbed process leaves, and the seconds that it works for."""
    folder = tmp_path_factory.mktemp("process")
    command = Command(folder, TRAIN)
    assert command.wait() == 0
    return results(folder / "run"), command.seconds


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_process_that_is_killed_at_random_moments_ends_as_one_that_is_not(by, expected, tmp_path):
    (undisturbed, seconds), generator = expected, random.Random(by.name)
    kills, statuses, finished = KILLS or (4 if by == signal.SIGKILL else 1), [], 0
    while len(statuses) < kills:
        folder = tmp_path / str(finished)
        folder.mkdir()
        arguments = TRAIN
        while True:
            command = Command(folder, arguments)
            status = command.wait(generator.uniform(0, seconds) if len(statuses) < kills else math.inf)
            if status is None:
                with contextlib.suppress(ProcessLookupError):  # that was the end
                    os.kill(command.process.pid, by)
                status = command.wait()
            err = (folder / "stderr").read_text() if (folder / "stderr").exists() else ""
            assert "Traceback" not in err or status == -by, err
            if status == 0:
                seconds = min(seconds, command.seconds + 0.1)  # where the first one took long
                break
            statuses.append(status)
            assert status in {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 143}, signal.SIGINT: {-2, 130}}[by], err
            arguments = [*TRAIN, "--resume"]
            if status > 0 and "To go on:" in err:
                assert shlex.split(err.splitlines()[-1]) == ["ppl-vae", *arguments]
                assert re.search(r"ppl-vae: stopped in epoch \d of 5, after \d+ of 16 steps, with a checkpoint\.", err)
        assert results(folder / "run") == undisturbed
        finished += 1
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(f"{by.name}: {len(statuses)} kills, exit statuses {counts}, {finished} runs finished, all the same")


# --- told to stop


def raising_at(step, *signals):
    """An encoding that receives signals in the midst of a step."""
    original, calls = experiments.Observe.__call__, iter(range(10_000))

    def observe(self, *args, **kwargs):
        if next(calls) == step:
            for number in signals:
                signal.raise_signal(number)
        return original(self, *args, **kwargs)

    return observe


IN_TRAINING = 3  # the encodings before are of what is monitored, and of what the prior begins from


@pytest.mark.parametrize("by", SIGNALS, ids=lambda s: s.name)
def test_a_signal_ends_the_step_and_says_how_to_go_on(by, ppl_vae, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiments.Observe, "__call__", raising_at(IN_TRAINING + 20, by))
        status, err = ppl_vae(*TRAIN)
    assert status == 128 + by
    assert "ppl-vae: stopped in epoch 2 of 5, after 5 of 16 steps, with a checkpoint. To go on:" in err
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-000000000021.safetensors").exists()
    again = shlex.split(err.splitlines()[-1])
    assert again == ["ppl-vae", *TRAIN, "--resume"]
    assert ppl_vae(*again[1:])[0] == 0
    assert results(tmp_path / "run") == undisturbed
    assert ppl_vae(*again[1:])[0] == 0  # what is finished is finished
    assert results(tmp_path / "run") == undisturbed


def test_a_second_sigint_leaves_at_once(ppl_vae, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiments.Observe, "__call__", raising_at(IN_TRAINING + 20, signal.SIGINT, signal.SIGINT))
        status, err = ppl_vae(*TRAIN, "--checkpoint-minutes", "None")
    assert status == 130
    assert one_line(err) == "ppl-vae: error: interrupted"
    assert [path.name[-15:] for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["016.safetensors"]
    assert ppl_vae(*TRAIN, "--resume")[0] == 0
    assert results(tmp_path / "run") == undisturbed


def test_a_signal_that_comes_as_the_run_is_finished_is_not_lost():
    def work():
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop() == signal.SIGINT  # which this work does not ask for

    with pytest.raises(KeyboardInterrupt):
        work()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop() is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("by", SIGNALS, ids=lambda s: s.name)
def test_a_signal_of_which_compiled_code_makes_another_error_is_one(by, ppl_vae, few_swaps, monkeypatch):
    def drawn(*args, **kwargs):
        try:
            signal.raise_signal(by)
        except KeyboardInterrupt:
            raise ValueError("Invalid affine transformation matrix") from None  # as matplotlib does

    monkeypatch.setattr(commands, "draw_run", drawn)
    monkeypatch.setattr(swaps, "sample_images", drawn)
    status, err = ppl_vae(*TRAIN)
    assert (status, one_line(err)) == (128 + by, "ppl-vae: error: interrupted")
    status, err = ppl_vae(*few_swaps, "--output", ".")
    assert status == 128 + by
    assert "ppl-vae: interrupted; what is finished is kept. To go on:\n" in err


def test_what_is_in_the_folder_is_gone_on_with_or_overwritten_as_asked(ppl_vae, undisturbed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert ppl_vae(*TRAIN, "--resume")[0] == 0  # begins, where there is nothing
    assert results(run) == undisturbed
    finished = {path: path.read_bytes() for path in run.iterdir()}
    status, err = ppl_vae(*TRAIN, "--resume", "--learning-rate", "0.01", "--hidden", "8", "9")
    assert status == 1
    assert "of another, stored -> given: hidden: (8,) -> (8, 9), learning_rate: 0.001 -> 0.01" in one_line(err)
    assert ppl_vae(*TRAIN, "--resume", "--overwrite")[0] == 2
    assert ppl_vae(*TRAIN, "--checkpoint-minutes", "0")[0] == ppl_vae(*TRAIN, "--checkpoint-epochs", "0")[0] == 2
    with monkeypatch.context() as patch:
        patch.setattr(experiments.Observe, "__call__", raising_at(IN_TRAINING + 20, signal.SIGTERM))
        assert ppl_vae(*TRAIN, "--overwrite", "--seed", "1")[0] == 143
    assert {path: path.read_bytes() for path in finished} == finished  # until the other is finished too
    status, err = ppl_vae(*TRAIN)
    assert status == 2
    assert "run, an unfinished run (--resume goes on with it, --overwrite begins anew)" in one_line(err)
    checkpoints = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    status, err = ppl_vae(*TRAIN, "--resume", "--kl-weight", "constant:beta=2")
    assert status == 1
    assert "of another, stored -> given: kl_weight: 'constant' -> 'constant:beta=2', seed: 1 -> 0" in one_line(err)

    def cannot(*args):
        raise ValueError("expected a pair that can be trained; got one that can't")

    with monkeypatch.context() as patch:  # which shows in the first step alone
        patch.setattr("ppl_vae.models.VAE.guide", cannot)
        status, err = ppl_vae(*TRAIN, "--overwrite")
    assert status == 1
    assert "a pair that can be trained" in one_line(err)
    assert {path: path.read_bytes() for path in (*finished, *checkpoints)} == {**finished, **checkpoints}
    assert ppl_vae(*TRAIN, "--overwrite")[0] == 0
    assert results(run) == undisturbed


def test_other_data_are_refused(ppl_vae, tmp_path, monkeypatch):
    assert ppl_vae(*TRAIN)[0] == 0
    load = experiments.load

    def other(*args):
        dataset = load(*args)
        dataset.train[0, 0, 0, 0] += 1
        return dataset

    monkeypatch.setattr(experiments, "load", other)
    status, err = ppl_vae(*TRAIN, "--resume")
    assert status == 1
    assert re.search(r"stored -> given: data: '[0-9a-f]{16}' -> '[0-9a-f]{16}'", one_line(err))


# --- a folder has one process, and a disk an end


@pytest.mark.parametrize("arguments", [TRAIN, ["run"], ["run", "trust"]], ids=["train", "run", "trust"])
def test_a_second_process_is_refused(arguments, ppl_vae, tmp_path):
    if arguments is not TRAIN:  # on data that end it where nothing else does
        arguments = [*arguments, "--dataset", "mnist-mini", "./nowhere.npz", "--output", "."]
    folder = "run" if arguments is TRAIN else "study/nowhere"
    with locked(tmp_path / folder):
        status, err = ppl_vae(*arguments)
    assert status == 1
    assert f"{folder}: expected a folder in which no other run is at work; got one in use" in one_line(err)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_file_is_on_disk_before_it_has_its_name_and_else_as_it_was(tmp_path, monkeypatch):
    path, calls = tmp_path / "file", []
    path.write_bytes(b"old")

    def recorded(name, error=None, original=None):
        def call(*args):
            calls.append(name)
            if error is not None:
                raise error
            return original(*args)

        return call

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, recorded(name, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
            with pytest.raises(OSError, match=r"No space left on device: '.*file'"):
                write_whole(path, b"new")
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
    calls.clear()
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, recorded(name, original=getattr(os, name)))
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert calls == ["fsync", "replace", "fsync"]  # its content, its name, and that of its folder


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of so many bytes, or gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        options = f"size={size}{',remount' * os.path.ismount(folder)}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_that_the_run_goes_on_from(ppl_vae, disk, undisturbed, tmp_path):
    command = [*TRAIN[:-1], "disk/run"]
    folder = disk(500_000)
    status, err = ppl_vae(*command)
    assert status == 1
    assert re.search(r"disk/run/checkpoints/.*: No space left on device$", one_line(err))
    assert 1 <= len(list((folder / "run" / "checkpoints").iterdir())) <= 2
    assert ppl_vae(*command, "--resume")[0] == 1
    disk(5_000_000)
    assert ppl_vae(*command, "--resume")[0] == 0
    assert results(folder / "run") == undisturbed


@pytest.mark.parametrize("name", ["checksums.json", "metrics.json"])
def test_a_run_whose_last_files_cannot_be_written_goes_on_too(name, ppl_vae, undisturbed, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        status, err = ppl_vae(*TRAIN)
    assert status == 1
    assert one_line(err) == f"ppl-vae: error: run/{name}: No space left on device"
    assert not list(tmp_path.rglob("*.tmp"))
    assert experiments.unfinished(tmp_path / "run")
    assert ppl_vae(*TRAIN, "--resume")[0] == 0
    assert results(tmp_path / "run") == undisturbed


# --- experiments of many models


@pytest.fixture
def few_swaps(monkeypatch):
    models = SwapsConfig.models
    kept = ("base", "prior-laplace")

    @functools.cache
    def few(self, dataset):
        return {name: model for name, model in models(self, dataset).items() if name in kept}

    monkeypatch.setattr(SwapsConfig, "models", few)
    sizes = {"latent-size": 2, "epochs": 2, "num-images": 6, "num-samples": 3, "train-images": 60, "batch-size": 5}
    options = [part for name, size in sizes.items() for part in (f"--swaps.{name}", str(size))]
    return ["run", "swaps", "--dataset", "mnist-mini", *options]


def groups_of(folder):
    return json.loads((folder / "swaps" / "mnist-mini" / "metrics.json").read_text())["groups"]


def test_an_experiment_goes_on_in_the_midst_of_what_it_was_at(ppl_vae, few_swaps, tmp_path, monkeypatch):
    assert ppl_vae(*few_swaps, "--output", "a")[0] == 0
    command, folder = [*few_swaps, "--output", "b"], tmp_path / "b" / "swaps" / "mnist-mini"
    trained = []
    train = experiments.train

    def recorded(config, *args, resume, **kwargs):
        trained.append((config.prior, resume))
        return train(config, *args, resume=resume, **kwargs)

    monkeypatch.setattr(experiments, "train", recorded)
    with monkeypatch.context() as patch:
        patch.setattr(experiments.Observe, "__call__", raising_at(IN_TRAINING + 14, signal.SIGTERM))
        status, err = ppl_vae(*command)
    assert status == 143
    assert "stopped in epoch 2 of 2, after 5 of 10 steps" in err
    assert shlex.split(err.splitlines()[-1]) == ["ppl-vae", *command]
    assert experiments.unfinished(folder / "base" / "seed-0")
    for by in SIGNALS:  # in an evaluation, which takes its own end for all of it

        def interrupted(*args, by=by, **options):
            signal.raise_signal(by)

        with monkeypatch.context() as patch:
            patch.setattr("ppl_vae.evaluation.results.LogMeanExp.add", interrupted)
            status, err = ppl_vae(*command)
        assert status == 128 + by
        assert "ppl-vae: interrupted; what is finished is kept. To go on:\n" in err
        assert not (folder / "base" / "seed-0" / "log_likelihood.json").exists()
    assert ppl_vae(*command)[0] == 0
    assert trained == [("standard-normal", False), ("standard-normal", True), ("laplace", False)]
    assert groups_of(tmp_path / "a") == groups_of(tmp_path / "b")
    written = (folder / "base" / "seed-0" / "log_likelihood.npz").stat().st_mtime_ns
    assert ppl_vae(*command)[0] == 0
    assert (folder / "base" / "seed-0" / "log_likelihood.npz").stat().st_mtime_ns == written
    path = folder / "prior-laplace" / "seed-0" / "log_likelihood.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert ppl_vae(*command)[0] == 0
    assert path.read_bytes() == content  # evaluated again
    assert groups_of(tmp_path / "a") == groups_of(tmp_path / "b")


def test_parts_that_fail_are_named_at_the_end(ppl_vae, few_swaps, tmp_path, monkeypatch):
    trained = swaps.trained

    def failing(config, *args, **kwargs):
        if config.prior == "laplace":
            raise KeyError("nobody thought of this")
        return trained(config, *args, **kwargs)

    datasets = ["--dataset", "mnist-mini", "./nowhere.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(swaps, "trained", failing)
        status, err = ppl_vae(*few_swaps[:2], *datasets, *few_swaps[4:], "--output", ".")
    assert status == 1
    message = one_line(err)
    assert "failed: mnist-mini prior-laplace/seed-0 (KeyError: 'nobody thought of this'); ./nowhere.npz (" in message
    assert {row["component"] for row in groups_of(tmp_path)["prior"]["rows"]} == {"standard-normal"}
    assert ppl_vae(*few_swaps, "--output", ".")[0] == 0
    assert len(groups_of(tmp_path)["prior"]["rows"]) == 2


def test_a_study_goes_on_past_a_model_that_fails(ppl_vae, tmp_path, monkeypatch):
    mini = experiments.load("mnist-mini")
    np.savez(tmp_path / "tiny.npz", train=mini.train[:60].numpy(), test=mini.test[:60].numpy())
    sizes = ["--autoencoder-epochs", 1, "--vae-epochs", 1, "--num-images", 4, "--num-samples", 3]
    command = ["run", "--dataset", "tiny.npz", *sizes, "--output", "."]
    monkeypatch.setattr(
        study.StudyConfig,
        "models",
        lambda self, models=study.StudyConfig.models: {
            name: config for name, config in models(self).items() if name in ("dense-ae", "dense-vae", "dense-vae-2d")
        },
    )
    evaluate = study._evaluate

    def failing(run, folder, *args):
        if folder.name == "dense-vae":
            raise ArithmeticError("NaN")
        return evaluate(run, folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(study, "_evaluate", failing)
        status, err = ppl_vae(*command)
    assert status == 1
    assert "failed: tiny.npz dense-vae (NaN). What did not is kept" in one_line(err)
    path = tmp_path / "study" / "tiny" / "metrics.json"
    metrics = json.loads(path.read_text())
    assert metrics["failed"] == {"dense-vae": "NaN"}
    assert list(metrics["log_likelihood"]) == ["dense-vae-2d"]
    trained = []
    monkeypatch.setattr(experiments, "train", lambda config, *args, **kwargs: trained.append(config))
    assert ppl_vae(*command)[0] == 0
    assert trained == []
    assert json.loads(path.read_text())["failed"] == {}


# --- damaged files


def damaged(content, generator, number):
    """Truncated, with a bit flipped, or with the last one of a byte, which makes other digits of digits."""
    i = generator.randrange(len(content))
    flip = [0, 1 << generator.randrange(8), 1][number % 3]
    return content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :] if flip else content[:i]


EVALUATE, SAMPLE, COMPARE = ["evaluate", "run"], ["sample", "run"], ["compare", "run", "run"]
RESUME = [*TRAIN, "--resume"]
READ_BY = {
    "weights.safetensors": [EVALUATE, SAMPLE, RESUME],
    "config.json": [EVALUATE, SAMPLE, COMPARE, RESUME],
    "metrics.json": [EVALUATE, SAMPLE, COMPARE, RESUME],
    "history.csv": [SAMPLE, RESUME],
    "log_likelihood.npz": [COMPARE],
    "log_likelihood.json": [COMPARE],
    "checksums.json": [EVALUATE, SAMPLE, COMPARE, RESUME],
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(TRAIN)
        main([*EVALUATE, "--num-samples", "3", "--num-images", "5"])
        main(COMPARE)
    return folder / "run"


def test_a_damaged_file_is_refused_by_all_that_read_it(evaluated, tmp_path, monkeypatch, capsys):
    shutil.copytree(evaluated, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name, readers in READ_BY.items():
        path, generator = tmp_path / "run" / name, random.Random(name)
        content = path.read_bytes()
        for i in range(DAMAGES or 3):
            path.write_bytes(damaged(content, generator, i))
            for command in readers:
                before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
                with pytest.raises(SystemExit) as stop:
                    main(command)
                err = capsys.readouterr().err
                assert stop.value.code == 1, (name, command, err)
                assert f"run/{name}: expected " in one_line(err)
                assert {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before
        path.write_bytes(content)
        if DAMAGES:
            print(f"{name}: refused at {DAMAGES} places by each of {len(readers)} commands")
    main(COMPARE)


@pytest.mark.filterwarnings("default:.*whole checkpoint:RuntimeWarning")
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(ppl_vae, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiments.Observe, "__call__", raising_at(IN_TRAINING + 78, signal.SIGTERM))
        assert ppl_vae(*TRAIN)[0] == 143
    run, stopped, generator = tmp_path / "run", tmp_path / "stopped", random.Random(0)
    run.rename(stopped)
    for i in range(DAMAGES or 3):
        shutil.copytree(stopped, run)
        newest, before = sorted((run / "checkpoints").iterdir(), reverse=True)
        newest.write_bytes(damaged(newest.read_bytes(), generator, i))
        both = i % 4 == 2
        if both:
            before.write_bytes(damaged(before.read_bytes(), generator, i // 4))
        status, err = ppl_vae(*RESUME)
        if both:
            assert status == 1
            assert "expected a whole checkpoint; got 2 damaged ones" in one_line(err)
        else:
            assert status == 0, err
            assert f"ppl-vae: warning: run/checkpoints/{newest.name}: expected a whole checkpoint" in err
            assert results(run) == undisturbed
        shutil.rmtree(run)
    print(f"checkpoints: damaged at {DAMAGES or 3} places, in a quarter of them both")
