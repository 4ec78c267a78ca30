import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import NanMaskedNormal
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from tiny import Scaled, tiny_images, tiny_vae
from torch import nn

from ppl_vae.data.encodings import Binarize
from ppl_vae.data.noise import Masking
from ppl_vae.data.observation import Observe
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError, Stopped
from ppl_vae.training.optimizers import OneOptimizer, adam

SHAPE = (1, 6, 6)


def trained(seed=0, epochs=2, model="dense-vae", **kwargs):
    hidden = None if model == "conv-ae" else (8,)
    vae = build(TrainConfig(model=model, latent_size=2, hidden=hidden), SHAPE)
    encode = Observe(Binarize(), Masking(0.5))
    history = fit(
        vae.model,
        vae.guide,
        tiny_images(),
        encode=encode,
        epochs=epochs,
        batch_size=16,
        seed=seed,
        show_progress=False,
        **kwargs,
    )
    return vae, history


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("model", ["dense-vae", "conv-vae", "conv-ae"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(model):
    first, history = trained(model=model)
    second, again = trained(model=model)
    other, _ = trained(model=model, seed=1)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))
    assert history["validation_elbo" if "validation_elbo" in history.rows[0] else "train_elbo"] == again["train_elbo"]


def test_the_history_splits_the_objective_for_training_and_held_out_data(tmp_path):
    vae, history = trained(epochs=3, validation=tiny_images(20))
    assert history["epoch"] == [1, 2, 3]
    for part in ("train", "validation"):
        for row in history.rows:
            assert row[f"{part}_elbo"] == pytest.approx(row[f"{part}_reconstruction"] - row[f"{part}_kl"], rel=1e-6)
    history.save(tmp_path / "history.csv")
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch,loss,train_elbo")
    assert len(history) == 3
    assert vae.training


def test_training_learns(ppca):
    """A linear VAE on linear-Gaussian data comes near the exact log p(x) of its own decoder, and improves on it."""
    _, x = ppca(D=6, L=2, N=400)
    vae = build(TrainConfig(model="dense-vae", latent_size=2, likelihood="gaussian:scale=0.5"), (1, 2, 3))
    x = x.reshape(-1, 1, 2, 3)
    before = log_likelihood(vae.model, vae.guide, x, num_samples=50).mean
    fit(vae.model, vae.guide, x, epochs=10, batch_size=20, learning_rate=3e-3, show_progress=False)
    after = log_likelihood(vae.model, vae.guide, x, num_samples=50).mean
    assert after > before + 5


def test_the_last_batch_is_shorter_and_all_data_are_used():
    seen: list[int] = []

    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x):
            pyro.module("count", self)
            if torch.is_grad_enabled():
                seen.extend(x.flatten().int().tolist())
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).expand([len(x)]), obs=x)

        def guide(self, x): ...

    count = Count()
    x = torch.arange(10.0)
    history = fit(count.model, count.guide, x, epochs=3, batch_size=4, show_progress=False, learning_rate=1e-9)
    orders = [seen[i : i + 10] for i in range(0, len(seen), 10)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len(set(map(tuple, orders))) == 3  # each epoch has an order of its own
    # the loss is per datum over all of them, and not a mean of batch means
    expected = -dist.Normal(0.0, 1.0).log_prob(x).mean().item()
    assert history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_turns_nan_stops_and_keeps_the_epoch_before():
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), SHAPE)
    after: list[torch.Tensor] = []
    steps = [0]

    def poisoned(batch, generator=None):
        x = batch / 255
        steps[0] += 1
        if steps[0] == 1 + 4 + 4 + 4 + 2:  # the monitor's batch, four that are checked, and two epochs of four
            x = x * float("nan")
        if steps[0] == 1 + 4 + 4 + 4 + 1:
            after.append(weights(vae))
        return (x.round(),)

    with pytest.raises(DivergedError, match=r"epoch 3, step 2: expected a finite loss; got nan") as error:
        fit(vae.model, vae.guide, tiny_images(), encode=poisoned, epochs=5, batch_size=16, show_progress=False)
    assert len(error.value.history) == 2
    assert torch.equal(weights(vae), after[0])


