"""What training reports of a loss that is not finite, and of a posterior that collapses."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.training.fitting import fit
from ppl_vae.training.history import DivergedError
from ppl_vae.training.monitoring import elbo_parts, first_nonfinite
from ppl_vae.training.optimizers import adam

SHAPE = (1, 6, 6)


def images(n=60):
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


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


@pytest.mark.parametrize(
    ("pair", "x", "options", "message"),
    [
        (
            Scaled(scale=1e-30),
            torch.zeros(20),
            {},
            r"epoch 1, step 1: .* site 'x' of the model: a log-prob with -inf, of Normal with a scale of 1e-30. Try a "
            "larger scale of the likelihood, now 1e-30. The weights are those after epoch 0",
        ),
        (
            Scaled(log_scale=-200.0),
            torch.zeros(20),
            {},
            "site 'z' of the guide: a log-prob with .*, of Normal with a scale of 0. Try free bits, .* that collapses",
        ),
        (
            Scaled(),
            torch.tensor([0.0] * 15 + [float("nan")] * 5),
            {},
            "epoch 1, step 1: expected a finite loss; the data, x: nan. Try data without NaN",
        ),
        (
            Scaled(),
            torch.zeros(20),
            {"learning_rate": 1e30},
            "all was finite before this epoch, and now site 'z' of the guide: .* Try a smaller learning rate than 1e",
        ),
    ],
)
def test_the_first_bad_site_is_named_and_what_to_try(pair, x, options, message):
    with pytest.raises((DivergedError, ValueError), match=message) as error:
        fit(pair.model, pair.guide, x, epochs=2, batch_size=10, show_progress=False, **options)
    assert "\n" not in str(error.value)


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
            images() / 255,
            epochs=1,
            learning_rate=1e-4,
            show_progress=False,
        )


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
        return (x if next(calls) < 3 else x * float("nan"),)

    with pytest.raises(ValueError, match=r"epoch 2, step 1: expected a finite loss; the data, x: nan"):
        fit(pair.model, pair.guide, torch.zeros(20), batch_size=10, encode=encode, show_progress=False)


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
    torch.testing.assert_close(elbo_parts(model, guide, x).elbo, dist.Normal(0.0, 3**0.5).log_prob(x))


def test_each_chunk_of_data_has_noise_of_its_own(ppca):
    pair, x = ppca(N=4)
    first, second = elbo_parts(pair.model, pair.guide, torch.cat([x, x]), chunk=4).reconstruction.split(4)
    assert (first - second).abs().min() > 1e-4
