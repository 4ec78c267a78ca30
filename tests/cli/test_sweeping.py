"""`ppl-vae sweep`: what it says, what it refuses, and a signal."""

import pytest
from commands import OWN, TINY, one_line
from ladders import make_quick

from ppl_vae.experiments import batch

pytestmark = pytest.mark.usefixtures("undrawn")

SIZES = ("--num-images", 5, "--num-samples", 30)
SWEEP = ("sweep", "--model", "dense-vae", *OWN, *TINY, "--prior", "standard-normal", "laplace", *SIZES)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    make_quick(monkeypatch)


def test_a_table_is_shown_and_what_failed_is_named(ppl_vae, tmp_path, monkeypatch):
    trained = batch.trained

    def failing(config, *args, **options):
        if config.seed == 1:
            raise ArithmeticError("NaN")
        return trained(config, *args, **options)

    monkeypatch.setattr(batch, "trained", failing)
    status, out, err = ppl_vae(*SWEEP, "--seed", 0, 1, "--output", "a")
    assert status == 1
    failed = "; ".join(f"prior={prior}/seed-1 (NaN)" for prior in ("standard-normal", "laplace"))
    assert f"failed: {failed}. The others are kept" in err
    assert "| prior laplace |" in out
    assert f"ppl-vae report {tmp_path / 'a'} --output a.html" in out
    assert (tmp_path / "a" / "figures" / "prior.png").is_file()
    monkeypatch.setattr(batch, "trained", trained)
    assert ppl_vae(*SWEEP, "--seed", 0, 1, "--output", "a")[0] == 0


def test_a_combination_that_is_none_is_refused_before_any_is_trained(ppl_vae, tmp_path):
    status, _, err = ppl_vae(*SWEEP, "--encoding", "binarize", "levels", "--output", "a")
    assert status == 2
    assert "prior=standard-normal,encoding=levels: " in one_line(err)
    assert not (tmp_path / "a").exists()


def test_an_interrupt_says_how_to_go_on(ppl_vae, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "trained", interrupted)
    status, _, err = ppl_vae(*SWEEP, "--output", "a")
    assert status == 130
    assert "ppl-vae: interrupted; what is finished is kept. To go on:\nppl-vae sweep --model dense-vae" in err
