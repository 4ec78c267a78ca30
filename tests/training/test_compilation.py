"""Compiled steps against the same steps run as they are, on the same noise.

Most tests run the traced graph itself, without inductor, by `graphs`; those that compile say so by name.
"""

import pickle
import warnings
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ppl_vae.components import choices, create
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.graphs import CALLS_BEFORE_ANOTHER_SHAPE, Replay, repays
from ppl_vae.kl_weights import KLWeight, LinearWarmUp
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import VAE, Autoencoder
from ppl_vae.networks import DenseDecoder, DenseEncoder
from ppl_vae.objectives import DoublyReparameterized, Elbo, Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import OneOptimizer, adam, adam_of, cosine

SHAPE = (1, 4, 4)
OBJECTIVES = [*choices(Objective)]


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are traced, in order; they run as they are, without inductor."""
    traced = []

    def compile(graph, **kwargs):
        traced.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", compile)
    return traced


@pytest.fixture
def compiled_graphs(monkeypatch):
    """The graphs that inductor compiles, in order."""
    traced, compile = [], torch.compile

    def spied(graph, **kwargs):
        traced.append(graph)
        return compile(graph, **kwargs)

    monkeypatch.setattr(torch, "compile", spied)
    return traced


@pytest.fixture(autouse=True)
def own_store():
    config = torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()
    with pyro.get_param_store().scope():
        yield
    assert (torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()) == config


def dense(prior="standard-normal", posterior="diagonal-normal", likelihood="bernoulli", seed=0):
    with seeded(seed):
        p_x = create(Likelihood, likelihood)
        q = create(Posterior, posterior, latent_size=2)
        encoder, decoder = DenseEncoder(SHAPE, q.num_params, (8,)), DenseDecoder(2, SHAPE, p_x.params_per_dim, (8,))
        p = create(Prior, prior, latent_size=2, encoder=encoder, posterior=q, event_shape=SHAPE)
        return VAE(encoder, decoder, prior=p, likelihood=p_x, posterior=q)


def data(n=6, likelihood="bernoulli"):
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    support = choices(Likelihood)[likelihood].support
    if support is dist.constraints.boolean:
        return x.round()
    return (x * 10).round() if support.is_discrete else 0.9 * x + 0.05


def losses_and_gradients(pair, x, objective, steps, compiled):
    """Of successive calls on the noise of one seed, with the state that they leave."""
    loss = CompiledTrace_ELBO(objective) if compiled else objective
    out = []
    with seeded(1):
        for _ in range(steps):
            for p in pair.parameters():
                p.grad = None
            out.append([torch.as_tensor(loss.loss_and_grads(pair.model, pair.guide, x))])
            out[-1] += [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in pair.parameters()]
        out.append([*pair.buffers(), torch.rand(())])  # as much noise was drawn
    return out


def assert_same(graphs, make, x, objective=Elbo, steps=4):
    graphs.clear()
    runs = []
    for compiled in (False, True):
        with pyro.get_param_store().scope():
            runs.append(losses_and_gradients(make(), x, objective(), steps, compiled))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
    return runs[1]


# --- the same loss and gradients


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", ["dense-vae", "conv-vae"])
def test_every_objective(model, objective, graphs):
    make = lambda: build(TrainConfig(model=model, latent_size=2, hidden=(8,)), (1, 8, 8))  # noqa: E731
    run = assert_same(graphs, make, torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round(),
                      choices(Objective)[objective], steps=3)  # fmt: skip
    assert not torch.equal(run[1][0], run[2][0])  # fresh noise


@pytest.mark.parametrize("prior", [*choices(Prior)])
def test_every_prior(prior, graphs):
    sized = {"vamp-prior": "vamp-prior:num_components=3"}.get(prior, prior)
    assert_same(graphs, lambda: dense(prior=sized), data(), steps=3)


@pytest.mark.parametrize("posterior", [*choices(Posterior)])
def test_every_posterior(posterior, graphs):
    assert_same(graphs, lambda: dense(posterior=posterior), data(), steps=3)


@pytest.mark.parametrize("likelihood", [*choices(Likelihood)])
def test_every_likelihood(likelihood, graphs):
    assert_same(graphs, lambda: dense(likelihood=likelihood), data(likelihood=likelihood), steps=3)


@pytest.mark.parametrize("objective", ["elbo", "analytic-kl", "free-bits"])
def test_an_autoencoder_has_no_latent(objective, graphs):
    def make():
        with seeded(0):
            p_x = create(Likelihood, "gaussian")
            return Autoencoder(DenseEncoder(SHAPE, 2, (8,)), DenseDecoder(2, SHAPE, 1, (8,)), likelihood=p_x)

    assert_same(graphs, make, data(), choices(Objective)[objective])


@pytest.mark.parametrize("weight", [*choices(KLWeight)])
def test_every_kl_weight_goes_on_in_a_graph(weight, graphs):
    weights = []

    def objective():
        weights.append(create(KLWeight, weight))
        return Elbo().weighted(weights[-1])

    assert_same(graphs, dense, data(), objective)
    assert [w.step.item() for w in weights] == [4, 4]


class Regularised(nn.Module):
    """A tutorial's pair, with dropout, BatchNorm, a module of its own name for each program, and constants."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.encode = nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
            self.decode = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 16))
        self.shift = torch.zeros(16)  # in no state, and changed in place

    def model(self, x):
        pyro.module("decoder", self.decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), torch.tensor(1.0)).to_event(1))
            logits = torch.tensor(0.5) * self.decode(z) + self.shift
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        pyro.module("encoder", self.encode)
        with pyro.plate("data", len(x)):
            mean, s = self.encode(x.flatten(1) + 0.1 * torch.randn(len(x), 16)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, s.exp()).to_event(1))


