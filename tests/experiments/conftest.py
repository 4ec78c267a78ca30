import functools
import signal

import pytest
import torch
from ladders import make_quick
from stopping import TRAIN, results

from ppl_vae.cli import running, training
from ppl_vae.cli.main import main
from ppl_vae.data.dataset import Dataset
from ppl_vae.experiments import swaps
from ppl_vae.system.signals import SIGNALS


@pytest.fixture(autouse=True)
def sigint():
    """As in a terminal, also where the tests are in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def quick_ladder(monkeypatch):
    make_quick(monkeypatch)


@pytest.fixture
def ppl_vae(capsys, tmp_path, monkeypatch):
    """Runs a command in this process and in an empty folder: (exit status, standard error). Pictures are left out."""
    monkeypatch.chdir(tmp_path)
    for module, draws in ((training, ["run"]), (running, ["run", "study", "swaps", "trust"])):
        for draw in draws:
            monkeypatch.setattr(module, f"draw_{draw}", lambda *args, **kwargs: [])

    def run(*arguments):
        status, before = 0, [signal.getsignal(s) for s in SIGNALS]
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code or 0
        assert [signal.getsignal(s) for s in SIGNALS] == before
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return status, err

    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(training, "draw_run", lambda *args, **kwargs: [])
        main(TRAIN)
    return results(folder / "run")


@pytest.fixture
def few_swaps(monkeypatch):
    models = swaps.models_of
    kept = ("base", "prior-laplace")

    @functools.cache
    def few(config, dataset):
        return {name: model for name, model in models(config, dataset).items() if name in kept}

    monkeypatch.setattr(swaps, "models_of", few)
    sizes = {"latent-size": 2, "epochs": 2, "num-images": 6, "num-samples": 3, "train-images": 60, "batch-size": 5}
    options = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    return ["run", "swaps", "--dataset", "mnist-mini", *options]


@pytest.fixture
def dataset():
    generator = torch.Generator().manual_seed(0)

    def images(n):
        return torch.randint(0, 256, (n, 1, 12, 12), generator=generator, dtype=torch.uint8)

    return Dataset("toy", images(60), images(12), torch.arange(60) % 10, torch.arange(12) % 10)
