"""The script that made the bundled datasets makes the same files again."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from image_files import pixels, write_idx

from ppl_vae.data import loading

SCRIPT = Path(loading.__file__).parent / "bundled" / "make_mini.py"
if not SCRIPT.is_file():
    pytest.skip("the script is not part of an installed package", allow_module_level=True)


def test_it_keeps_the_first_images_and_repeats_itself(tmp_path):
    for seed, folder in enumerate(("MNIST", "FashionMNIST")):
        for part, count in (("train", 10_003), ("t10k", 2_002)):
            write_idx(tmp_path / folder / "raw" / f"{part}-images-idx3-ubyte", pixels(count, 2, 3, seed=seed))
            write_idx(tmp_path / folder / "raw" / f"{part}-labels-idx1-ubyte", pixels(count, seed=seed))
    make_mini = runpy.run_path(str(SCRIPT))["make_mini"]
    for output in ("a", "b"):
        make_mini(tmp_path, tmp_path / output)
    for seed, name in enumerate(("mnist-mini", "fashion-mnist-mini")):
        dataset = loading.load(str(tmp_path / "a" / f"{name}.npz"))
        assert dataset.train_labels is not None
        assert dataset.test_labels is not None
        assert np.array_equal(dataset.train[:, 0], pixels(10_003, 2, 3, seed=seed)[:10_000])
        assert np.array_equal(dataset.test[:, 0], pixels(2_002, 2, 3, seed=seed)[:2_000])
        assert np.array_equal(dataset.train_labels, pixels(10_003, seed=seed)[:10_000])
        assert np.array_equal(dataset.test_labels, pixels(2_002, seed=seed)[:2_000])
        assert (tmp_path / f"a/{name}.npz").read_bytes() == (tmp_path / f"b/{name}.npz").read_bytes()
