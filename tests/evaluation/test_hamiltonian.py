"""The path of annealing, in unconstrained space, against densities written out."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation.hamiltonian import AnnealingPath, latent_sites, pack, path_of, times, unpack
from ppl_vae.programs import evaluating, seeded

pytestmark = pytest.mark.usefixtures("double")
X = torch.tensor([1.0, 2.5])


def model(x):
    """Two constrained sites: s ~ Gamma(2, 1), w ~ Beta(2, 3), x ~ N(w, s)."""
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
        w = pyro.sample("w", dist.Beta(torch.tensor(2.0), torch.tensor(3.0)))
        pyro.sample("x", dist.Normal(w, s), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("s", dist.LogNormal(0.1 * x, 0.5))
        pyro.sample("w", dist.Beta(torch.tensor(1.5), torch.tensor(1.5)))


def path(start="guide", rows=1000):
    sites = latent_sites(model, guide, X[:1])
    return AnnealingPath(*path_of(model, guide, start, sites, rows), (X,), 5, lambda: None)


def densities(u, start):
    """log r and log p with the Jacobians of s = e^a and w = 1 / (1 + e^-b)."""
    s, w = u[..., 0].exp(), u[..., 1].sigmoid()
    log_det = u[..., 0] + w.log() + (1 - w).log()
    prior = dist.Gamma(2.0, 1.0).log_prob(s) + dist.Beta(2.0, 3.0).log_prob(w)
    q = dist.LogNormal(0.1 * X, 0.5).log_prob(s) + dist.Beta(1.5, 1.5).log_prob(w)
    return (prior if start == "prior" else q) + log_det, prior + dist.Normal(w, s).log_prob(X) + log_det


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("rows", [1, 1000])
def test_densities_carry_the_jacobian_of_every_site_and_gradients_are_theirs(start, rows):
    with evaluating(), seeded(0):
        u = torch.randn(5, 2, 2)
        point = path(start, rows).at(u)
    u.requires_grad_()
    log_r, log_p = densities(u, start)
    for ours, gradient, exact in ((point.log_r, point.grad_r, log_r), (point.log_p, point.grad_p, log_p)):
        torch.testing.assert_close(ours, exact)
        torch.testing.assert_close(gradient, torch.autograd.grad(exact.sum(), u, retain_graph=True)[0])
    beta = torch.tensor([0.3, 0.6])
    torch.testing.assert_close(point.log_f(beta), (1 - beta) * point.log_r + beta * point.log_p)


def test_values_come_back_from_unconstrained_space():
    with evaluating(), seeded(0):
        sites = latent_sites(model, guide, X[:1])
        u = torch.randn(5, 2, 2)
        trace, _ = unpack(u, sites)
        values = {name: trace.nodes[name]["value"] for name in sites}
    torch.testing.assert_close(values["s"], u[..., 0].exp())
    torch.testing.assert_close(pack(values, sites), u)


def test_a_move_leaves_the_density_as_it_is():
    """Chains that begin with z ~ N(0, 1) and x ~ N(z, 1), so that z is of p(z|x), N(x / 2, 1 / 2), keep its moments."""

    def normal_model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def posterior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    with evaluating(), seeded(0):
        sites = latent_sites(normal_model, posterior, X[:1])
        chains = AnnealingPath(*path_of(normal_model, posterior, "guide", sites, 100_000), (X,), 5, lambda: None)
        point = chains.at(chains.draw(20_000))
        for _ in range(3):
            point, acceptance = chains.move(point, torch.full((2,), 0.5), torch.full((2,), 0.9), torch.ones(2, 1, 1))
    assert 0.5 < acceptance.mean() < 0.999
    z = (point.u[..., 0] - X / 2) * 2**0.5
    assert z.mean().abs() < 4 / math.sqrt(z.numel())
    assert (z.square().mean() - 1).abs() < 4 * math.sqrt(2 / z.numel())


@pytest.mark.parametrize(("full", "step"), [(False, 0.4), (True, 0.9)])
def test_a_move_with_a_mass_matrix_leaves_a_correlated_density_as_it_is(full, step):
    """z of p(z|x) = N(S W^T x, S), S = (I + W^T W)^-1, stays so, whatever the spread that steps are measured in."""
    W = torch.tensor([[1.0, 2.0], [1.5, 2.5]])
    S = torch.linalg.inv(torch.eye(2) + W.T @ W)
    x = torch.tensor([[0.5, -0.2], [1.0, 2.0], [0.3, 0.3]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ W.T, 1.0).to_event(1), obs=x)

    def posterior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x @ W @ S, S))

    L = torch.linalg.cholesky(S) if full else S.diag().sqrt()[:, None]
    with evaluating(), seeded(0):
        start, ends = path_of(model, posterior, "guide", latent_sites(model, posterior, x[:1]), 100_000)
        chains = AnnealingPath(start, ends, (x,), 3, lambda: None)
        point = chains.at(chains.draw(20_000))
        for _ in range(3):
            beta = torch.tensor([0.2, 0.5, 0.9])
            point, acceptance = chains.move(point, beta, torch.full((3,), step), L.expand(3, -1, -1))
    assert acceptance.mean() > 0.5
    e = torch.linalg.solve(torch.linalg.cholesky(S), (point.u - x @ W @ S)[..., None])[..., 0].flatten(0, 1)
    assert e.mean(0).abs().max() < 4 / math.sqrt(len(e))
    torch.testing.assert_close(e.T @ e / len(e), torch.eye(2), rtol=0, atol=4 * math.sqrt(2 / len(e)))


def test_times_is_a_product_by_datum():
    rng = torch.Generator().manual_seed(0)
    L, u = torch.randn(4, 3, 3, generator=rng), torch.randn(5, 4, 3, generator=rng)
    torch.testing.assert_close(times(L, u), torch.einsum("dij,cdj->cdi", L, u))
    torch.testing.assert_close(times(L, u, transposed=True), torch.einsum("dji,cdj->cdi", L, u))
    for transposed in (False, True):
        torch.testing.assert_close(times(L[..., :1], u, transposed=transposed), L[..., 0] * u)
