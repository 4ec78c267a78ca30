"""Runs that are handed on, as an archive and on a stand-in of the Hugging Face Hub."""

import functools
import importlib
import json
import shutil
import zipfile

import pytest
import torch
from hub import serving

from ppl_vae.cli.main import main
from ppl_vae.components import UsageError
from ppl_vae.experiments.runs import load_run
from ppl_vae.report.sharing import export_run, from_pretrained, push_to_hub
from ppl_vae.system.files import read_json

SHARED = ["checksums.json", "README.md", "config.json", "weights.safetensors", "metrics.json", "history.csv"]
EVALUATED = ["log_likelihood.json", "log_likelihood.npz"]


def same(a, b):
    assert a.config == b.config
    assert a.metrics == b.metrics
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_an_archive_holds_what_it_takes_to_use_the_run(folder, tmp_path):
    path = export_run(folder, tmp_path / "two.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [*SHARED, *EVALUATED, "samples.png"]
        archive.extractall(tmp_path / "unzipped")
    run, here, unzipped = (load_run(where) for where in (path, folder, tmp_path / "unzipped"))
    same(run, here)
    same(run, unzipped)
    assert torch.equal(run.sample(2), here.sample(2))
    assert run.dataset.test.equal(here.dataset.test)
    assert export_run(here, tmp_path / "unzipped" / "two.zip").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="run: expected one that was loaded from a folder; got one without"):
        export_run(run, tmp_path / "third.zip")


def test_an_archive_that_was_changed_is_refused(folder, tmp_path):
    path = export_run(folder, tmp_path / "two.zip")
    content = path.read_bytes()
    weights = (folder / "weights.safetensors").read_bytes()
    place = content.index(weights) + len(weights) - 1
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=r"two\.zip: expected a whole archive, as ppl-vae export writes it; got "):
        load_run(path)


def test_a_damaged_run_is_not_handed_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_text("epoch\n1\n")
    with pytest.raises(ValueError, match=r"history\.csv: expected the file as it was written"):
        export_run(tmp_path / "run", tmp_path / "run.zip")
    assert not (tmp_path / "run.zip").exists()


@pytest.fixture
def hub(monkeypatch):
    """What is on a hub, that is asked for by default."""
    hub = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    with serving() as (address, repositories):
        monkeypatch.setattr(hub, "HfApi", functools.partial(hub.HfApi, endpoint=address))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by Git LFS, which the stand-in has
        yield repositories


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its HTTP client
def test_a_run_goes_to_the_hub_and_back(folder, hub, tmp_path):
    url = push_to_hub(load_run(folder), "me/two", token="hf_mine")
    assert url.startswith("http://127.0.0.1:")
    assert sorted(hub["me/two"]) == sorted([*SHARED, *EVALUATED, "samples.png"])
    assert hub["me/two"]["weights.safetensors"] == (folder / "weights.safetensors").read_bytes()
    run = from_pretrained("me/two", token="hf_mine", cache_dir=tmp_path)
    same(run, load_run(folder))
    assert run.folder is None
    assert len(list(tmp_path.rglob("*.npz"))) == 0  # only what a run is made of is downloaded

    weights = hub["me/two"]["weights.safetensors"]
    hub["me/two"]["weights.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(ValueError, match=r"weights\.safetensors: expected the file as it was written"):
        from_pretrained("me/two", token="hf_mine", cache_dir=tmp_path)
    hub["me/two"]["checksums.json"] = (
        b'{"sha256": {}, "of_these": "%s"}' % b"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    with pytest.raises(ValueError, match="me/two: expected a repository that ppl_vae wrote; got one without their che"):
        from_pretrained("me/two", token="hf_mine", cache_dir=tmp_path)
    del hub["me/two"]["checksums.json"]
    with pytest.raises(ValueError, match=r"expected a repository that ppl_vae wrote; got one without checksums\.json"):
        from_pretrained("me/two", token="hf_mine", cache_dir=tmp_path)
    with pytest.raises(OSError, match=r"^me/none: expected an answer of the hub; got RepositoryNotFoundError") as error:
        from_pretrained("me/none", token="hf_mine", cache_dir=tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"repo_id: expected OWNER/NAME; got '\.\./\.\./etc'"):
        from_pretrained("../../etc")


def test_the_card_says_what_it_is_as_the_hub_reads_it(folder, tmp_path):
    repocard = pytest.importorskip("huggingface_hub").ModelCard
    path = export_run(folder, tmp_path / "two.zip")
    text = zipfile.ZipFile(path).read("README.md").decode()
    card, summary = repocard(text), read_json(folder / "log_likelihood.json")
    assert (card.data.library_name, card.data.model_name) == ("ppl-vae", "two")
    log_p, elbo = card.data.eval_results
    assert (log_p.metric_value, elbo.metric_value) == (summary["log_p"], summary["elbo"])
    assert (log_p.dataset_name, log_p.dataset_split) == ("own", "test")
    assert f"± {summary['mc_se']:.2f} Monte Carlo; ± {summary['data_se']:.2f} choice of data" in log_p.metric_name
    for words in (
        f"log p(x) = {summary['log_p']:.2f} ± {summary['mc_se']:.2f} (Monte Carlo)",
        "| likelihood | bernoulli |",
        "](samples.png)",
        'pv.load_run("two.zip")',
        "ppl-vae train --model dense-vae --dataset ",
        "ppl-vae evaluate two --method importance --num-samples 4 --num-images 3 --seed 0",
    ):
        assert words in text
    code = text.partition("```python\n")[2].partition("```")[0].replace("two.zip", str(path))
    exec(compile(code.replace("print(run.score(x))", ""), "README.md", "exec"), names := {})
    assert names["y"].shape == (10, 1, 6, 6)


def test_the_gap_of_a_ladder_is_in_the_index(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    summary = read_json(folder / "log_likelihood.json")
    better = {**summary, "method": "ladder", "gap": 0.125, "gap_se": 0.5, "gap_num_data": 64, "rungs": {}}
    (tmp_path / "run" / "log_likelihood-ladder.json").write_text(json.dumps(better))
    with zipfile.ZipFile(export_run(tmp_path / "run", tmp_path / "run.zip")) as archive:
        text = archive.read("README.md").decode()
    assert "missing at most 0.12 \\u00b1 0.50 on simulated data" in text
    assert "misses at most 0.12 ± 0.50 nats" in text


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run.tar"], 2, "to: expected a path that ends in .zip; got run.tar"),
        (["there.zip"], 2, "to: expected a new file; got there.zip, which is there (see --overwrite)"),
        (["new.zip", "--private"], 2, "--private: expected hub:OWNER/NAME beside it; got new.zip"),
        (["hub:name"], 2, "repo_id: expected OWNER/NAME; got 'name'"),
        (["no/new.zip", "--overwrite"], 0, ""),
    ],
)
def test_the_command(folder, tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zip").touch()
    if status:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(folder), *arguments])
        assert stop.value.code == status
        assert capsys.readouterr().err == f"ppl-vae: error: {message}\n"
    else:
        main(["export", str(folder), *arguments])
        assert 'In Python: pv.load_run("no/new.zip")' in capsys.readouterr().out
        assert load_run("no/new.zip").config == load_run(folder).config


def test_other_commands_say_how_to_unpack_one(folder, tmp_path, capsys):
    path = export_run(folder, tmp_path / "two.zip")
    with pytest.raises(SystemExit):
        main(["evaluate", str(path)])
    assert "expected the folder of a run; got a file (to unpack it: python -m zipfile -e" in capsys.readouterr().err
