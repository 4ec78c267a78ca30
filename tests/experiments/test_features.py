import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import Inception3

from ppl_vae.data.dataset import Dataset
from ppl_vae.experiments import features
from ppl_vae.experiments.features import features_of
from ppl_vae.programs import seeded

QUICK = {"epochs": 8, "batch_size": 16, "learning_rate": 1e-2, "show_progress": False}


def images(n, seed, *, labelled):
    """8 x 8 images with a bright corner, at the top left, or of label 1 at the bottom right."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 60, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    y = torch.arange(n) % 2 * labelled
    x[:, :, :3, :3] += 150 * (y == 0)[:, None, None, None].byte()
    x[:, :, -3:, -3:] += 150 * (y == 1)[:, None, None, None].byte()
    return x, y


def corners(*, labelled=True):
    (train, y), (test, y_test) = (images(n, seed, labelled=labelled) for seed, n in enumerate((160, 40)))
    return Dataset("corners", train, test, *((y, y_test) if labelled else ()))


@pytest.mark.parametrize(("labelled", "by"), [(True, "label"), (False, "flip")])
def test_a_classifier_tells_labels_apart_or_flips(labelled, by):
    found = features_of(corners(labelled=labelled), **QUICK)
    assert found.about["name"] == f"a classifier of corners, by {by}"
    assert found.about["accuracy"] > 0.95  # by chance 1 in 2, or 4
    x = corners().test / 255
    f = found(x, chunk=7)
    assert f.shape == (40, 64)
    assert not f.requires_grad
    torch.testing.assert_close(f, found(x))
    assert found.about["recipe"]["epochs"] == QUICK["epochs"]


def test_it_is_trained_once_and_for_one_dataset(tmp_path, monkeypatch):
    path, x = tmp_path / "features.safetensors", corners().test / 255
    first, again = (features_of(corners(), **QUICK | {"epochs": 1}) for _ in range(2))
    assert first.about == again.about
    written = features_of(corners(), path, **QUICK | {"epochs": 1})
    monkeypatch.setattr(features, "fit", lambda *args, **options: pytest.fail("it was trained again"))
    loaded = features_of(corners(), path)
    assert loaded.about == written.about == first.about
    assert torch.equal(loaded(x), first(x))
    with pytest.raises(ValueError, match="expected features of these training images"):
        features_of(corners(labelled=False), path)
    for content in (b"", path.read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match="expected a classifier of corners, or torchvision's Inception v3; got another"
        ):
            features_of(corners(), path)


def test_vectors_are_features_in_standard_units():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1]) + 5
    f = features_of(Dataset("vectors", x, x))(x)
    assert f.mean(0).abs().max() < 1e-6
    assert (f.std(0, correction=0) - 1).abs().max() < 1e-6


def test_inception_sees_images_as_torchvision_gives_them(tmp_path):
    """Which shifts and scales them by channel, and has the network undo it."""
    with seeded(0):
        network, x = Inception3(transform_input=True, init_weights=False).eval(), torch.rand(1, 1, 299, 299)
    weights = network.state_dict()
    save_file(weights, tmp_path / "inception.safetensors")
    found = features_of(corners(), tmp_path / "inception.safetensors")
    network.fc = nn.Identity()
    mean, std = (torch.tensor(t)[:, None, None] for t in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = network((x.expand(-1, 3, -1, -1) - mean) / std)
    torch.testing.assert_close(found(x), expected, rtol=1e-3, atol=1e-5)
    assert (found(torch.zeros(2, 3, 20, 30)).shape, found.about["size"]) == ((2, 2048), 2048)
    save_file({k: t for k, t in weights.items() if "Mixed_6" not in k}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"half.safetensors: expected a classifier of corners, or torchvision's"):
        features_of(corners(), tmp_path / "half.safetensors")
