import pytest
import torchvision.datasets


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise TimeoutError("no\nroute")

    for name in ("MNIST", "EMNIST", "QMNIST"):  # FashionMNIST and KMNIST inherit MNIST's
        monkeypatch.setattr(getattr(torchvision.datasets, name), "download", refuse)
