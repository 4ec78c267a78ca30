"""What `ppl-vae evaluate` writes, and what it leaves alone."""

import dataclasses
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from apart_calls import Elsewhere
from commands import OWN, TINY, one_line, save_own
from ladders import make_quick

from ppl_vae.cli import evaluating
from ppl_vae.cli.main import main
from ppl_vae.experiments.evaluating import load_evaluation
from ppl_vae.experiments.runs import load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on `own.npz`, which lies beside it."""
    folder = tmp_path_factory.mktemp("trained")
    save_own(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ppl_vae.cli.training.draw_run", lambda *args, **kwargs: [])
        main(["train", "--model", "dense-vae", *OWN, *TINY, "--output", "run"])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it in the folder that commands run in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)
    monkeypatch.setattr(evaluating, "SIMULATED", 4)  # data of a sandwich


def summary(folder, stem="log_likelihood"):
    return json.loads((folder / f"{stem}.json").read_text())


def test_the_first_line_says_what_it_is(ppl_vae, run):
    status, out, err = ppl_vae("evaluate", "run", "--method", "importance", "--num-samples", 30, "--num-images", 5)
    assert status == 0, err
    first, *others = out.splitlines()
    found = load_evaluation(run)
    assert first.startswith(f"log p(x) = {found.mean:.2f} ± {found.mc_se_of_mean:.2f} (Monte Carlo) ")
    assert first.endswith("nats per image, the mean log-probability of 5 test images of own, 36 binary pixels each")
    assert sum("log p(x) = " in line for line in others) == 0  # not the same twice
    assert all("Next: " in line for line in others if line.startswith("warning"))


def test_with_an_executor_it_is_the_same_bit_for_bit(ppl_vae, run, monkeypatch):
    elsewhere = Elsewhere()
    monkeypatch.setattr(evaluating, "executor_of", lambda spec, *args: nullcontext(spec and elsewhere))
    monkeypatch.setattr("ppl_vae.evaluation.chunks.BLOCK_DATA", 5)
    command = ("evaluate", "run", "--method", "importance", "--num-samples", 30, "--num-images", 12)
    for where in ((), ("--executor", "processes:2")):
        status, _, err = ppl_vae(*command, *where, "--output", "apart" if where else "here")
        assert status == 0, err
    here, apart = ((run.parent / name / "log_likelihood.npz").read_bytes() for name in ("here", "apart"))
    assert here == apart
    assert elsewhere.num_calls == 3
    status, _, err = ppl_vae("evaluate", "run", "--method", "annealed", "--executor", "processes:2")
    assert status == 2
    assert "--executor: expected --method ladder or importance beside it; got annealed" in one_line(err)


def test_quadrature_is_exact_and_says_so(ppl_vae, run):
    status, out, err = ppl_vae("evaluate", "run", "--method", "quadrature", "--num-images", 2)
    assert status == 0, err
    found = load_evaluation(run, "quadrature")
    first, second, *_ = out.splitlines()
    assert first.startswith(
        f"log p(x) = {found.mean:.2f} ± {found.data_se_of_mean:.2f} (choice of images) nats per image"
    )
    assert second == "exact (by quadrature); encoding Binarize(), seed 0"
    assert "warning" not in out


def test_each_method_keeps_its_own_files_and_nothing_larger_is_replaced_unasked(ppl_vae, run):
    few = ("evaluate", "run", "--num-images", 4)
    assert ppl_vae(*few, "--method", "importance", "--num-samples", 60)[0] == 0
    assert ppl_vae(*few, "--tolerance", 5, "--num-samples", 30)[0] == 0
    annealed = ("--method", "annealed", "--num-chains", 3, "--num-steps")
    assert ppl_vae(*few, *annealed, 4)[0] == 0
    stems = ("log_likelihood", "log_likelihood-tolerance", "log_likelihood-annealed")
    written = {stem: [(run / f"{stem}{end}").read_bytes() for end in (".json", ".npz")] for stem in stems}
    assert [summary(run, stem)["method"] for stem in stems] == ["importance", "tolerance", "annealed"]
    for options in (
        ("--num-images", 3, "--method", "importance", "--num-samples", 60),
        ("--num-images", 4, "--method", "importance", "--num-samples", 59),
        ("--num-images", 4, "--tolerance", 6, "--num-samples", 30),
        ("--num-images", 4, *annealed, 3),
    ):
        status, out, err = ppl_vae("evaluate", "run", *options)
        assert status == 0, err
        assert "it is kept" in out
        assert "log p(x) = " in out
        assert "Written" not in out
    assert {stem: [(run / f"{stem}{end}").read_bytes() for end in (".json", ".npz")] for stem in stems} == written
    sampled = ("evaluate", "run", "--method", "importance")
    assert ppl_vae(*sampled, "--num-images", 5, "--num-samples", 60)[0] == 0
    assert summary(run)["num_images"] == 5
    assert ppl_vae(*sampled, "--num-images", 2, "--num-samples", 30, "--overwrite")[0] == 0
    assert (summary(run)["num_images"], summary(run)["num_samples"]) == (2, 30)


def test_what_is_interrupted_is_shown_named_partial_and_130(ppl_vae, run, monkeypatch):
    few = ("evaluate", "run", "--method", "importance", "--num-images", 4, "--num-samples", 30)
    assert ppl_vae(*few)[0] == 0
    before = (run / "log_likelihood.npz").read_bytes()
    evaluate_run = evaluating.evaluate_run

    def interrupted(*args, **options):
        result, found = evaluate_run(*args, **options)
        count = torch.tensor([30, 30, 0, 0])
        return dataclasses.replace(result, num_samples=count, complete=False), found | {"complete": False}

    monkeypatch.setattr(evaluating, "evaluate_run", interrupted)
    status, out, err = ppl_vae(*few, "--seed", 1, "--gaps")
    assert status == 130
    assert "log p(x) = " in out
    assert "warning: interrupted" in out
    assert one_line(err) == "ppl-vae: error: interrupted\n"
    assert (run / "log_likelihood.npz").read_bytes() == before
    assert summary(run, "log_likelihood-partial")["complete"] is False
    assert not (run / "gaps.json").exists()


def test_an_interrupted_sandwich_is_partial_too(ppl_vae, run, monkeypatch):
    few = ("evaluate", "run", "--num-images", 3, "--method", "sandwich", "--num-chains", 3, "--num-steps", 4)
    assert ppl_vae(*few)[0] == 0
    sandwich_run, before = evaluating.sandwich_run, (run / "sandwich.json").read_bytes()

    def interrupted(*args, **options):
        found = sandwich_run(*args, **options)
        return dataclasses.replace(found, upper=dataclasses.replace(found.upper, complete=False))

    monkeypatch.setattr(evaluating, "sandwich_run", interrupted)
    assert ppl_vae(*few, "--seed", 1)[0] == 130
    assert (run / "sandwich.json").read_bytes() == before
    assert summary(run, "sandwich-partial")["complete"] is False


def test_where_nothing_can_be_written_nothing_is_computed(ppl_vae, run, monkeypatch):
    def computed(*args, **options):
        raise AssertionError

    monkeypatch.setattr(evaluating, "evaluate_run", computed)
    (run.parent / "file").write_text("in the way")
    status, out, err = ppl_vae("evaluate", "run", "--output", "file/below")
    assert (status, out) == (1, "")
    assert "file/below: expected a folder that can be written to; got Not a directory" in one_line(err)


def test_results_go_to_another_folder(ppl_vae, run):
    for command in ("evaluate", "denoise", "impute", "sample"):
        options = ("--num-samples", 30) if command in ("evaluate", "impute") else ()
        options += ("--method", "importance") if command == "evaluate" else ()
        status, _, err = ppl_vae(command, "run", "--num-images", 4, *options, "--output", "elsewhere")
        assert status == 0, err
    names = {path.name for path in (run.parent / "elsewhere").rglob("*") if path.is_file()}
    assert {"log_likelihood.json", "denoising.json", "imputation.png", "samples.png"} <= names
    assert not list(run.glob("figures/*.png"))


@pytest.mark.parametrize(
    ("command", "stem", "others"),
    [
        ("denoise", "denoising", [("--num-images", 4), ("--noise", "masking"), ("--method", "inference")]),
        ("impute", "imputation", [("--num-images", 4), ("--num-samples", 29), ("--missing", "top")]),
        ("restore", "restoration", [("--num-images", 4), ("--num-samples", 29), ("--corruption", "missing")]),
    ],
)
def test_pictures_of_more_or_of_something_else_are_not_replaced_unasked(ppl_vae, run, command, stem, others):
    few = (command, "run", "--num-images", 5, *(() if command == "denoise" else ("--num-samples", 30)))
    path = run / f"{stem}.json"
    assert ppl_vae(*few)[0] == 0
    written = path.read_bytes()
    for other in others:
        status, _, err = ppl_vae(*few, *other)
        assert status == 2
        assert "expected no result there of something else or of more" in one_line(err)
        assert path.read_bytes() == written
    assert ppl_vae(*few, "--seed", 1)[0] == 0
    assert summary(run, stem)["seed"] == 1
    assert ppl_vae(*few, *others[0], "--overwrite")[0] == 0
    assert summary(run, stem)["num_images"] == 4


def test_data_are_asked_for_where_they_are_needed(ppl_vae, run, tmp_path):
    (tmp_path / "own.npz").rename(tmp_path / "moved.npz")
    status, out, err = ppl_vae("sample", "run", "--num-images", 4)
    assert status == 0, err
    assert (run / "figures" / "samples.png").is_file()
    assert "No reconstructions: own.npz" in out
    assert ppl_vae("sample", "run", "--output", "samples.png")[0] == 0
    few = ("--method", "importance", "--num-images", 4, "--num-samples", 30)
    status, _, err = ppl_vae("evaluate", "run", *few)
    assert status == 1
    assert "If the data have moved, say where they are by --dataset" in one_line(err)
    assert ppl_vae("evaluate", "run", *few, "--dataset", "moved.npz")[0] == 0
    assert summary(run)["num_images"] == 4  # the same data, by their fingerprint
    assert load_run(str(run), dataset=str(tmp_path / "moved.npz")).has_its_own_data


def test_other_data_are_evaluated_apart_and_never_taken_for_those_of_the_training(ppl_vae, run, tmp_path, drawn):
    few = ("--method", "importance", "--num-images", 4, "--num-samples", 30)
    assert ppl_vae("evaluate", "run", *few)[0] == 0
    before = (run / "log_likelihood.npz").read_bytes()
    other = np.random.default_rng(1).integers(0, 256, (80, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", images=other)
    status, out, _ = ppl_vae("evaluate", "run", *few, "--dataset", "other.npz")
    assert status == 0
    assert "4 test data of own.npz have a higher log p(x) than these with probability" in out
    assert (run / "on-other" / "figures" / "log-likelihoods.png").is_file()
    assert (run / "log_likelihood.npz").read_bytes() == before
    apart = load_evaluation(run / "on-other")
    assert apart.source != load_evaluation(run).source
    status, out, _ = ppl_vae("compare", "run", "--dataset", "other.npz")
    assert status == 0
    assert f"{apart.mean:.3f}" in out
    np.savez(tmp_path / "own.npz", images=other)
    status, _, err = ppl_vae("evaluate", "run", *few)
    assert status == 1
    assert "own.npz: expected the data that run was trained on, with the fingerprint " in one_line(err)


def test_a_new_run_in_the_folder_leaves_no_results_of_the_old_one(ppl_vae, run):
    few = ("evaluate", "run", "--num-images", 3, "--num-samples", 30)
    assert ppl_vae(*few, "--method", "importance")[0] == ppl_vae(*few, "--tolerance", 5)[0] == 0
    (run / "on-other").mkdir()
    (run / "on-other" / "log_likelihood.json").write_text("{}")
    again = ("train", "--model", "dense-vae", *OWN, *TINY, "--output", "run", "--overwrite")
    assert ppl_vae(*again)[0] == 0
    assert not list(run.rglob("log_likelihood*"))


def test_labels_that_are_missing_are_minus_one_and_the_accuracy_is_told(ppl_vae, tmp_path):
    bright = np.arange(90) % 2  # dark images and bright ones
    images = (np.random.default_rng(0).integers(0, 60, (90, 6, 6)) + 190 * bright[:, None, None]).astype(np.uint8)
    labels = np.where(np.arange(90) < 60, bright, -1)
    parts = {"train": images[:75], "train_labels": labels[:75], "test": images[75:], "test_labels": bright[75:]}
    np.savez(tmp_path / "own.npz", **parts)
    options = ("--dataset", "own.npz", "--hidden", 8, "--latent-size", 2, "--epochs", 30, "--batch-size", 16)
    train = ("train", "--model", "dense-m2", *options, "--learning-rate", 0.01, "--alpha", 20, "--output", "run")
    status, _, err = ppl_vae(*train)
    assert status == 0, err
    status, out, err = ppl_vae("evaluate", "run", "--method", "importance", "--num-samples", 30)
    assert status == 0, err
    assert "accuracy of the class: 100.00% of the test labels" in out
    status, _, err = ppl_vae("train", "--model", "dense-cvae", *options, "--output", "other")
    assert status == 1
    assert "own: expected labels 0, 1, ..., for dense-cvae; got the label -1" in one_line(err)
    status, _, err = ppl_vae("train", "--model", "dense-vae", *options, "--alpha", 1, "--output", "other")
    assert status == 2
    assert "alpha: expected a semi-supervised model (m2)" in one_line(err)


def test_another_prior_is_fitted_evaluated_and_drawn(ppl_vae, run, drawn):
    command = ("refit-prior", "run", "--prior", "learned-normal", "--epochs", 2, "--num-images", 4, "--num-samples", 30)
    status, out, err = ppl_vae(*command)
    assert status == 0, err
    assert "nats per datum, learned-normal for standard-normal" in out
    assert "run-learned-normal" in out
    folder = run.parent / "run-learned-normal"
    assert {"refit.json", "log_likelihood-ladder.npz", "weights.safetensors"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "figures" / "samples-before-and-after.png").is_file()
    status, _, err = ppl_vae(*command)
    assert status == 2
    assert "run-learned-normal, a finished run (see --overwrite)" in one_line(err)
    status, _, err = ppl_vae("refit-prior", "run", "--prior", "normalising-flow")
    assert status == 2
    assert "normalizing-flow" in one_line(err)


def test_latents_are_written_for_other_programs(ppl_vae, run):
    status, out, err = ppl_vae("encode", "run", "--num-images", 7, "--output", "z.npz")
    assert status == 0, err
    assert "z and labels of 7 test data of own, in 2 dimensions: z.npz" in out
    with np.load(run.parent / "z.npz") as arrays:
        loaded = load_run(run)
        np.testing.assert_array_equal(arrays["z"], loaded.encode(loaded.dataset.test[:7]).numpy())
    assert ppl_vae("encode", "run", "--output", "z.csv")[0] == 2
