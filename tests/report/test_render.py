"""The script that renders results/README.md, beside the numbers that it reads."""

import io
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from ppl_vae.cli.main import main
from ppl_vae.system.files import write_checked

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "results" / "render.py"
if not SCRIPT.is_file():
    pytest.skip("results are not part of an installed package", allow_module_level=True)
render = runpy.run_path(str(SCRIPT))
benchmark_table, target_table, profile_lines = (render[n] for n in ("benchmark_table", "target_table", "profile_lines"))
results_page = render["results_page"]


def test_benchmarks_are_ratios_within_each_round():
    seconds = {"ours": [0.001, 0.002, 0.003], "pyro_svi": [0.003, 0.004, 0.015], "bare_products": [0.0005] * 3}
    case = {"case": "dense 400-20, batch 128", "unit": "step", "seconds": seconds}
    rows = {
        "case": "dense 400-20, K = 1,000",
        "unit": "decoder row",
        "seconds": {"ours": [5e-6, 5e-6], "pythae": [1e-5, 2e-5]},
    }
    table = benchmark_table({"cases": [case, rows]})
    assert "| this package | 2.00 ms | 5.00 µs |" in table
    assert "| Pyro's SVI, images in memory | 3.00 | — |" in table  # and not 2, the ratio of the medians
    assert "| 3.00 [2.50, 4.00] |" in benchmark_table({"cases": [case]}, spread=True)
    wanted = target_table({"cases": [case]})
    assert "| Pyro's SVI, images in memory | dense 400-20, batch 128 | ≥ 2.40 | 3.00 | reached |" in wanted
    assert "| ≥ 0.56 | 0.25 | not reached |" in wanted


def test_the_profile_is_in_shares(tmp_path):
    assert profile_lines(tmp_path) == []
    (tmp_path / "profile.json").write_text(json.dumps({"case": "dense", "seconds": {"a": 0.003, "b": 0.001}}))
    assert "| a | 3.00 | 75% |" in profile_lines(tmp_path)[2]


def test_a_page_of_results_links_to_where_the_figures_are(tmp_path):
    figure = {"mean": 0.5, "se": 0.1}
    row = {"trained_on_noise": False, "mse": figure, "psnr": figure, "ssim": figure}
    evaluation = dict.fromkeys(("log_p", "mc_se", "data_se", "elbo", "reconstruction", "kl"), -1.0)
    evaluation |= {"likelihood": "bernoulli", "measure": "mass", "khat_over_limit": None}
    evaluation |= {"num_images": 3, "num_samples": 4}
    metrics = {
        "config": dict.fromkeys(("dataset", "autoencoder_epochs", "vae_epochs", "batch_size", "seed", "noise"), "tiny"),
        "train_images": 60,
        "versions": {},
        "denoising": {"num_images": 3, "rows": {"noisy": row, "PCA (2 components)": row}},
        "log_likelihood": {"vae": evaluation},
    }
    folder = tmp_path / "study" / "tiny"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "| vae | bernoulli | mass | -1.00 | -1.00 | -1.00 |" in results_page(tmp_path)
    exact = evaluation | {"log_p": -0.5, "bound": "exact (by quadrature)", "fingerprint": "of others"}
    (folder / "vae").mkdir()
    path = folder / "vae" / "log_likelihood-quadrature.json"
    path.write_text(json.dumps(exact))
    assert "| -1.00 | -1.00 | -1.00 |" in results_page(tmp_path)  # it is of other data
    path.write_text(json.dumps(exact | {"fingerprint": "same"}))
    metrics["log_likelihood"]["vae"]["fingerprint"] = "same"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = results_page(tmp_path)
    assert "| vae | bernoulli | mass | -0.50 | exact | -1.00 |" in page
    assert "± MC is exact: by quadrature" in page
    assert "## tiny" in page
    assert "(study/tiny/figures/denoising.png)" in page


def test_the_shipped_tables_are_those_of_the_shipped_metrics():
    assert (ROOT / "results" / "README.md").read_text() == results_page(ROOT / "results")


