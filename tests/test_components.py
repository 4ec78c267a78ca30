import sys

import pytest
from torch import nn

from ppl_vae.cli.plugins import load_plugin
from ppl_vae.components import UsageError, choices, create, describe
from ppl_vae.data.encodings import Encoding, Threshold
from ppl_vae.data.noise import Masking, Noise
from ppl_vae.likelihoods import Bernoulli, Gaussian, Likelihood
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import Prior, StandardNormal, VampPrior
from ppl_vae.programs import seeded


def test_the_choices_are_the_subclasses():
    assert choices(Likelihood)["gaussian"] is Gaussian
    assert {"bernoulli", "gaussian", "gaussian-learned", "gaussian-per-pixel"} <= set(choices(Likelihood))
    assert "likelihood" not in choices(Likelihood)


def test_create_reads_the_keyword_arguments():
    assert create(Likelihood, "gaussian:scale=0.25").scale == 0.25
    assert isinstance(create(Likelihood, "bernoulli"), Bernoulli)
    assert create(Encoding, "threshold:level=3") == Threshold(3)
    assert create(Noise, "masking:fraction=0.1") == Masking(0.1)
    prior = create(Prior, "standard-normal", latent_size=7)
    assert isinstance(prior, StandardNormal)
    assert prior.latent_size == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bernouli", "did you mean 'bernoulli'"),
        ("gaussian:skale=1", "expected scale=...; got 'skale=1'"),
        ("gaussian:scale", "expected scale=...; got 'scale'"),
        ("gaussian:scale=wide", "expected float; got 'wide'"),
        ("bernoulli:scale=1", "expected no arguments"),
        ("", "expected one of"),
    ],
)
def test_what_does_not_exist_is_refused(spec, message):
    with pytest.raises(UsageError, match=r"likelihood") as error:
        create(Likelihood, spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_argument_that_is_given_is_not_a_choice():
    with pytest.raises(UsageError, match="no arguments"):
        create(Prior, "standard-normal:latent_size=3", latent_size=2)


def test_a_component_is_given_what_it_names():
    encoder, posterior = nn.Identity(), DiagonalNormal(2)
    given = {"latent_size": 2, "encoder": encoder, "posterior": posterior, "event_shape": (4,)}
    with seeded(0):
        prior = create(Prior, "vamp-prior:num_components=3", **given)
    assert isinstance(prior, VampPrior)
    assert prior.pseudo_inputs.shape == (3, 4)
    assert create(Prior, "student-t:degrees_of_freedom=3", **given).degrees_of_freedom == 3
    with pytest.raises(UsageError, match=r"expected num_components=\.\.\.; got 'encoder=mine'"):
        create(Prior, "vamp-prior:encoder=mine", **given)
    assert "vamp-prior:num_components=500" in describe(Prior).split(", ")


def test_a_subclass_by_a_user_is_a_choice_at_once():
    class Mine(Noise):
        def __init__(self, steps: int = 2, loud: bool = False):
            self.steps, self.loud = steps, loud

        def __call__(self, x, generator=None):
            return x

    assert create(Noise, "mine:steps=5,loud=true").steps == 5
    assert create(Noise, "mine:loud=true").loud is True
    with pytest.raises(UsageError, match="true or false"):
        create(Noise, "mine:loud=perhaps")
    assert "mine:steps=2,loud=False" in describe(Noise)


def test_a_plugin_is_a_module_that_the_user_names(tmp_path, monkeypatch):
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from ppl_vae.data.noise import Noise\n"
        "@dataclass\n"
        "class {}(Noise):\n"
        "    steps: int = 2\n"
        "    def __call__(self, x, generator=None):\n"
        "        return x\n"
    )
    (tmp_path / "json.py").write_text(text.format("FromFile"))
    (tmp_path / "of_a_name.py").write_text(text.format("ByName"))
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    import json

    load_plugin(str(tmp_path / "json.py"))
    load_plugin("of_a_name")
    assert create(Noise, "from-file:steps=3").steps == 3
    assert create(Noise, "by-name").steps == 2
    assert sys.modules["json"] is json
    for name, message in (("broken", "ZeroDivisionError"), ("./none.py", "FileNotFoundError"), ("", "ValueError")):
        with pytest.raises(UsageError, match=f"expected a module or .py file that imports; got '{name}' .{message}"):
            load_plugin(name)
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]
