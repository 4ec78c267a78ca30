"""The notebook on extending has an example for every abstract class, and its commands work."""

import ast
import gc
import json
import re
import sys
from abc import ABC
from pathlib import Path

import jupytext
import pytest

import ppl_vae.cli.main
import ppl_vae.experiments.training  # which takes all base classes with it
from ppl_vae.experiments import architectures

SCRIPT = Path(__file__).parent.parent / "notebooks" / "extending.py"
if not SCRIPT.is_file():
    pytest.skip("the notebooks are not part of an installed package", allow_module_level=True)
CELLS = jupytext.read(SCRIPT).cells
TEXT = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
CODE = "\n\n".join(cell.source for cell in CELLS if cell.cell_type == "code")
SMALL = {
    "train": "--dataset mnist-mini --train-images 60 --epochs 1 --batch-size 16 --latent-size 2",
    "evaluate": "--method importance --num-samples 30 --num-images 5",
    "denoise": "--num-images 5",
}


def test_every_abstract_class_has_an_example():
    ours = [c for c in ABC.__subclasses__() if c.__module__.startswith("ppl_vae.") and c.__name__[0] != "_"]
    bases = [cls for cls in ours if not {*cls.__mro__[1:]} & {*ours}]
    assert len(bases) == 10
    for cls in bases:
        assert f"`{cls.__module__}.{cls.__name__}`" in TEXT
        assert re.search(rf"class \w+\({cls.__name__}\):", CODE)


def is_component(node):
    """Whether a statement of the notebook belongs into a file of components."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "linear_decoder"
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith("register(")
    return isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The notebook's classes in `mine.py`, in the current folder."""
    examples = [ast.unparse(node) for node in ast.parse(CODE).body if is_component(node)]
    assert len(examples) > 20
    (tmp_path / "mine.py").write_text("\n".join(examples))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    architectures._kinds.pop("linear", None)
    sys.modules.pop("plugin_mine", None)
    gc.collect()  # classes are found for as long as they are there


def test_the_commands_work(mine, capsys):
    commands = [line for line in TEXT.replace("\\\n", "").splitlines() if line.startswith("    ppl-vae ")]
    assert len(commands) == 5
    for command in commands:
        _, *arguments = command.split()
        ppl_vae.cli.main.main([*arguments, *SMALL[arguments[0]].split()])
    out = capsys.readouterr().out
    assert "of 5 test images of " in out
    assert "K = 30 samples for each" in out
    configs = [json.loads((mine / "runs" / name / "config.json").read_text()) for name in ("mine", "rows", "nine")]
    used = " ".join([*(str(value) for config in configs for value in config.values()), *commands])
    for name in re.findall(r"class (\w+)\(\w+\):", CODE):
        assert re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower() in used
