"""The README's Python runs as it stands, with fewer images and epochs."""

import re
from pathlib import Path

import pytest
import torch

from ppl_vae.components import create
from ppl_vae.experiments import TrainConfig, build
from ppl_vae.likelihoods import Likelihood
from ppl_vae.programs import seeded
from ppl_vae.training import fit

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


def test_a_likelihood_of_ones_own_works_at_once():
    names: dict = {"__name__": "readme"}
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    assert isinstance(create(Likelihood, "logistic"), names["Logistic"])
    vae = build(TrainConfig(model="dense-vae", likelihood="logistic", latent_size=2, hidden=(8,)), (1, 4, 4))
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    history = fit(vae.model, vae.guide, x, epochs=100, show_progress=False)
    assert min(history["loss"][-10:]) < min(history["loss"][:10])
