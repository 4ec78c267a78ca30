"""Commands on little data, and what they say."""

import numpy as np

TINY = ["--hidden", "8", "--latent-size", "2", "--epochs", "1", "--batch-size", "16", "--train-images", "60"]


OWN = ["--dataset", "own.npz"]


def save_own(folder):
    """Dark and bright images of noise, with the labels 0 to 9, for `OWN`."""
    labels = np.arange(80) % 10
    images = np.random.default_rng(0).integers(0, 60, (80, 6, 6)) + 190 * (np.arange(80) // 10 % 2)[:, None, None]
    np.savez(folder / "own.npz", images=images.astype(np.uint8), labels=labels)


def one_line(err):
    assert err.startswith("ppl-vae: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "tyro" not in err
    return err