def test_the_ladder_is_held_to_quadrature_of_the_same_images(tmp_path):
    run = tmp_path / "mnist" / "dense-vae-2d"
    run.mkdir(parents=True)
    exact, ladder = np.array([-100.0, -90.0, -80.0, -70.0]), np.array([-100.1, -90.0, -80.1, -69.6])
    for of_same in (True, False):
        for method, log_p in (("quadrature", exact), ("ladder", ladder)):
            arrays = io.BytesIO()
            np.savez(arrays, log_p=log_p, mc_se=np.full(4, 0.1), num_samples=np.array([100, 100, 400, 128]))
            summary = {"fingerprint": "same" if of_same else method, "num_samples": 100, "khat_over_limit": 0}
            summary |= {"rungs": {"refined": 3, "annealed": 1}}
            name = f"log_likelihood-{method}"
            write_checked(run, {f"{name}.npz": arrays.getvalue(), f"{name}.json": json.dumps(summary).encode()})
        text = " ".join(render["ladder_lines"](tmp_path))
        if of_same:
            assert "4 test images of mnist, dense-vae-2d" in text
            assert "0.212 nats, the largest 0.40" in text  # sqrt((0.01 + 0.01 + 0.16) / 4)
            assert "cover 75.0%" in text
        else:
            assert "quadrature" not in text
        assert "| mnist | dense-vae-2d | 4 | 50.0% | 25.0% | 0.0% |" in text


def test_a_prior_that_was_fitted_afterwards_stands_beside_the_one_before(tmp_path):
    base, run = tmp_path / "study" / "mnist" / "dense-vae", tmp_path / "refit" / "mnist" / "dense-vae" / "flow"
    before = np.array([-100.0, -90.0, -80.0])
    for folder, log_p in ((base, before), (run, before + np.arange(1.0, 4.0))):
        folder.mkdir(parents=True)
        arrays = io.BytesIO()
        others = {name: np.full(3, value) for name, value in (("mc_se", 0.1), ("ess", 9.0), ("khat", 0.2))}
        np.savez(arrays, log_p=log_p, num_samples=np.full(3, 1000), **others)
        summary = dict.fromkeys(("measure", "encoding", "bound", "source"), "") | {"fingerprint": "same"}
        summary |= {"decoder_rows": 1, "complete": True}
        stem = "log_likelihood-ladder"
        write_checked(folder, {f"{stem}.npz": arrays.getvalue(), f"{stem}.json": json.dumps(summary).encode()})
    refit = {"from": {"prior": "standard-normal"}, "prior": "flow", "elbo_gain": 1.5, "elbo_gain_se": 0.25}
    (run / "refit.json").write_text(json.dumps(refit))
    text = "\n".join(render["refit_lines"](tmp_path))
    expected = "| mnist | dense-vae | standard-normal | flow | +1.50 ± 0.25 | -90.00 | -88.00 | +2.00 ± 0.58 | 0/3 |"
    assert expected in text
    assert render["refit_lines"](tmp_path / "study") == []


def test_sample_quality_stands_beside_log_p(tmp_path):
    """The likelier of two has the worse samples here; those on other features are in a table of their own."""
    names = ("precision", "recall", "density", "coverage", "frechet", "kernel")
    for name, log_p, frechet, features in (("a", -80.0, 5.0, "f"), ("b", -90.0, 2.5, "f"), ("c", -70.0, 9.0, "g")):
        run = tmp_path / "study" / "mnist" / name
        run.mkdir(parents=True)
        figures = {n: {"value": frechet if n == "frechet" else 0.5, "se": 0.125} for n in names}
        about = {"name": "a classifier", "fingerprint": features, "accuracy": 0.975}
        quality = {"quality": figures, "training": figures, "features": about, "num_data": 2000, "dataset": "mnist"}
        quality |= {"dataset_fingerprint": "images"}
        (run / "quality.json").write_text(json.dumps(quality))
        summary = {"log_p": log_p, "measure": "mass", "fingerprint": "same"}
        write_checked(run, {"log_likelihood-ladder.json": json.dumps(summary).encode()})
    text = "\n".join(render["quality_lines"](tmp_path))
    row = "| study/mnist/a | -80.00 (mass) |" + 4 * " 0.500 ± 0.125 |" + " 5.00 ± 0.12 |"
    assert row in text
    assert "study/mnist/a has the highest, study/mnist/b the smallest Fréchet distance, and study/mnist/a" in text
    assert text.count("| training data | — |") == 2
    assert render["quality_lines"](tmp_path / "study") == []


def test_a_reference_row_is_scored_again_by_the_command_in_its_caption(tmp_path, monkeypatch, capsys):
    """On digits that the package carries, of which the mean is that of all within their spread, 22 nats."""
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(
        r"To score a row again: `ppl-vae (evaluate results/reference/mnist/[^`]*)`",
        (ROOT / "results" / "README.md").read_text(),
    )
    few = ["--dataset", "mnist-mini", "--num-images", "100", "--method", "importance", "--num-samples", "50"]
    main([*shlex.split(command), *few, "--output", str(tmp_path)])
    again = json.loads((tmp_path / "log_likelihood.json").read_text())
    stored = json.loads((ROOT / command.split()[1] / "log_likelihood.json").read_text())
    assert again["num_images"] == 100
    assert abs(again["log_p"] - stored["log_p"]) < 4 * 22 / 100**0.5
    assert again["log_p"] > again["elbo"]
