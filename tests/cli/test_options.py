"""The command line before it works: what it says at once, and how it ends."""

import dataclasses
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

from ppl_vae.cli.main import parse
from ppl_vae.components import UsageError
from ppl_vae.experiments.architectures import model_names
from ppl_vae.experiments.config import BY_NAME, TrainConfig, check_names, listed
from ppl_vae.experiments.listing import components
from ppl_vae.experiments.preparation import assemble
from ppl_vae.report.page import command_of
from ppl_vae.system.files import read_json

WITHOUT_TORCH = """
import sys
from ppl_vae.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("imported:", *sorted({"torch", "pyro", "numpy", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""

SLOW_IMPORT = """
import builtins, time
from ppl_vae.cli.main import main
usual = builtins.__import__
def slow(name, *args, **kwargs):
    if name == "torch":
        print("importing", flush=True)
        time.sleep(60)
    return usual(name, *args, **kwargs)
builtins.__import__ = slow
main(["train"])
"""


def python(*arguments, **options):
    where = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["datasets"], 0),
        (["train", "--epochs", "0"], 2),
        (["trian"], 2),
        (["train", "--model", "conv-va"], 2),
        (["train", "--prior", "standar-normal:x=1"], 2),
        (["train", "--kl-weight", "warm-up"], 2),
        (["train", "--noise", "gausian"], 2),
        (["run", "study", "--noise", "gausian"], 2),
        (["run", "reference", "--executor", "processes:0"], 2),
        (["sweep", "--help"], 0),
        (["sweep", "--executor", "dsk"], 2),
        (["sweep", "--prior", "standard-normal", "vamp"], 2),
        (["sweep", "--model", "dense-vae", "conv-va"], 2),
        (["denoise", "nowhere", "--noise", "gausian"], 2),
        (["evaluate", "nowhere"], 1),
        (["evaluate", ".", "--num-samples", "0"], 2),
    ],
)
def test_help_and_refusals_import_no_torch(arguments, status):
    with python("-c", WITHOUT_TORCH, *arguments) as process:
        _, err = process.communicate()
    assert process.returncode == status, err
    assert err.splitlines()[-1] == "imported:"


def test_the_options_of_a_run_to_start_from_are_the_defaults(tmp_path):
    config = TrainConfig(model="dense-vae", hidden=(8, 9), latent_size=3, standardize=True, patience=4, clip_norm=1.0)
    (tmp_path / "config.json").write_text(json.dumps({"event_shape": [2], **dataclasses.asdict(config)}))
    for name in ("weights.safetensors", "metrics.json"):
        (tmp_path / name).touch()
    for flag in (["--from", str(tmp_path)], [f"--from={tmp_path}"], ["--start-from", str(tmp_path)]):
        command = parse(["train", *flag, "--lr", "0.1", "--latent-size", "20", "--clip-norm", "None"])
        given = {"start_from": str(tmp_path), "learning_rate": 0.1, "latent_size": 20, "clip_norm": None}
        assert command.config == dataclasses.replace(config, **given)
    assert parse(["train"]).config == TrainConfig()
    again = shlex.split(command_of("ppl-vae train", command.config, TrainConfig(), whole=True))
    assert parse(again[1:]).config == command.config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extend", "5"], "--extend: expected --output beside it"),
        (["--extend", "0", "--output", "run"], "--extend: expected at least 1; got 0"),
        (["--extend", "5", "--output", "run", "--epochs", "3"], "--extend: expected no options of the model"),
        (["--extend", "5", "--output", "run", "--overwrite"], "--extend: expected no options of the model"),
    ],
)
def test_an_extension_has_no_options_of_its_own(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(["train", *arguments])()


def test_help_lists_what_there_is(monkeypatch):
    from importlib import resources

    stored = read_json(resources.files("ppl_vae.experiments") / "components.json")
    ours = components()
    for name, text in stored.items():
        for component in text.split(", "):
            assert component in ours[name]
        assert listed(name) == ours[name]
    monkeypatch.delitem(sys.modules, "ppl_vae.experiments.listing")
    assert {name: listed(name) for name in stored} == stored


def test_a_reader_that_goes_away_ends_it_silently():
    with python("-m", "ppl_vae", "train", "--help") as command:
        command.stdout.close()
        assert command.stderr.read() == ""
        assert command.wait() == 141


def test_an_interrupt_in_the_first_seconds_is_one_line():
    usual = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with python("-c", SLOW_IMPORT, preexec_fn=usual) as command:
        assert command.stdout.readline() == "importing\n"
        command.send_signal(signal.SIGINT)
        assert command.stderr.read() == "ppl-vae: error: interrupted\n"
        assert command.wait() == 130


def test_a_short_name_of_a_flag_is_understood(ppl_vae):
    status, _, err = ppl_vae("train", "--lr", "0")
    assert status == 2
    assert "learning_rate: input should be greater than 0; got 0.0" in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())


def test_a_misspelt_flag_is_told_the_nearest_of_its_own_command(ppl_vae):
    status, _, err = ppl_vae("train", "--learning-rat", "1")
    assert status == 2
    assert "--learning-rate FLOAT" in err
    assert "run swaps" not in err


@pytest.mark.parametrize("kind", ["model", *BY_NAME])
def test_a_misspelt_component_is_told_in_the_words_of_what_makes_it(kind):
    config, messages = TrainConfig(**{kind: "ganma"}), []
    for check in (check_names, assemble):
        with pytest.raises(UsageError) as caught:
            check(config)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", model_names())
def test_what_there_is_passes(name):
    check_names(TrainConfig(model=name))
