"""`fit` takes torch's datasets in the place of tensors: the same numbers, read when they are used."""

import pytest
import torch
from tiny import Items, Scaled, Stream
from torch.utils.data import DataLoader, TensorDataset

from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import Stopped

X = torch.randn(50, generator=torch.Generator().manual_seed(0))
OPTIONS = {"epochs": 3, "learning_rate": 0.1, "compiled": False, "show_progress": False}


def fitted(*data, **options):
    pair = Scaled()
    history = fit(pair.model, pair.guide, *data, **{**OPTIONS, "batch_size": 16} | options)
    return pair.log_scale.item(), [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def test_a_dataset_trains_as_its_tensor_does():
    expected = fitted(X, validation=X[:20])
    for source in (Items(X), TensorDataset(X), DataLoader(Items(X), shuffle=True), Items(X.double())):
        assert fitted(source, validation=Items(X[:20])) == expected
    assert fitted(DataLoader(Items(X), batch_size=16), batch_size=None, validation=X[:20]) == expected
    short = fitted(X, drop_last=True)
    assert fitted(DataLoader(Items(X), batch_size=16, drop_last=True), batch_size=None) == short != fitted(X)


def test_a_stream_trains_in_its_own_order(monkeypatch):
    """As a tensor does whose rows are taken in their order."""
    streamed = fitted(Stream(X)), fitted(DataLoader(Stream(X), batch_size=7))
    assert streamed[0] != fitted(X)
    monkeypatch.setattr("ppl_vae.training.fitting._Steps.are_streamed", True)
    assert streamed == (fitted(X), fitted(X))
    assert fitted(Items(X)) == streamed[0]


def stopped_after(num_steps):
    steps = []
    return lambda: steps.append(1) or len(steps) == num_steps


@pytest.mark.parametrize(("source", "at"), [(Items, 6), (Stream, 4)])
def test_what_was_stopped_resumes(source, at, tmp_path):
    """In an epoch of four steps: a dataset where it stopped, a stream at the start of the epoch."""
    expected = fitted(source(X))
    folder = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        fitted(source(X), checkpoints=folder, stop=stopped_after(6))
    assert folder.load()["num_steps"] == at
    assert fitted(source(X), checkpoints=folder, resume=True) == expected
    with pytest.raises(ValueError, match="data"):
        fitted(source(X + 1), checkpoints=folder, resume=True)


def test_items_that_are_random_come_from_the_seed():
    class Random(Items):
        def __getitem__(self, i):
            return self.x[i] + 0.1 * torch.randn(())

    assert fitted(Random(X)) == fitted(Random(X)) != fitted(Random(X), seed=1)


def test_without_validation_the_first_items_are_monitored(monkeypatch):
    monkeypatch.setattr("ppl_vae.training.fitting.MONITORED_ITEMS", 20)
    of_all, of_some = fitted(X)[1], fitted(Items(X))[1]
    assert of_some[-1]["loss"] == of_all[-1]["loss"]
    assert of_some == [row | {k: v for k, v in fitted(X, validation=X[:20])[1][i].items() if k.startswith("train")}
                       for i, row in enumerate(of_all)]  # fmt: skip


def test_labels_that_the_model_does_not_take():
    labelled = TensorDataset(X, torch.arange(50))
    with pytest.raises(
        ValueError, match=r"expected data of as many parts as the program has arguments; got 2: .*encode"
    ):
        fitted(labelled)
    assert fitted(labelled, encode=lambda x, y, generator: (x,)) == fitted(X)


def test_a_stream_that_fits_into_a_batch_is_read_anew_in_each_epoch():
    class Counted(Stream):
        passes = 0

        def __iter__(self):
            Counted.passes += 1
            return super().__iter__()

    fitted(Counted(X), batch_size=50, epochs=1)
    one = Counted.passes
    fitted(Counted(X), batch_size=50, epochs=4)
    assert Counted.passes - one == one + 3
