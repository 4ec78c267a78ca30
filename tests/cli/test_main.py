"""The command line as a person meets it: in this process, with what it prints and its exit status."""

import json
import math
import re

import numpy as np
import pytest
import torch
from commands import OWN, TINY, one_line
from ladders import make_quick
from PIL import Image

from ppl_vae.cli.main import main
from ppl_vae.components import choices
from ppl_vae.data.loading import load
from ppl_vae.data.operators import Missing
from ppl_vae.experiments.evaluating import load_evaluation
from ppl_vae.likelihoods import Likelihood
from ppl_vae.report.sections import study_section


def test_run_on_a_tiny_slice_does_the_whole_study_and_goes_on_where_it_was(ppl_vae, tmp_path, monkeypatch):
    make_quick(monkeypatch)
    mini = load("mnist-mini")
    parts = {name: getattr(mini, name)[:130].numpy() for name in ("train", "test", "train_labels", "test_labels")}
    parts |= {name: parts[name][:, :, ::3, ::3] for name in ("train", "test")}  # 10 x 10 pixels
    np.savez(tmp_path / "tiny.npz", **parts)
    short = ["--autoencoder-epochs", "1", "--vae-epochs", "1", "--num-images", "4", "--num-samples", "30"]
    command = ["run", "--dataset", "tiny.npz", *short, "--output", "out"]
    status, out, err = ppl_vae(*command)
    assert status == 0, err
    for text in (
        "models to train and evaluate, about 1 min",
        "vamp-vae",
        "PCA (",
        "SSIM",
        "log p(x)",
        "k̂ over",
        "by inference",
        "Pictures: ",
    ):
        assert text in out
    assert "epoch 1/1" in err
    folder = tmp_path / "out" / "study" / "tiny"
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = metrics["denoising"]["rows"]
    assert next(iter(rows)) == "noisy"
    assert set(metrics["log_likelihood"]) == {name for name in rows if "vae" in name}
    for picture in (
        "figures/denoising.png",
        "figures/denoising-quality.png",
        "figures/log-likelihood-mass.png",
        "vamp-vae/figures/samples.png",
        "vamp-vae/figures/interpolations.png",
        "dense-ae/figures/reconstructions.png",
        "dense-vae-2d/figures/latent-grid.png",
        "dense-vae-2d/figures/latent-codes.png",
    ):
        assert (folder / picture).is_file()
    weights = folder / "vamp-vae" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    restored = (folder / "restoration.json").stat().st_mtime_ns
    status, out, _ = ppl_vae(*command)
    assert status == 0
    assert "models to train" not in out
    assert weights.stat().st_mtime_ns == written
    assert (folder / "restoration.json").stat().st_mtime_ns == restored
    assert json.loads((folder / "metrics.json").read_text())["denoising"]["rows"] == rows
    page = study_section(folder)
    assert "## tiny.npz" in page
    assert "tiny/figures/denoising.png" in page


