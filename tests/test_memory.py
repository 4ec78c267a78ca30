"""What long jobs take in memory, over the interpreter's own footprint with torch loaded: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource
import torch
from ppl_vae.evaluation import importance
from ppl_vae.evaluation.results import LogMeanExp
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.data.observation import Observe
from ppl_vae.data.encodings import Binarize
from ppl_vae.data.noise import NoNoise
from ppl_vae.training.fitting import fit

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GB; Linux counts in KB

vae = build(TrainConfig(model="dense-vae", hidden=(32,)), (1, 28, 28))
(torch.ones(128, 784) @ torch.ones(784, 400)).sum()
before = peak()

def train_on_60_000_images():
    images = torch.zeros(60_000, 1, 28, 28, dtype=torch.uint8)
    fit(vae.model, vae.guide, images, validation=images[:2000], encode=Observe(Binarize(), NoNoise()),
        epochs=1, batch_size=512, show_progress=False)

def statistics_of_100_000_samples_of_1_000_data():
    statistics, log_w = LogMeanExp(1000, 100_000), torch.randn(4096, 64)
    for part in range(0, 1000, 64):
        statistics.add(log_w[:, : 1000 - part], part)
    statistics.count[:] = 1  # k-hats take time, one datum after another: those of a few, as if of all their samples
    statistics.count[:20] = 100_000
    assert statistics.khat()[:20].isfinite().all()

def log_likelihood_with_100_000_samples_of_1_000_images():
    # every block takes as much as the last: the first 20 of 25,000, and then an interrupt
    score, blocks = importance.LogWeights._score, []
    def interrupted(*args):
        blocks.append(args)
        if len(blocks) > 20:
            raise KeyboardInterrupt
        return score(*args)
    importance.LogWeights._score = interrupted
    images = torch.zeros(1000, 1, 28, 28)
    result = importance.log_likelihood(vae.model, vae.guide, images, num_samples=100_000, compiled=False)
    assert result.num_samples.max() == 20 * 64

for job in (
    statistics_of_100_000_samples_of_1_000_data,
    log_likelihood_with_100_000_samples_of_1_000_images,
    train_on_60_000_images,
):
    job()
    print(job.__name__, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units")
def test_less_than_a_gigabyte() -> None:
    """One job after another: a peak is the highest of those before."""
    result = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    peaks = dict(line.split() for line in result.stdout.splitlines())
    assert len(peaks) == 3
    assert {job: gigabytes for job, gigabytes in peaks.items() if float(gigabytes) >= 1} == {}


MAPPED = """
import contextlib, dataclasses, pathlib, sys, threading, time
import numpy as np
import ppl_vae.experiments.training
from ppl_vae.data.dataset import Rows
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train
from ppl_vae.training.history import Stopped

def anonymous():
    "MB of this process that are in no file: a copy is, and pages of a mapped file are not."
    resident, of_files = map(int, pathlib.Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - of_files) * 4096 / 2**20

def sample():
    while True:
        peaks.append(max(peaks[-1], anonymous()))
        time.sleep(0.002)

def counted(self, index, read=Rows.rows):
    read_now = read(self, index)
    largest[0] = max(largest[0], len(read_now))
    return read_now

largest = [0]
Rows.rows = counted
folder, num_images = pathlib.Path(sys.argv[1]), int(sys.argv[2])
images = np.lib.format.open_memmap(folder / "a.npy", "w+", np.uint8, (num_images, 28, 28))
images[::1000] = 255  # the rest takes no room on disk
del images
config = TrainConfig(model="dense-vae:hidden=32", dataset=str(folder / "a.npy"), compiled=False)
small = dataclasses.replace(config, dataset="mnist-mini")
steps = [0]
def stop():
    steps[0] += 1
    return steps[0] == 5
ppl_vae.experiments.training.stoppable = lambda: contextlib.nullcontext(stop)  # in place of signals
def run(config):
    steps[0] = 0
    try:
        train(config, folder / f"run-{time.monotonic_ns()}", show_progress=False)
    except Stopped:
        pass
peaks = [0.0]
threading.Thread(target=sample, daemon=True).start()
run(small)  # what is loaded once, and taken for any data
run(small)
before = peaks[-1]
run(config)
print(peaks[-1] - before, largest[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_file_is_trained_on_without_a_copy(tmp_path: Path) -> None:
    num_images = 134_000  # 105 MB
    result = subprocess.run(
        [sys.executable, "-c", MAPPED, str(tmp_path), str(num_images)], capture_output=True, text=True, check=True
    )
    megabytes, rows_at_once = map(float, result.stdout.split())
    assert megabytes < 50
    assert 0 < rows_at_once <= 10_000  # a copy that is soon gone may be missed by the samples of memory
