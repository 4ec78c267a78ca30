import sys

import pytest
import torch

from ppl_vae.cli.main import main
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.fitting import fit
from ppl_vae.training.trackers import TensorBoard


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


def test_without_tensorboard_the_error_is_one_line(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"expected tensorboard; got none \(pip install") as error:
        TensorBoard(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "told"
    metrics = TensorBoard(folder)
    assert not folder.exists()  # nor is it when a training is refused
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"expected a folder that can be written to; got .*file"):
        TensorBoard(tmp_path / "file" / "told")
    _, history = trained(metrics=metrics)
    events = EventAccumulator(str(folder)).Reload()
    tags = {"loss": "loss", "seconds": "seconds"}
    for part in ("train", "validation"):
        tags |= {f"{part}_{quantity}": f"{quantity}/{part}" for quantity in ("elbo", "reconstruction", "kl")}
    assert set(events.Tags()["scalars"]) == set(tags.values())
    for column, tag in tags.items():
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (epoch, pytest.approx(value, rel=1e-6))
            for epoch, value in zip(history["epoch"], history[column], strict=True)
        ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_tells_tensorboard(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("ppl_vae.cli.training.draw_run", lambda *args, **kwargs: [])
    few = ["train", "--model", "dense-vae", "--train-images", "12", "--epochs", "1", "--output", str(tmp_path / "run")]
    main([*few, "--tensorboard", str(tmp_path / "told")])
    assert [path.name.split(".")[0] for path in (tmp_path / "told").iterdir()] == ["events"]
    monkeypatch.setattr("ppl_vae.cli.training.TensorBoard", absent)
    with pytest.raises(SystemExit) as stop:
        main([*few, "--overwrite", "--tensorboard", str(tmp_path / "told")])
    assert stop.value.code == 1
    assert capsys.readouterr().err.endswith("ppl-vae: error: TensorBoard: expected tensorboard; got none\n")


def absent(folder):
    raise ImportError("TensorBoard: expected tensorboard; got none")
