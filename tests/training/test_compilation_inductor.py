"""Compiled by inductor, for real, against the uncompiled."""

import pyro
import pytest
import torch
from compiling import ADAMS, Regularised, assert_same, assert_same_steps, data, dense

from ppl_vae.kl_weights import LinearWarmUp
from ppl_vae.objectives import DoublyReparameterized, Elbo
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import adam


@pytest.mark.parametrize("pair", [lambda: dense(likelihood="gaussian-optimal"), Regularised],
                         ids=["gaussian-optimal", "batch-norm-dropout"])  # fmt: skip
def test_inductors_steps_are_the_uncompiled_ones(pair, compiled_graphs):
    assert_same_steps(pair, data(likelihood="gaussian-optimal"), ADAMS["schedule"], steps=6)
    assert len(compiled_graphs) == 1  # a failed one would have warned, which is an error here


def test_inductors_kernels_are_not_given_another_layout_or_dtype(compiled_graphs):
    """They read memory as it was when they were compiled: float64 as float32, and rows as columns."""
    pair, elbo, x = dense(), CompiledTrace_ELBO(), data()
    columns = x.reshape(len(x), -1).T.contiguous().T.reshape(x.shape)
    assert columns.stride() != x.stride()
    for step, batch in enumerate([x, x, x, columns, x, x]):
        if step == 5:
            pair.prior.zeros.data = torch.ones(2, dtype=torch.float64)
        with seeded(step):
            loss = elbo.loss_and_grads(pair.model, pair.guide, batch)
        with seeded(step):
            assert loss.item() == pytest.approx(Elbo().loss_and_grads(pair.model, pair.guide, batch), rel=1e-5)
    assert len(compiled_graphs) == 1


def test_inductors_gradients_of_a_doubly_reparameterised_warm_up(compiled_graphs):
    assert_same(compiled_graphs, dense, data(), lambda: DoublyReparameterized(3).weighted(LinearWarmUp(3)))


def test_inductors_noise_is_the_seeds_bit_for_bit():
    runs = []
    for _ in range(2):
        pair = dense()
        with seeded(3), pyro.get_param_store().scope():
            step = Step(pair.model, pair.guide, Elbo(), adam(1e-2), compiled=True)
            runs.append([step(data()).item() for _ in range(5)])
    assert runs[0] == runs[1]
