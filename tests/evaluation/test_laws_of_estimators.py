"""The laws of every estimator, on pairs whose log p(x) is known: with two constrained latent sites, a discrete one,
two observed sites, integer data, and a label.

An estimate lies within its own errors of the exact value, under the exact posterior it is that value, and what an
estimator can't do it refuses in one line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from ppl_vae.evaluation import annealing, chunks, imputation, weighing
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.annealing import Start, annealed_log_likelihood
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.comparison import compare
from ppl_vae.evaluation.export import to_arviz
from ppl_vae.evaluation.gaps import gap_decomposition
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.evaluation.imputation import impute
from ppl_vae.evaluation.information import active_units, aggregate_posterior
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.evaluation.sandwich import bidirectional, simulate
from ppl_vae.objectives import Elbo
from ppl_vae.programs import Program, seeded
from ppl_vae.training.monitoring import elbo_parts

pytestmark = pytest.mark.usefixtures("double", "small_blocks")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three data, so that what comes with a datum has to come with it in each block."""
    for module in (chunks, annealing, imputation, weighing):
        monkeypatch.setattr(module, "BLOCK_DATA", 3)
    monkeypatch.setattr(chunks, "BLOCK_ROWS", 1024)


W = torch.tensor([[1.0, 0.5], [-0.4, 0.8]], dtype=torch.float64)
SCALE = 0.6


@dataclasses.dataclass(frozen=True)
class Case:
    """A pair, and data x (data, 2) with further arguments.

    `log_p(x, *args)` is exact, also for the first dimension of x alone; `second` is E[x_2|x_1], (data,), and
    `latents` is E[z|x] of each latent site. `guide` is too wide, and `posterior` is p(z|x), where it has a name.
    """

    model: Program
    guide: Program
    data: tuple[Tensor, ...]
    log_p: Callable[..., Tensor]
    latents: dict[str, Tensor]
    second: Tensor | None = None
    posterior: Program | None = None

    @property
    def exact(self) -> Tensor:
        return self.log_p(*self.data)