def test_batch_norm_dropout_constants_and_noise_of_the_programs_own(graphs):
    runs = assert_same(graphs, Regularised, data())
    assert not torch.equal(runs[2][0], runs[3][0])
    assert any(t.dtype == torch.int64 and t.item() == 4 for t in runs[-1])  # num_batches_tracked


def test_a_discrete_latent_has_the_gradient_of_the_score_function(graphs):
    class Discrete(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit, self.loc = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor([0.0, 1.0]))

        def model(self, x):
            pyro.module("discrete", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
                pyro.sample("x", dist.Normal(self.loc[0] + self.loc[1] * z, 1.0), obs=x)

        def guide(self, x):
            pyro.module("discrete", self)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.logit.expand(len(x))))

    assert_same(graphs, Discrete, torch.arange(5.0))


def test_the_mean_of_replays_is_the_elbo(graphs):
    """Of x = 1 under z ~ N(0, 1), x ~ N(z, 1), q = N(0, 1): log p(x|z) has mean -(1 + 1)/2 - log(2 pi)/2."""
    loc = nn.Parameter(torch.zeros(()))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", loc).expand(len(x)), 1.0))

    elbo = CompiledTrace_ELBO()
    with seeded(0):
        losses = torch.stack([elbo.loss_and_grads(model, guide, torch.ones(1)) for _ in range(2000)])
    assert graphs
    standard_error = losses.std() / 2000**0.5
    assert abs(losses.mean() - (1 + 0.5 * torch.tensor(2 * torch.pi).log())) < 4 * standard_error


# --- what a graph may not hold on to


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


def test_arguments_of_distributions_are_checked_as_before(monkeypatch):
    """torch turns that off at the first compilation in a process, for good."""
    Distribution = torch.distributions.Distribution
    monkeypatch.setattr(torch, "compile", lambda graph, **_: Distribution.set_default_validate_args(False) or graph)
    Replay(lambda x: (x + 1,), torch.ones(2))
    with pytest.raises(ValueError, match="loc"):
        dist.Normal(torch.tensor(torch.nan), 1.0)


def test_a_parameter_of_two_modules_is_one(graphs):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            with seeded(0):
                self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def model(self, x):
            pyro.module("a", self.a)
            pyro.module("b", self.b)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.b(self.a(x)), 1.0).to_event(1), obs=x)

        def guide(self, x): ...

    assert_same(graphs, Tied, torch.ones(3, 2))
    assert_same_steps(Tied, torch.ones(3, 2), lambda: adam(0.01))


class Strided(nn.Module):
    """Two parameters whose gradients are views of one, transposed and expanded; one that is fixed, one unused."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2, 3))
        self.fixed, self.unused = nn.Parameter(torch.ones(2, 3), requires_grad=False), nn.Parameter(torch.ones(3))
        self.register_buffer("k", torch.arange(6.0).reshape(2, 3))
        self.eval()  # in training mode pyro.module warns of what is fixed

    def model(self, x):
        pyro.module("strided", self)
        with pyro.plate("data", len(x)):
            loc = ((self.a.T + self.b) * self.k).sum() + (self.a.T + self.b + self.fixed).sum()
            pyro.sample("x", dist.Normal(loc, 10.0), obs=x)

    def guide(self, x): ...


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


# --- Step


def assert_same_steps(make, x, optim, steps=12, switch=None, **tolerance):
    """Both runs' weights, buffers, losses and state of the optimiser; the compiled run ends uncompiled at `switch`."""
    ends = []
    for compiled in (False, True):
        pair, opt = make(), optim()
        with seeded(1), pyro.get_param_store().scope(), pyro.validation_enabled(False):
            step = Step(pair.model, pair.guide, Elbo(), opt, compiled=compiled)
            losses = []
            for i in range(steps):
                if i == switch:
                    step.compiled = False
                losses.append(step(x))
            assert all(p.grad is None for p in pair.parameters())
            end = [*losses, *pair.parameters(), *pair.buffers(), torch.rand(())]
            if isinstance(opt, OneOptimizer):
                state = opt.get_state()
                end += [torch.tensor(state["num_steps"]), torch.tensor([g["lr"] for g in opt.optimizer.param_groups])]
                moments = [s for _, s in sorted(state["optimizer"]["state"].items())]
                end += [t for s in moments for _, t in sorted(s.items()) if t is not None]
            ends.append([t.detach() for t in end])
    torch.testing.assert_close(ends[1], ends[0], **(tolerance or {"rtol": 1e-4, "atol": 1e-5}))