@pytest.mark.parametrize("likelihood", list(choices(Likelihood)))
def test_train_evaluate_sample_denoise(ppl_vae, tmp_path, monkeypatch, likelihood):
    make_quick(monkeypatch)
    status, out, err = ppl_vae(
        "train", "--model", "dense-vae", "--likelihood", likelihood, *TINY, *OWN, "--output", "run"
    )
    assert status == 0, err
    assert {"config.json", "weights.safetensors", "history.csv", "metrics.json", "figures"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    status, out, err = ppl_vae("evaluate", "run", "--method", "importance", "--num-samples", 30, "--num-images", 5)
    assert status == 0, err
    assert "5 test images of own" in out
    assert "K = 30 samples" in out
    assert (tmp_path / "run" / "log_likelihood.npz").is_file()
    status, out, err = ppl_vae("sample", "run", "--num-images", 4, "--output", "samples.png")
    assert status == 0, err
    assert (tmp_path / "samples.png").is_file()
    status, out, err = ppl_vae("denoise", "run", "--noise", "masking:fraction=0.3", "--num-images", 12)
    assert status == 0, err
    assert "masking:fraction=0.3" in out
    rows = json.loads((tmp_path / "run" / "denoising.json").read_text())["rows"]
    assert set(rows) == {"noisy", "run"}
    status, out, err = ppl_vae("impute", "run", "--missing", "left", "--num-images", 3, "--num-samples", 30)
    assert status == 0, err
    assert "3 data imputed" in out
    assert json.loads((tmp_path / "run" / "imputation.json").read_text())["log_p_missing"]["mean"] < math.inf
    assert (tmp_path / "run" / "figures" / "imputation.png").is_file()


@pytest.mark.parametrize(
    ("missing", "fraction", "rows", "columns"),
    [
        ("top", 0.5, range(2), range(6)),
        ("bottom", 0.25, [3], range(6)),
        ("left", 0.5, range(4), range(3)),
        ("right", 0.34, range(4), [4, 5]),
    ],
)
def test_pixels_that_are_missing(missing, fraction, rows, columns):
    expected = torch.ones(3, 2, 4, 6, dtype=torch.bool)
    for i in rows:
        expected[:, :, i, list(columns)] = False
    assert Missing(missing, fraction).seen(expected, None).equal(expected)


def test_pixels_missing_at_random_are_missing_in_every_channel():
    seen = Missing("random", 0.2).seen(torch.zeros(50, 3, 10, 10), torch.Generator().manual_seed(0))
    assert (seen[:, :1] == seen).all()
    share = seen[:, 0].float().mean().item()
    assert abs(share - 0.8) < 5 * (0.8 * 0.2 / 5000) ** 0.5


@pytest.mark.filterwarnings("ignore:posterior collapse:RuntimeWarning")  # after an epoch of four steps
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gated-dense-hvae:hidden=8", ["--prior", "vamp-prior:num_components=3"]),
        ("dense-ladder:hidden=8,layers=3+2", []),
        ("dense-cvae:hidden=8", ["--likelihood", "categorical"]),
        ("dense-m2:hidden=8", ["--num-labels", "20"]),
        ("residual-conv-m2:channels=4+4", []),
        ("ppca", []),
    ],
)
def test_every_kind_of_model(ppl_vae, tmp_path, model, options):
    tiny = [*TINY[2:], *OWN, "--output", "run"]
    status, _, err = ppl_vae("train", "--model", model, *options, *tiny)
    assert status == 0, err
    assert (tmp_path / "run" / "figures" / "samples.png").is_file()
    for method in (
        ["--method", "importance", "--num-samples", 30],
        ["--method", "annealed", "--num-chains", 2, "--num-steps", 3],
    ):
        status, _, err = ppl_vae("evaluate", "run", "--num-images", 5, *method)
        assert status == 0, err
    support = {"ppca": "real", "dense-cvae:hidden=8": "integerinterval(lower_bound=0, upper_bound=255)"}
    summary = json.loads((tmp_path / "run" / "log_likelihood.json").read_text())
    assert summary["space"] == f"{support.get(model, 'boolean')}^36"
    status, _, err = ppl_vae("sample", "run", "--num-images", 4, "--output", "samples.png")
    assert status == 0, err
    status, _, err = ppl_vae("denoise", "run", "--noise", "masking:fraction=0.3", "--num-images", 12)
    assert status == 0, err


@pytest.mark.filterwarnings("default:not refined:RuntimeWarning", "ignore:posterior collapse:RuntimeWarning")
def test_discrete_latents(ppl_vae, tmp_path):
    options = ["--objective", "gumbel-softmax:straight_through=true"]
    status, _, err = ppl_vae("train", "--model", "dense-dvae:categories=3", *options, *TINY, *OWN, "--output", "run")
    assert status == 0, err
    evaluate = ["evaluate", "run", "--num-images", 5]
    status, out, err = ppl_vae(*evaluate, "--method", "ladder", "--tolerance", "0.001", "--num-samples", 30)
    assert status == 0, err
    assert "warning: not refined, samples are of the guide: site 'z': expected a continuous latent site" in err
    assert "log p(x)" in out
    status, _, err = ppl_vae(*evaluate, "--method", "annealed", "--num-chains", 2, "--num-steps", 3)
    assert status == 1
    assert "site 'z': expected a continuous latent site; got one on onehot" in one_line(err)


