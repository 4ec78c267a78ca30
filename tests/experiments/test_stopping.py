"""SIGINT and SIGTERM end a run with a checkpoint: resumed, it ends as an undisturbed one."""

import json
import re
import shlex
import signal

import numpy as np
import pytest
from stopping import IN_TRAINING, TRAIN, one_line, raising_at, results

from ppl_vae.cli import training as cli_training
from ppl_vae.data.loading import load
from ppl_vae.data.observation import Observe
from ppl_vae.experiments import batch, study, training
from ppl_vae.experiments.runs import Run, unfinished
from ppl_vae.system.files import locked
from ppl_vae.system.signals import SIGNALS

pytestmark = pytest.mark.usefixtures("quick_ladder")


@pytest.mark.parametrize("by", SIGNALS, ids=lambda s: s.name)
def test_a_signal_ends_the_step_and_says_how_to_go_on(by, ppl_vae, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Observe, "__call__", raising_at(IN_TRAINING + 20, by))
        status, err = ppl_vae(*TRAIN)
    assert status == 128 + by
    assert "ppl-vae: stopped in epoch 2 of 5, after 5 of 16 steps, with a checkpoint. To go on:" in err
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-000000000021.safetensors").exists()
    again = shlex.split(err.splitlines()[-1])
    assert again == ["ppl-vae", *TRAIN, "--resume"]
    assert ppl_vae(*again[1:])[0] == 0
    assert results(tmp_path / "run") == undisturbed
    assert ppl_vae(*again[1:])[0] == 0  # what is finished is finished
    assert results(tmp_path / "run") == undisturbed


