"""What is drawn of a run goes by what its model answers."""

import pytest

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train
from ppl_vae.report.gallery import draw_run

OF_ALL = ["training", "reconstructions"]
OF_A_SPACE = ["interpolations", "latent-grid", "latent-codes"]


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("dense-ae", []),
        ("dense-cvae", ["samples"]),
        ("dense-m2", ["samples"]),
        ("dense-vae", ["samples", *OF_A_SPACE]),
        ("dense-hvae", ["samples", *OF_A_SPACE]),
        ("dense-dvae:categories=3", ["samples"]),
        ("dense-ladder:layers=3+2", ["samples", *OF_A_SPACE, "layers"]),
    ],
)
def test_the_figures_of_each_kind_of_model(tmp_path, undrawn, model, more):
    config = TrainConfig(model=model, hidden=(8,), latent_size=2, epochs=1, train_images=60)
    run = train(config, tmp_path, show_progress=False)
    paths = draw_run(run, tmp_path, num_samples=4)
    assert sorted(path.stem for path in paths) == sorted([*OF_ALL, *more])
    assert all(path.is_file() for path in paths)