def program(body: Callable[..., object]) -> Program:
    def run(x: Tensor, *args: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            body(x, *args)

    return run


def two_constrained(factor: float = 1.0) -> Case:
    """z1 ~ Gamma(2, 1), z2 ~ Gamma(3, 1), and each x_d ~ Exponential(z1 + z2), where z1 + z2 is a Gamma too."""
    shape = 2.0 * factor
    total = shape + 3.0

    def model(x: Tensor) -> None:
        rate = pyro.sample("z1", dist.Gamma(shape, 1.0)) + pyro.sample("z2", dist.Gamma(3.0, 1.0))
        pyro.sample("x", dist.Exponential(rate[..., None].expand(*rate.shape, 2)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        for name, a in (("z1", shape), ("z2", 3.0)):
            pyro.sample(name, dist.Gamma(a * (total + 2) / total, 1 + x.sum(-1)))

    def log_p(x: Tensor) -> Tensor:
        n, total_ = x.shape[1], torch.tensor(total)
        return (total_ + n).lgamma() - total_.lgamma() - (total_ + n) * x.sum(-1).log1p()

    x = torch.tensor([[0.1, 0.3], [0.5, 0.02], [2.0, 0.7], [0.2, 1.5], [0.01, 0.05]])
    mean = (total + 2) / (1 + x.sum(-1)) / total
    second = (1 + x[:, 0]) / total
    return Case(program(model), program(guide), (x,), log_p, {"z1": shape * mean, "z2": 3 * mean}, second)


def discrete(factor: float = 1.0) -> Case:
    """c is one of three, and x ~ N(mean_c, I)."""
    first = 0.5 * factor
    log_prior = torch.tensor([first, 0.7 - first, 0.3]).log()
    means = torch.tensor([[-1.0, 0.5], [0.5, 1.5], [2.0, -1.0]])

    def joint(x: Tensor) -> Tensor:
        return log_prior + dist.Normal(means[:, : x.shape[1]], 1.0).log_prob(x[:, None]).sum(-1)

    def model(x: Tensor) -> None:
        c = pyro.sample("c", dist.Categorical(logits=log_prior))
        pyro.sample("x", dist.Normal(means[c], 1.0).to_event(1), obs=x)

    def guide(width: float) -> Program:
        return program(lambda x: pyro.sample("c", dist.Categorical(logits=joint(x) / width)))

    x = torch.tensor([[-1.5, 0.2], [0.1, 1.0], [0.9, 0.3], [1.5, -1.2], [0.4, 2.5]])
    latents = {"c": joint(x).softmax(-1) @ torch.arange(3.0)}
    second = joint(x[:, :1]).softmax(-1) @ means[:, 1]
    return Case(program(model), guide(1.7), (x,), lambda x: joint(x).logsumexp(-1), latents, second, guide(1.0))


def gaussian(
    data: tuple[Tensor, ...], model: Program, A: Tensor, scale: Tensor, centred: Callable[..., Tensor]
) -> Case:
    """z ~ N(0, I), and centred(*data) ~ N(A z, diag(scale^2))."""
    precision = torch.eye(2) + A.T @ (A / scale.square()[:, None])
    covariance = precision.inverse()

    def mean(*data: Tensor) -> Tensor:
        return centred(*data) / scale.square() @ A @ covariance

    def log_p(*data: Tensor) -> Tensor:
        t, n = centred(*data), centred(*data).shape[1]
        marginal = A[:n] @ A[:n].T + scale[:n].square().diag()
        return dist.MultivariateNormal(torch.zeros(n), marginal).log_prob(t)

    def wide(*data: Tensor) -> None:
        pyro.sample("z", dist.Normal(mean(*data), 1.3 * covariance.diag().sqrt()).to_event(1))

    def posterior(*data: Tensor) -> None:
        pyro.sample("z", dist.MultivariateNormal(mean(*data), covariance))

    return Case(model, program(wide), data, log_p, {"z": mean(*data)}, posterior=program(posterior))


X = torch.tensor([[0.5, -0.3], [2.0, 1.0], [-1.5, 0.4], [0.1, 0.2], [-0.7, -1.9]], dtype=torch.float64)


def two_observed(factor: float = 1.0) -> Case:
    """x ~ N(h, SCALE^2) and y ~ N(h_1 + h_2, 1), of one h = W z."""

    def model(x: Tensor, y: Tensor) -> None:
        h = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)) @ W.T
        pyro.sample("x", dist.Normal(h, SCALE).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(h.sum(-1), factor), obs=y)

    scales = torch.tensor([SCALE, SCALE, factor])
    data = (X, torch.tensor([0.2, 2.0, -1.0, 1.5, -2.0]))
    return gaussian(
        data, program(model), torch.cat([W, W.sum(0, keepdim=True)]), scales, lambda x, y: torch.cat([x, y[:, None]], 1)
    )


def label(factor: float = 1.0) -> Case:
    """x ~ N(W z + shift_y, SCALE^2), with a shift for each of three labels."""
    shift = factor * torch.tensor([[0.0, 0.0], [1.0, -1.0], [-2.0, 0.5]])

    def model(x: Tensor, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W.T + shift[y], SCALE).to_event(1), obs=x)

    data = (X, torch.tensor([0, 1, 2, 1, 0]))
    case = gaussian(data, program(model), W, torch.full((2,), SCALE), lambda x, y: x - shift[y, : x.shape[1]])
    covariance = W @ W.T + SCALE**2 * torch.eye(2)
    residual = X[:, 0] - shift[data[1], 0]
    second = shift[data[1], 1] + covariance[1, 0] / covariance[0, 0] * residual
    return dataclasses.replace(case, second=second)


def integer(factor: float = 1.0) -> Case:
    """z ~ Gamma(1.5, 1), and two counts x_d ~ Poisson(z): a negative binomial."""
    shape = 1.5 * factor

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Gamma(shape, 1.0))
        pyro.sample("x", dist.Poisson(z[..., None].expand(*z.shape, 2)).to_event(1), obs=x)

    def guide(width: float) -> Program:
        return program(lambda x: pyro.sample("z", dist.Gamma((shape + x.sum(-1)) / width, torch.tensor(3.0) / width)))

    def log_p(x: Tensor) -> Tensor:
        n, total, a = x.shape[1], x.sum(-1), torch.tensor(shape)
        return (a + total).lgamma() - a.lgamma() - (a + total) * math.log1p(n) - (x + 1.0).lgamma().sum(-1)

    x = torch.tensor([[0, 0], [1, 3], [7, 5], [2, 0], [0, 4]])
    latents, second = {"z": (shape + x.sum(-1)) / 3}, (shape + x[:, 0]) / 2
    return Case(program(model), guide(1.5), (x,), log_p, latents, second, guide(1.0))


