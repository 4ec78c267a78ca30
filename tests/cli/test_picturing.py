"""`ppl-vae restore` and `denoise --method inference`, on a tiny run."""

import json

import numpy as np
import pytest

TRAIN = ("--train-images", 60, "--epochs", 1, "--batch-size", 16, "--latent-size", 2)


@pytest.fixture
def trained(ppl_vae):
    def train(model="dense-vae:hidden=8", *options):
        status, _, err = ppl_vae("train", "--model", model, *TRAIN, *options, "--output", "run")
        assert status == 0, err

    return train


def test_restore_and_denoise_by_inference(ppl_vae, trained, tmp_path):
    trained()
    status, out, err = ppl_vae("denoise", "run", "--method", "inference", "--num-images", 3)
    assert status == 0, err
    assert "run, by inference" in out
    rows = json.loads((tmp_path / "run" / "denoising.json").read_text())["rows"]
    assert [*rows] == ["noisy", "run", "run, by inference"]
    parts = ("downsampling:factor=2", "gaussian-noise:scale=0.2")
    status, out, err = ppl_vae("restore", "run", "--corruption", *parts, "--num-images", 3)
    assert status == 0, err
    assert out.startswith("3 images restored")
    assert (tmp_path / "run" / "figures" / "restoration.png").is_file()
    written = np.load(tmp_path / "run" / "restoration.npz")
    assert written["mean"].shape == written["std"].shape == (3, 1, 28, 28)
    assert written["samples"].shape == (10, 3, 1, 28, 28)
    assert 0 <= json.loads((tmp_path / "run" / "restoration.json").read_text())["quality"]["mse"]["mean"] <= 1
    # images of one's own, with missing pixels
    images = np.random.default_rng(0).random((2, 28, 28), dtype=np.float32)
    images[:, 14:] = np.nan
    np.save("mine.npy", images)
    status, out, err = ppl_vae("restore", "run", "--corruption", "missing", "--input", "mine.npy", "--output", "out")
    assert status == 0, err
    restored = np.load(tmp_path / "out" / "restoration.npz")["mean"]
    np.testing.assert_allclose(restored[:, 0, :14], images[:, :14], atol=1e-4)
    assert not np.isnan(restored).any()
    for options, message in (
        (("--corruption", "blurr"), "did you mean 'blur'"),
        (("--input", "mine.npy"), "y: expected numbers; got NaN in 2 images"),
        (("--input", "no.npy"), "no.npy: expected a .npy file or a folder of images; got nothing there"),
        (("--num-images", 0), "--num-images: expected at least 1; got 0"),
    ):
        status, _, err = ppl_vae("restore", "run", *options, "--overwrite")
        assert status in (1, 2)
        assert message in err
        assert err.count("\n") == 1


def test_an_autoencoder_is_no_prior(ppl_vae, trained):
    trained("dense-ae:hidden=8")
    for command in (("restore",), ("denoise", "--method", "inference")):
        status, _, err = ppl_vae(command[0], "run", *command[1:], "--num-images", 2)
        assert (status, err.count("\n")) == (1, 1)
        assert "dense-ae:hidden=8: expected a VAE; got an autoencoder, which has no prior of images" in err
