"""Makes the bundled datasets from torchvision's raw files: python make_mini.py ROOT OUTPUT."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ppl_vae.data.loading import load


def make_mini(root: Path, output: Path) -> None:
    """Write the bundled datasets to the folder `output`: the first images of MNIST and Fashion-MNIST.

    `root` is torchvision's folder with their raw files. Raises what `load` raises.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in ("mnist", "fashion-mnist"):
        full = load(name, root, download=False)
        assert full.train_labels is not None
        assert full.test_labels is not None
        np.savez_compressed(
            output / f"{name}-mini.npz",
            train=full.train[:10_000].numpy(),
            test=full.test[:2_000].numpy(),
            train_labels=full.train_labels[:10_000].byte().numpy(),
            test_labels=full.test_labels[:2_000].byte().numpy(),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the bundled datasets from torchvision's raw files.")
    parser.add_argument("root", type=Path, help="torchvision's folder, with MNIST/raw and FashionMNIST/raw")
    parser.add_argument("output", type=Path, help="folder for the two .npz files")
    arguments = parser.parse_args()
    make_mini(arguments.root, arguments.output)
