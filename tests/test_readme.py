"""The README's Python runs as it stands, with fewer images and epochs; its table and its commands are what there is."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

import ppl_vae as pv
from ppl_vae.cli.main import main
from ppl_vae.components import choices, create
from ppl_vae.data.encodings import Encoding
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.architectures import KINDS
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Network
from ppl_vae.objectives import Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text() if README.is_file() else ""
if "```python" not in TEXT:
    pytest.skip("the README is not part of an installed package", allow_module_level=True)
TEN_LINES, YOUR_OWN_PAIR, LIKELIHOOD, RUN_FOLDER = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
BASES = {
    "likelihood": Likelihood,
    "prior": Prior,
    "posterior": Posterior,
    "objective": Objective,
    "KL weight": KLWeight,
    "network": Network,
    "encoding": Encoding,
    "noise": Noise,
}
PRIOR = '''
from ppl_vae.priors import Prior

class Cauchy(Prior):
    """z_d ~ Cauchy(0, scale)."""

    def __init__(self, latent_size, scale: float = 1.0):
        super().__init__(latent_size)
        self.scale = scale

    def forward(self):
        return dist.Cauchy(self.zeros, self.scale).to_event(1)
'''
MINE = LIKELIHOOD + PRIOR


def table():
    """The rows of the table of components, by what they are."""
    rows: dict[str, list[list[str]]] = {}
    kind = ""
    for line in TEXT.splitlines():
        cells = [cell.strip(" `*") for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 5 and cells[1] not in ("name", "---"):
            kind = cells[0] or kind
            rows.setdefault(kind, []).append(cells[1:])
    return rows


def test_it_is_short_and_python_comes_early():
    lines = TEXT.splitlines()
    assert len(lines) <= 160
    assert lines.index("import ppl_vae as pv") < 40


def test_ten_lines_train_and_evaluate(capsys):
    assert len(TEN_LINES.strip().splitlines()) <= 12
    code = TEN_LINES.replace("data.train,", "data.train[:128],").replace("epochs=5", "epochs=1")
    code = code.replace("data.test[:100]", "data.test[:5]")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "log p(x) = " in capsys.readouterr().out


def test_your_own_pair(capsys):
    code = YOUR_OWN_PAIR.replace("epochs=30", "epochs=2")
    with seeded(0), pyro.get_param_store().scope():
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert "sound: latent sites z; observed x" in out
    assert "log p(x) = " in out


def test_from_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = pv.TrainConfig(model="dense-vae", hidden=(8,), latent_size=3, epochs=1, train_images=60)
    pv.train(config, Path("runs") / "vamp", show_progress=False)
    names = {"pv": pv}
    exec(compile(RUN_FOLDER, "README.md", "exec"), names)
    run, x = names["run"], names["x"]
    assert x.shape == (10, 1, 28, 28)
    assert torch.equal(x, run.decode(names["z"]))
    assert torch.equal(run.reconstruct(run.dataset.test[:10]), x)


@pytest.mark.parametrize("kind", BASES)
def test_the_table_names_every_component(kind):
    ours = {n: cls for n, cls in choices(BASES[kind]).items() if cls.__module__.startswith("ppl_vae.")}
    rows = table()[kind]
    assert sorted((name, cls) for name, cls, *_ in rows) == sorted((name, cls.__name__) for name, cls in ours.items())
    for name, _, phrase, paper in rows:
        assert phrase
        for number in re.findall(r"arxiv.org/abs/([\d.]+)", paper):
            assert number in (inspect.getdoc(ours[name]) or "")


def test_the_table_names_every_model():
    assert set(table()) == {*BASES, "model"}
    assert [name for name, *_ in table()["model"]] == list(KINDS)
    for _, cls, _, paper in table()["model"]:
        for number in re.findall(r"arxiv.org/abs/([\d.]+)", paper):
            assert number in (inspect.getdoc(getattr(pv, cls)) or "")


def test_components_of_ones_own_work_at_once():
    names: dict = {"__name__": "readme"}
    exec(compile(MINE, "README.md", "exec"), names)
    assert isinstance(create(Likelihood, "logistic"), names["Logistic"])
    components = {"likelihood": "logistic", "prior": "cauchy:scale=2"}
    config = pv.TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), **components)
    vae = pv.build(config, (1, 4, 4))
    assert vae.prior.scale == 2.0
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    history = pv.fit(vae.model, vae.guide, x, epochs=100, show_progress=False)
    assert min(history["loss"][-10:]) < min(history["loss"][:10])


@pytest.mark.parametrize("command", re.findall(r"^ppl-vae (.*?) *(?:#.*)?$", TEXT, re.MULTILINE))
def test_the_commands_have_their_options(command, capsys):
    name, *arguments = command.split()
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert not stop.value.code
    options = capsys.readouterr().out
    assert all(argument in options for argument in arguments if argument.startswith("--"))


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https:)(.*?)\)", TEXT))
def test_links_lead_to_files(target):
    assert (README.parent / target).is_file()


def test_and_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    tiny = "--model dense-vae --hidden 8 --latent-size 2 --epochs 1 --batch-size 16 --train-images 60 --output run"
    components = "--plugin mine --likelihood logistic --prior cauchy:scale=0.5"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppl_vae.cli.training.draw_run", lambda *args, **options: [])
    main(["train", *components.split(), *tiny.split()])
    del sys.modules["mine"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["likelihood"], config["prior"]) == ("logistic", "cauchy:scale=0.5")
    assert "mine" not in json.dumps(config)
    # a folder that someone was given imports nothing by itself
    where = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    run = [sys.executable, "-m", "ppl_vae", "evaluate", "run"]
    done = subprocess.run(run, env=os.environ | where, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected one of bernoulli" in done.stderr
    assert "got 'logistic' (did you mean" in done.stderr
    assert "(if it is one of yours, name its module with --plugin)" in done.stderr
    path = list(sys.path)
    main(
        ["evaluate", "run", "--plugin", "mine.py", "--method", "importance", "--num-samples", "30", "--num-images", "5"]
    )
    assert "5 test images of mnist-mini" in capsys.readouterr().out
    assert sys.path == path
    del sys.modules["plugin_mine"]
