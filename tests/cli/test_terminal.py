import re

import pytest

from ppl_vae.cli.terminal import SHORTEST_NAME, show_denoising, show_log_likelihoods

NAME = "a-model-of-a-name-that-is-far-too-long-for-a-terminal"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_tables_never_cut_a_number_and_names_shorten(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    figures = {
        metric: {"mean": mean, "se": 1234.5678}
        for metric, mean in (("mse", 0.123456), ("psnr", 98765.4321), ("ssim", -0.5))
    }
    show_denoising("title", {NAME: figures, "pca": figures})
    evaluation = {"measure": "density", "log_p": -123456.789, "mc_se": 1000.125, "data_se": 2.5, "elbo": -9876543.21}
    evaluation |= {"khat_over_limit": 1234, "num_images": 10_000, "num_samples": 500}
    show_log_likelihoods("title", {NAME: evaluation})
    out = capsys.readouterr().out
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines() if line.strip().startswith(("a-model", "pca"))]
    denoised = ["0.12346 ± 1234.56780", "98765.43 ± 1234.57", "-0.5000 ± 1234.5678"]
    scored = ["density", "-123456.79", "1000.12", "2.50", "-9876543.21", "1234/10000"]
    assert [row[1:] for row in rows] == [denoised, denoised, scored]
    names = [rows[0][0], rows[2][0]]
    if width >= 200:
        assert names == [NAME] * 2
    else:
        assert all(len(name) >= SHORTEST_NAME and name.endswith("…") for name in names)
