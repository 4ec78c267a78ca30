"""The page on extending names every abstract class, and what it says of the command line holds."""

import doctest
import gc
import json
import re
import sys
from abc import ABC

import pytest

import ppl_vae.cli.main
from ppl_vae import extending
from ppl_vae.experiments.architectures import KINDS

PAGE = extending.__doc__
SMALL = {
    "train": "--dataset mnist-mini --train-images 60 --epochs 1 --batch-size 16 --latent-size 2",
    "evaluate": "--num-samples 30 --num-images 5",
    "denoise": "--num-images 5",
}


def test_every_abstract_class_has_an_example():
    ours = [cls for cls in ABC.__subclasses__() if cls.__module__.startswith("ppl_vae.")]
    bases = [cls for cls in ours if not {*cls.__mro__[1:]} & {*ours}]
    assert len(bases) == 8
    for cls in bases:
        assert f"`{cls.__module__}.{cls.__name__}`" in PAGE
        assert re.search(rf"class \w+\({cls.__name__}\):", PAGE)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's classes in `mine.py`, in the current folder."""
    begins = ("import ", "from ", "class ", "@dataclass", "def linear_decoder", "KINDS[")
    examples = [e.source for e in doctest.DocTestParser().get_examples(PAGE) if e.source.startswith(begins)]
    assert len(examples) > 20
    (tmp_path / "mine.py").write_text("".join(examples))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    KINDS.pop("linear", None)
    sys.modules.pop("plugin_mine", None)
    gc.collect()  # classes are found for as long as they are there


def test_the_commands_work(mine, capsys):
    commands = [line for line in PAGE.replace("\\\n", "").splitlines() if line.startswith("    ppl-vae ")]
    assert len(commands) == 5
    for command in commands:
        _, *arguments = command.split()
        ppl_vae.cli.main.main([*arguments, *SMALL[arguments[0]].split()])
    assert "5 test images, K = 30" in capsys.readouterr().out
    configs = [json.loads((mine / "runs" / name / "config.json").read_text()) for name in ("mine", "rows", "nine")]
    used = " ".join(str(value) for config in configs for value in config.values())
    for name in re.findall(r"class (\w+)\(\w+\):", PAGE):
        assert re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower() in used
