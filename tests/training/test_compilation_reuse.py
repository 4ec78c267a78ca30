"""Which calls a graph is replayed for: never for what it was not traced for."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiling import Regularised, data, dense
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from ppl_vae.graphs import CALLS_BEFORE_ANOTHER_SHAPE, Graphs
from ppl_vae.models import VAE
from ppl_vae.objectives import Elbo
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import OneOptimizer, adam


def test_a_tensor_that_is_changed_in_place_is_seen(graphs):
    pair, elbo, x = Regularised().eval(), CompiledTrace_ELBO(), data()
    pair.guide = lambda x: Regularised.guide(pair, x)
    for step in range(5):
        if step == 3:
            pair.shift.fill_(2.0)
        with seeded(step):
            loss = elbo.loss_and_grads(pair.model, pair.guide, x)
        with seeded(step):
            assert loss.item() == pytest.approx(Elbo().loss_and_grads(pair.model, pair.guide, x), rel=1e-5)
    assert graphs


def freeze(pair):
    pair.encoder.requires_grad_(False)


def unfreeze(pair):
    pair.encoder.requires_grad_(True)


def replace_buffer(pair):
    pair.prior.zeros = torch.full((2,), 3.0)


def in_bfloat16(pair):
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("change", [freeze, unfreeze, replace_buffer, in_bfloat16, lambda _: torch.no_grad()],
                         ids=["freeze", "unfreeze", "buffer", "autocast", "no-grad"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.* was not registered in the param store because requires_grad=False")
def test_a_graph_is_not_used_for_what_it_was_not_traced_for(change, graphs):
    results = []
    for elbo in (Elbo(), CompiledTrace_ELBO()):
        pair, x = dense(), data()
        if change is unfreeze:
            freeze(pair)
        with seeded(1), pyro.get_param_store().scope():
            for step in range(5):
                with (step == 4 and change(pair)) or nullcontext():
                    for p in pair.parameters():
                        p.grad = None
                    loss = elbo.loss_and_grads(pair.model, pair.guide, x)
        results.append([torch.as_tensor(loss), *(p.grad for p in pair.parameters())])
    assert graphs
    torch.testing.assert_close(*results)


def test_another_guide_of_the_same_model_has_a_graph_of_its_own(graphs):
    pair, x, compiled = dense(), data(), CompiledTrace_ELBO()

    def wide(x):
        pyro.module("vae", pair)
        with pyro.plate("data", len(x)):
            q = pair.encode(x)
            pyro.sample("z", dist.Normal(q.mean, 3 * q.stddev).to_event(1))

    with pyro.get_param_store().scope():
        for guide in (pair.guide, pair.guide, pair.guide, wide):
            ours, eager = (float(seeded_loss(elbo, pair.model, guide, x)) for elbo in (compiled, Elbo()))
            assert ours == pytest.approx(eager, rel=1e-5)
    assert graphs


def seeded_loss(elbo, *arguments):
    with seeded(0):
        return elbo.loss_and_grads(*arguments)


@pytest.mark.parametrize("own", [False, True], ids=["twice", "of-the-module"])
def test_an_argument_is_an_input_of_its_own_though_the_same_tensor_is_elsewhere(own, graphs):
    """Traced with one tensor for x and for what the guide sees, or for x and a buffer, and replayed with two."""
    pair, elbo = dense(), CompiledTrace_ELBO()
    x, given = data(), data().flip(0)
    pair.register_buffer("template", x.clone())

    def guide(x, given=None):
        VAE.guide(pair, x, pair.template if own else given)

    calls = [(pair.template,)] * 3 + [(given,)] if own else [(x, x)] * 3 + [(x, given)]
    for step, batch in enumerate(calls):
        with seeded(step):
            loss = elbo.loss_and_grads(pair.model, guide, *batch)
        with seeded(step):
            assert loss.item() == pytest.approx(Elbo().loss_and_grads(pair.model, guide, *batch), rel=1e-5)
    assert graphs


def test_a_shorter_batch_another_mode_and_another_dtype_have_their_own_graphs(graphs, monkeypatch):
    monkeypatch.setattr("ppl_vae.graphs.CALLS_BEFORE_ANOTHER_SHAPE", 2)
    pair, elbo = Regularised(), CompiledTrace_ELBO()
    for step in range(20):
        pair.train(step % 3 != 0)
        pair.encode.train(pair.training)
        x = data(6 if step % 2 else 4)
        x = x if step % 4 < 2 else x.int().float()
        state = {k: v.clone() for k, v in pair.state_dict().items()}
        with seeded(step):
            loss = elbo.loss_and_grads(pair.model, pair.guide, x)
        after = {k: v.clone() for k, v in pair.state_dict().items()}
        pair.load_state_dict(state)
        with seeded(step):
            expected = Elbo().loss_and_grads(pair.model, pair.guide, x)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(after, pair.state_dict())
    assert len(graphs) == 4
    assert CALLS_BEFORE_ANOTHER_SHAPE == 200


def test_arguments_that_are_no_tensors_and_parameters_that_appear_later(graphs):
    """x ~ N(a + scale b, 1), with b if told so."""

    def model(x, *, scale=1, more=None):
        loc = pyro.param("a", torch.tensor(0.5))
        if more:
            loc = loc + scale * more["of"].mean() * pyro.param("b", lambda: torch.randn(()).exp().clamp(0.3, 0.4))
        if scale is True:
            loc = loc + 10
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    calls = [{}, {}, {}, *[{"more": {"of": torch.ones(2)}}, {}, {"scale": 2}, {"scale": True}, {"scale": 1}] * 3]
    runs = []
    for compiled in (False, True):
        with seeded(0), pyro.get_param_store().scope(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("ppl_vae.graphs.CALLS_BEFORE_ANOTHER_SHAPE", 1)
            elbo = CompiledTrace_ELBO() if compiled else Trace_ELBO()
            svi = SVI(model, lambda x, **kwargs: None, OneOptimizer(torch.optim.SGD, lr=0.01), loss=elbo)
            runs.append([svi.step(torch.arange(3.0), **kwargs) for kwargs in calls])
            runs[-1] += [pyro.param(name).item() for name in "ab"]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert len(graphs) == 5


def test_bare_params_with_constraints_and_a_param_store_that_is_cleared(graphs):
    def model(x):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale), obs=x)

    def guide(x): ...

    runs = []
    for elbo in (Trace_ELBO(), CompiledTrace_ELBO()):
        runs.append([])
        for _ in range(2):
            pyro.clear_param_store()
            svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.05}), loss=elbo)
            runs[-1] += [svi.step(torch.arange(4.0)) for _ in range(5)]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[1][5:] == pytest.approx(runs[1][:5], rel=1e-6)
    assert graphs


def test_scales_around_programs_are_in_the_graph(graphs):
    pair = dense()
    elbo, scaled = CompiledTrace_ELBO(), [poutine.scale(program, 0.5) for program in (pair.model, pair.guide)]
    for step in range(4):
        with seeded(step):
            loss = elbo.loss_and_grads(*scaled, data())
        with seeded(step):
            assert loss.item() == pytest.approx(0.5 * Elbo().loss(pair.model, pair.guide, data()), rel=1e-5)


class Counted(nn.Module):
    """x ~ N(loc, 1), scaled by a number that the program counts up in Python: an attribute, a captured one, an item of
    a list or a tensor that takes another's place."""

    def __init__(self, where):
        super().__init__()
        self.loc, self.where, self.t, self.counts = nn.Parameter(torch.zeros(())), where, 0, [0]
        self.tensor = torch.zeros(())
        t = 0

        def closure():
            nonlocal t
            t += 1
            return t

        self.closure = closure

    def count(self):
        if self.where == "attribute":
            self.t += 1
        elif self.where == "item":
            self.counts[0] += 1
        elif self.where == "tensor":
            self.tensor = self.tensor + 1
            return self.tensor
        else:
            return self.closure()
        return self.t + self.counts[0]

    def model(self, x):
        pyro.module("counted", self)
        with pyro.plate("data", len(x)), poutine.scale(scale=torch.as_tensor(self.count() / 4).clamp(max=1.0)):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    def guide(self, x): ...


