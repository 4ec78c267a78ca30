"""Graphs against the functions that were traced."""

import functools
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vae.graphs import Compiled, Graph, Graphs, Replay, repays
from ppl_vae.programs import seeded
from ppl_vae.system.places import Constants, kept


def test_arguments_of_distributions_are_checked_as_before(monkeypatch):
    """torch turns that off at the first compilation in a process, for good."""
    Distribution = torch.distributions.Distribution
    monkeypatch.setattr(torch, "compile", lambda graph, **_: Distribution.set_default_validate_args(False) or graph)
    Replay(lambda x: (x + 1,), torch.ones(2))
    with pytest.raises(ValueError, match="loc"):
        dist.Normal(torch.tensor(torch.nan), 1.0)


def test_repays_is_monotone_in_steps_and_in_operations():
    table = torch.tensor([[repays(n, f) for f in (0, 10**6, 10**9, 10**12)] for n in (0, 10, 10**3, 10**5)]).int()
    assert (table.diff(dim=0) >= 0).all()
    assert (table.diff(dim=1) >= 0).all()
    assert table[0].sum() == 0
    assert table[-1].sum() == 4


def test_a_replay_is_the_function_and_holds_each_tensor_once(graphs):
    a = torch.tensor([1.0, 2.0])

    def function(x):
        c = torch.tensor(1.0)
        c += 1
        a.add_(1)
        return ((a + a) * x * c,)

    replay = Replay(function, torch.ones(2))
    assert replay.first[0].tolist() == [8.0, 12.0]
    assert sum(t is a for t in replay.constants) == 1
    assert replay(torch.full((2,), 2.0))[0].tolist() == [24.0, 32.0]
    assert replay(torch.ones(2))[0].tolist() == [16.0, 20.0]
    assert a.tolist() == [4.0, 5.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_graphs_bernoulli_is_exact_to_rounding_wherever_a_decoder_goes(dtype, graphs):
    logits = torch.tensor([-200.0, -40.0, -17.0, -1.0, -1e-4, 0.0, 1e-4, 1.0, 17.0, 40.0, 200.0], dtype=dtype)
    for x in (torch.zeros_like(logits), torch.ones_like(logits), torch.full_like(logits, 0.3)):

        def losses(logits, x=x):
            plain = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
            weighted = nn.functional.binary_cross_entropy_with_logits(logits, x, weight=x, reduction="none")
            return plain, weighted

        for graph, exact in zip(Replay(losses, logits)(logits), losses(logits.double(), x.double()), strict=True):
            assert (graph - exact).abs().le(torch.finfo(dtype).eps * (1 + logits.abs())).all()


def counted(calls):
    def function(x, *, power=1):
        calls.append(power)
        return (x**power + torch.rand(x.shape),)

    return function


def test_a_compiled_function_is_traced_at_its_second_call_and_another_shape_later(graphs, monkeypatch):
    monkeypatch.setattr("ppl_vae.graphs.CALLS_BEFORE_ANOTHER_SHAPE", 3)
    calls = []
    compiled, eager = Compiled(counted(calls)), counted([])
    for arguments, num_graphs, num_calls in [
        ((2, 1), (0, 1, 1, 1), (1, 2, 2, 2)),
        ((3, 1), (1, 1, 1, 2, 2), (3, 4, 5, 6, 6)),  # three times as it is, then traced
        ((2, 2), (2, 2, 2, 3), (7, 8, 9, 10)),
        ((2, 1), (3,), (10,)),
    ]:
        for graphs_by_then, calls_by_then in zip(num_graphs, num_calls, strict=True):
            x, power = torch.full((arguments[0],), 2.0), arguments[1]
            with seeded(calls_by_then):
                ours = compiled(x, power=power)
            with seeded(calls_by_then):
                torch.testing.assert_close(ours, eager(x, power=power))
            assert (len(graphs), len(calls)) == (graphs_by_then, calls_by_then)


def test_a_function_that_branches_on_values_warns_once_and_takes_no_noise_twice():
    def function(x):
        noise = torch.rand(2)
        return (x + noise if x.sum() > 0 else x - noise,)

    compiled = Compiled(function)
    with seeded(0), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = [compiled(torch.ones(2))[0] for _ in range(4)]
    with seeded(0):
        assert all(torch.equal(y, function(torch.ones(2))[0]) for y in ours)
    (warning,) = caught
    assert str(warning.message).startswith("not compiled, the results are the same but slower: ")
    assert "\n" not in str(warning.message)
    assert warning.filename == __file__


def test_a_graph_that_is_no_longer_valid_is_traced_again_and_what_tracing_changed_is_written_back():
    valid, state, log = [True], torch.zeros(2), []

    def trace():
        log.append("trace")
        return Graph("traced", lambda: "replayed", lambda: valid[0])

    def broken():
        state.add_(1)
        raise RuntimeError("no graph")

    graphs = Graphs()
    results = [graphs.call("a", (), lambda: "eager", trace) for _ in range(3)]
    assert results == ["eager", "traced", "replayed"]
    valid[0] = False
    assert graphs.call("a", (), lambda: "eager", trace, is_ready=lambda: False) == "eager"
    valid[0] = True
    assert graphs.call("a", (), lambda: "eager", trace) == "traced"
    assert not graphs.failed
    only = Graphs(only_one=True)
    assert only.call("a", (), lambda: "eager", trace) == "traced"
    assert only.call("b", (), lambda: "eager", trace) == "eager"
    keep = functools.partial(kept, [state])
    with pytest.warns(RuntimeWarning, match="not compiled, .*: RuntimeError: no graph"):
        assert Graphs(only_one=True).call("a", (), lambda: state.clone(), broken, keep=keep).tolist() == [0, 0]


def test_a_number_that_changes_in_python_is_not_frozen():
    class Scaled:
        factor = 2.0

        def __call__(self, x):
            return (x * self.factor,)

    scaled, x = Scaled(), torch.arange(3.0)
    scaled.factor = 2.0
    compiled = Compiled(scaled, Constants(scaled))
    for _ in range(3):
        assert torch.equal(compiled(x)[0], 2 * x)
    scaled.factor = 5.0
    with pytest.warns(RuntimeWarning, match="not compiled, .*factor' changed from 2.0 to 5.0"):
        assert torch.equal(compiled(x)[0], 5 * x)
