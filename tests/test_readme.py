"""The README's Python runs as it stands, with fewer images and epochs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

from ppl_vae.cli.main import main
from ppl_vae.components import create
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.likelihoods import Likelihood
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if README.is_file() else []
if not BLOCKS:
    pytest.skip("the README is not part of an installed package", allow_module_level=True)


def test_ten_lines_train_and_evaluate(capsys):
    assert len(BLOCKS[0].strip().splitlines()) <= 12
    code = BLOCKS[0].replace("data.train,", "data.train[:128],").replace("epochs=5", "epochs=1")
    code = code.replace("data.test[:100]", "data.test[:5]")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "log p(x) = " in capsys.readouterr().out


def test_the_parts_put_together():
    names: dict = {}
    with seeded(0):
        exec(compile(BLOCKS[1], "README.md", "exec"), names)
    assert names["vae"].reconstruct(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 28, 28)


def test_the_compiled_elbo_in_pyros_own_loop():
    names: dict = {}
    with seeded(0), pyro.get_param_store().scope():
        exec(compile(BLOCKS[1] + BLOCKS[2], "README.md", "exec"), names)
        loss = names["svi"].step(torch.zeros(4, 1, 28, 28))
    assert 0 < loss < 10_000


def test_components_of_ones_own_work_at_once():
    names: dict = {"__name__": "readme"}
    exec(compile(BLOCKS[3], "README.md", "exec"), names)
    assert isinstance(create(Likelihood, "logistic"), names["Logistic"])
    config = TrainConfig(model="dense-vae", likelihood="logistic", prior="cauchy:scale=2", latent_size=2, hidden=(8,))
    vae = build(config, (1, 4, 4))
    assert vae.prior.scale == 2.0
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    history = fit(vae.model, vae.guide, x, epochs=100, show_progress=False)
    assert min(history["loss"][-10:]) < min(history["loss"][:10])


def command(folder, *arguments):
    """The command in a process of its own, where nothing has been imported."""
    run = [sys.executable, "-m", "ppl_vae.cli.main", *arguments]
    where = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    return subprocess.run(run, cwd=folder, env=os.environ | where, capture_output=True, text=True, check=False)


def test_and_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(BLOCKS[3])
    tiny = "--model dense-vae --hidden 8 --latent-size 2 --epochs 1 --batch-size 16 --train-images 60 --output run"
    components = "--plugin mine --likelihood logistic --prior cauchy:scale=0.5"
    done = command(tmp_path, "train", *components.split(), *tiny.split())
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["likelihood"], config["prior"]) == ("logistic", "cauchy:scale=0.5")
    assert "mine" not in json.dumps(config)
    # a folder that someone was given imports nothing by itself
    done = command(tmp_path, "evaluate", "run")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected one of standard-normal" in done.stderr
    assert "got 'cauchy' (if it is one of yours, name its module with --plugin)" in done.stderr
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    main(["evaluate", "run", "--plugin", "mine.py", "--num-samples", "30", "--num-images", "5"])
    assert "5 test images, K = 30" in capsys.readouterr().out
    assert sys.path == path
    del sys.modules["plugin_mine"]
