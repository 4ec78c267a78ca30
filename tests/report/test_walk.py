"""A walk between latents: what is on the page is what the run decodes."""

import base64
import io

import numpy as np
import pytest
import torch
from commands import save_own
from PIL import Image

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train
from ppl_vae.report.walk import NUM_IMAGES, OFFSETS, STEPS, decoder_of, walk


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    save_own(folder)

    def run_of(**changes):
        defaults = {"model": "dense-vae", "dataset": str(folder / "own.npz"), "latent_size": 3, "epochs": 1}
        return train(TrainConfig(**defaults | changes), folder / "run", show_progress=False, overwrite=True)

    return run_of


def levels(address):
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L"))


def test_tiles_are_decoded_between_two_images_and_beside_one(run_of):
    run = run_of(model="conv-vae:hidden=8")
    found = walk(run)
    assert found.decoder is None
    z = run.encode(run.dataset.test[:NUM_IMAGES])
    tiles = levels(found.tiles).reshape(-1, 6, len(OFFSETS), 6).swapaxes(1, 2)
    K = len(found.latents)
    assert len(tiles) == NUM_IMAGES**2 + NUM_IMAGES * K
    half = (run.decode(0.5 * (z[1] + z[4])) * 255).round()[0].numpy()
    assert abs(tiles[NUM_IMAGES * 1 + 4, STEPS // 2] - half).max() <= 1
    moved = z[2].clone()
    moved[found.latents[1]] += OFFSETS[9] * run.encode(run.dataset.test).std(0)[found.latents[1]]
    expected = (run.decode(moved) * 255).round()[0].numpy()
    assert abs(tiles[NUM_IMAGES**2 + 2 * K + 1, 9] - expected).max() <= 1
    scale = run.encode(run.dataset.test).std(0)
    assert scale[found.latents[0]] == scale.max()


@pytest.mark.parametrize(
    ("changes", "activations"),
    [
        ({"hidden": (8,)}, ["relu", "sigmoid"]),
        ({"model": "gated-dense-vae:hidden=8+8"}, ["glu", "glu", "sigmoid"]),
        ({"model": "dense-vae:hidden=8,activation=tanh", "likelihood": "gaussian"}, ["tanh", ""]),
        ({"hidden": (8,), "likelihood": "continuous-bernoulli"}, None),  # its mean is no sigmoid
        ({"hidden": (8,), "likelihood": "gaussian-per-pixel"}, None),  # two numbers a pixel
    ],
)
def test_a_dense_decoder_is_told_by_what_it_decodes(run_of, changes, activations):
    run = run_of(**changes)
    decoder = decoder_of(run, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert (decoder and [layer["activation"] for layer in decoder["layers"]]) == activations
