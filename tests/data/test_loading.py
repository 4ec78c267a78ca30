from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
import torchvision.datasets
from image_files import assert_raises, pixels, write_idx, write_raw

from ppl_vae.components import UsageError
from ppl_vae.data import loading
from ppl_vae.data.dataset import split
from ppl_vae.data.loading import load, names


@pytest.mark.parametrize("name", ["mnist-mini", "fashion-mnist-mini"])
def test_bundled_sets_load(name: str) -> None:
    dataset = load(name)
    assert dataset.train.shape == (10_000, 1, 28, 28)
    assert dataset.test.shape == (2_000, 1, 28, 28)
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.train_labels is not None
    assert dataset.test_labels is not None
    assert dataset.train_labels.bincount().min() > 850  # ten classes, about even
    assert dataset.test_labels.bincount().min() > 150
    assert len(dataset.train_labels.bincount()) == len(dataset.test_labels.bincount()) == 10
    assert dataset.train.min() == 0
    assert dataset.train.max() == 255
    assert repr(dataset) == f"Dataset('{name}', 10000 train, 2000 test, 1x28x28)"


def test_bundled_digits_are_upright_and_match_their_labels() -> None:
    dataset = load("mnist-mini")
    assert dataset.train_labels is not None
    assert dataset.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    mean = dataset.train.float().mean(0)[0]
    assert mean.mean() == pytest.approx(33.3, abs=1)  # 0.13 of 255, as of the whole set
    ones = dataset.train[dataset.train_labels == 1, 0].float().mean(0)
    assert ones.mean(0).var() > ones.mean(1).var()  # the stroke of a one is vertical
    zeros = dataset.train[dataset.train_labels == 0, 0].float().mean(0)
    assert ones[14, 14] > 150
    assert zeros[14, 14] < 30  # and a zero is hollow


def test_bundled_files_have_their_licences() -> None:
    folder = Path(loading.__file__).parent / "bundled"
    assert "creativecommons.org/licenses/by-sa/3.0" in (folder / "LICENSE-mnist.txt").read_text()
    licence = (folder / "LICENSE-fashion-mnist.txt").read_text()
    assert "Copyright (c) 2017 Zalando SE, https://tech.zalando.com" in licence
    assert "WITHOUT WARRANTY OF ANY KIND" in licence


@pytest.mark.usefixtures("offline")
def test_the_root_is_the_argument_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(cache / name))
    for seed, root in enumerate(("argument", "variable", "cache/ppl-vae")):
        write_raw(tmp_path / root, "MNIST")
        write_idx(tmp_path / root / "MNIST/raw/train-images-idx3-ubyte", pixels(14, 5, 4, seed=seed + 7))
    monkeypatch.setenv("PPL_VAE_DATA", str(tmp_path / "variable"))
    assert np.array_equal(load("mnist", tmp_path / "argument").train[:, 0], pixels(14, 5, 4, seed=7))
    assert np.array_equal(load("mnist").train[:, 0], pixels(14, 5, 4, seed=8))
    monkeypatch.delenv("PPL_VAE_DATA")
    assert np.array_equal(load("mnist").train[:, 0], pixels(14, 5, 4, seed=9))


def test_every_name_is_described() -> None:
    assert [name for name, about in names().items() if about.endswith("bundled")] == [
        "mnist-mini",
        "fashion-mnist-mini",
    ]
    splits = {f"emnist-{split}" for split in torchvision.datasets.EMNIST.splits}
    assert names().keys() >= {"mnist", "fashion-mnist", "kmnist", "qmnist"} | splits
    assert all("28x28" in about and "\n" not in about for about in names().values())


def test_unknown_names(tmp_path: Path) -> None:
    assert_raises("mnits", UsageError, "did you mean 'mnist'?", "emnist-letters", "got 'mnits'")
    assert_raises("MNIST", UsageError, "did you mean 'mnist'?")
    assert_raises("", UsageError, "got ''")
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        load("zzz")
    assert_raises("zzz.npz", FileNotFoundError, "zzz.npz")
    assert_raises(tmp_path / "nowhere", FileNotFoundError, str(tmp_path / "nowhere"))
    (tmp_path / "a.txt").write_text("no image")
    assert_raises(tmp_path / "a.txt", ValueError, str(tmp_path / "a.txt"), ".npz")


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-mini").mkdir()
    assert len(load("mnist-mini").train) == 10_000
    assert_raises("./mnist-mini", FileNotFoundError)


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(12, 5, 4))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    split(10, 3, seed=0)
    load(str(tmp_path / "a.npy"))
    load("mnist-mini")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state(legacy=False)) == str(numpy_state)  # noqa: NPY002