def test_evaluations_compare_where_they_can(ppl_vae, tmp_path):
    for name, options in {"a": [], "b": ["--seed", "1"], "grey": ["--likelihood", "gaussian-learned"]}.items():
        assert ppl_vae("train", "--model", "dense-vae", *TINY, *OWN, *options, "--output", name)[0] == 0
        status, _, err = ppl_vae("evaluate", name, "--method", "importance", "--num-samples", 30, "--num-images", 8)
        assert status == 0, err
    status, out, err = ppl_vae("compare", "a", "b", "--bits-per-dim")
    assert status == 0, err
    assert "bits per dimension" in out
    assert "different numbers of images" not in out
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    (tmp_path / "b" / "metrics.json").write_text(json.dumps(metrics | {"train_images": 60_000}))
    status, _, err = ppl_vae("compare", "a", "b")
    assert status == 1
    assert "metrics.json: expected the file as it was written; got a damaged or changed one" in one_line(err)
    (tmp_path / "b" / "checksums.json").unlink()
    assert "warning: trained on different numbers of images" in ppl_vae("compare", "a", "b")[1]
    (tmp_path / "b" / "log_likelihood.npz").write_bytes(b"PK and no more")
    status, _, err = ppl_vae("compare", "a", "b")
    assert status == 1
    assert "expected an evaluation" in one_line(err)
    status, _, err = ppl_vae("compare", "a", "nowhere")
    assert status == 1
    assert "nowhere: expected the folder of an evaluated run; got nothing there" in one_line(err)


def test_the_other_ways_to_evaluate(ppl_vae, tmp_path, monkeypatch):
    monkeypatch.setattr("ppl_vae.experiments.evaluating.SIMULATED", 4)
    assert ppl_vae("train", "--model", "dense-vae", *TINY, *OWN, "--output", "run")[0] == 0
    for options, text in (
        (["--tolerance", "5", "--num-samples", "200"], "log p(x) = "),
        (["--method", "ladder", "--num-samples", "200"], "simulated from the model this evaluation misses at most"),
        (["--method", "annealed", "--num-chains", "4", "--num-steps", "5"], "annealed from the guide in 5 steps"),
        (["--method", "sandwich", "--num-chains", "4", "--num-steps", "5"], "only on data simulated from the model"),
    ):
        status, out, err = ppl_vae("evaluate", "run", "--num-images", 3, *options)
        assert status == 0, err
        assert text in out
    ladder = json.loads((tmp_path / "run" / "log_likelihood-ladder.json").read_text())
    assert sum(ladder["rungs"].values()) == ladder["num_images"] == 3
    assert ladder["gap_num_data"] == 3
    bounds = json.loads((tmp_path / "run" / "sandwich.json").read_text())
    assert bounds["num_data"] == 3


