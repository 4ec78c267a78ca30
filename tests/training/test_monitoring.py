"""What training reports of a loss that is not finite, and of a posterior that collapses."""

import dataclasses
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiling import Regularised, data
from tiny import Scaled, tiny_images
from torch import nn

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError
from ppl_vae.training.monitoring import blame, elbo_parts, first_nonfinite, warn_of_end
from ppl_vae.training.optimizers import OneOptimizer, adam

SHAPE = (1, 6, 6)


def scaled(**kwargs):
    return lambda: Scaled(**kwargs)


LARGE = 1000 * torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
SMALL_STEPS = {"learning_rate": 1e-3}


class Exponential(nn.Module):
    """A VAE of vectors whose encoder has a plain exp, which overflows on data out of scale."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


CASES = {
    "a likelihood without scale": (
        (scaled(scale=1e-30), torch.zeros(20), {}),
        r"epoch 1, step 1: .* site 'x' of the model: a log-prob with -inf, of Normal with a scale of 1e-30. Try a "
        "larger scale of the likelihood, now 1e-30. The weights are those after epoch 0",
        (scaled(scale=1e-2), torch.zeros(20), {}),
    ),
    "a guide without scale": (
        (scaled(log_scale=-200.0), torch.zeros(20), {}),
        "site 'z' of the guide: a log-prob with .*, of Normal with a scale of 0. Try a larger scale of the guide,",
        (scaled(log_scale=-4.0), torch.zeros(20), {}),
    ),
    "steps": (
        (scaled(), torch.zeros(20), {"learning_rate": 1e30}),
        "all was finite before this epoch, and now site 'z' of the guide: .* Try a smaller learning rate than 1e",
        (scaled(), torch.zeros(20), SMALL_STEPS),
    ),
    "data out of scale": (
        (Exponential, LARGE, {}),
        r"Try standardised data, .*by dimension .--standardize.: x has a standard deviation of 1,[0-9]00\.",
        (Exponential, (LARGE - LARGE.mean(0)) / LARGE.std(0), {}),
    ),
    "data far from 0": (
        (Exponential, LARGE / 1000 + 2000, {}),
        r"Try standardised data, .*: x has a mean of 2,000\.",
        (Exponential, (LARGE - LARGE.mean(0)) / LARGE.std(0), {}),
    ),
}


@pytest.mark.filterwarnings("ignore:.*posterior collapse")
@pytest.mark.parametrize("case", CASES)
def test_the_first_bad_site_is_named_and_what_to_try_helps(case):
    failing, message, helped = CASES[case]

    def run(pair, x, options):
        pair = pair()
        return fit(pair.model, pair.guide, x, show_progress=False, **{"epochs": 2, "batch_size": 10} | options)

    with pytest.raises(DivergedError, match=message) as error:
        run(*failing)
    assert "\n" not in str(error.value)
    assert all(map(math.isfinite, run(*helped)["train_elbo"]))


def test_data_outside_of_the_support_are_told_apart():
    class Rate(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_rate = nn.Parameter(torch.tensor(1.0))

        def model(self, x):
            pyro.module("rate", self)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Beta(self.log_rate.exp(), 1.0, validate_args=False).expand([len(x)]), obs=x)

        def guide(self, x): ...

    pair = Rate()
    found = first_nonfinite(pair.model, pair.guide, torch.tensor([0.5, -1.0]))
    assert found is not None
    assert found.remedy == "data in the support of the likelihood"
    assert first_nonfinite(pair.model, pair.guide, torch.tensor([0.5, 0.2])) is None


def test_a_collapsed_posterior_is_told():
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), SHAPE)
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p.zero_()  # q(z|x) is the prior
    with pytest.warns(RuntimeWarning, match="posterior collapse: .* KL of .* nats a datum"):
        fit(
            vae.model,
            vae.guide,
            (tiny_images() / 255).round(),
            epochs=1,
            learning_rate=1e-4,
            show_progress=False,
        )


def test_of_data_that_are_too_small_to_be_seen_it_is_told_and_what_is_advised_helps():
    z, noise = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(0))
    x = z[:, :1] + 0.1 * noise  # one latent tells of all six

    def run(x):
        pair = Exponential()
        return fit(pair.model, pair.guide, x, epochs=80, learning_rate=0.03, show_progress=False)

    with pytest.warns(RuntimeWarning, match=r"posterior collapse: .* Try standardised data, .* deviation of 0\.0009"):
        run(x / 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run((x - x.mean(0)) / x.std(0))["train_kl"][-1] > 0.1


def test_the_learning_rate_to_try_is_below_the_optimisers():
    pair = Scaled()
    with pytest.raises(DivergedError, match=r"Try a smaller learning rate than 1e\+20\. "):
        fit(pair.model, pair.guide, torch.zeros(20), batch_size=10, optim=adam(1e20), show_progress=False)
    optim = pyro.optim.Adam(lambda name: {"lr": 1e20})
    with pytest.raises(DivergedError, match=r"Try a smaller learning rate\. "):
        fit(pair.model, pair.guide, torch.zeros(20), batch_size=10, optim=optim, show_progress=False)


@pytest.mark.filterwarnings("ignore:.*posterior collapse")
def test_a_value_error_after_the_first_step_names_its_own_step():
    class Picky(Scaled):
        def model(self, x):
            if x.isnan().any():
                raise ValueError("no NaN")
            super().model(x)

    pair, calls = Picky(), iter(range(10))

    def encode(x, generator=None):
        return (x if next(calls) < 5 else x * float("nan"),)

    with pytest.raises(DivergedError, match=r"epoch 2, step 1: expected a finite loss; the data, x: nan") as error:
        fit(pair.model, pair.guide, torch.zeros(20), batch_size=10, encode=encode, show_progress=False)
    assert len(error.value.history) == 1


def test_the_weights_are_those_of_the_last_finite_elbo():
    """The last step of the second epoch, whose own loss is finite, leaves an infinite weight."""
    pair, after = Scaled(), []

    def encode(x, generator=None):
        after.append(pair.log_scale.item())
        return (x,)

    def rate(step):
        return 1e38 if step == 3 else 1.0

    optim = OneOptimizer(torch.optim.SGD, lr=1e-2, schedule=rate)
    with pytest.raises(DivergedError, match=r"epoch 2, its end: expected finite parameters .* after epoch 1") as error:
        fit(pair.model, pair.guide, torch.ones(20), batch_size=10, encode=encode, optim=optim, show_progress=False)
    assert len(error.value.history) == 1
    assert pair.log_scale.item() == after[5]  # as the second epoch's first batch saw it: after 1 of what is monitored


def test_a_run_on_data_out_of_scale_is_held_to_independent_normals():
    x = torch.tensor([[-1000.0, 0.0], [1000.0, 2.0]])  # standard deviations of 1000 and 1
    simple = (dist.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1000.0, 1.0])).log_prob(x)).sum(-1).mean()
    rows = [{"loss": 1e9, "train_elbo": simple.item() - 19.9, "train_kl": 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_end(rows, x)
    rows[-1]["train_elbo"] -= 0.2
    with pytest.warns(RuntimeWarning, match=rf"independent normals have {simple:.3g}\. Try standardised data"):
        warn_of_end(rows, x)
    rows[-1]["train_elbo"] = -1e4
    with pytest.warns(RuntimeWarning, match=r"Try log\(1 \+ x\) as the encoder's input"):  # counts
        warn_of_end(rows, x - x.amin(0))


@pytest.mark.parametrize("spread", [10.0, 100.0])
def test_a_run_on_data_of_a_larger_scale_is_told_and_what_is_advised_helps(spread):
    """A unit's worth of data too far apart for so few steps, though nothing overflows."""
    x = spread * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(model="dense-vae:hidden=4", likelihood="gaussian-learned", latent_size=2, standardize=True)

    def run(config, initialised):
        vae = build(config, (5,))
        if initialised:
            vae.initialise(x)
        return fit(vae.model, vae.guide, x, epochs=2, show_progress=False)

    with pytest.warns(RuntimeWarning, match="independent normals have .* Try standardised data"):
        run(dataclasses.replace(config, standardize=False), False)
    with pytest.raises(ValueError, match=r"standardize: expected the units of the data; .*initialise\(x\)"):
        run(config, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = run(config, True)
    assert history["train_elbo"][-1] > -1000


@pytest.mark.parametrize(
    ("x", "likelihood", "standardize"), [(LARGE, "gaussian", True), (LARGE.abs().round(), "poisson", False)]
)
def test_what_the_model_does_already_is_not_advised(x, likelihood, standardize):
    vae = build(TrainConfig(model="dense-vae:hidden=4", likelihood=likelihood, standardize=standardize), (6,))
    rows = [{"loss": 1e9, "train_elbo": -1e30, "train_kl": 1.0}]
    with pytest.warns(RuntimeWarning, match="Try a smaller learning rate"):
        warn_of_end(rows, x, vae.model, vae.guide)
    assert blame(None, None, (x,), 0.1, vae.model, vae.guide) == ". Try a smaller learning rate than 0.1"


def test_an_outlier_is_told():
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    x[7, 1] = 1e30
    pair = Exponential()
    with pytest.raises(DivergedError, match=r"Try data without outliers: x has a value of 1e\+30, and a median of "):
        fit(pair.model, pair.guide, x, show_progress=False)


@pytest.mark.parametrize(
    ("x", "ended", "message"),
    [
        (
            torch.randn(20, 3, generator=torch.Generator().manual_seed(0)),
            -1e30,
            "a smaller learning rate, or clip_norm",
        ),
        (LARGE, -1e30, "standardised data"),
        (LARGE, -90.0, ""),
    ],
)
def test_a_run_that_ends_far_below_where_it_began_is_named(x, ended, message):
    rows = [{"loss": 2e1, "train_elbo": -1e35, "train_kl": 1.0}, {"loss": 1e30, "train_elbo": ended, "train_kl": 1.0}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_end(rows, x)
    assert [message in str(w.message) for w in caught] == [True] * bool(message)


def test_the_elbo_of_a_guide_from_the_bottom_up_is_exact():
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1); with the exact posterior, drawn z1 first, each draw's
    log p(x, z) - log q(z|x) is log p(x) = log N(x; 0, 3). The KL of z1 in closed form would be to p(z1|z2) at a z2 that
    depends on z1."""

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0 * x, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, (2 / 3) ** 0.5))
            pyro.sample("z2", dist.Normal(z1 / 2, 0.5**0.5))

    x = torch.tensor([0.0, 2.266, -1.0])
    torch.testing.assert_close(elbo_parts(model, guide, x).elbo.float(), dist.Normal(0.0, 3**0.5).log_prob(x))


def test_each_chunk_of_data_has_noise_of_its_own(ppca):
    pair, x = ppca(N=4)
    first, second = elbo_parts(pair.model, pair.guide, torch.cat([x, x]), chunk=4).reconstruction.split(4)
    assert (first - second).abs().min() > 1e-4


def test_the_elbo_is_that_in_evaluation_mode_and_the_mode_stays():
    """Of a pair with dropout and BatchNorm."""
    pair = Regularised()
    before = {name: t.clone() for name, t in pair.state_dict().items()}
    in_training = elbo_parts(pair.model, pair.guide, data())
    assert all(torch.equal(t, before[name]) for name, t in pair.state_dict().items())
    assert all(module.training for module in pair.modules())
    assert torch.equal(in_training.elbo, elbo_parts(pair.eval().model, pair.guide, data()).elbo)
