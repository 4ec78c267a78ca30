"""`ppl-vae compare` and `report` on many runs at once."""

import csv
import json
import shutil

import pytest
from commands import OWN, TINY, one_line, save_own
from ladders import make_quick
from PIL import Image

from ppl_vae.cli.main import main
from ppl_vae.experiments.evaluating import load_evaluation


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of one config, another prior, a density, and an autoencoder, which has no evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    models = {
        "a": [],
        "a-1": ["--seed", "1"],
        "laplace": ["--prior", "laplace"],
        "grey": ["--likelihood", "gaussian-learned"],
    }
    save_own(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ppl_vae.cli.training.draw_run", lambda *args, **kwargs: [])
        for name, options in models.items():
            main(["train", "--model", "dense-vae", *TINY, *OWN, *options, "--output", name])
            main(["evaluate", name, "--method", "importance", "--num-samples", "30", "--num-images", "6"])
        main(["train", "--model", "dense-ae", *TINY, *OWN, "--output", "ae"])
    return folder


@pytest.fixture
def here(ppl_vae, runs, monkeypatch):
    monkeypatch.chdir(runs)
    return ppl_vae


def test_unlike_runs_have_tables_of_their_own_and_seeds_are_averaged(here, runs, tmp_path, drawn):
    names = ["a", "a-1", "ae", "grey", "laplace"]
    output, picture = tmp_path / "table.csv", tmp_path / "table.png"
    status, out, err = here("compare", *names, "--output", output, "--plot", picture)
    assert status == 0, err
    assert out.count("differences are paired by datum") == 2
    assert "ae is left out: ae: expected log_likelihood.json" in out
    assert here("compare", ".")[1].count("differences are paired by datum") == 2  # of all runs in a folder
    rows = {row["name"]: row for row in csv.DictReader(output.read_text().splitlines())}
    assert {name: row["measure"] for name, row in rows.items()} == {
        "a (mean of 2 seeds)": "mass",
        "laplace": "mass",
        "grey": "density",
    }
    a, other, laplace = (load_evaluation(runs / name) for name in ("a", "a-1", "laplace"))
    mean = (a.mean + other.mean) / 2
    assert float(rows["a (mean of 2 seeds)"]["log_p"]) == pytest.approx(mean)
    differences = sorted(rows[name]["difference"] for name in ("a (mean of 2 seeds)", "laplace"))
    assert differences[0] == ""  # of the best to itself
    assert float(differences[1]) == pytest.approx(-abs(mean - laplace.mean))
    with Image.open(picture) as image:
        assert min(image.size) > 100


def test_the_ladders_are_compared_where_all_that_were_evaluated_have_one(here, runs, tmp_path, monkeypatch):
    make_quick(monkeypatch)
    monkeypatch.chdir(shutil.copytree(runs, tmp_path / "copy"))
    names = ["a", "laplace", "ae"]  # an autoencoder has none, and is in the way of nothing
    for name in names[:2]:
        assert here("evaluate", name, "--num-samples", 40, "--num-images", 6)[0] == 0
        method = "by rung of a ladder" if name == "laplace" else "importance-weighted"
        status, out, err = here("compare", *names)
        assert status == 0, err
        assert method in out
        assert "ae is left out" in out
    for name in names[:2]:
        (tmp_path / "copy" / name / "log_likelihood.json").unlink()
    assert "by rung of a ladder" in here("compare", *names)[1]


@pytest.mark.parametrize("suffix", ["json", "md"])
def test_the_other_files(here, runs, tmp_path, suffix):
    output = tmp_path / f"table.{suffix}"
    assert here("compare", "a", "laplace", "--output", output)[0] == 0
    text = output.read_text()
    if suffix == "json":
        assert {row["name"] for row in json.loads(text)["rows"]} == {"a", "laplace"}
    else:
        assert text.count("\n| ") == 2


def test_where_none_is_left_it_is_an_error(here, tmp_path):
    status, _, err = here("compare", "ae")
    assert status == 1
    assert "as ppl-vae evaluate writes it" in one_line(err)
    status, _, err = here("compare", "a", "--output", "table.xlsx")
    assert status == 2
    assert "--output: expected a path that ends in .csv or .json or .md" in one_line(err)


def test_a_page_of_a_folder_of_runs(here, runs, tmp_path):
    status, _, err = here("report", runs, "--output", tmp_path / "page.html")
    assert status == 0, err
    page = (tmp_path / "page.html").read_text()
    assert page.count("<section") == 5
    assert "Side by side" in page
