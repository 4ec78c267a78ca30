import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation.quadrature import log_p_by_quadrature


@pytest.mark.parametrize("L", [1, 2])
def test_it_is_exact_on_a_linear_gaussian_model(ppca, L):
    pair, x = ppca(D=4, L=L, N=7, scale=0.3)
    exact = pair.exact.log_prob(x).double()
    log_p = log_p_by_quadrature(pair.model, x)
    torch.testing.assert_close(log_p, exact, atol=2e-5, rtol=1e-5)
    in_pieces = log_p_by_quadrature(pair.model, x, memory=10_000)
    torch.testing.assert_close(in_pieces, log_p, atol=1e-6, rtol=1e-6)


def normal(prior_scale, scale, size=2):
    """z ~ N(0, prior_scale^2 I), x = z + scale e, in double precision; and log p(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(size).double(), prior_scale).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    return model, dist.Normal(torch.zeros(size).double(), math.hypot(prior_scale, scale)).to_event(1)


@pytest.mark.parametrize(
    ("prior_scale", "scale"),
    [(5.0, 1.0), (0.001, 1.0), (1.0, 1e-4), (100.0, 0.01)],
    ids=["wide prior", "narrow prior", "narrow posterior", "both"],
)
def test_the_grid_finds_the_scale_of_prior_and_posterior(prior_scale, scale):
    model, exact = normal(prior_scale, scale)
    x = torch.tensor([[0.0, 0.0], [0.4, -1.1], [2.0, 3.0]]).double() * prior_scale
    torch.testing.assert_close(log_p_by_quadrature(model, x), exact.log_prob(x), atol=1e-6, rtol=1e-6)


def test_the_box_is_widened_until_the_posterior_lies_inside():
    model, exact = normal(1.0, 0.5, size=1)
    x = torch.tensor([[12.0], [40.0]]).double()  # posterior means are 9.6 and 32
    torch.testing.assert_close(log_p_by_quadrature(model, x), exact.log_prob(x), atol=1e-6, rtol=1e-6)


def test_what_has_no_sure_sum_is_refused():
    def no_density(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("f", z.square())
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match="expected mass inside of a box; got 1"):
        log_p_by_quadrature(no_density, torch.zeros(2))
    with pytest.raises(ValueError, match="expected the same from two grids"):
        log_p_by_quadrature(normal(1.0, 1e-12)[0], torch.full((1, 2), 0.1).double())


def test_a_narrow_mode_that_one_grid_misses_is_found_by_finer_ones():
    prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
    spike = dist.Normal(torch.tensor([0.5, 0.0]).double(), 0.02).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.factor("f", torch.logaddexp(torch.zeros(()).double(), math.log(5) + spike.log_prob(z)))
            pyro.sample("x", dist.Normal(torch.zeros_like(z[..., 0]), 1.0), obs=x)

    x = torch.tensor([0.3]).double()
    widened = dist.Normal(spike.mean, math.hypot(1.0, 0.02)).to_event(1)
    exact = dist.Normal(0.0, 1.0).log_prob(x) + (5 * widened.log_prob(prior.mean).exp()).log1p()
    torch.testing.assert_close(log_p_by_quadrature(model, x), exact, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_a_rare_part_of_the_prior_far_from_the_rest_is_found_where_it_explains_x(scale):
    weights = torch.tensor([0.99999, 0.00001]).double()
    prior = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(torch.tensor([0.0, 50.0]).double(), 0.01))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    x = torch.tensor([0.0, 3.0, 50.01]).double()
    widened = dist.Normal(torch.tensor([0.0, 50.0]).double(), math.hypot(0.01, scale))
    exact = dist.MixtureSameFamily(dist.Categorical(weights), widened).log_prob(x)
    torch.testing.assert_close(log_p_by_quadrature(model, x), exact, atol=1e-3, rtol=1e-6)


def test_data_outside_of_their_support_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(5, logits=z), obs=x)

    with pytest.raises(ValueError, match=r"site 'x': expected values in .*; got 1 data outside, values in \[9, 9\]"):
        log_p_by_quadrature(model, torch.tensor([1.0, 9.0]))


def test_a_model_may_expand_to_the_shape_of_z():
    """What is beside z in the decoder has z's batch."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            both = torch.cat([z, y.expand(*z.shape[:-1], 1)], -1)
            pyro.sample("x", dist.Normal(both.sum(-1), 1.0), obs=x)

    x, y = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([[0.0], [1.0], [-2.0]]).double()
    exact = dist.Normal(y[:, 0], 2**0.5).log_prob(x)
    torch.testing.assert_close(log_p_by_quadrature(model, x, y), exact, atol=1e-6, rtol=1e-6)


def test_further_arguments_come_with_their_data():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.0, 1.0, -2.0])
    exact = dist.Normal(y, 2**0.5).log_prob(x).double()
    torch.testing.assert_close(log_p_by_quadrature(model, x, y), exact, atol=2e-5, rtol=1e-5)


def test_what_has_no_grid_is_refused(ppca):
    pair, x = ppca(L=3)
    with pytest.raises(ValueError, match=r"site 'z': expected a latent site on R or R\^2; got one on real\^3"):
        log_p_by_quadrature(pair.model, x)

    def model(x, latent):
        with pyro.plate("data", len(x)):
            latent()
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    coin, none = (lambda: pyro.sample("z", dist.Bernoulli(0.5))), (lambda: None)
    with pytest.raises(ValueError, match="got one on boolean"):
        log_p_by_quadrature(lambda x: model(x, coin), torch.zeros(2))
    with pytest.raises(ValueError, match="expected one latent site; got none"):
        log_p_by_quadrature(lambda x: model(x, none), torch.zeros(2))