def test_dropout_is_on_in_training_and_off_for_the_history():
    modes = set()

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x):
            pyro.module("spy", self)
            modes.add((self.training, torch.is_grad_enabled()))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).expand([len(x)]), obs=x)

        def guide(self, x): ...

    spy = Spy().eval()
    fit(spy.model, spy.guide, torch.zeros(4), epochs=1, show_progress=False)
    assert modes == {(True, True), (False, False)}
    assert not spy.training


def test_what_cannot_be_trained_is_refused():
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), SHAPE)
    x = tiny_images() / 255

    def run(data=x, *args, **kwargs):
        fit(vae.model, vae.guide, data, *args, show_progress=False, **kwargs)

    with pytest.raises(ValueError, match="argument 0: expected 1 rows; got 0"):
        run(x[:0])
    with pytest.raises(ValueError, match="argument 1: expected 60 rows; got 59"):
        run(x, x[1:])
    with pytest.raises(ValueError, match=r"as the parameters; got torch\.float64 of numbers that it would round"):
        run(x.double() + 1e-12)
    with pytest.raises(ValueError, match="epochs: expected a number above 0; got 0"):
        run(epochs=0)
    with pytest.raises(ValueError, match="learning_rate"):
        run(learning_rate=float("nan"))
    with pytest.raises(ValueError, match="DenseEncoder: expected"):
        run(torch.zeros(4, 3))

    def nothing(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)

    with pytest.raises(ValueError, match="expected a program with parameters"):
        fit(nothing, lambda x: None, torch.zeros(3), show_progress=False)


def test_a_parameter_that_pyro_would_copy_is_refused():
    class Copied(nn.Module):
        def __init__(self):
            super().__init__()
            with seeded(0):
                self.net = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)

        def model(self, x):
            pyro.module("copied", self)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.net(x).sum((1, 2, 3)), 1.0), obs=torch.zeros(len(x)))

        def guide(self, x): ...

    copied = Copied()
    with pytest.raises(ValueError, match="expected a contiguous"):
        fit(copied.model, copied.guide, torch.ones(2, 2, 3, 3), show_progress=False)


def test_compiled_training_is_the_uncompiled_one_and_only_long_training_is_compiled(monkeypatch):
    compiles: list[int] = []

    def identity(graph, **kwargs):
        compiles.append(1)
        return graph

    monkeypatch.setattr(torch, "compile", identity)
    eager, history = trained(compiled=False, validation=tiny_images(20))
    compiled, ours = trained(compiled=True, validation=tiny_images(20))
    again, _ = trained(compiled=True, validation=tiny_images(20))
    assert len(compiles) == 2
    assert torch.equal(weights(compiled), weights(again))
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)
    for column in (c for c in history.rows[0] if c != "seconds"):
        assert ours[column] == pytest.approx(history[column], rel=1e-5)
    trained()
    assert len(compiles) == 2
    monkeypatch.setattr("ppl_vae.graphs.COMPILE_SECONDS", 1e-6)
    trained()
    assert len(compiles) == 3
    trained(elbo=TraceMeanField_ELBO())
    assert len(compiles) == 3


def test_a_loss_that_is_infinite_at_once_spares_the_epoch():
    steps = []
    pair = Scaled(scale=1e-30)
    with pytest.raises(DivergedError):
        fit(pair.model, pair.guide, torch.zeros(50), batch_size=5, show_progress=False, stop=lambda: steps.append(1))
    assert not steps


# --- checked before the first step


def two_numbers(x, **options):
    """Trains loc in x ~ N(loc, 1), which belongs to no module, and returns it: by a step of gradient descent at a rate
    r, loc goes to loc + r sum (x - loc)."""

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]), obs=x)

    history = fit(model, lambda x: None, x, show_progress=False, **{"optim": torch.optim.SGD} | options)
    return pyro.param("loc").item(), history


def plain(prior=None, likelihood=None, names=("z", "z"), plate=lambda x: pyro.plate("data", len(x))):
    """A pair of vectors x (data, 3), with a part of it replaced."""
    net = nn.Linear(3, 2)

    def model(x, *args):
        with plate(x):
            z = pyro.sample(names[0], dist.Normal(torch.zeros(2), 1.0).to_event(1))
            fn = (likelihood or (lambda z: dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3), 1.0)))(z)
            pyro.sample("x", fn.to_event(1), obs=x)
            for y in args:
                pyro.sample("y", dist.Bernoulli(logits=z[..., 0]), obs=y)

    def guide(x, *args):
        pyro.module("net", net)
        with plate(x):
            pyro.sample(names[1], dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


def masked(x):
    return poutine.mask(mask=x[:, 0] > 0)


def grey(z):
    return dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3))


