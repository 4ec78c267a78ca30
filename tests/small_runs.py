"""Small runs on noise: what the tests of `experiments` train."""

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.training import train

CONFIG = TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), epochs=1, batch_size=16)
SMALL = {"latent_size": 2, "epochs": 1, "batch_size": 16}


def quiet_train(config, folder, dataset, **kwargs):
    return train(config, folder, dataset=dataset, show_progress=False, **kwargs)


def corrupt(folder, name, text):
    """In a folder without checksums, as older versions left it."""
    (folder / "checksums.json").unlink()
    (folder / name).write_text(text)
