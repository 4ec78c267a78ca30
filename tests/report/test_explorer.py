import pytest
import torch

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train
from ppl_vae.report.explorer import GRID, explorer, plane


def test_the_plane_of_a_larger_latent_space_goes_through_its_mean(tmp_path):
    run = train(
        TrainConfig(model="dense-vae", hidden=(8,), latent_size=5, epochs=1, train_images=60),
        tmp_path,
        show_progress=False,
    )
    found = plane(run)
    z = found.z
    of_images = run.encode(run.dataset.test[:1000] / 255)
    middle = GRID // 2
    assert found.right[middle] == found.up[middle] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(z[middle, middle], of_images.mean(0), atol=1e-5)
    step = z[middle, -1] - z[middle, middle]
    spread = ((of_images - of_images.mean(0)) @ (step / step.norm())).square().mean().sqrt()
    assert step.norm().item() == pytest.approx(2.5 * spread.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "shown"),
    [("dense-ae", False), ("dense-cvae", False), ("dense-m2", False), ("dense-hvae", True), ("ppca", True)],
)
def test_a_model_of_one_latent_space_and_no_label_is_shown(tmp_path, model, shown):
    hidden = {} if model == "ppca" else {"hidden": (8,)}
    config = TrainConfig(model=model, latent_size=3, epochs=1, train_images=60, **hidden)
    run = train(config, tmp_path, show_progress=False)
    found = explorer(tmp_path, lambda name: run.dataset)
    assert (found is not None) == shown
