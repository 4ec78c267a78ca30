"""A short training as a command, how it is stopped in the midst of it, and what must come of it all the same."""

import csv
import json
import os
import shlex
import signal

import pytest

from ppl_vae.data.observation import Observe
from ppl_vae.system.files import check

KILLS, DAMAGES = (int(os.environ.get(f"PPL_VAE_{name}", 0)) for name in ("KILLS", "DAMAGES"))


TRAIN = shlex.split(
    "train --model dense-vae --hidden 8 --latent-size 3 --epochs 5 --batch-size 16 --train-images 300 "
    "--checkpoint-minutes 0.001 --output run"
)


FILES = ["config.json", "history.csv", "metrics.json", "weights.safetensors"]


def results(folder):
    """What must be the same, byte for byte."""
    check(folder, *FILES)
    assert not (folder / "checkpoints").exists()
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    metrics = json.loads((folder / "metrics.json").read_text())
    seconds = [float(row.pop("seconds")) for row in rows]
    assert metrics.pop("seconds") == pytest.approx(sum(seconds), abs=0.01)
    return (folder / "weights.safetensors").read_bytes(), (folder / "config.json").read_bytes(), rows, metrics


def one_line(err):
    lines = [line for line in err.splitlines() if line.startswith("ppl-vae: error: ")]
    assert len(lines) == 1
    assert err.splitlines()[-1] == lines[0]
    return lines[0]


def raising_at(step, *signals):
    """An encoding that receives signals in the midst of a step."""
    original, calls = Observe.__call__, iter(range(10_000))

    def observe(self, *args, **kwargs):
        if next(calls) == step:
            for number in signals:
                signal.raise_signal(number)
        return original(self, *args, **kwargs)

    return observe


# the encodings before are of what is monitored, of what the prior begins from, and of the look at all batches
IN_TRAINING = 3 + 20