@pytest.mark.parametrize("method", ["importance", "annealed", "sandwich"])
def test_an_interrupt_before_anything_is_done_leaves_no_result(ppl_vae, tmp_path, monkeypatch, method):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    assert ppl_vae("train", "--model", "dense-vae", *TINY, *OWN, "--output", "run")[0] == 0
    monkeypatch.setattr("ppl_vae.evaluation.results.LogMeanExp.add", interrupted)
    few = () if method == "importance" else ("--num-chains", 2, "--num-steps", 3)
    status, out, err = ppl_vae("evaluate", "run", "--num-images", 3, "--method", method, *few)
    assert (status, out) == (130, "")
    *progress, last = err.splitlines(keepends=True)
    assert "interrupted" in one_line(last)
    assert all(" left" in line for line in progress)
    assert not {"log_likelihood.json", "sandwich.json"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_the_gap_in_parts(ppl_vae, tmp_path):
    assert ppl_vae("train", "--model", "dense-vae", *TINY, *OWN, "--output", "run")[0] == 0
    status, out, err = ppl_vae(
        "evaluate", "run", "--num-images", 6, "--num-samples", 100, "--gaps", "--method", "importance"
    )
    assert status == 0, err
    assert "= approximation " in out
    gaps = json.loads((tmp_path / "run" / "gaps.json").read_text())
    approximation, amortisation, mutual_information, marginal_kl = (
        gaps[name]["mean"] for name in ("approximation", "amortisation", "mutual_information", "marginal_kl")
    )
    assert gaps["total"]["mean"] == pytest.approx(approximation + amortisation)
    assert gaps["kl"]["mean"] == pytest.approx(mutual_information + marginal_kl)
    assert amortisation > 0  # after one epoch the encoder knows little
    assert gaps["latent_size"] == 2


def test_help_explains_each_flag_and_names_the_components(ppl_vae):
    status, out, _ = ppl_vae("train", "--help")
    assert status == 0
    for text in (
        "--likelihood",
        "gaussian-per-pixel",
        "--noise",
        "salt-and-pepper",
        "--latent-size",
        "--overwrite",
        "300+300",
    ):
        assert text in out
    status, out, _ = ppl_vae("--help")
    assert status == 0
    for command in ("run", "train", "evaluate", "sample", "denoise", "datasets"):
        assert command in out


def test_datasets_lists_what_goes_by_name(ppl_vae):
    status, out, _ = ppl_vae("datasets")
    assert status == 0
    assert "fashion-mnist-mini" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--model", "conv-vea"], "did you mean 'conv-vae'"),
        (["train", "--likelihood", "gaussian:scale=0"], "expected scale > 0; got 0.0"),
        (["train", "--noise", "fog"], "expected one of no-noise, gaussian-noise"),
        (["train", "--dataset", "mnits"], "did you mean 'mnist'"),
        (["run", "--noise", "fog"], "expected one of no-noise"),
        (["evaluate", ".", "--num-samples", "0"], "--num-samples: expected at least 1; got 0"),
        (["evaluate", ".", "--tolerance", "0"], "--tolerance: expected nats above 0; got 0.0"),
        (
            ["evaluate", ".", "--tolerance", "1", "--method", "annealed"],
            "expected --method ladder beside it; got annealed",
        ),
        (
            ["evaluate", ".", "--gaps", "--method", "sandwich"],
            "expected --method ladder or importance beside it; got sandwich",
        ),
        (["evaluate", ".", "--gaps", "--num-images", "1"], "--gaps: expected 2 images or more"),
        (
            ["train", "--model", "dense-m2", "--objective", "importance-weighted"],
            "objective: expected 'elbo' for dense-m2",
        ),
        (["train", "--model", "dense-cvae", "--prior", "vamp-prior"], "expected one without pseudo-inputs"),
        (["train", "--plugin", "nowhere"], "(ModuleNotFoundError: No module named 'nowhere')"),
        (["train", "--plugin=nowhere.py"], "expected a module or .py file that imports; got 'nowhere.py'"),
        (["compare"], "expected folders of evaluated runs"),
        (["sample", ".", "--output", "picture.jpg"], "expected a path that ends in .png or .npy"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(ppl_vae, arguments, message):
    status, _, err = ppl_vae(*arguments)
    assert status == 2
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of {run, train"),
        (["trian"], "Unrecognized options: trian"),
        (["train", "--epochs", "many"], "'many'"),
        (["train", "--epochs", "0"], "epochs: input should be greater than or equal to 1; got 0"),
        (["train", "--epcohs", "3"], "--epochs"),
        (["train", "--plugin"], "--plugin"),
        (["run", "fold"], "subcommands: study, trust, swaps"),
        (["run", "--vae-epochs", "0"], "vae_epochs: input should be greater than or equal to 1; got 0"),
        (["run", "--num-samples", "0"], "num_samples: input should be greater than or equal to 1; got 0"),
        (["run", "swaps", "--vae-epochs", "3"], "--vae-epochs"),  # a flag of the study alone
        (["evaluate"], "The folder of a finished run"),
        (["evaluate", ".", "--method", "guess"], "sandwich"),
    ],
)
def test_what_the_parser_refuses_is_its_own_message_and_status_2(ppl_vae, arguments, message):
    status, _, err = ppl_vae(*arguments)
    assert status == 2
    assert "Traceback" not in err
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())


def images(n=12, size=(9, 7)):
    return np.random.default_rng(0).integers(0, 256, (n, *size), dtype=np.uint8)


def test_failures_are_one_line_and_status_1(ppl_vae, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    np.save(tmp_path / "own.npy", images())
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "mixed").mkdir()
    for i in range(12):
        Image.fromarray(images()[i][: 9 - (i == 5)]).save(tmp_path / "mixed" / f"{i:02}.png")
    for arguments, message in [
        (["evaluate", "nowhere"], "expected the folder of a run"),
        (["evaluate", "empty"], "expected a finished run, with config.json"),
        (["train", "--dataset", "empty"], "expected images"),
        (["train", "--dataset", "./nothing.npy"], "got nothing there"),
        (["train", "--dataset", "torn.npz"], "torn.npz"),
        (["train", "--dataset", "mixed"], "05.png: expected height x width 9x7"),
        (["train", *TINY, "--output", "file"], "file"),
        (
            ["train", "--dataset", "own.npy", "--model", "dense-cvae"],
            "own: expected labels 0, 1, ..., for dense-cvae; got none",
        ),
        (["run", "--dataset", "mnist", "--data-dir", "empty"], "mnist-mini"),
    ]:
        status, _, err = ppl_vae(*arguments)
        assert status == 1, (arguments, err)
        assert message in one_line(err), arguments