def test_a_second_sigint_leaves_at_once(ppl_vae, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Observe, "__call__", raising_at(IN_TRAINING + 20, signal.SIGINT, signal.SIGINT))
        status, err = ppl_vae(*TRAIN, "--checkpoint-minutes", "None")
    assert status == 130
    assert one_line(err) == "ppl-vae: error: interrupted"
    assert [path.name[-15:] for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["016.safetensors"]
    assert ppl_vae(*TRAIN, "--resume")[0] == 0
    assert results(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("by", SIGNALS, ids=lambda s: s.name)
def test_a_signal_of_which_compiled_code_makes_another_error_is_one(by, ppl_vae, few_swaps, monkeypatch):
    def drawn(*args, **kwargs):
        try:
            signal.raise_signal(by)
        except KeyboardInterrupt:
            raise ValueError("Invalid affine transformation matrix") from None  # as matplotlib does

    monkeypatch.setattr(cli_training, "draw_run", drawn)
    monkeypatch.setattr(Run, "sample", drawn)
    status, err = ppl_vae(*TRAIN)
    assert (status, one_line(err)) == (128 + by, "ppl-vae: error: interrupted")
    status, err = ppl_vae(*few_swaps, "--output", ".")
    assert status == 128 + by
    assert "ppl-vae: interrupted; what is finished is kept. To go on:\n" in err


def test_what_is_in_the_folder_is_gone_on_with_or_overwritten_as_asked(ppl_vae, undisturbed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert ppl_vae(*TRAIN, "--resume")[0] == 0  # begins, where there is nothing
    assert results(run) == undisturbed
    finished = {path: path.read_bytes() for path in run.iterdir()}
    status, err = ppl_vae(*TRAIN, "--resume", "--learning-rate", "0.01", "--hidden", "8", "9")
    assert status == 1
    assert "of another, stored -> given: hidden: (8,) -> (8, 9), learning_rate: 0.001 -> 0.01" in one_line(err)
    assert ppl_vae(*TRAIN, "--resume", "--overwrite")[0] == 2
    assert ppl_vae(*TRAIN, "--checkpoint-minutes", "0")[0] == ppl_vae(*TRAIN, "--checkpoint-epochs", "0")[0] == 2
    with monkeypatch.context() as patch:
        patch.setattr(Observe, "__call__", raising_at(IN_TRAINING + 20, signal.SIGTERM))
        assert ppl_vae(*TRAIN, "--overwrite", "--seed", "1")[0] == 143
    assert {path: path.read_bytes() for path in finished} == finished  # until the other is finished too
    status, err = ppl_vae(*TRAIN)
    assert status == 2
    assert "run, an unfinished run (--resume resumes it, --overwrite starts again)" in one_line(err)
    checkpoints = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    status, err = ppl_vae(*TRAIN, "--resume", "--kl-weight", "constant:beta=2")
    assert status == 1
    assert "of another, stored -> given: kl_weight: 'constant' -> 'constant:beta=2', seed: 1 -> 0" in one_line(err)

    def cannot(*args):
        raise ValueError("expected a pair that can be trained; got one that can't")

    with monkeypatch.context() as patch:  # which shows in the first step alone
        patch.setattr("ppl_vae.models.VAE.guide", cannot)
        status, err = ppl_vae(*TRAIN, "--overwrite")
    assert status == 1
    assert "a pair that can be trained" in one_line(err)
    assert {path: path.read_bytes() for path in (*finished, *checkpoints)} == {**finished, **checkpoints}
    assert ppl_vae(*TRAIN, "--overwrite")[0] == 0
    assert results(run) == undisturbed


def test_an_extension_is_a_command_and_goes_on_too(ppl_vae, undisturbed, tmp_path, monkeypatch):
    shorter = [{"5": "2"}.get(a, a) for a in TRAIN]
    assert ppl_vae(*shorter)[0] == 0
    more = ["train", "--extend", "3", "--output", "run", "--checkpoint-minutes", "0.001"]
    with monkeypatch.context() as patch:
        patch.setattr(Observe, "__call__", raising_at(IN_TRAINING + 20, signal.SIGTERM))
        status, err = ppl_vae(*more)
    assert status == 143
    assert "stopped in epoch 4 of 5, after 3 of 16 steps" in err
    assert ppl_vae(*more)[0] == 2
    again = shlex.split(err.splitlines()[-1])
    assert again == ["ppl-vae", *more, "--resume"]
    assert ppl_vae(*again[1:])[0] == 0
    assert results(tmp_path / "run") == undisturbed


def test_other_data_are_refused(ppl_vae, tmp_path, monkeypatch):
    assert ppl_vae(*TRAIN)[0] == 0
    load = training.load

    def other(*args, **options):
        dataset = load(*args, **options)
        dataset.train[0, 0, 0, 0] += 1
        return dataset

    monkeypatch.setattr(training, "load", other)
    status, err = ppl_vae(*TRAIN, "--resume")
    assert status == 1
    assert re.search(r"stored -> given: data: '[0-9a-f]{16}' -> '[0-9a-f]{16}'", one_line(err))


@pytest.mark.parametrize("arguments", [TRAIN, ["run"], ["run", "trust"]], ids=["train", "run", "trust"])
def test_a_second_process_is_refused(arguments, ppl_vae, tmp_path):
    if arguments is not TRAIN:  # on data that end it where nothing else does
        arguments = [*arguments, "--dataset", "mnist-mini", "./nowhere.npz", "--output", "."]
    folder = "run" if arguments is TRAIN else "study/nowhere"
    with locked(tmp_path / folder):
        status, err = ppl_vae(*arguments)
    assert status == 1
    assert f"{folder}: expected a folder in which no other run is at work; got one in use" in one_line(err)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def groups_of(folder):
    return json.loads((folder / "swaps" / "mnist-mini" / "metrics.json").read_text())["groups"]


def test_an_experiment_goes_on_in_the_midst_of_what_it_was_at(ppl_vae, few_swaps, tmp_path, monkeypatch):
    assert ppl_vae(*few_swaps, "--output", "a")[0] == 0
    command, folder = [*few_swaps, "--output", "b"], tmp_path / "b" / "swaps" / "mnist-mini"
    trained = []
    train = training.train

    def recorded(config, *args, resume, **kwargs):
        trained.append((config.prior, resume))
        return train(config, *args, resume=resume, **kwargs)

    monkeypatch.setattr(training, "train", recorded)
    with monkeypatch.context() as patch:
        patch.setattr(Observe, "__call__", raising_at(IN_TRAINING - 8 + 14, signal.SIGTERM))  # its look takes 12
        status, err = ppl_vae(*command)
    assert status == 143
    assert "stopped in epoch 2 of 2, after 5 of 10 steps" in err
    assert shlex.split(err.splitlines()[-1]) == ["ppl-vae", *command]
    assert unfinished(folder / "base" / "seed-0")
    for by in SIGNALS:  # in an evaluation, which takes its own end for all of it

        def interrupted(*args, by=by, **options):
            signal.raise_signal(by)

        with monkeypatch.context() as patch:
            patch.setattr("ppl_vae.evaluation.importance.add_samples", interrupted)
            status, err = ppl_vae(*command)
        assert status == 128 + by
        assert "ppl-vae: interrupted; what is finished is kept. To go on:\n" in err
        assert not (folder / "base" / "seed-0" / "log_likelihood.json").exists()
    assert ppl_vae(*command)[0] == 0
    assert trained == [("standard-normal", False), ("standard-normal", True), ("laplace", False)]
    assert groups_of(tmp_path / "a") == groups_of(tmp_path / "b")
    written = (folder / "base" / "seed-0" / "log_likelihood.npz").stat().st_mtime_ns
    assert ppl_vae(*command)[0] == 0
    assert (folder / "base" / "seed-0" / "log_likelihood.npz").stat().st_mtime_ns == written
    path = folder / "prior-laplace" / "seed-0" / "log_likelihood.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert ppl_vae(*command)[0] == 0
    assert path.read_bytes() == content  # evaluated again
    assert groups_of(tmp_path / "a") == groups_of(tmp_path / "b")


def test_parts_that_fail_are_named_at_the_end(ppl_vae, few_swaps, tmp_path, monkeypatch):
    trained = batch.trained

    def failing(config, *args, **kwargs):
        if config.prior == "laplace":
            raise KeyError("nobody thought of this")
        return trained(config, *args, **kwargs)

    datasets = ["--dataset", "mnist-mini", "./nowhere.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(batch, "trained", failing)
        status, err = ppl_vae(*few_swaps[:2], *datasets, *few_swaps[4:], "--output", ".")
    assert status == 1
    message = one_line(err)
    assert "failed: mnist-mini prior-laplace/seed-0 (KeyError: 'nobody thought of this'); ./nowhere.npz (" in message
    assert {row["component"] for row in groups_of(tmp_path)["prior"]["rows"]} == {"standard-normal"}
    assert ppl_vae(*few_swaps, "--output", ".")[0] == 0
    assert len(groups_of(tmp_path)["prior"]["rows"]) == 2


def test_a_study_goes_on_past_a_model_that_fails(ppl_vae, tmp_path, monkeypatch):
    mini = load("mnist-mini")
    np.savez(tmp_path / "tiny.npz", train=mini.train[:60].numpy(), test=mini.test[:60].numpy())
    sizes = ["--autoencoder-epochs", 1, "--vae-epochs", 1, "--num-images", 4, "--num-samples", 3]
    command = ["run", "--dataset", "tiny.npz", *sizes, "--output", "."]
    monkeypatch.setattr(
        study.StudyConfig,
        "models",
        lambda self, models=study.StudyConfig.models: {
            name: config for name, config in models(self).items() if name in ("dense-ae", "dense-vae", "dense-vae-2d")
        },
    )
    evaluate = study._evaluate

    def failing(run, folder, *args):
        if folder.name == "dense-vae":
            raise ArithmeticError("NaN")
        return evaluate(run, folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(study, "_evaluate", failing)
        status, err = ppl_vae(*command)
    assert status == 1
    assert "failed: tiny.npz dense-vae (NaN). The others are kept" in one_line(err)
    path = tmp_path / "study" / "tiny" / "metrics.json"
    metrics = json.loads(path.read_text())
    assert metrics["failed"] == {"dense-vae": "NaN"}
    assert list(metrics["log_likelihood"]) == ["dense-vae-2d"]
    trained = []
    monkeypatch.setattr(training, "train", lambda config, *args, **kwargs: trained.append(config))
    assert ppl_vae(*command)[0] == 0
    assert trained == []
    assert json.loads(path.read_text())["failed"] == {}