ADAMS = {
    "adam": lambda: adam(1e-2),
    "adamw": lambda: adam(1e-2, weight_decay=0.1),
    "decoupled": lambda: OneOptimizer(
        torch.optim.Adam, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "coupled": lambda: OneOptimizer(torch.optim.Adam, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6),
    "clipped": lambda: adam(1e-2, clip_norm=0.5),
    "schedule": lambda: adam(1e-2, schedule=cosine(12, warm_up=3), clip_norm=0.5, weight_decay=0.1),
}  # fmt: skip


@pytest.mark.parametrize("optim", ADAMS.values(), ids=ADAMS)
def test_adam_in_the_graph_follows_torchs(optim, graphs):
    assert_same_steps(dense, data(), optim)
    (graph,) = graphs
    assert "lerp" in graph.code  # Adam's step
    assert_same_steps(dense, data(), optim, switch=6)


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

    optim = lambda lr=1e-2: adam(lr, schedule=cosine(20, warm_up=5), clip_norm=0.5)  # noqa: E731
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


# --- other shapes, modes and stores


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


# --- where there is no graph


class Branches(Regularised):
    """Reads a buffer as a number, after BatchNorm has counted and noise was drawn."""

    how = "item"

    def __init__(self):
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def model(self, x):
        super().model(x)
        if self.how == "item":
            pyro.factor("f", torch.tensor(self.n.item()))
            self.n.add_(1)
        elif self.how == "branch":
            self.n.add_(1)
            pyro.factor("f", torch.tensor(1.0 if self.n > 2 else 7.0))


@pytest.mark.parametrize("how", ["item", "branch", "compiler"])
def test_without_a_graph_it_says_so_once_and_goes_on_as_if_it_had_not_been_tried(how, monkeypatch):
    def compile(graph, **kwargs):
        def call(*args):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", compile)

    class Pair(Branches):
        pass

    Pair.how = how
    objective = lambda: Elbo().weighted(LinearWarmUp(10))  # noqa: E731
    ends = []
    for kind in (Step, SVI):
        for compiled in (False, True):
            pair, optim, elbo = Pair(), adam(1e-2, schedule=cosine(10), clip_norm=1.0), objective()
            with seeded(1), pyro.get_param_store().scope(), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if kind is Step:
                    step = Step(pair.model, pair.guide, elbo, optim, compiled=compiled)
                else:
                    step = SVI(pair.model, pair.guide, optim, loss=CompiledTrace_ELBO(elbo) if compiled else elbo).step
                losses = [float(step(data())) for _ in range(6)]
                end = [torch.tensor(losses), *pair.parameters(), *pair.buffers(), elbo.kl_weight.step, torch.rand(())]
                state = optim.get_state()
                end += [t for s in state["optimizer"]["state"].values() for t in s.values()]
                ends.append([t.detach().clone() for t in [*end, torch.tensor(state["num_steps"])]])
            ours = [str(w.message) for w in caught if "not compiled" in str(w.message)]
            assert len(ours) == compiled
            if compiled:
                assert ours[0].startswith("not compiled, the results are the same but slower: RuntimeError: ")
        if how == "compiler":  # its second step is the trace's, which rounds apart
            torch.testing.assert_close(ends[-1], ends[-2], rtol=1e-5, atol=1e-6)
        else:
            assert all(torch.equal(a, b) for a, b in zip(ends[-1], ends[-2], strict=True))


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


# --- compiled for real


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


def test_a_graph_has_no_log1p_of_a_bernoulli(graphs):
    vae = dense()
    step = Step(vae.model, vae.guide, Elbo(), adam(), compiled=True)
    with seeded(0):
        for _ in range(2):
            step(data())
    (graph,) = graphs
    assert "log1p" not in graph.code
