import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from ppl_vae.data.encodings import Binarize
from ppl_vae.data.noise import Masking
from ppl_vae.data.observation import Observe
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError

SHAPE = (1, 6, 6)


def images(n=60):
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trained(seed=0, epochs=2, model="dense-vae", **kwargs):
    vae = build(TrainConfig(model=model, latent_size=2, hidden=(8,)), SHAPE)
    encode = Observe(Binarize(), Masking(0.5))
    history = fit(
        vae.model,
        vae.guide,
        images(),
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
    vae, history = trained(epochs=3, validation=images(20))
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
        if steps[0] == 1 + 4 + 4 + 2:  # the monitor's batch, an epoch of four, and into the third epoch
            x = x * float("nan")
        if steps[0] == 1 + 4 + 4 + 1:
            after.append(weights(vae))
        return (x.round(),)

    with pytest.raises(DivergedError, match=r"epoch 3, step 2: expected a finite loss; got nan") as error:
        fit(vae.model, vae.guide, images(), encode=poisoned, epochs=5, batch_size=16, show_progress=False)
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
    x = images() / 255

    def run(data=x, *args, **kwargs):
        fit(vae.model, vae.guide, data, *args, show_progress=False, **kwargs)

    with pytest.raises(ValueError, match="at least one datum"):
        run(x[:0])
    with pytest.raises(ValueError, match="expected 60 rows as in x; got 59"):
        run(x, x[1:])
    with pytest.raises(ValueError, match="epochs: expected a number above 0; got 0"):
        run(epochs=0)
    with pytest.raises(ValueError, match="learning_rate"):
        run(learning_rate=float("nan"))
    with pytest.raises(ValueError, match="DenseEncoder: expected"):
        run(torch.zeros(4, 3))

    def bare(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x)]), obs=x)

    def nothing(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)

    with pytest.raises(ValueError, match="param 'loc': expected a contiguous"):
        fit(bare, lambda x: None, torch.zeros(3), show_progress=False)
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
    eager, history = trained(compiled=False, validation=images(20))
    compiled, ours = trained(compiled=True, validation=images(20))
    again, _ = trained(compiled=True, validation=images(20))
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


class Scaled(nn.Module):
    """z ~ N(0, 1) and x ~ N(z, scale), with a guide whose scale is exp(log_scale)."""

    def __init__(self, scale=1.0, log_scale=0.0):
        super().__init__()
        self.scale, self.log_scale = scale, nn.Parameter(torch.tensor(log_scale))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        pyro.module("scaled", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, self.log_scale.exp()))


def test_a_loss_that_is_infinite_at_once_spares_the_epoch():
    steps = []
    pair = Scaled(scale=1e-30)
    with pytest.raises(DivergedError):
        fit(pair.model, pair.guide, torch.zeros(50), batch_size=5, show_progress=False, stop=lambda: steps.append(1))
    assert not steps
