"""Features of data on which samples are compared with them: of images, what a small classifier of them looks at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn.functional import interpolate

from ppl_vae.data.dataset import Dataset
from ppl_vae.distributions import standard_units
from ppl_vae.experiments.config import MOST_CLASSES
from ppl_vae.experiments.runs import versions
from ppl_vae.networks import ConvEncoder, Shape
from ppl_vae.programs import evaluating, seeded
from ppl_vae.system.errors import one_line
from ppl_vae.system.files import writable, write_whole
from ppl_vae.system.hashing import fingerprint
from ppl_vae.system.progress import progress
from ppl_vae.training.fitting import fit

SIZE = 64  # features of an image
EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED = 3, 128, 1e-3, 0
NUM_FLIPS = 4


@dataclass(frozen=True, eq=False)
class Features:
    """From data, images (data, C, H, W) in [0, 1] or vectors, to their features (data, size). `about` says which, for
    JSON; figures compare only where its "fingerprint" is the same."""

    extract: Callable[[Tensor], Tensor]
    about: dict[str, Any]

    @torch.no_grad()
    def __call__(self, x: Tensor, *, chunk: int = 100, show_progress: bool = False) -> Tensor:
        parts = []
        with progress("features", len(x), enabled=show_progress) as report:
            for part in x.split(chunk):
                parts.append(self.extract(part))
                report(len(part))
        return torch.cat(parts)


class Classifier(nn.Module):
    """p(y|x) of images x (data, C, H, W) in [0, 1], a Pyro pair without latents; `features` are its last hidden
    layer."""

    def __init__(self, image_shape: Shape, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(ConvEncoder(image_shape, SIZE, (16, 32), hidden=()), nn.ReLU())
        self.logits = nn.Linear(SIZE, num_classes)

    def p_y(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.logits(self.features(x)))

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("classifier", self)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", self.p_y(x), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Empty: there is nothing to infer."""


def features_of(dataset: Dataset, path: Path | None = None, **options: Any) -> Features:
    """The features of a dataset: of vectors they are the data themselves, in standard units; of images, those of a
    `Classifier` that is trained on the training images, with the recipe above.

    Arguments:
        path: the classifier's file, `.safetensors`: trained and written if there is none. Or one with the weights of
            torchvision's Inception v3: see `inception`.
        options: of `fit`.

    Raises `ValueError` for a file of another dataset, or of something else.
    """
    if not dataset.is_images:
        mean, scale = standard_units(dataset.train)
        about = {"name": "the data, in standard units", "fingerprint": fingerprint(mean, scale)}
        return Features(lambda x: (x - mean) / scale, about)
    if path is not None and path.exists():
        return _load(path, dataset)
    if path is not None:
        writable(path.parent)
    features, weights = train_features(dataset, **options)
    if path is not None:
        write_whole(path, save(weights, {"about": json.dumps(features.about)}))
    return features


def train_features(dataset: Dataset, **options: Any) -> tuple[Features, dict[str, Tensor]]:
    """The features of a classifier that is trained on images, and its weights. It tells the labels apart or, where an
    image has none, which of four flips it went through, as in Spyros Gidaris, Praveer Singh, Nikos Komodakis:
    Unsupervised Representation Learning by Predicting Image Rotations, 2018, arXiv:1803.07728."""
    labels, test_labels = dataset.train_labels, dataset.test_labels
    parts = [t for t in (labels, test_labels) if t is not None and int(t.min()) >= 0]
    num_classes = max((int(t.max()) + 1 for t in parts), default=0)
    is_labelled = len(parts) == 2 and 2 <= num_classes <= MOST_CLASSES
    num_classes = num_classes if is_labelled else NUM_FLIPS
    data, test = (
        (t, y) if is_labelled and y is not None else (t,)
        for t, y in ((dataset.train, labels), (dataset.test, test_labels))
    )

    def encode(images: Tensor, *labels: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        if labels:
            return images / 255, *labels
        which = torch.randint(NUM_FLIPS, (len(images),), generator=generator)
        return flipped(images / 255, which), which

    with seeded(SEED):
        classifier = Classifier(dataset.image_shape, num_classes)
    settings: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE}
    settings |= {"seed": SEED, "compiled": False} | options
    fit(
        classifier.model,
        classifier.guide,
        *data,
        encode=encode,
        description=f"features of {dataset.name}",
        **settings,
    )
    with evaluating(classifier.model):
        x, y = encode(*test, generator=Generator().manual_seed(SEED))
        logits = torch.cat([classifier.p_y(part).logits for part in x.split(500)])
    about = {
        "name": f"a classifier of {dataset.name}, by {'label' if is_labelled else 'flip'}",
        "size": SIZE,
        "accuracy": (logits.argmax(-1) == y).double().mean().item(),
        "recipe": {name: settings[name] for name in ("epochs", "batch_size", "learning_rate", "seed")},
        "train_images": len(dataset.train),
        "dataset_fingerprint": fingerprint(dataset.train),
        "versions": versions(),
    }
    return _of_classifier(classifier, about), classifier.state_dict()


def flipped(images: Tensor, which: Tensor) -> Tensor:
    """Images (data, C, H, W), each in one of four ways, (data,): as it is, from left to right, upside down, both.

    >>> flipped(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([3]))
    tensor([[[[4, 3],
              [2, 1]]]])
    """
    across, down = (bit.bool()[:, None, None, None] for bit in (which % 2, which // 2))
    images = images.flip(-1).where(across, images)
    return images.flip(-2).where(down, images)


def _of_classifier(classifier: Classifier, about: dict[str, Any]) -> Features:
    classifier.eval().requires_grad_(False)
    return Features(classifier.features, {**about, "fingerprint": fingerprint(*classifier.state_dict().values())})


def _load(path: Path, dataset: Dataset) -> Features:
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get("about", "{}"))
        if "Mixed_5b.branch1x1.conv.weight" in weights:
            return inception(weights)
        with seeded(SEED):  # the weights that are drawn here don't stay
            classifier = Classifier(dataset.image_shape, len(weights["logits.bias"]))
        classifier.load_state_dict(weights)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a classifier of {dataset.name}, or torchvision's Inception v3; got another "
            f"({one_line(error, foreign=True)})"
        ) from None
    if about.get("dataset_fingerprint") != fingerprint(dataset.train):
        raise ValueError(
            f"{path}: expected features of these training images ({dataset.name}); got {about.get('name')}. "
            "--features names another file, which is written if there is none"
        )
    return _of_classifier(classifier, about)


def inception(weights: Mapping[str, Tensor]) -> Features:
    """The 2048 features of torchvision's Inception v3, of its weights, which it has as a pickle: to store them for
    `features_of`,

        safetensors.torch.save_file(torchvision.models.inception_v3(weights="DEFAULT").state_dict(), path)

    They are not those of other packages' "FID", whose weights and resizing differ. Grey images have three equal
    channels. Christian Szegedy and others: Rethinking the Inception Architecture for Computer Vision, 2015,
    arXiv:1512.00567. Raises `RuntimeError` for other weights.
    """
    from torchvision.models import Inception3  # seconds, for every command

    with seeded(SEED):
        network = Inception3(transform_input=False, init_weights=False)
    network.load_state_dict(weights)
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)

    def extract(x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        return network(2 * interpolate(x, (299, 299), mode="bilinear", antialias=True) - 1)

    about = {"name": "torchvision's Inception v3", "size": 2048}
    return Features(extract, {**about, "fingerprint": fingerprint(*network.state_dict().values())})