Make = Callable[..., Case]


def cases(*makes: Make) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("make", makes)


each = cases(two_constrained, discrete, two_observed, integer, label)
exactly = cases(discrete, two_observed, integer, label)  # whose exact posterior has a name


def within(estimate: PerDatum, truth: Tensor) -> bool:
    """Each datum within 5 standard errors."""
    return bool(((estimate.values - truth).abs() < 5 * estimate.mc_se + 1e-9).all())


@exactly
def test_under_the_exact_posterior_every_weight_is_p_of_x(make: Make) -> None:
    case = make()
    assert case.posterior is not None
    pair = case.model, case.posterior
    with seeded(0):
        log_w = log_weights(*pair, *case.data, num_samples=30)
    torch.testing.assert_close(log_w, case.exact.expand(30, -1), rtol=0, atol=1e-10)
    result = log_likelihood(*pair, *case.data, num_samples=30)
    assert torch.allclose(result.log_p, case.exact)
    assert result.mc_se.max() < 1e-6
    assert (result.khat == -math.inf).all()
    torch.testing.assert_close(result.ess, torch.full_like(result.ess, 30.0))
    with seeded(0), pyro.get_param_store().scope():
        assert Elbo(3).loss(*pair, *case.data) == pytest.approx(-case.exact.sum().item())


@each
def test_importance_sampling(make: Make, graphs: list[object]) -> None:
    """Also replayed by graphs, whose blocks of samples are of two sizes."""
    case = make()
    result, replayed = (
        log_likelihood(case.model, case.guide, *case.data, num_samples=3000, compiled=compiled)
        for compiled in (False, True)
    )
    assert within(PerDatum.of(result), case.exact)
    assert 1e-4 < result.mc_se.max() < 0.05
    assert result.khat.max() < 0.7
    assert result.measure == ("mass" if make is integer else "density")
    assert graphs
    torch.testing.assert_close(replayed.log_p, result.log_p, rtol=0, atol=1e-10)
    torch.testing.assert_close(replayed.ess, result.ess)
    assert (replayed.num_samples == 3000).all()


@each
def test_to_a_tolerance(make: Make) -> None:
    case = make()
    told = pytest.warns(RuntimeWarning, match="not refined") if make is discrete else nullcontext()
    with told:
        result = log_likelihood_within(case.model, case.guide, *case.data, tolerance=0.02, num_samples=100)
    assert within(PerDatum.of(result), case.exact)
    assert result.mc_se.max() < 0.04
    assert result.num_samples.max() > 100


@pytest.mark.parametrize("make", [two_constrained, two_observed, integer, label])
@pytest.mark.parametrize("start", ["guide", "prior"])
def test_annealing(make: Make, start: Start) -> None:
    case = make()
    sizes = {"num_chains": 200, "num_steps": 15, "leapfrog_steps": 2}
    result = annealed_log_likelihood(case.model, case.guide, *case.data, start=start, **sizes)
    assert within(PerDatum.of(result), case.exact)
    assert result.mc_se.max() < 0.12


def test_a_factor_counts_and_leaves_a_mass_a_mass() -> None:
    """exp(-z) beside two counts of rate z ~ Gamma(1.5, 1) is as a third count, of 0."""
    case, zero = integer(), torch.zeros(5, 1, dtype=torch.int64)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Gamma(1.5, 1.0))
        pyro.factor("tilt", -z)
        pyro.sample("x", dist.Poisson(z[..., None].expand(*z.shape, 2)).to_event(1), obs=x)

    pair = program(model), case.guide
    sampled = log_likelihood(*pair, *case.data, num_samples=500)
    annealed = annealed_log_likelihood(*pair, *case.data, num_chains=100, num_steps=15, leapfrog_steps=2)
    for result in (sampled, annealed):
        assert within(PerDatum.of(result), case.log_p(torch.cat([*case.data, zero], 1)))
        assert result.mc_se.max() < 0.12
        assert (result.measure, result.space) == ("mass", "integergreaterthan(lower_bound=0)^2")
    assert len(compare({"sampled": sampled, "annealed": annealed}).rows) == 2


