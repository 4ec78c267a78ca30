import pytest
from commands import save_own

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.evaluating import evaluate_run, save_evaluation
from ppl_vae.experiments.training import train
from ppl_vae.report.gallery import draw_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A run of a VAE with two latent dimensions on images of 6 x 6 pixels, evaluated and drawn."""
    data = tmp_path_factory.mktemp("data")
    save_own(data)
    config = TrainConfig(
        dataset=str(data / "own.npz"), model="dense-vae", hidden=(16,), latent_size=2, epochs=1, batch_size=50
    )
    folder = tmp_path_factory.mktemp("runs") / "two"
    run = train(config, folder, show_progress=False)
    draw_run(run, folder, num_samples=9)
    save_evaluation(folder, *evaluate_run(run, num_samples=4, num_images=3))
    return folder
