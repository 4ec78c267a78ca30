"""The benchmarks' contenders do the same work: by hand, in Pyro, and in this package. Nothing here asserts a time."""

import pyro
import pytest
import torch
import training
from cases import Case, Pair, binarized, images
from pyro.infer import Trace_ELBO

from ppl_vae.evaluation.importance import log_weights
from ppl_vae.programs import seeded

ARCHITECTURES = ["dense 400-20", "gated 300-300-40", "conv"]


@pytest.fixture
def own_store():
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        yield


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_by_hand_is_pyros(architecture, own_store):
    with seeded(0):
        pair, x = Pair(architecture), binarized(images()[:8])
    with seeded(1):
        by_hand = pair.loss(x).item()
    with seeded(1):
        assert Trace_ELBO().loss(pair.model, pair.guide, x) == pytest.approx(by_hand, rel=1e-5)


def test_the_log_weights_by_hand_are_this_packages(own_store):
    with seeded(0):
        pair, x = Pair("dense 400-20"), binarized(images()[:4])
    with seeded(1), torch.no_grad():
        by_hand = pair.log_weights(x, 6)
    with seeded(1):
        assert log_weights(pair.model, pair.guide, x, num_samples=6).allclose(by_hand.double(), atol=1e-3)


@pytest.mark.parametrize("name", ["by_hand", "pyro_svi", "ours_eager", "bare_products"])
def test_contenders_take_steps(name, own_store):
    with seeded(0):
        step = getattr(training, name)(Case("dense 400-20", batch_size=16))
        for _ in range(2):
            step()