@cases(two_constrained, integer, label)
def test_bounds_from_both_sides(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealing, "BLOCK_DATA", 24)
    case, sizes = make(), {"num_data": 40, "seed": 2}
    sandwich = bidirectional(case.model, case.guide, *case.data, num_chains=16, num_steps=15, leapfrog_steps=2, **sizes)
    x, _ = simulate(case.model, *case.data, **sizes)
    exact = case.log_p(x, *(t[torch.arange(40) % len(t)] for t in case.data[1:]))
    below, above = exact - sandwich.lower.log_p, sandwich.upper.log_p - exact
    for error in (below, above):
        assert -4 * error.std() / math.sqrt(40) < error.mean() < 0.05


@pytest.mark.filterwarnings("ignore:not refined")
@cases(two_constrained, discrete, integer, label)
def test_imputation(make: Make) -> None:
    """Of x_2 given x_1."""
    case = make()
    x, *args = case.data
    result = impute(
        case.model, case.guide, x, *args, seen=torch.tensor([True, False]), num_samples=4000, num_draws=2000
    )
    log_p_seen = case.log_p(x[:, :1], *args)
    assert within(result.log_p_seen, log_p_seen)
    assert within(result.log_p_missing, case.exact - log_p_seen)
    assert result.log_p_seen.mc_se.max() < 0.05
    assert case.second is not None
    draws = result.samples[..., 1].double()
    sd = draws.std(0)
    assert ((result.mean[:, 1] - case.second).abs() < 5 * sd / result.ess.sqrt()).all()
    assert ((draws.mean(0) - case.second).abs() < 5 * sd * (1 / 2000 + 1 / result.ess).sqrt()).all()
    assert (result.samples[..., 0] == x[:, 0]).all()


def law(guide: Program | None, case: Case) -> Distribution:
    """The distribution of the one latent site, batch shape (data,)."""
    assert guide is not None
    (name,) = case.latents
    with seeded(0):
        q = poutine.trace(guide).get_trace(*case.data).nodes[name]["fn"]
    return dist.MultivariateNormal(q.mean, q.variance.diag_embed()) if isinstance(q, dist.Independent) else q


def divergence(case: Case) -> Tensor:
    """KL(guide || posterior) of each datum, in closed form."""
    return torch.distributions.kl_divergence(law(case.guide, case), law(case.posterior, case))


@each
def test_the_elbo_lacks_the_divergence_to_the_posterior(make: Make) -> None:
    """By the mean of log w, and with the KL to the prior in closed form, of 400 copies of each datum."""
    case = make()
    copies = [t.repeat(400, *[1] * (t.dim() - 1)) for t in case.data]
    elbo = elbo_parts(case.model, case.guide, *copies, num_samples=10).elbo.reshape(400, -1)
    with seeded(1):
        log_w = log_weights(case.model, case.guide, *case.data, num_samples=4000)
    by_parts, by_weights = PerDatum.of_samples(elbo), PerDatum.of_samples(log_w)
    assert within(by_parts - by_weights, torch.zeros(()))
    if case.posterior is not None:
        for estimate in (by_parts, by_weights):
            assert within(estimate, case.exact - divergence(case))


@each
def test_checked_models_are_sound(make: Make) -> None:
    case = make()
    report = check_model(case.model, case.guide, *case.data)
    assert report.ok, str(report)
    assert not report.findings
    assert f"latent sites {', '.join(case.latents)};" in report.summary


@each
def test_arviz_has_the_same_log_p_and_the_posterior_of_each_site(make: Make) -> None:
    case, K = make(), 2000
    options = {"num_samples": K, "num_predictive": 3, "seed": 4}
    guides, resampled = (
        to_arviz(case.model, case.guide, *case.data, **options, resample=resample) for resample in (False, True)
    )
    stats = guides["sample_stats"]
    result = log_likelihood(case.model, case.guide, *case.data, num_samples=K, seed=4)
    torch.testing.assert_close(torch.tensor(stats["log_p"].values), result.log_p)
    torch.testing.assert_close(torch.tensor(stats["mc_se"].values), result.mc_se)
    weights = torch.tensor(stats["log_weight"].values[0]).softmax(0)
    for name, exact in case.latents.items():
        z, again = (torch.tensor(groups["posterior"][name].values[0]).double() for groups in (guides, resampled))
        weighted = torch.einsum("kn,kn...->n...", weights, z)
        se = again.std(0) / result.ess.reshape(-1, *[1] * (exact.dim() - 1)).sqrt()
        assert ((weighted - exact).abs() < 5 * se).all()
        assert ((again.mean(0) - exact).abs() < 7 * se).all()
    assert list(guides["observed_data"].data_vars) == list(guides["log_likelihood"].data_vars)
    for site, value in guides["observed_data"].data_vars.items():
        assert torch.equal(torch.tensor(value.values), case.data[["x", "y"].index(str(site))])