def test_ones_own_images_of_another_size(ppl_vae, tmp_path):
    np.save(tmp_path / "own.npy", images(40))
    tiny = [*TINY[:-2], "--output", "run", "--dataset", "own.npy"]
    status, _, err = ppl_vae("train", "--model", "conv-vae", *tiny)
    assert status == 0, err
    status, _, err = ppl_vae("evaluate", "run", "--method", "importance", "--num-samples", "3")
    assert status == 0, err
    np.save(tmp_path / "own.npy", images(40, (7, 7)))
    status, _, err = ppl_vae("evaluate", "run")
    assert status == 1
    assert "expected data of shape (1, 9, 7)" in one_line(err)


def test_a_finished_run_is_not_replaced_unasked(ppl_vae):
    assert ppl_vae("train", "--model", "dense-ae", *TINY, *OWN, "--output", "run")[0] == 0
    status, _, err = ppl_vae("train", "--model", "dense-ae", *TINY, *OWN, "--output", "run")
    assert status == 2
    assert "a finished run with this config (see --overwrite)" in one_line(err)
    assert ppl_vae("train", "--model", "dense-ae", *TINY, *OWN, "--output", "run", "--overwrite")[0] == 0


def test_an_interrupt_is_130(ppl_vae, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ppl_vae.cli.training.train", interrupted)
    status, _, err = ppl_vae("train", *TINY, *OWN)
    assert status == 130
    assert "interrupted" in one_line(err)


def vectors(n=90, size=5):
    rng = np.random.default_rng(0)
    rate = np.exp(rng.normal(size=(n, 1)) + np.linspace(0, 3, size))
    return rng.poisson(rate), np.log(rate) + 0.1 * rng.normal(size=(n, size))


@pytest.mark.parametrize(
    ("name", "model", "likelihood", "space"),
    [
        ("counts", "dense-vae", ["--likelihood", "poisson"], "integergreaterthan(lower_bound=0)^5"),
        ("counts", "gated-dense-hvae", ["--likelihood", "negative-binomial"], "integergreaterthan(lower_bound=0)^5"),
        ("floats", "dense-vae", ["--likelihood", "gaussian-learned"], "real^5"),
        ("floats", "ppca", [], "real^5"),
        ("binary", "dense-vae", [], "boolean^5"),
    ],
)
def test_ones_own_vectors(ppl_vae, tmp_path, name, model, likelihood, space):
    counts, floats = vectors()
    np.save(tmp_path / "own.npy", {"counts": counts, "floats": floats, "binary": counts > 3}[name])
    status, _, err = ppl_vae(
        "train", "--dataset", "own.npy", "--model", model, *likelihood, *TINY[2:], "--output", "run"
    )
    assert status == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["event_shape"], config["encoding"]) == ([5], "identity")
    status, _, err = ppl_vae("evaluate", "run", "--method", "importance", "--num-samples", 30)
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "log_likelihood.json").read_text())["space"] == space
    status, _, err = ppl_vae("sample", "run", "--num-images", 7)
    assert status == 0, err
    samples = np.load(tmp_path / "run" / "samples.npy")
    assert samples.shape == (7, 5)
    assert (name == "floats") == bool((samples % 1).any())
    status, _, err = ppl_vae("sample", "run", "--output", "picture.png")
    assert status == 2
    assert "expected a path that ends in .npy, for a model of vectors" in one_line(err)
    status, _, err = ppl_vae("denoise", "run")
    assert status == 1
    assert "expected a model of images, to remove noise from" in one_line(err)


def test_images_in_colour_a_batch_of_more_than_all_one_sample_and_a_name_that_is_no_markup(ppl_vae, tmp_path):
    np.save(tmp_path / "colour.npy", np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8))
    options = ["--dataset", "colour.npy", "--epochs", 1, "--batch-size", 1000, "--latent-size", 2]
    name = r"$\foo$ <b>x[red]"
    status, _, err = ppl_vae("train", "--model", "dense-vae:hidden=4", *options, "--output", name)
    assert status == 0, err
    status, out, err = ppl_vae("evaluate", name, "--method", "importance", "--num-samples", 1, "--num-images", 2)
    assert status == 0, err
    assert name in out
    assert "± unknown (Monte Carlo)" in out
    assert "unknown" in out
    result = load_evaluation(tmp_path / name)
    assert result.log_p.isfinite().all()
    assert result.mc_se.isnan().all()
    assert result.khat.isnan().all()
    assert result.num_unreliable is None
    summary = json.loads((tmp_path / name / "log_likelihood.json").read_text(), parse_constant=pytest.fail)
    assert summary["mc_se"] is None  # JSON has no NaN
    status, _, err = ppl_vae("report", name, "--output", "page.html")
    assert status == 0, err
    page = (tmp_path / "page.html").read_text()
    assert page.count('<td style="text-align:right">unknown</td>') == 2  # the error and k-hat


