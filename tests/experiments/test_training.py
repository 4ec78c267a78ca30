import dataclasses

import pytest
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.runs import finished, load_run
from ppl_vae.experiments.training import seconds_per_step, train
from ppl_vae.training.history import DivergedError


def test_the_same_config_gives_the_same_files(tmp_path, dataset):
    for name in ("a", "b"):
        quiet_train(CONFIG, tmp_path / name, dataset)
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()


def test_a_run_that_diverges_keeps_its_weights_and_is_not_finished(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, likelihood="gaussian:scale=1e-3", learning_rate=1e15, epochs=3)
    with pytest.raises(DivergedError, match="expected a finite loss"):
        quiet_train(config, tmp_path / "run", dataset)
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert not finished(tmp_path / "run", config)
    with pytest.raises(FileNotFoundError, match=r"metrics\.json"):
        load_run(tmp_path / "run", dataset=dataset)


def test_a_step_is_timed(dataset):
    assert seconds_per_step(CONFIG, dataset) > 0


def test_training_never_looks_at_test_images(tmp_path, dataset):
    """Neither weights, nor what was chosen or logged on the way, depend on them."""
    other = dataclasses.replace(dataset, test=255 - dataset.test)
    config = TrainConfig(model="dense-vae", prior="vamp-prior:num_components=5", latent_size=2, hidden=(8,), epochs=2)
    runs = [
        train(config, tmp_path / name, dataset=d, show_progress=False) for name, d in (("a", dataset), ("b", other))
    ]
    assert all(map(torch.equal, runs[0].model.state_dict().values(), runs[1].model.state_dict().values()))
    assert runs[0].metrics["last_epoch"] == runs[1].metrics["last_epoch"]
    assert runs[0].metrics["dataset_fingerprint"] == runs[1].metrics["dataset_fingerprint"]
