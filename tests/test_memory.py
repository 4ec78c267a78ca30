"""What long jobs take in memory, over the interpreter's own footprint with torch loaded: in a process of its own."""

import subprocess
import sys

import pytest

MEASURE = """
import resource
import torch
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
    "weights of 100,000 samples of 1,000 data": """
weights, log_w = LogMeanExp(1000, 100_000), torch.randn(4096 // 64, 64)
for _ in range(100_000 // 640):
    for part in range(0, 1000 - 64, 64):
        weights.add(log_w, part)
weights.khat()
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units")
@pytest.mark.parametrize("job", JOBS)
def test_less_than_a_gigabyte(job: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE.format(job=JOBS[job])], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) < 1