def test_what_makes_no_sense_of_vectors(ppl_vae, tmp_path):
    counts, floats = vectors()
    np.save(tmp_path / "counts.npy", counts)
    np.save(tmp_path / "floats.npy", floats)
    np.save(tmp_path / "infinite.npy", np.where(np.eye(90, 5) == 1, np.inf, floats))
    for arguments, message in [
        (
            ["counts.npy", "--model", "dense-ae", "--likelihood", "bernoulli"],
            "expected values in [0, 1]",
        ),
        (
            ["floats.npy", "--model", "dense-ae", "--likelihood", "poisson"],
            "floats: expected counts (0, 1, 2, ...)",
        ),
        (["counts.npy", "--likelihood", "gaussian"], "counts: expected floats for gaussian; got whole numbers"),
        (["counts.npy"], "counts: expected values in {0, 1} for bernoulli; got some outside, in [0, "),
        (["floats.npy", "--likelihood", "poisson"], "for poisson; got some outside, in [-"),
        (["floats.npy", "--likelihood", "gaussian", "--encoding", "dequantize"], "encoding: expected 'identity' for"),
        (["floats.npy", "--likelihood", "gaussian", "--noise", "masking"], "noise: expected 'no-noise' for vectors"),
        (["floats.npy", "--likelihood", "gaussian", "--model", "conv-vae"], "(C, H, W); got (5,) (see dense)"),
        (["mnist-mini", "--encoding", "identity"], "encoding: expected one for images (mnist-mini)"),
        (["infinite.npy"], "expected finite numbers in float32"),
    ]:
        status, _, err = ppl_vae("train", "--model", "dense-vae", *TINY, "--dataset", *arguments, "--output", "run")
        assert status == 1, (arguments, err)
        assert message in one_line(err), arguments
    assert not (tmp_path / "run").exists()
    assert "expected images; got vectors of 5 numbers" in ppl_vae("run", "--dataset", "counts.npy")[2]


MISTAKES = """
import torch
from ppl_vae.likelihoods import Likelihood
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
class NoSupport(Likelihood):
    params_per_dim = 1
    def forward(self, params):
        return None
class NotDefined(Prior):
    def forward(self):
        return nothing_of_this_name
class Untyped(Prior):
    def __init__(self, latent_size, scale=1.0):
        super().__init__(latent_size)
    def forward(self):
        return None
class NoInit(Posterior):
    def forward(self, params):
        return None
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--likelihood", "no-support"], "'support' (with plugin mine.py)"),
        (["--prior", "not-defined"], "NameError: name 'nothing_of_this_name' is not defined (at "),
        (["--prior", "untyped:scale=2"], "prior untyped: expected a type at the argument scale of Untyped; got none"),
        (["--posterior", "no-init"], "'num_params' (with plugin mine.py)"),
    ],
)
def test_a_mistake_in_a_plugin_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MISTAKES)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--model", "dense-vae", "--plugin", "mine.py", "--train-images", "20", *arguments])
    assert stop.value.code in (1, 2)
    assert message in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(20), "expected vectors (N, D), or images (N, H, W)"),
        (np.zeros((2, 3, 4, 5, 6)), "got shape (2, 3, 4, 5, 6)"),
    ],
)
def test_arrays_of_another_shape_or_type(tmp_path, capsys, array, message):
    np.save(tmp_path / "own.npy", array)
    with pytest.raises(SystemExit):
        main(["train", "--dataset", str(tmp_path / "own.npy"), "--output", str(tmp_path / "run")])
    assert message in one_line(capsys.readouterr().err)


def test_a_device_that_is_not_here_is_refused_before_anything_is_done(ppl_vae, tmp_path):
    for command in (("run", "--dataset", "mnist-mini"), ("train", "--model", "dense-vae", "--epochs", 1)):
        status, out, err = ppl_vae(*command, "--device", "cuda:99")
        assert (status, out) == (1, "")
        assert "device: expected one that is here, auto, cpu" in one_line(err)
        assert not list(tmp_path.glob("runs/*/*/metrics.json"))
