"""A history, and its file."""

import pytest

from ppl_vae.training.history import History


def test_an_empty_history_saves(tmp_path):
    History().save(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().strip() == "epoch"


def test_a_saved_history_is_loaded(tmp_path):
    history = History([{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": float("nan")}])
    history.save(tmp_path / "history.csv")
    loaded = History.load(tmp_path / "history.csv")
    assert loaded["epoch"] == [1, 2]
    assert loaded.rows[0] == history.rows[0]
    assert len(loaded) == 2


@pytest.mark.parametrize("text", ["", "epoch,loss\n1\n", "epoch,loss\n1,x\n"])
def test_a_damaged_history_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(ValueError, match=r"history\.csv: expected columns of numbers, with their names; got ") as error:
        History.load(tmp_path / "history.csv")
    assert "\n" not in str(error.value)
