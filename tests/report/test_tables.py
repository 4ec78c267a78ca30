import json
from pathlib import Path

import pytest

from ppl_vae.report.benchmarks import benchmark_table, profile_lines, target_table
from ppl_vae.report.markdown import fill
from ppl_vae.report.pages import readme_blocks, results_page
from ppl_vae.report.study_tables import denoising_table, likelihood_table, verdict

ROOT = Path(__file__).parents[2]


def metrics(**ssim):
    def row(mean, noise):
        figure = {"mean": mean, "se": 0.001}
        return {"trained_on_noise": noise, "mse": figure, "psnr": figure, "ssim": figure}

    rows = {name.replace("_", "-"): row(mean, not name.endswith("clean")) for name, mean in ssim.items()}
    return {"denoising": {"rows": {"noisy": row(0.1, False), "PCA (3 components)": row(0.5, False), **rows}}}


def test_the_verdict_names_what_does_not_beat_pca():
    assert verdict(metrics(good=0.6)).startswith(
        "Every network is ahead of PCA in SSIM. Not ahead in squared error: good."
    )
    assert "close" in verdict(metrics(good=0.6, close=0.5035))
    text = verdict(metrics(good=0.6, vae_clean=0.2))
    assert "Not ahead of PCA in SSIM: vae-clean." in text
    assert "never saw noise" in text
    assert "never saw noise" not in verdict(metrics(bad=0.2))
    assert "squared error: none" in verdict(metrics(bad=0.2))


def test_one_image_has_no_verdict():
    found = metrics(good=0.6)
    for row in found["denoising"]["rows"].values():
        row["ssim"]["se"] = None  # as in the file: one image has no error
    assert verdict(found) == "One image tells nothing of their order."
    assert "| 0.6000 ± unknown |" in denoising_table(found)


def test_tables_show_the_numbers():
    table = denoising_table(metrics(net=0.61234))
    assert "| net | noisy → clean | 0.61234 ± 0.00100 | 0.61 ± 0.00 | 0.6123 ± 0.0010 |" in table
    row = {
        "likelihood": "bernoulli",
        "measure": "mass",
        "log_p": -90.126,
        "mc_se": 0.1,
        "data_se": 0.2,
        "elbo": -95,
        "reconstruction": -70,
        "kl": 25,
        "khat_over_limit": 3,
        "num_images": 9,
    }
    assert "| vae | bernoulli | mass | -90.13 | 0.10 | 0.20 | -95.00 | -70.00 | 25.00 | 3/9 |" in likelihood_table(
        {"log_likelihood": {"vae": row}}
    )


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


def test_blocks_are_filled_between_their_markers():
    text = "a\n<!-- rendered: t -->\nold\n<!-- end -->\nb"
    filled = fill(text, {"t": "new"})
    assert filled == "a\n<!-- rendered: t -->\nnew\n<!-- end -->\nb"
    assert fill(filled, {"t": "new"}) == filled
    with pytest.raises(ValueError, match="expected the markers"):
        fill("nothing here", {"t": "new"})


@pytest.mark.skipif(not (ROOT / "results").is_dir(), reason="results are not part of an installed package")
def test_the_shipped_tables_are_those_of_the_shipped_metrics():
    assert (ROOT / "results" / "README.md").read_text() == results_page(ROOT / "results")
    readme = (ROOT / "README.md").read_text()
    assert readme == fill(readme, readme_blocks(ROOT / "results"))