def test_labels_come_with_their_data_where_memory_holds_one_datum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CACHE_BYTES", 1)
    case = label(100.0)
    groups = to_arviz(case.model, case.guide, *case.data, num_samples=4, num_predictive=4)
    x = torch.tensor(groups["prior_predictive"]["x"].values[0])
    shift = torch.tensor([[0.0, 0.0], [100.0, -100.0], [-200.0, 50.0]])[case.data[1]]
    assert (x - shift).abs().max() < 10


@each
def test_a_comparison_has_the_exact_differences(make: Make) -> None:
    """Between two models of the same data, under the guide of the first."""
    case, other = make(), make(1.3)
    results = {
        name: log_likelihood(of.model, case.guide, *case.data, num_samples=3000, seed=seed)
        for seed, (name, of) in enumerate({"one": case, "other": other}.items())
    }
    comparison = compare(results)
    best, second = ({"one": case, "other": other}[row.name].exact for row in comparison.rows)
    assert best.mean() > second.mean()
    difference = comparison.rows[1].difference
    assert within(difference, second - best)
    assert difference.data_se_of_mean == pytest.approx((second - best).std().item() / math.sqrt(5), rel=0.1)


@cases(two_observed, label)
def test_gaps_and_quadrature(make: Make) -> None:
    """A diagonal normal of the exact mean lacks the same KL for each datum, all of which refinement can mend."""
    case = make()
    assert case.posterior is not None
    log_p = log_p_by_quadrature(case.model, *case.data)
    torch.testing.assert_close(log_p, case.exact, atol=1e-6, rtol=0)
    estimate = log_likelihood(case.model, case.posterior, *case.data, num_samples=50)
    gaps = gap_decomposition(case.model, case.guide, *case.data, log_p=estimate, num_samples=1000)
    assert ((gaps.total.values - divergence(case)).abs() < 5 * gaps.total.mc_se + 1e-6).all()
    assert (gaps.approximation.values.abs() < 5 * gaps.approximation.mc_se + 0.003).all()


@pytest.mark.parametrize(
    ("make", "estimator", "message"),
    [
        (discrete, annealed_log_likelihood, "site 'c': expected a continuous latent site"),
        (discrete, bidirectional, "site 'c': expected a continuous latent site"),
        (two_observed, bidirectional, r"the model: expected one observed site, of x itself; got \['x', 'y'\]"),
        (two_observed, lambda *pair: impute(*pair, seen=torch.tensor([True, False])), "expected one observed site"),
        (two_constrained, lambda m, g, x: log_p_by_quadrature(m, x), "expected one latent site; got 'z1', 'z2'"),
        (two_constrained, lambda m, g, x: active_units(g, x), "expected one latent site; got 'z1', 'z2'"),
        (two_constrained, aggregate_posterior, "expected one latent site; got 'z1', 'z2'"),
        (discrete, lambda m, g, x: log_p_by_quadrature(m, x), "site 'c': expected a latent site on R"),
        (discrete, lambda m, g, x: active_units(g, x), "site 'c': expected a reparameterised distribution"),
        (integer, lambda m, g, x: log_p_by_quadrature(m, x), "site 'z': expected a latent site on R"),
        (integer, lambda m, g, x: active_units(g, x), "site 'z': expected a reparameterised distribution on the reals"),
    ],
)
def test_what_an_estimator_cannot_do_is_refused_in_a_line(
    make: Make, estimator: Callable[..., object], message: str
) -> None:
    case = make()
    with pytest.raises(ValueError, match=message) as error:
        estimator(case.model, case.guide, *case.data)
    assert "\n" not in str(error.value)
