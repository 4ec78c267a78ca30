import pytest

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train
from ppl_vae.report.explorer import explorer


@pytest.mark.parametrize(
    ("model", "shown"),
    [("dense-ae", False), ("dense-cvae", False), ("dense-m2", False), ("dense-hvae", True), ("ppca", True)],
)
def test_a_model_of_one_latent_space_and_no_label_is_shown(tmp_path, model, shown):
    hidden = {} if model == "ppca" else {"hidden": (8,)}
    config = TrainConfig(model=model, latent_size=3, epochs=1, train_images=60, **hidden)
    run = train(config, tmp_path, show_progress=False)
    found = explorer(tmp_path, lambda name, **reading: run.dataset)
    assert (found is not None) == shown
