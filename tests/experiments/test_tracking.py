"""What a tracker is told of a run: by `train`, by the commands, and by a plugin of ten lines."""

import dataclasses
import json
import sys

import pytest
import torch
from small_runs import CONFIG, quiet_train
from stopping import one_line

from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.runs import history_of
from ppl_vae.experiments.tracking import FILE, tell
from ppl_vae.training.history import DivergedError
from ppl_vae.training.trackers import Tracker

MINE = """
import json
from ppl_vae.training.trackers import Tracker

class JsonLines(Tracker):
    def write(self, **values):
        with open(self.place, "a") as file:
            print(json.dumps(values), file=file)
    def begin(self, name, config, known=None):
        self.write(name=name, latent_size=config["latent_size"], known=known)
        return "my-id"
    def __call__(self, row):
        self.write(**row)
    def end(self, results, pictures, *, failed=False):
        self.write(results=results, pictures={name: p.size for name, p in pictures.items()}, failed=failed)
"""


class Told(Tracker, by_name=False):
    """Keeps what it is told; fails with `error` at each epoch, if there is one."""

    def __init__(self, error=None, name=None):
        super().__init__("here")
        self.calls, self.error, self.name = [], error, name

    def begin(self, name, config, known=None):
        self.calls.append(("begin", config["likelihood"], known))
        return self.name

    def __call__(self, row):
        self.calls.append(row["epoch"])
        if self.error is not None:
            raise self.error

    def end(self, results, pictures=(), *, failed=False):
        self.calls.append(("end", sorted(pictures), failed))
        self.results = results


def test_a_run_is_told_from_its_config_to_its_samples(tmp_path, dataset):
    tracker = Told()
    run = quiet_train(CONFIG, tmp_path / "run", dataset, tracker=tracker)
    assert tracker.calls == [("begin", "bernoulli", None), 1.0, ("end", ["samples"], False)]
    assert tracker.results == {"kept_epoch": 1, "parameters": sum(p.numel() for p in run.model.parameters())}
    assert not (tmp_path / "run" / FILE).exists()


def test_a_tracker_that_fails_ends_nothing(tmp_path, dataset):
    tracker = Told(ValueError("no\nroute"))
    with pytest.warns(RuntimeWarning, match=r"^told: expected to be told; got no route$"):
        run = quiet_train(CONFIG, tmp_path / "run", dataset, tracker=tracker)
    assert tracker.calls[-1] == ("end", ["samples"], False)
    plain = quiet_train(CONFIG, tmp_path / "plain", dataset)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), plain.model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_what_ends_early_has_failed(tmp_path, dataset):
    stopped = Told(KeyboardInterrupt(), name="mine")
    with pytest.raises(KeyboardInterrupt):
        quiet_train(CONFIG, tmp_path / "run", dataset, tracker=stopped)
    assert stopped.calls[-1] == ("end", [], True)
    goes_on = Told(name="mine")
    quiet_train(CONFIG, tmp_path / "run", dataset, tracker=goes_on, resume=True)
    assert goes_on.calls[0] == ("begin", "bernoulli", "mine")
    anew = Told(name="mine")
    quiet_train(CONFIG, tmp_path / "run", dataset, tracker=anew)
    assert anew.calls[0] == ("begin", "bernoulli", None)
    diverged = Told()
    config = dataclasses.replace(CONFIG, learning_rate=1e30, likelihood="gaussian", encoding="dequantize")
    with pytest.raises(DivergedError):
        quiet_train(config, tmp_path / "run", dataset, tracker=diverged)
    assert diverged.calls[-1] == ("end", [], True)


def test_one_that_cannot_begin_is_one_line(tmp_path, dataset):
    class Refusing(Told, by_name=False):
        def begin(self, name, config, known=None):
            raise RuntimeError("log in\nfirst")

    with pytest.raises(OSError, match=r"^tracker: expected refusing:here to begin; got RuntimeError: log in first$"):
        quiet_train(CONFIG, tmp_path / "run", dataset, tracker=Refusing())


def test_the_commands_tell_a_plugin(ppl_vae, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    few = ["--model", "dense-vae", "--hidden", "8", "--latent-size", "2", "--epochs", "2", "--train-images", "12"]
    more = ["--plugin", "mine.py", "--tracker", "json-lines:log"]
    status, err = ppl_vae("train", *few, "--output", "run", *more)
    assert status == 0, err
    shown = ["--method", "importance", "--num-samples", "30", "--num-images", "5"]
    status, err = ppl_vae("evaluate", "run", *shown, *more)
    assert status == 0, err
    sys.modules.pop("plugin_mine")
    begin, *rows, end, again, last = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert begin == {"name": f"{tmp_path.name}/run", "latent_size": 2, "known": None}
    assert rows == history_of(tmp_path / "run").rows
    assert (end["pictures"], end["failed"], again["known"]) == ({"samples": [8 * 29 - 1, 8 * 29 - 1]}, False, "my-id")
    summary = json.loads((tmp_path / "run" / "log_likelihood.json").read_text())
    for name in ("log_p", "mc_se", "data_se", "elbo"):
        assert last["results"][f"test/{name}"] == summary[name]
    assert not [name for name in end["results"] if name.startswith("test/")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tracker", "no:x"], "tracker: expected one of tensorboard:PLACE, wandb:PLACE, mlflow:PLACE"),
        (["--tracker", "wandb:x", "--method", "annealed"], "--tracker: expected --method ladder, importance or"),
        (["--tracker", "wandb:x", "--tolerance", "1"], "beside it; got --tolerance"),
        (["--tracker", "wandb:x", "--output", "there"], "--tracker: expected results in the folder of the run"),
    ],
)
def test_an_evaluation_that_cannot_be_told(ppl_vae, arguments, message):
    status, err = ppl_vae("evaluate", "run", *arguments)
    assert status == 2
    assert message in one_line(err)


def test_evaluations_of_other_data_are_told_apart(tmp_path, dataset):
    from ppl_vae.experiments.evaluating import save_evaluation, summarise

    run = quiet_train(CONFIG, tmp_path / "run", dataset)
    x = run.observe.frozen(dataset.test[:4], 0)
    result = log_likelihood(*run.programs, *x, num_samples=30)
    summary = summarise(run, result, x, 0)
    (tmp_path / "run" / "on-other").mkdir()
    save_evaluation(tmp_path / "run" / "on-other", result, summary)
    tracker = Told()
    tell(tracker, tmp_path / "run")
    assert tracker.results["on-other/log_p"] == summary["log_p"]
    assert "test/log_p" not in tracker.results