@pytest.mark.parametrize("where", ["attribute", "item", "closure", "tensor"])
@pytest.mark.parametrize("in_step", [True, False])
def test_a_number_that_the_program_changes_is_no_constant_of_a_graph(in_step, where, graphs):
    """The loss is min(1, t / 4) times -log p(x), of one datum at its mean: log(2 pi) / 2."""
    pair, x = Counted(where), torch.zeros(1)
    expected = [min(1.0, t / 4) * 0.9189385 for t in range(1, 7)]
    step = Step(pair.model, pair.guide, Elbo(), adam(0.0), compiled=True)
    elbo = CompiledTrace_ELBO()
    call = step if in_step else lambda x: elbo.loss_and_grads(pair.model, pair.guide, x)
    with pyro.get_param_store().scope(), pytest.warns(RuntimeWarning) as caught:
        losses = [call(x).item() for _ in range(6)]
    assert losses == pytest.approx(expected, rel=1e-6)
    (warning,) = [str(w.message) for w in caught if "not compiled" in str(w.message)]
    how = "changed from 1 to 2"
    found = {"attribute": f"t' {how}", "item": f"counts.0' {how}", "closure": f"closure.t' {how}"}
    found["tensor"] = "tensor' became another tensor"
    assert f"{found[where]}, of which a trace makes a constant: make it a buffer" in warning


def test_a_full_batch_is_traced_though_the_second_is_shorter(graphs):
    pair, x = dense(), data()
    with seeded(0), pyro.get_param_store().scope():
        step = Step(pair.model, pair.guide, Elbo(), adam(1e-3), compiled=True)
        for batch, num_graphs in ((x, 0), (x[:3], 0), (x, 1), (x[:3], 1), (x, 1)):
            step(batch)
            assert len(graphs) == num_graphs


def test_a_failed_trace_restores_every_generator(monkeypatch):
    states = [torch.zeros(1)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [t.clone() for t in states])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda new: states.__setitem__(slice(None), new))

    def trace():
        states[0] += 1  # noise of the device
        torch.rand(3)
        raise RuntimeError("no graph")

    with seeded(0):
        first = torch.random.get_rng_state()
        with pytest.warns(RuntimeWarning, match="no graph"):
            Graphs(only_one=True).call("a", (), lambda: None, trace)
        assert torch.equal(torch.random.get_rng_state(), first)
    assert states[0].item() == 0
