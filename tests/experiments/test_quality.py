import dataclasses
import json

import pytest
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.experiments import quality
from ppl_vae.experiments.features import Features
from ppl_vae.experiments.quality import quality_run, quality_runs
from ppl_vae.experiments.runs import Run, load_run

PIXELS = Features(lambda x: x.flatten(1), {"name": "pixels", "fingerprint": "pixels"})
SIZES = {"num_samples": 50, "num_neighbours": 2}


@pytest.fixture
def run(tmp_path, dataset):
    return quiet_train(CONFIG, tmp_path / "run", dataset)


def values(figures):
    return {name: figure["value"] for name, figure in figures.items()}


@pytest.mark.parametrize("draws", [False, True])
def test_samples_that_are_the_test_data_have_nothing_to_improve(run, dataset, monkeypatch, draws):
    """Means are seen beside the images, and draws beside data as the likelihood sees them."""
    images = dataset.test[torch.randperm(12, generator=torch.Generator().manual_seed(0))]
    made, seeds = (run.observe.frozen(images, 0)[0] if draws else images / 255), []

    def sample(self, num_data, *, seed, mean):
        assert mean is not draws
        start = 5 * len(seeds)
        seeds.append(seed)
        return made[start : start + num_data]

    monkeypatch.setattr(Run, "sample", sample)
    monkeypatch.setattr(quality, "CHUNK", 5)
    found = quality_run(run, PIXELS, draws=draws, **SIZES)
    assert len({*seeds}) == len(seeds) == 3  # 12 images
    assert found["num_data"] == 12
    of = values(found["quality"])
    assert (of["precision"], of["recall"], of["coverage"]) == (1.0, 1.0, 1.0)
    assert abs(of["frechet"]) < 1e-4 < values(found["training"])["frechet"]
    seeds.clear()
    black = run.on(dataclasses.replace(dataset, train=0 * dataset.train))
    assert quality_run(black, PIXELS, draws=draws, training=found["training"], **SIZES)["training"] is found["training"]


def test_runs_are_assessed_once_on_the_same_features(run, tmp_path, dataset):
    quiet_train(dataclasses.replace(CONFIG, seed=1), tmp_path / "other", dataset)
    quiet_train(dataclasses.replace(CONFIG, model="dense-ae"), tmp_path / "ae", dataset)
    folders, said = [tmp_path / name for name in ("run", "ae", "other")], []

    def load(folder):
        return load_run(folder, dataset=dataset)

    found = quality_runs(folders, load, say=said.append, **SIZES)
    assert [*found] == [tmp_path / "run", tmp_path / "other"]
    assert (tmp_path / "features-toy.safetensors").is_file()
    assert "expected a VAE; got an autoencoder" in " ".join(said)
    one, other = (json.loads((folder / "quality.json").read_text()) for folder in found)
    assert one["quality"] != other["quality"]
    assert one["training"] == other["training"]
    assert one["features"] == other["features"]
    assert one["weights"] == run.weights
    said.clear()
    again = quality_runs([tmp_path / "run"], load, say=said.append, **SIZES)
    assert again == {tmp_path / "run": one}
    assert said == []
    (tmp_path / "run" / "quality.json").write_text(json.dumps(one | {"weights": "of another run"}))
    assert quality_runs([tmp_path / "run"], load, say=said.append, **SIZES)[tmp_path / "run"]["weights"] == run.weights
    more = quality_runs([tmp_path / "run"], load, say=said.append, num_samples=50, num_neighbours=3)
    assert more[tmp_path / "run"]["quality"] != one["quality"]
    with pytest.raises(ValueError, match="expected a VAE; got an autoencoder"):
        quality_runs([tmp_path / "ae"], load, say=said.append, **SIZES)
    quiet_train(CONFIG, tmp_path / "run", dataset)
    assert not (tmp_path / "run" / "quality.json").exists()  # of the run that was replaced


def test_vectors_are_judged_by_draws(tmp_path):
    from ppl_vae.data.dataset import Dataset

    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(CONFIG, likelihood="gaussian-learned")
    run = quiet_train(config, tmp_path / "run", Dataset("vectors", x[:60], x[60:]))
    assert torch.equal(*(torch.tensor([*values(quality_run(run, PIXELS, draws=d, **SIZES)["quality"]).values()])
                         for d in (False, True)))  # fmt: skip
