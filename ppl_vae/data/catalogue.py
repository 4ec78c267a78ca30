"""The datasets that go by name, and where they come from. Nothing here imports torch."""

from __future__ import annotations

from typing import NamedTuple

BUNDLED = {
    "mnist-mini": "10,000 + 2,000 digits 1x28x28, CC BY-SA 3.0; bundled",
    "fashion-mnist-mini": "10,000 + 2,000 clothes 1x28x28, MIT; bundled",
}


class _Source(NamedTuple):
    torchvision: str  # the name of its class and of its folder
    about: str
    files: tuple[str, str] = ("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")
    parts: tuple[str, str] = ("train", "t10k")
    options: tuple[tuple[str, str], ...] = ()


def _emnist(split: str, train: int, test: int, classes: str) -> _Source:
    files = (f"emnist-{split}-{{}}-images-idx3-ubyte", f"emnist-{split}-{{}}-labels-idx1-ubyte")
    about = f"{train:,} + {test:,} {classes} 1x28x28, NIST SD 19, cite arXiv:1702.05373; downloaded (560 MB)"
    return _Source("EMNIST", about, files, ("train", "test"), (("split", split),))


TORCHVISION = {
    "mnist": _Source("MNIST", "60,000 + 10,000 digits 1x28x28, CC BY-SA 3.0; downloaded (12 MB)"),
    "fashion-mnist": _Source("FashionMNIST", "60,000 + 10,000 clothes 1x28x28, MIT; downloaded (31 MB)"),
    "kmnist": _Source("KMNIST", "60,000 + 10,000 hiragana 1x28x28, CC BY-SA 4.0; downloaded (21 MB)"),
    "qmnist": _Source(
        "QMNIST",
        "60,000 + 60,000 digits 1x28x28, BSD; downloaded (20 MB)",
        ("qmnist-{}-images-idx3-ubyte", "qmnist-{}-labels-idx2-int"),
        ("train", "test"),
    ),
    "emnist-byclass": _emnist("byclass", 697_932, 116_323, "letters and digits"),
    "emnist-bymerge": _emnist("bymerge", 697_932, 116_323, "letters and digits"),
    "emnist-balanced": _emnist("balanced", 112_800, 18_800, "letters and digits"),
    "emnist-letters": _emnist("letters", 124_800, 20_800, "letters"),
    "emnist-digits": _emnist("digits", 240_000, 40_000, "digits"),
    "emnist-mnist": _emnist("mnist", 60_000, 10_000, "digits"),
}


def names() -> dict[str, str]:
    """Every name that `load` knows, with its size, its licence and whether it is bundled or downloaded."""
    return BUNDLED | {name: source.about for name, source in TORCHVISION.items()}
