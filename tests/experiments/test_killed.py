"""The command is killed at random moments: what is finished in the end is byte for byte what an undisturbed run leaves.

The suite kills a few times. 50 times by each signal, in some minutes:

    PPL_VAE_KILLS=50 pytest -n 0 -s tests/experiments/test_killed.py
"""

import contextlib
import math
import multiprocessing
import os
import random
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from stopping import KILLS, TRAIN, results

from ppl_vae.cli.main import main


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
        context.set_forkserver_preload(["ppl_vae.cli.training", "torch._dynamo"])
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
