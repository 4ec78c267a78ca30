"""`torchrun -m ppl_vae train`, of which a process is killed: the others end, and one process resumes."""

import os
import shlex
import subprocess
import sys

import pytest
import torch
from commands import OWN, save_own
from safetensors.torch import load_file

from ppl_vae.cli.main import main

TRAIN = shlex.split(
    "train --model dense-vae --hidden 8 --latent-size 2 --batch-size 16 --train-images 60 --epochs 40 "
    "--compiled False --device cpu --output"
)
KILLED = """
import os, pathlib, signal, threading, time

def kill():
    while not list(pathlib.Path("run/checkpoints").glob("*.safetensors")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("RANK") == "1":
    threading.Thread(target=kill, daemon=True).start()
"""


def test_a_command_of_two_processes_ends_with_one_and_is_resumed_by_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppl_vae.cli.training.draw_run", lambda *args, **options: None)
    save_own(tmp_path)
    (tmp_path / "killed.py").write_text(KILLED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ppl_vae"]
    done = subprocess.run(
        [*launch, *TRAIN, "run", *OWN, "--plugin", "killed.py"], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        capture_output=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ppl-vae: error: ")]
    assert line.startswith("ppl-vae: error: rank 1 of 2 ended: no sign of life for ")
    assert not (tmp_path / "run" / "metrics.json").exists()
    main([*TRAIN, "run", *OWN, "--resume"])
    main([*TRAIN, "alone", *OWN])
    found, expected = (load_file(tmp_path / name / "weights.safetensors") for name in ("run", "alone"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_other_commands_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "run"])
    assert (
        capsys.readouterr().err == "ppl-vae: error: torchrun: expected the command train; got evaluate (see --help)\n"
    )
