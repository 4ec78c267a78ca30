"""`ppl-vae quality`, on tiny runs."""

import json

import pytest
from commands import OWN, TINY, one_line

from ppl_vae.experiments import features


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(features, "EPOCHS", 1)


def test_quality_of_runs_side_by_side(ppl_vae, tmp_path, quick):
    for model in ("dense-vae", "dense-ae"):
        status, _, err = ppl_vae("train", "--model", model, *TINY, *OWN, "--output", f"runs/{model}")
        assert status == 0, err
    few = ("--num-neighbours", 2)
    status, out, err = ppl_vae("quality", "runs", *few)
    assert status == 0, err
    assert "runs/dense-ae: failed: dense-ae: expected a VAE; got an autoencoder" in out
    assert "a classifier of own, by label" in out
    assert out.count("| runs/dense-vae | ") == out.count("| training data | ") == 1
    quality = json.loads((tmp_path / "runs" / "dense-vae" / "quality.json").read_text())
    assert 0 <= quality["quality"]["precision"]["value"] <= 1
    assert (tmp_path / "runs" / "features-own.safetensors").is_file()
    status, _, _ = ppl_vae("quality", "runs/dense-vae", "--draws", *few)
    assert status == 0
    assert (tmp_path / "runs" / "dense-vae" / "quality-draws.json").is_file()
    (tmp_path / "f.safetensors").write_bytes(b"none")
    for arguments, message in (
        ((), "runs: expected folders of finished runs; got none"),
        (("none",), "none: expected the folder of a finished run; got nothing there"),
        (("runs", "--features", "f.npz"), "--features: expected a path that ends in .safetensors; got f.npz"),
        (("runs/dense-vae", "--features", "f.safetensors", *few), "f.safetensors: expected a classifier of own, or"),
        (("runs/dense-vae", *few[:1], 9), "data: expected at least 20, for halves with 9 neighbours; got 1"),
    ):
        status, _, err = ppl_vae("quality", *arguments)
        assert status in (1, 2)
        assert message in one_line(err)
