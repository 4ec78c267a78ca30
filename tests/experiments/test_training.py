import dataclasses

import pytest
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.experiments import training
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.experiments.runs import finished, load_run
from ppl_vae.experiments.training import _optimizer, save_run, seconds_per_step, take_steps, train
from ppl_vae.training.fitting import fit
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


def test_a_step_is_timed_without_what_is_done_once(dataset, monkeypatch):
    assert take_steps(CONFIG, dataset, 2) > 0
    monkeypatch.setattr(training, "take_steps", lambda config, dataset, num_steps: 5.0 + num_steps / 8)
    assert seconds_per_step(CONFIG, dataset) == pytest.approx(1 / 8)


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


def test_a_model_trained_in_python_is_saved_as_a_run(tmp_path, dataset):
    config = dataclasses.replace(CONFIG, dataset="toy")
    model = build(config, dataset.event_shape)
    history = fit(model.model, model.guide, (dataset.train > 127).float(), epochs=1, show_progress=False)
    save_run(tmp_path / "run", model, config, history, dataset=dataset)
    run = load_run(tmp_path / "run", dataset=dataset)
    assert run.has_its_own_data
    x = dataset.test[:3]
    with torch.no_grad():
        z = model.encode(x / 255).mean
        torch.testing.assert_close(run.encode(x), z)
        torch.testing.assert_close(run.decode(z), model.decode(z))
    assert run.metrics["last_epoch"]["train_elbo"] == history.rows[-1]["train_elbo"]
    with pytest.raises(ValueError, match="model: expected one of config 'dense-vae'; got another at "):
        save_run(tmp_path / "run", model, dataclasses.replace(config, hidden=(9,)), history, dataset=dataset)


@pytest.mark.parametrize(
    ("change", "optimizer", "factors"),
    [
        ({}, torch.optim.Adam, [1, 1, 1]),
        ({"weight_decay": 0.01, "clip_norm": 2.0}, torch.optim.AdamW, [1, 1, 1]),
        ({"schedule": "linear", "warm_up_steps": 2}, torch.optim.Adam, [0.5, 1, 1, 0.5]),
        ({"schedule": "cosine"}, torch.optim.Adam, [1, 0.5 + 0.5 * 0.5**0.5, 0.5]),
        ({"schedule": "steps:at=1,factor=0.25"}, torch.optim.Adam, [1, 1, 0.25, 0.25]),
    ],
)
def test_the_optimiser_is_what_the_config_says(change, optimizer, factors):
    optim = _optimizer(dataclasses.replace(CONFIG, **change))
    assert optim.pt_optim_constructor is optimizer
    assert optim.clip_norm == change.get("clip_norm")
    assert optim.pt_optim_args.get("weight_decay", 0.0) == change.get("weight_decay", 0.0)
    factor = (lambda step: 1.0) if optim.schedule is None else optim.schedule.by_step(4, per_epoch=2)
    found = [factor(step) for step in range(len(factors))]
    assert found == pytest.approx(factors)


def test_more_training_images_than_there_are_is_said(tmp_path, dataset):
    with pytest.warns(
        RuntimeWarning, match="train_images: toy has 60 training images, which are all used; asked for w"
    ):
        quiet_train(dataclasses.replace(CONFIG, train_images=61), tmp_path / "run", dataset)