@pytest.mark.parametrize(
    ("faulty", "args", "message"),
    [
        ({"names": ("z", "z_1")}, (), "site 'z': expected it in both model and guide; got it in the model alone"),
        ({"plate": lambda x: poutine.scale(scale=1.0)}, (), "site 'z': expected one data plate, at dim -1; got none"),
        ({"likelihood": grey}, (), "site 'x': expected values in {0, 1}; got 8 data outside, .* binarise x"),
        ({}, (torch.zeros(8, 1),), r"site 'y': expected observed values of shape \(data,\), .* got \(8, 1\)"),
    ],
    ids=["misspelt", "no-plate", "grey", "labels"],
)
def test_the_contract_is_checked_before_the_first_step_as_evaluation_does(faulty, args, message):
    with seeded(0):
        model, guide = plain(**faulty)
        x = torch.rand(8, 3)
    steps = []
    with pytest.raises(ValueError, match=message):
        fit(model, guide, x, *args, stop=lambda: steps.append(1), show_progress=False)
    assert not steps
    if not args:
        with pytest.raises(ValueError, match=message.replace("8 data", "[18] data")):
            log_likelihood(model, guide, x, num_samples=2)
    assert not check_model(model, guide, x, *args).ok


def test_a_mask_is_refused_and_a_missing_value_that_the_likelihood_scores_is_data():
    """The ELBO of x ~ N(0, 1) without latents is log p of what is there."""
    loc = nn.ParameterList([torch.zeros(2)])

    def model(x):
        pyro.module("loc", loc)
        with pyro.plate("data", len(x)):
            pyro.sample("x", NanMaskedNormal(0 * loc[0], torch.ones(2)).to_event(1), obs=x)

    def hidden(x):
        with masked(x):
            model(x)

    x = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    history = fit(model, lambda x: None, x, epochs=1, show_progress=False)
    exact = dist.Normal(0.0, 1.0).log_prob(torch.tensor([1.0, 2.0, 3.0])).sum() / 2
    assert history["train_elbo"][0] == pytest.approx(exact.item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"site 'x': expected a site without a mask; .* fn\.mask\(seen\)"):
        fit(hidden, lambda x: None, x, epochs=1, show_progress=False)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.seen: list[int] = []

    def model(self, x):
        if self.training:
            self.seen.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], 3]).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))


def test_a_last_batch_of_one_is_told_where_batchnorm_cannot_take_it_and_can_be_dropped():
    pair, x = Normalised(), torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    before = {name: t.clone() for name, t in pair.state_dict().items()}
    with pytest.raises(ValueError, match="the last batch: expected two data or more for BatchNorm; got 1"):
        fit(pair.model, pair.guide, x, batch_size=4, show_progress=False)
    assert all(torch.equal(t, before[name]) for name, t in pair.state_dict().items())
    pair.seen.clear()
    fit(pair.model, pair.guide, x, batch_size=4, epochs=2, drop_last=True, show_progress=False)
    assert pair.seen == [4, 4, 4, 4]
    assert pair.net[1].num_batches_tracked == 4
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), SHAPE)
    fit(vae.model, vae.guide, (tiny_images(5) / 255).round(), batch_size=4, epochs=1, show_progress=False)


# --- optimisers and objectives that are Pyro's or torch's

X = torch.tensor([1.0, 3.0])


@pytest.fixture
def store():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def test_bare_parameters_are_trained_in_the_store_that_was_there(store, tmp_path, graphs):
    assert two_numbers(X, learning_rate=0.1, epochs=1)[0] == pytest.approx(0.4)
    assert two_numbers(X, learning_rate=0.1, epochs=1)[0] == pytest.approx(0.4 + 0.1 * 2 * 1.6)  # from what is there
    other, loc = torch.tensor(5.0), pyro.param("loc").item()
    pyro.param("other", other)
    expected = [loc := loc + 0.1 * 2 * (2 - loc) for _ in range(5)][-1]
    for compiled in (False, True):
        pyro.param("loc").data.fill_(0.72)
        options = {"learning_rate": 0.1, "epochs": 5, "compiled": compiled}
        folder = Checkpoints(tmp_path / str(compiled))
        with pytest.raises(Stopped) as stopped:
            two_numbers(X, checkpoints=folder, stop=iter([0, 0, 1]).__next__, **options)
        assert len(stopped.value.history) == 2
        store.clear()
        pyro.param("other", other)
        assert two_numbers(X, checkpoints=folder, resume=True, **options)[0] == pytest.approx(expected)
        assert set(store.keys()) == {"loc", "other"}
    assert len(graphs) == 2


