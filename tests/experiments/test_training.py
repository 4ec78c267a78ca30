import dataclasses

import pytest
import torch
from small_runs import CONFIG, quiet_train

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments import training
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.folders import kept_epoch
from ppl_vae.experiments.preparation import build, prepare
from ppl_vae.experiments.runs import finished, history_of, load_run
from ppl_vae.experiments.training import _optimizer, extend, save_run, seconds_per_step, take_steps, train
from ppl_vae.training import fitting
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


@pytest.mark.parametrize("prior", ["vamp-prior:num_components=5", "exemplar-prior:num_exemplars=50"])
def test_training_never_looks_at_test_images(tmp_path, dataset, prior):
    """Neither weights, nor what was chosen or logged on the way, depend on them."""
    other = dataclasses.replace(dataset, test=255 - dataset.test)
    config = TrainConfig(model="dense-vae", prior=prior, latent_size=2, hidden=(8,), epochs=2)
    runs = [
        train(config, tmp_path / name, dataset=d, show_progress=False) for name, d in (("a", dataset), ("b", other))
    ]
    assert all(map(torch.equal, runs[0].model.state_dict().values(), runs[1].model.state_dict().values()))
    assert runs[0].metrics["last_epoch"] == runs[1].metrics["last_epoch"]
    assert runs[0].metrics["dataset_fingerprint"] == runs[1].metrics["dataset_fingerprint"]


@pytest.mark.parametrize("model", ["gated-dense-hvae:hidden=8", "dense-ladder:layers=3+2,hidden=8"])
def test_exemplars_are_trained_resumed_and_loaded(tmp_path, dataset, model):
    """Bit for bit, and each where the encoder of the last epoch has it."""
    config = TrainConfig(
        model=model,
        prior="exemplar-prior:num_exemplars=50",
        epochs=3,
        latent_size=2,
        batch_size=10,
        learning_rate=0.01,
        encoding="threshold",
    )
    whole = quiet_train(config, tmp_path / "whole", dataset)

    def interrupt(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet_train(config, tmp_path / "run", dataset, metrics=interrupt)
    run = quiet_train(config, tmp_path / "run", dataset, resume=True)
    loaded = load_run(tmp_path / "run", dataset=dataset)
    states = [r.model.state_dict() for r in (whole, run, loaded)]
    for name, t in states[0].items():
        assert all(torch.equal(state[name], t) for state in states[1:]), name
    x = run.observe.frozen(run.train_data(50)[0], 0)[0]
    with torch.no_grad():
        now = run.model.encode(x).mean
    moved = (now - prepare_means(config, dataset)).abs().mean()
    assert (now - run.model.prior.means).abs().mean() < 0.5 * moved
    (test,) = loaded.observe.frozen(dataset.test, 0)
    assert bool(log_likelihood(*loaded.programs, test, num_samples=9).log_p.isfinite().all())
    assert loaded.sample(4).shape == (4, 1, 12, 12)


def prepare_means(config, dataset):
    """Where exemplars are before the first step."""
    prepared = prepare(config, dataset)
    prepared.initialise()
    return prepared.model.prior.means


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


def scripted(monkeypatch, *elbos):
    """These ELBOs of the validation data, by epoch."""
    script = iter(elbo for validation in elbos for elbo in (0.0, validation))
    monkeypatch.setattr(fitting, "mean_parts", lambda *args: {"elbo": next(script)})


def content(folder, *names):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history_of(folder).rows]
    return [rows, *((folder / name).read_bytes() for name in ("config.json", "weights.safetensors", *names))]


def test_a_run_with_patience_has_the_best_weights_and_the_last(tmp_path, dataset, monkeypatch):
    config = dataclasses.replace(CONFIG, epochs=9)
    for epochs in (2, 4):
        quiet_train(dataclasses.replace(CONFIG, epochs=epochs), tmp_path / str(epochs), dataset)
    scripted(monkeypatch, -3, -1, -2, -2)
    run = quiet_train(dataclasses.replace(config, patience=2), tmp_path / "run", dataset)
    weights = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in ("2", "4", "run")}
    assert weights["run"] == weights["2"] != weights["4"]
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == weights["4"]
    assert not (tmp_path / "4" / "last.safetensors").exists()
    assert kept_epoch(run.metrics)["epoch"] == 2
    assert run.metrics["last_epoch"]["epoch"] == 4
    scripted(monkeypatch, -2, -2)
    run = extend(tmp_path / "run", 9, dataset=dataset, show_progress=False)  # patience counts from there
    assert [run.metrics[which]["epoch"] for which in ("best_epoch", "last_epoch")] == [2, 6]
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == weights["2"]


def test_a_run_goes_on_as_one_run_of_all_epochs(tmp_path, dataset, monkeypatch):
    config = dataclasses.replace(CONFIG, clip_norm=1.0, warm_up_steps=2, ema_decay=0.8, kl_weight="linear-warm-up")
    quiet_train(dataclasses.replace(config, epochs=4), tmp_path / "whole", dataset)
    quiet_train(dataclasses.replace(config, epochs=2), tmp_path / "run", dataset)
    before = content(tmp_path / "run", "state.safetensors")

    def killed(row):
        raise KeyError

    with pytest.raises(KeyError):
        extend(tmp_path / "run", 2, dataset=dataset, show_progress=False, metrics=killed)
    assert content(tmp_path / "run", "state.safetensors") == before
    with pytest.raises(ValueError, match="run: expected a finished run; got an unfinished one too"):
        extend(tmp_path / "run", 2, dataset=dataset)
    run = extend(tmp_path / "run", 2, dataset=dataset, show_progress=False, resume=True)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert run.config.epochs == len(history_of(tmp_path / "run")) == 4


def test_what_is_not_kept_or_damaged_is_not_gone_on_with(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match="run: expected the folder of a run; got nothing there"):
        extend(tmp_path / "run", 1, dataset=dataset)
    quiet_train(CONFIG, tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="extend: expected at least 1 epoch; got 0"):
        extend(tmp_path / "run", 0, dataset=dataset)
    path = tmp_path / "run" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"state\.safetensors: expected the file as it was written"):
        extend(tmp_path / "run", 1, dataset=dataset)
    quiet_train(CONFIG, tmp_path / "run", dataset, keep_state=False)
    with pytest.raises(FileNotFoundError, match=r"state\.safetensors: expected the state to go on from; got none"):
        extend(tmp_path / "run", 1, dataset=dataset)


def test_a_run_begins_with_the_weights_of_another(tmp_path, dataset):
    quiet_train(CONFIG, tmp_path / "run", dataset)
    for seed, start in ((0, str(tmp_path / "run")), (1, str(tmp_path / "run")), (0, None)):
        config = dataclasses.replace(CONFIG, learning_rate=1e-30, start_from=start, seed=seed)
        quiet_train(config, tmp_path / "next", dataset)
        both = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "next")]
        assert (both[0] == both[1]) == (start is not None)
    for change, message in (({"hidden": (9,)}, "expected torch.float32"), ({"prior": "learned-normal"}, "Missing key")):
        config = dataclasses.replace(CONFIG, start_from=str(tmp_path / "run"), **change)
        with pytest.raises(ValueError, match=message):
            quiet_train(config, tmp_path / "other", dataset)
    with pytest.raises(FileNotFoundError, match="nowhere: expected the folder of a run; got nothing there"):
        quiet_train(dataclasses.replace(CONFIG, start_from="nowhere"), tmp_path / "other", dataset)


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
