import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from annealed_pairs import (
    GUIDE,
    MODEL,
    STANDARD,
    Build,
    Learnt,
    normal,
    nothing,
    observe,
    sample_z,
    single,
    the_lesser_mode,
    two_modes,
)
from pyro import poutine
from torch import Tensor, nn

from ppl_vae.evaluation import annealing
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.hamiltonian import Densities
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.imputation import impute
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.evaluation.refinement import refine
from ppl_vae.programs import Program, seeded

pytestmark = pytest.mark.usefixtures("double")


class Pair(NamedTuple):
    model: Program
    guide: Program
    x: Tensor
    exact: Callable[[Tensor], Tensor]  # log p(x)


def hierarchy() -> Pair:
    """z2 ~ N(0, I), z1 = A z2 + 0.5 noise, x = W z1 + 0.3 noise; the guide draws z2, and z1 given z2."""
    rng = torch.Generator().manual_seed(1)
    A, W = torch.randn(3, 2, generator=rng), torch.randn(6, 3, generator=rng)
    S1 = A @ A.T + 0.25 * torch.eye(3)
    Sx = W @ S1 @ W.T + 0.09 * torch.eye(6)
    to_z2, to_z1 = A.T @ W.T @ Sx.inverse(), W.T @ (W @ W.T + 0.09 * torch.eye(6)).inverse()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", normal(torch.zeros(2), 1.0))
            z1 = pyro.sample("z1", normal(z2 @ A.T, 0.5))
            pyro.sample("x", normal(z1 @ W.T, 0.3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z2", normal(x @ to_z2.T, 0.5))
            pyro.sample("z1", normal(0.8 * (x @ to_z1.T) + 0.2 * z2 @ A.T, 0.2))

    marginal = dist.MultivariateNormal(torch.zeros(6), Sx)
    return Pair(model, guide, torch.randn(6, 6, generator=rng) @ torch.linalg.cholesky(Sx).T, marginal.log_prob)


def variance() -> Pair:
    """v ~ Gamma(2, 1), x ~ N(0, v) in 3 dimensions; a log-normal guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            v = pyro.sample("v", dist.Gamma(torch.tensor(2.0), torch.tensor(1.0)))
            pyro.sample("x", normal(torch.zeros(3), v.sqrt()[..., None].expand(*v.shape, 3)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("v", dist.LogNormal(x.square().mean(-1).log(), 0.5))

    def exact(x: Tensor) -> Tensor:
        log_v = torch.linspace(-12, 6, 4001)[:, None]
        v = log_v.exp()
        log_p = dist.Gamma(2.0, 1.0).log_prob(v) + log_v - 1.5 * (2 * math.pi * v).log() - x.square().sum(-1) / (2 * v)
        return log_p.logsumexp(0) + math.log(18 / 4000)

    return Pair(model, guide, torch.tensor([[0.1, -0.2, 0.1], [1.0, 2.0, -1.5], [0.5, 0.3, -0.9]]), exact)


def proportions() -> Pair:
    """p ~ Dirichlet, x ~ Multinomial(5, p): the unconstrained space has fewer dimensions. The guide is too narrow."""
    prior = torch.tensor([1.5, 2.0, 3.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            p = pyro.sample("p", dist.Dirichlet(prior))
            pyro.sample("x", dist.Multinomial(5, p), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("p", dist.Dirichlet(1.5 * (prior + x)))

    x = torch.tensor([[5.0, 0.0, 0.0], [1.0, 2.0, 2.0], [0.0, 1.0, 4.0]])
    return Pair(model, guide, x, dist.DirichletMultinomial(prior, torch.tensor(5.0)).log_prob)


def test_overconfident_guide_is_mended_where_importance_sampling_is_not(ppca: Build) -> None:
    pair, x = ppca(50, 10, 4, width=0.5, scale=0.3)
    exact = pair.exact.log_prob(x)
    annealed = annealed_log_likelihood(pair.model, pair.guide, x, num_chains=64, num_steps=150, leapfrog_steps=2)
    error = (annealed.log_p - exact).mean().item()
    assert abs(error) < 0.05
    assert abs(error) < 4 * annealed.mc_se_of_mean
    # a gradient costs three times a density
    sampled = log_likelihood(pair.model, pair.guide, x, num_samples=3 * annealed.decoder_rows // len(x))
    assert (sampled.log_p - exact).mean() < -0.1
    assert annealed.bound.startswith("lower (annealed from the guide")
    assert annealed.measure == "density"
    assert (annealed.num_samples == 64).all()
    from_prior = annealed_log_likelihood(pair.model, pair.guide, x, num_chains=4, num_steps=20, start="prior")
    assert from_prior.mean < annealed.mean - 1


@pytest.mark.parametrize("start", ["guide", "prior", "better"])
@pytest.mark.parametrize("first_step", [0.1, 1.5])
def test_weights_are_unbiased_whatever_the_step_sizes(
    start: annealing.Start, first_step: float, ppca: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annealing, "FIRST_STEP", first_step)
    monkeypatch.setattr(annealing, "GAIN", 0.0)
    scale = 2.0 if start == "prior" else 0.5  # the prior is so wide that few steps need a weak likelihood
    pair, x = ppca(5, 2, 4, width=1.4, scale=scale)
    result = annealed_log_likelihood(
        pair.model, pair.guide, x, num_chains=20_000, num_steps=8, leapfrog_steps=2, start=start, memory=1 << 30
    )
    ratio = (result.log_p - pair.exact.log_prob(x)).exp()  # mean w / p(x)
    se = (ratio * result.mc_se).square().sum().sqrt() / len(x)
    assert se < 0.01
    assert (ratio.mean() - 1).abs() < 4 * se


@pytest.mark.parametrize("make", [hierarchy, variance, proportions])
@pytest.mark.parametrize("start", ["guide", "prior"])
def test_several_and_constrained_sites(make: Callable[[], Pair], start: annealing.Start) -> None:
    model, guide, x, exact = make()
    result = annealed_log_likelihood(
        model, guide, x, num_chains=800, num_steps=40, leapfrog_steps=3, start=start, memory=1 << 30
    )
    assert result.mc_se.max() < 0.15
    assert ((result.log_p - exact(x)).abs() < 4 * result.mc_se).all()
    assert result.measure == ("mass" if make is proportions else "density")


def test_a_mode_that_the_guide_does_not_see() -> None:
    """Chains from the guide are e^-4 off with small errors; the better of the two starts finds it out."""
    x = torch.tensor([4.0, 4.5, 3.8])
    exact = log_p_by_quadrature(two_modes, x)
    sizes = {"num_chains": 64, "num_steps": 60, "leapfrog_steps": 3}
    from_guide, better = (
        annealed_log_likelihood(two_modes, the_lesser_mode, x, start=start, **sizes) for start in ("guide", "better")
    )
    assert (from_guide.log_p - exact).max() < -3
    assert from_guide.mc_se.max() < 0.2
    assert ((better.log_p - exact).abs() < 4 * better.mc_se).all()
    assert "better of guide and prior" in better.bound
    assert better.decoder_rows > from_guide.decoder_rows


def test_of_two_starts_each_datum_takes_its_own() -> None:
    """A sharp likelihood and a guide that fits half of the data: those keep the guide, the others take the prior."""
    fits = torch.tensor([True, False, True, False])

    def model(x: Tensor, fits: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", normal(torch.zeros(4), 1.0))
            pyro.sample("x", normal(z, 0.02), obs=x)

    def guide(x: Tensor, fits: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(torch.where(fits[:, None], x, x + 30), 0.02))

    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    sizes = {"num_chains": 16, "num_steps": 30, "leapfrog_steps": 3}
    by_guide, by_prior, better = (
        annealed_log_likelihood(model, guide, x, fits, start=start, **sizes) for start in ("guide", "prior", "better")
    )
    exact = normal(torch.zeros(4), math.sqrt(1 + 0.02**2)).log_prob(x)
    assert ((better.log_p - exact)[fits].abs() < 0.05).all()
    assert ((by_prior.log_p - exact)[fits] < -1).all()
    assert ((by_guide.log_p - better.log_p)[~fits] < -100).all()


def test_a_budget_of_memory_counts_what_gradients_keep() -> None:
    """What the graph saves for a chunk is within the budget, and no less than a part of it."""
    with seeded(0):
        hidden = [layer for _ in range(10) for layer in (nn.Linear(50, 50), nn.Tanh())]
        decoder = nn.Sequential(nn.Linear(2, 50), *hidden, nn.Linear(50, 8))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", normal(decoder(pyro.sample("z", normal(torch.zeros(2), 1.0))), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(torch.zeros(2), 1.0))

    budget, x, saved = 1 << 20, torch.zeros(128, 8), [0.0]
    parameters = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = t
        return t

    original = Densities._values

    def counted(ends: Any, u: Tensor, *data: Tensor) -> Any:
        seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            point = original(ends, u, *data)
        saved.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
        return point

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Densities, "_values", counted)
        annealed_log_likelihood(model, guide, x, num_chains=16, num_steps=2, leapfrog_steps=1, memory=budget)
    assert budget / 10 < max(saved) < budget


def test_result_does_not_depend_on_chunks_and_follows_the_seed(ppca: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealing, "BLOCK_DATA", 4)  # three blocks, the last one short
    pair, x = ppca(6, 2, 10, width=0.6)
    results = [
        annealed_log_likelihood(pair.model, pair.guide, x, num_chains=3, num_steps=4, seed=seed, memory=memory)
        for seed, memory in [(5, None), (5, 1), (5, 4 * 6 * 8 * 20), (6, None)]
    ]
    for other in results[1:3]:
        assert torch.allclose(results[0].log_p, other.log_p, atol=1e-8)
    assert not torch.allclose(results[0].log_p, results[3].log_p, atol=1e-3)


def test_nothing_is_left_behind() -> None:
    learnt = Learnt().train()
    x, y = torch.linspace(-2, 2, 20).reshape(5, 4), torch.arange(5.0)
    parameters = [p.clone() for p in learnt.parameters()]
    result = annealed_log_likelihood(learnt.model, learnt.guide, x, y, num_chains=400, num_steps=10)
    # random generator, param store and validation: see conftest's `nothing_left_behind`
    assert all(m.training for m in learnt.modules())
    pairs = zip(learnt.parameters(), parameters, strict=True)
    assert all(p.grad is None and p.requires_grad and p.equal(q) for p, q in pairs)
    assert torch.is_grad_enabled()
    # dropout was off, and y came along with its x
    W, b = learnt.decoder[0].weight.detach(), learnt.decoder[0].bias.detach()
    exact = dist.MultivariateNormal(b + y[:, None], W @ W.T + torch.eye(4)).log_prob(x)
    assert ((result.log_p - exact).abs() < 4 * result.mc_se).all()


def test_an_interrupt_returns_what_is_done(
    ppca: Build, monkeypatch: pytest.MonkeyPatch, interrupt_after: Callable[[int], None]
) -> None:
    monkeypatch.setattr(annealing, "BLOCK_DATA", 2)
    pair, x = ppca(6, 2, 5, width=0.6)
    sizes = {"num_chains": 3, "num_steps": 4}
    whole = annealed_log_likelihood(pair.model, pair.guide, x, **sizes)
    interrupt_after(1)
    result = annealed_log_likelihood(pair.model, pair.guide, x, **sizes)
    assert result.done.tolist() == [True, True, False, False, False]
    assert torch.equal(result.log_p[:2], whole.log_p[:2])
    assert result.decoder_rows == whole.decoder_rows * 2 // 5
    assert "interrupted with 2 of 5 data done" in str(result)


def observe_masked(z: Tensor, x: Tensor) -> None:
    with poutine.mask(mask=x > 0):
        observe(z, x)


COIN = sample_z(dist.Bernoulli(0.5))
POSITIVE = sample_z(dist.LogNormal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (single(torch.zeros_like, observe), single(torch.zeros_like, nothing), "the guide: expected a latent site"),
        (
            single(COIN, observe),
            single(COIN, nothing),
            "site 'z': expected a continuous latent site; got one on boolean",
        ),
        (single(STANDARD, observe_masked), GUIDE, "site 'x': expected a site without a mask"),
        (MODEL, single(POSITIVE, nothing), "site 'z': expected one support"),
        (
            MODEL,
            single(lambda x: pyro.sample("z", dist.Uniform(x - 1, x + 1)), nothing),
            "site 'z': expected one support",
        ),
        (MODEL, single(sample_z(dist.Delta(torch.tensor(0.0))), nothing), r"site 'z': .* got a point \(Delta\)"),
        (MODEL, single(lambda x: pyro.sample("z", dist.Normal(1e9 * x, 1e-9)), nothing), "the start: expected latent"),
        (single(STANDARD, lambda z, x: observe(z.detach(), x)), GUIDE, "site 'x': expected a log-prob with a gradient"),
        (single(lambda x: pyro.sample("u", dist.Normal(0.0, 1.0)), observe), GUIDE, "site 'u': expected it in both"),
    ],
)
def test_refused_pairs(model: Program, guide: Program, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annealed_log_likelihood(model, guide, torch.ones(3), num_chains=2, num_steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 0}, "num_chains: expected at least 1; got 0"),
        ({"num_steps": 0}, "num_steps: expected at least 1; got 0"),
        ({"leapfrog_steps": 0}, "leapfrog_steps: expected at least 1; got 0"),
        ({"start": "posterior"}, r"start: expected one of \('guide', 'prior', 'better'\); got 'posterior'"),
    ],
)
def test_refused_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        annealed_log_likelihood(MODEL, GUIDE, torch.ones(3), **options)


def test_refused_data() -> None:
    with pytest.raises(ValueError, match="argument 1: expected 3 rows; got 2"):
        annealed_log_likelihood(MODEL, GUIDE, torch.ones(3), torch.ones(2))


def test_two_observed_sites_share_a_decoder_and_one_is_a_constant() -> None:
    """h = 1.5 z decoded once for both x ~ N(h, 1) and y ~ N(2h, 1); the coin does not depend on z."""
    with seeded(0):
        decoder = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(decoder.weight, 1.5)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            h = decoder(pyro.sample("z", normal(torch.zeros(1), 1.0)))[..., 0]
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)
            pyro.sample("y", dist.Normal(2 * h, 1.0), obs=y)
            pyro.sample("coin", dist.Bernoulli(torch.tensor(0.3)), obs=torch.ones(len(x)))

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", normal(torch.zeros(1), 1.0))

    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.0, -3.0, 1.0])
    result = annealed_log_likelihood(model, guide, x, y, num_chains=400, num_steps=10, leapfrog_steps=2)
    h = torch.tensor([1.5, 3.0])
    joint = dist.MultivariateNormal(torch.zeros(2), torch.outer(h, h) + torch.eye(2))
    exact = joint.log_prob(torch.stack([x, y], 1)) + math.log(0.3)
    assert result.mc_se.max() < 0.1
    assert ((result.log_p - exact).abs() < 4 * result.mc_se).all()


def test_a_flow_without_an_inverse_is_named_and_the_prior_does_as_a_start() -> None:
    with seeded(0):
        planar = dist.transforms.Planar(2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", normal(pyro.sample("z", normal(torch.zeros(2), 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.TransformedDistribution(normal(torch.zeros(2), 1.0), [planar]))

    x = torch.tensor([[0.5, -1.0]])
    exact = normal(torch.zeros(2), math.sqrt(2)).log_prob(x)
    for call in (annealed_log_likelihood, lambda *pair: impute(*pair, seen=torch.tensor([True, False]))):
        with pytest.raises(ValueError, match="the guide: expected a density at any z; got a flow without an inverse"):
            call(model, guide, x)
    from_prior = annealed_log_likelihood(model, guide, x, start="prior", num_chains=200, num_steps=10)
    with pytest.warns(RuntimeWarning, match="not refined"):
        within = log_likelihood_within(model, guide, x, tolerance=1e-3, num_samples=100, max_samples=400)
    assert within.num_samples.item() == 400
    for result in (from_prior, within):
        assert abs(result.log_p - exact) < 5 * result.mc_se


def test_temperatures_are_dense_where_the_pilots_vary() -> None:
    betas = torch.linspace(0, 1, 6)[:, None].expand(-1, 2)
    lengths = torch.tensor([[8.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    first, second = annealing._even(betas, lengths).T
    torch.testing.assert_close(second, betas[:, 0])  # they are even already
    # half of the share is even, half is all on the first interval, which has 3/5 of it, and so three steps of five
    torch.testing.assert_close(first[:4], torch.tensor([0.0, 0.2 / 3, 0.4 / 3, 0.2]))
    torch.testing.assert_close(first[3:], torch.tensor([0.2, 0.6, 1.0]))
    for bad in (torch.zeros(5, 2), torch.full((5, 2), math.inf), torch.full((5, 2), math.nan)):
        torch.testing.assert_close(annealing._even(betas, bad), betas)


def test_from_a_refined_guide_few_steps_do(ppca: Build) -> None:
    pair, x = ppca(12, 6, 4, width=0.4, scale=0.5)
    refined = refine(pair.model, pair.guide, x)
    spread = refined.spread(x)
    torch.testing.assert_close(spread @ spread.mT, pair.covariance.expand(4, -1, -1), rtol=0.05, atol=0.005)
    exact = pair.exact.log_prob(x)
    sizes = {"num_chains": 64, "num_steps": 10, "leapfrog_steps": 2}
    plain, better = (annealed_log_likelihood(pair.model, guide, x, **sizes) for guide in (pair.guide, refined))
    assert ((better.log_p - exact).abs() < 4 * better.mc_se).all()
    assert better.mc_se.mean() < plain.mc_se.mean() / 3


def test_compiled_is_the_same(ppca: Build, graphs: list[Any]) -> None:
    pair, x = ppca(5, 2, 3, width=0.6)
    sizes = {"num_chains": 4, "num_steps": 6, "leapfrog_steps": 2}
    eager, compiled = (
        annealed_log_likelihood(pair.model, pair.guide, x, compiled=compiled, **sizes) for compiled in (False, True)
    )
    torch.testing.assert_close(eager.log_p, compiled.log_p)
    assert graphs
