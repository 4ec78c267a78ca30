"""What long jobs take in memory, over the interpreter's own footprint with torch loaded: in a process of its own."""

import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
from ppl_vae.evaluation import importance
from ppl_vae.evaluation.streaming import LogMeanExp
from ppl_vae.experiments import Observe, TrainConfig, build
from ppl_vae.encodings import Binarize
from ppl_vae.noise import NoNoise
from ppl_vae.training import fit

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GB; Linux counts in KB

vae = build(TrainConfig(model="dense-vae", hidden=(32,)), (1, 28, 28))
(torch.ones(128, 784) @ torch.ones(784, 400)).sum()
before = peak()
{job}
print(peak() - before)
"""

JOBS = {
    "training on 60,000 images": """
images = torch.zeros(60_000, 1, 28, 28, dtype=torch.uint8)
fit(vae.model, vae.guide, images, validation=images[:2000], encode=Observe(Binarize(), NoNoise()),
    epochs=1, batch_size=512, show_progress=False)
""",
    "statistics of 100,000 samples of 1,000 data": """
statistics, log_w = LogMeanExp(1000, 100_000), torch.randn(4096, 64)
for part in range(0, 1000, 64):
    statistics.add(log_w[:, : 1000 - part], part)
statistics.count[:] = 1  # k-hats take time, one datum after another: those of a few, as if of all their samples
statistics.count[:20] = 100_000
assert statistics.khat()[:20].isfinite().all()
""",
    # every block takes as much as the last: the first 20 of 25,000, and then an interrupt
    "log_likelihood with 100,000 samples of 1,000 images": """
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
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units")
@pytest.mark.parametrize("job", JOBS)
def test_less_than_a_gigabyte(job: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE.format(job=JOBS[job])], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 1
