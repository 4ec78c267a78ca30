"""Compiled training steps, with the optimiser, against the same steps uncompiled."""

import pickle

import pyro
import pytest
import torch
from compiling import ADAMS, Strided, assert_same_steps, data, dense
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import nn

from ppl_vae.objectives import Elbo
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import OneOptimizer, adam, adam_of
from ppl_vae.training.schedules import Cosine


@pytest.mark.parametrize(
    "optim",
    [
        lambda: OneOptimizer(torch.optim.SGD, lr=0.01, clip_norm=0.1),
        lambda: OneOptimizer(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda: adam(0.1, amsgrad=True),
        lambda: adam(0.1, clip_norm=0.01, maximize=True),
        lambda: pyro.optim.Adam({"lr": 0.1}),
        lambda: pyro.optim.ClippedAdam({"lr": 0.1, "clip_norm": 0.01}),
    ],
    ids=["clipped-sgd", "momentum", "amsgrad", "maximize", "pyro-adam", "pyro-clipped-adam"],
)
def test_other_optimisers_run_on_the_graphs_gradients(optim, graphs):
    assert_same_steps(Strided, torch.arange(4.0), optim)
    (graph,) = graphs
    assert "lerp" not in graph.code  # Adam's step
    for compiled in (True, False):  # the first of CompiledTrace_ELBO's gradients is the graph's own
        pair = Strided()
        svi = SVI(pair.model, pair.guide, optim(), loss=CompiledTrace_ELBO() if compiled else Elbo())
        with pyro.get_param_store().scope():
            for _ in range(4):
                svi.step(torch.arange(4.0))
            weights = torch.cat([p.detach().flatten() for p in pair.parameters()])
        if compiled:
            first = weights
    torch.testing.assert_close(first, weights)


@pytest.mark.parametrize("optim", ADAMS.values(), ids=ADAMS)
def test_adam_in_the_graph_follows_torchs(optim, graphs):
    assert_same_steps(dense, data(), optim, steps=16, switch=12)
    (graph,) = graphs
    assert "lerp" in graph.code  # Adam's step


def test_adam_in_float64_is_torchs_to_its_rounding(graphs):
    def make():
        return Strided().double()

    optim = ADAMS["schedule"]
    assert_same_steps(make, torch.arange(4.0).double(), optim, rtol=1e-11, atol=1e-12)


def test_a_subclass_of_adam_runs_its_own_step():
    class Mine(torch.optim.Adam): ...

    optim = OneOptimizer(Mine)
    optim.join([nn.Parameter(torch.zeros(()))])
    assert adam_of(optim) is None


def test_two_steps_do_not_share_anything(graphs):
    runs = []
    for interleaved in (False, True):
        with seeded(0), pyro.get_param_store().scope():
            pair, other = dense(), Strided()
            step = Step(pair.model, pair.guide, Elbo(), adam(1e-2), compiled=True)
            another = Step(other.model, other.guide, Elbo(), adam(1e-1), compiled=True)
            runs.append([])
            for _ in range(4):
                runs[-1].append(step(data()).item())
                if interleaved:
                    another(torch.ones(3))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_goes_on_bit_for_bit_from_its_saved_optimiser(compiled, graphs, tmp_path):
    def run(pair, optim, seed, steps):
        with seeded(seed), pyro.get_param_store().scope():
            step = Step(pair.model, pair.guide, Elbo(), optim, compiled=compiled)
            for _ in range(steps):
                step(data())
        return step

    optim = lambda lr=1e-2: adam(lr, schedule=Cosine().warmed(5).by_step(20), clip_norm=0.5)  # noqa: E731
    pair, saved = dense(), optim()
    run(pair, saved, 1, 6)
    weights = pickle.loads(pickle.dumps(pair.state_dict()))
    saved.save(tmp_path / "optim.pt")
    again, loaded = dense(seed=5), optim(0.5)  # the learning rate is the saved run's
    again.load_state_dict(weights)
    loaded.load(tmp_path / "optim.pt")
    assert loaded.get_state()["num_steps"] == 6  # before there are parameters
    run(again, loaded, 2, 1)
    run(pair, saved, 2, 1)
    assert loaded.get_state()["base_lr"] == [1e-2]
    # A graph's Adam and torch's round apart: both runs begin a step uncompiled, and go on as they were told.
    for _ in range(2):
        run(again, loaded, 3, 4)
        run(pair, saved, 3, 4)
    for p, q in zip(pair.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_state_that_is_loaded_between_replays_is_the_graphs(graphs):
    pair, optim = dense(), adam(1e-2)
    with seeded(0), pyro.get_param_store().scope():
        step = Step(pair.model, pair.guide, Elbo(), optim, compiled=True)
        for _ in range(3):
            step(data())
        state = pickle.loads(pickle.dumps(optim.get_state()))
        for _ in range(3):
            step(data())
        optim.set_state(state)
        step(data())
        step(data())
    steps = {s["step"].item() for s in optim.optimizer.state.values()}
    assert (optim.num_steps, steps) == (5, {5.0})


def test_the_first_batch_is_validated_as_ever(graphs):
    errors = []
    for compiled in (False, True):
        pair = dense()
        step = Step(pair.model, pair.guide, Elbo(), adam(), compiled=compiled)
        with pyro.validation_enabled(True), pytest.raises(ValueError, match="DenseEncoder: expected") as error:
            step(torch.zeros(4, 3))
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_pyros_own_objectives_are_not_traced(graphs):
    pair = dense()
    step = Step(pair.model, pair.guide, TraceMeanField_ELBO(), adam())
    step.compiled = True
    with seeded(0):
        losses = [step(data()) for _ in range(3)]
    assert not graphs
    assert all(loss.isfinite() for loss in losses)


def test_a_graph_has_no_log1p_of_a_bernoulli(graphs):
    for likelihood in ("bernoulli", "gaussian"):
        vae = dense(likelihood=likelihood)
        step = Step(vae.model, vae.guide, Elbo(), adam(), compiled=True)
        with seeded(0), pyro.get_param_store().scope():
            for _ in range(2):
                step(data())
    of_bernoulli, of_gaussian = (graph.code.count("log1p.default") for graph in graphs)
    assert of_bernoulli == of_gaussian  # those of the guide
    assert "log_sigmoid" not in graphs[0].code  # nor what inductor makes one of
    assert "binary_cross_entropy" not in graphs[0].code
