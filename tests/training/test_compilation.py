"""Compiled losses and gradients against the same uncompiled, on the same noise."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiling import SHAPE, Regularised, assert_same, assert_same_steps, data, dense
from torch import nn

from ppl_vae.components import choices, create
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.models import Autoencoder
from ppl_vae.networks import DenseDecoder, DenseEncoder
from ppl_vae.objectives import Elbo, Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO
from ppl_vae.training.optimizers import adam

OBJECTIVES = [*choices(Objective)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", ["dense-vae", "conv-vae"])
def test_every_objective(model, objective, graphs):
    make = lambda: build(TrainConfig(model=model, latent_size=2, hidden=(8,)), (1, 8, 8))  # noqa: E731
    run = assert_same(graphs, make, torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round(),
                      choices(Objective)[objective], steps=3)  # fmt: skip
    assert not torch.equal(run[1][0], run[2][0])  # fresh noise


@pytest.mark.parametrize("prior", [*choices(Prior)])
def test_every_prior(prior, graphs):
    """Exemplars, of which three are in the batch, move at each step."""
    sized = {"vamp-prior": "vamp-prior:num_components=3", "exemplar-prior": "exemplar-prior:num_exemplars=5"}
    x = (data(), data(), torch.arange(6) + 1) if prior == "exemplar-prior" else data()

    def make():
        vae = dense(prior=sized.get(prior, prior))
        vae.prior.initialise(data(9))
        return vae

    assert_same(graphs, make, x, steps=3)


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