def test_a_parameter_with_a_constraint_is_trained(store):
    """x ~ N(0, s): the loss has the derivative n - sum (x / s)^2 in log s, -8 at s = 1."""

    class Constrained(PyroModule):
        def __init__(self):
            super().__init__()
            self.scale = PyroParam(torch.tensor(1.0), constraint=dist.constraints.positive)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(0 * x, self.scale), obs=x)

    model = Constrained()
    options = {"optim": torch.optim.SGD, "learning_rate": 0.1, "epochs": 1, "show_progress": False}
    fit(model, lambda x: None, X, **options)
    assert model.scale.item() == pytest.approx(math.exp(0.8))
    assert not store


def test_optimisers_of_torch_and_schedulers_of_pyro(store):
    assert two_numbers(X, learning_rate=1.0, clip_norm=0.5, epochs=1)[0] == pytest.approx(0.5)  # the gradient is -4
    with pytest.raises(ValueError, match=r"got an instance of SGD\. Give OneOptimizer\(torch\.optim\.SGD, lr=1e-3\)"):
        two_numbers(X, optim=torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=0.1))
    with pytest.raises(ValueError, match="clip_norm: expected it in the optimiser"):
        two_numbers(X, optim=adam(1e-3), clip_norm=1.0)
    store.clear()
    assert two_numbers(X, optim=OneOptimizer(torch.optim.SGD, lr=0.1), epochs=1)[0] == pytest.approx(0.4)
    sgd = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}}
    for scheduler in (
        pyro.optim.ExponentialLR({**sgd, "gamma": 0.5}),
        pyro.optim.ReduceLROnPlateau({**sgd, "factor": 0.5, "patience": 0, "threshold": 100.0}),
    ):
        store.clear()
        loc, _ = two_numbers(X, optim=scheduler, epochs=2)
        assert loc == pytest.approx(0.4 + 0.05 * 2 * 1.6)  # half the rate in the second epoch


def test_the_history_of_an_enumerated_model_is_of_its_own_bound(store):
    """x ~ 1/2 N(loc_0, 1) + 1/2 N(loc_1, 1), whose component TraceEnum_ELBO sums out: the bound is log p(x)."""

    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[y], 1.0), obs=x)

    x = torch.tensor([-2.0, -1.5, 3.0])
    history = fit(model, lambda x: None, x, elbo=TraceEnum_ELBO(max_plate_nesting=1), epochs=2, show_progress=False)
    components = dist.Normal(pyro.param("loc").detach(), 1.0)
    exact = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components).log_prob(x).mean().item()
    assert history["train_elbo"][-1] == pytest.approx(exact, rel=1e-6)
    assert "train_kl" not in history.rows[0]
    with pytest.raises(ValueError, match=r"site 'y': .* Train it by TraceEnum_ELBO"):
        fit(model, lambda x: None, x, show_progress=False)


def test_autocast_around_a_training_trains():
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), SHAPE)
        before = weights(vae)
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            history = fit(
                vae.model, vae.guide, (tiny_images() / 255).round(), epochs=5, batch_size=20, learning_rate=0.01,
                compiled=False, show_progress=False,
            )  # fmt: skip
        ends.append((weights(vae) - before, history["train_elbo"]))
    (moved, elbo), (in_bfloat16, elbo_again) = ends
    assert elbo[-1] > elbo[0] + 0.5
    assert torch.cosine_similarity(in_bfloat16, moved, 0) > 0.8  # Adam's small gradients have signs of their own
    assert elbo_again == pytest.approx(elbo, abs=0.5)


def test_each_batch_is_encoded_with_new_noise():
    vae, draws = tiny_vae(), []

    def encode(x, *, generator):
        draws.append(torch.rand((), generator=generator).item())
        return (x,)

    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    fit(vae.model, vae.guide, x, encode=encode, epochs=3, batch_size=4, show_progress=False)
    assert len(set(draws)) >= 9  # and those of what is monitored
