import json
import sys
import time

import pytest
import torch
from PIL import Image

from ppl_vae.components import UsageError
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.fitting import fit
from ppl_vae.training.trackers import MLflow, TensorBoard, Wandb, tracker_of


def trained(**kwargs):
    with seeded(0):
        x = torch.randn(40, 5)
        vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), likelihood="gaussian"), (5,))
    history = fit(
        vae.model, vae.guide, x[:30], validation=x[30:], epochs=3, batch_size=10, show_progress=False, **kwargs
    )
    return torch.cat([p.detach().flatten() for p in vae.parameters()]), history


def test_the_callback_sees_each_row_and_changes_nothing():
    rows = []

    def metrics(row):
        torch.randn(7)
        rows.append(dict(row))
        row.clear()

    ours, history = trained(metrics=metrics)
    theirs, without = trained()
    assert rows == history.rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert torch.equal(ours, theirs)
    assert history["validation_elbo"] == without["validation_elbo"]


def test_a_run_that_goes_on_tells_the_epochs_to_come(tmp_path):
    epochs = []

    def metrics(row):
        epochs.append(row["epoch"])

    stops = iter([False] * 4 + [True])  # in the second epoch of three steps each
    with pytest.raises(KeyboardInterrupt):
        trained(metrics=metrics, stop=lambda: next(stops), checkpoints=Checkpoints(tmp_path))
    assert epochs == [1]
    trained(metrics=metrics, checkpoints=Checkpoints(tmp_path), resume=True)
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize(
    ("tracker", "package"), [(TensorBoard, "tensorboard"), (Wandb, "wandb"), (MLflow, "mlflow")], ids=str
)
def test_without_its_package_the_error_is_one_line(tracker, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"expected {package}; got none \(pip install 'ppl-vae\[{package}\]'\)$"):
        tracker(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wandb", "tracker wandb: expected wandb:PLACE; got 'wandb'"),
        ("mlflow:", "tracker mlflow: expected mlflow:PLACE; got 'mlflow:'"),
        ("tensorbord:x", r"tensorboard:PLACE, wandb:PLACE, .*; got 'tensorbord' \(did you mean 'tensorboard'\?\)"),
    ],
)
def test_a_tracker_that_there_is_not(spec, message):
    with pytest.raises(UsageError, match=message):
        tracker_of(spec)


RESULTS = {"test/log_p": -90.25, "test/mc_se": 0.0625}
PICTURE = Image.new("RGB", (3, 2), "red")


def told(tracker, **kwargs):
    """The history that a tracker is told of, with a config before and results after."""
    name = tracker.begin("folder/run", {"latent_size": 2, "hidden": (8,)})
    _, history = trained(metrics=tracker, **kwargs)
    tracker.end(RESULTS, {"samples": PICTURE})
    return name, history


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "told"
    tracker = TensorBoard(folder)
    assert not folder.exists()  # nor is it when a training is refused
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"expected a folder that can be written to; got .*file"):
        TensorBoard(tmp_path / "file" / "told")
    _, history = told(tracker)
    events = EventAccumulator(str(folder)).Reload()
    tags = {"loss": "loss", "seconds": "seconds"}
    for part in ("train", "validation"):
        tags |= {f"{part}_{quantity}": f"{quantity}/{part}" for quantity in ("elbo", "reconstruction", "kl")}
    assert set(events.Tags()["scalars"]) == {*tags.values(), *RESULTS}
    for column, tag in tags.items():
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (epoch, pytest.approx(value, rel=1e-6))
            for epoch, value in zip(history["epoch"], history[column], strict=True)
        ]
    assert {name: events.Scalars(name)[0].value for name in RESULTS} == RESULTS
    image = events.Images("samples")[0]
    assert (image.width, image.height) == (3, 2)
    assert b"latent_size: 2" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_wandb_holds_the_history(tmp_path, monkeypatch):
    """In its own file, in which names and JSON values are text."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_X_DISABLE_STATS", "true")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    monkeypatch.chdir(tmp_path)
    name, history = told(Wandb("project"))
    (path,) = tmp_path.glob(f"wandb/offline-run-*/run-{name}.wandb")
    for _ in range(300):  # it is written by another process, which may be behind
        if (content := path.read_bytes()).count(b"0.0625"):
            break
        time.sleep(0.1)
    for column in ("loss", "validation_elbo", "train_kl"):
        assert [value for value in history[column] if json.dumps(value).encode() not in content] == []
    for text in ("project", "folder/run", "latent_size", "elbo/validation", *RESULTS, "-90.25", "0.0625"):
        assert text.encode() in content
    (picture,) = path.parent.rglob("*.png")
    with Image.open(picture) as image:
        assert image.size == (3, 2)


def test_mlflow_holds_the_history(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = str(tmp_path / "mlruns")
    name, history = told(MLflow(place))
    client = mlflow.MlflowClient(place)
    run = client.get_run(name)
    assert (run.info.run_name, run.info.status) == ("folder/run", "FINISHED")
    assert run.data.params == {"latent_size": "2", "hidden": "(8,)"}
    for column, tag in (("loss", "loss"), ("validation_elbo", "elbo/validation")):
        metrics = client.get_metric_history(name, tag)
        assert [(m.step, m.value) for m in metrics] == list(zip(history["epoch"], history[column], strict=True))
    assert {key: run.data.metrics[key] for key in RESULTS} == RESULTS
    assert [file.path for file in client.list_artifacts(name)] == ["samples.png"]
    again = MLflow(place)
    assert again.begin("folder/run", {"latent_size": 3}, name) == name  # a run that goes on, longer perhaps
    again.end({"test/log_p": -80.0}, failed=True)
    run = client.get_run(name)
    assert (run.data.metrics["test/log_p"], run.info.status) == (-80.0, "FAILED")
