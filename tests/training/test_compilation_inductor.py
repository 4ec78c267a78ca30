"""Compiled by inductor, for real, against the uncompiled. A graph takes it half a minute: these share four."""

import pyro
import pytest
import torch
from compiling import ADAMS, Regularised, assert_same, assert_same_steps, data, dense

from ppl_vae.kl_weights import LinearWarmUp
from ppl_vae.objectives import DoublyReparameterized, Elbo
from ppl_vae.programs import seeded
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import Stopped


def gaussian(seed=0):
    return dense(likelihood="gaussian-optimal", seed=seed)


def warmed_up():
    return Elbo().weighted(LinearWarmUp(3))


@pytest.mark.parametrize("pair", [gaussian, Regularised], ids=["gaussian-optimal", "batch-norm-dropout"])
def test_inductors_steps_are_the_uncompiled_ones(pair, compiled_graphs):
    x = data(likelihood="gaussian-optimal")
    assert_same_steps(pair, x, ADAMS["schedule"], steps=6, objective=warmed_up)
    assert len(compiled_graphs) == 1  # a failed one would have warned, which is an error here


def test_inductors_noise_is_the_seeds_bit_for_bit():
    x, runs = data(likelihood="gaussian-optimal"), []
    for _ in range(2):
        pair = gaussian()
        with seeded(3), pyro.get_param_store().scope():
            step = Step(pair.model, pair.guide, warmed_up(), ADAMS["schedule"](), compiled=True)
            runs.append([step(x).item() for _ in range(5)])
    assert runs[0] == runs[1]


def test_inductors_run_goes_on_bit_for_bit(tmp_path):
    """After the first step of the second epoch, each of three batches, the last one shorter."""

    def noisy(x, generator=None):
        return (x + 0.1 * torch.randn(x.shape, generator=generator),)

    def run(seed, stop_at=0, **options):
        pair, steps = gaussian(seed), iter(range(1, 100))
        arguments = {"encode": noisy, "elbo": warmed_up(), "optim": ADAMS["schedule"](), "compiled": True} | options
        history = fit(
            pair.model, pair.guide, data(16, "gaussian-optimal"), epochs=2, batch_size=6, seed=3, show_progress=False,
            stop=lambda: next(steps) == stop_at, **arguments
        )  # fmt: skip
        return [*pair.parameters(), *pair.buffers()], history["loss"]

    (expected, losses), checkpoints = run(0), Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        run(0, checkpoints=checkpoints, stop_at=4)
    again, same_losses = run(9, checkpoints=checkpoints, resume=True)
    assert same_losses == losses
    assert all(map(torch.equal, again, expected))


def test_inductors_gradients_of_a_doubly_reparameterised_warm_up(compiled_graphs):
    assert_same(compiled_graphs, dense, data(), lambda: DoublyReparameterized(3).weighted(LinearWarmUp(3)))


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
