import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from mpmath import mp
from torch import nn
from torch.distributions import constraints
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.components import choices
from ppl_vae.distributions import EPS, NegativeBinomial
from ppl_vae.likelihoods import (
    Bernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    GaussianLearned,
    GaussianOptimal,
    GaussianPerPixel,
    Likelihood,
    Poisson,
    Rescaled,
    StudentT,
)
from ppl_vae.programs import seeded

LIKELIHOODS = list(choices(Likelihood).values())
EXTREME = torch.tensor([-120.0, -5.0, -0.3, 0.0, 2.0, 60.0])

every_likelihood = pytest.mark.parametrize("cls", LIKELIHOODS, ids=choices(Likelihood))


def generator():
    return torch.Generator().manual_seed(0)


def ordinary(likelihood, *shape):
    """Parameters as an untrained decoder's, shape (*shape, params_per_dim), float64."""
    return torch.randn(*shape, likelihood.params_per_dim, generator=generator(), dtype=torch.float64)


def corners(likelihood, size):
    """Parameters at -size, 0 and size in all combinations, or 100 of them, shape (n, params_per_dim), float64."""
    k = likelihood.params_per_dim
    if k <= 3:
        rows = torch.tensor([*itertools.product((-1.0, 0.0, 1.0), repeat=k)])
    else:
        rows = torch.randint(-1, 2, (100, k), generator=generator())
    return size * rows.double()


def levels(support):
    """All values of a discrete support, float64, or those below 2^18."""
    if support is constraints.nonnegative_integer:
        return torch.arange(2.0**18, dtype=torch.float64)
    upper = 1 if support is constraints.boolean else support.upper_bound
    return torch.arange(upper + 1.0, dtype=torch.float64)


def cells(p, samples):
    """(edges, mass, first moment) of the cells between sorted samples and on out to both ends of the support, by
    Gauss-Legendre quadrature of exp log_prob."""
    samples = samples.double().unique()
    if p.support is constraints.unit_interval:
        powers = 2.0 ** -torch.arange(1.0, 40.0, dtype=torch.float64)
        ends = torch.cat([torch.tensor([0.0, 1.0]), powers, 1 - powers])
    else:
        steps = (samples[-1] - samples[0]) * 2.0 ** torch.arange(-8.0, 40.0, dtype=torch.float64)
        ends = torch.cat([samples[0] - steps, samples[-1] + steps])
    edges = torch.cat([samples, ends]).unique()
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    half = edges.diff()[:, None] / 2
    x = edges[:-1, None] + half * (1 + nodes)
    mass = half * weights * p.log_prob(x).exp()
    return edges, mass.sum(-1), (x * mass).sum(-1)


@every_likelihood
def test_one_distribution_per_dimension_with_gradients_to_its_parameters(cls):
    likelihood = cls()
    params = torch.randn(5, 2, 3, likelihood.params_per_dim, generator=generator(), requires_grad=True)
    p = likelihood(params)
    assert p.batch_shape == (5, 2, 3)
    assert p.event_shape == ()
    assert p.mean.shape == (5, 2, 3)
    x = (p.mean.detach() > 0.5).float()
    p.log_prob(x).sum().backward()
    assert params.grad is not None
    assert bool((params.grad != 0).all())
    assert all(q.grad is not None for q in likelihood.parameters())
    assert type(likelihood).__name__ in repr(likelihood)


@every_likelihood
def test_it_is_normalised_and_has_its_mean(cls):
    likelihood = cls().eval()
    with torch.no_grad(), seeded(0):
        for params in ordinary(likelihood, 3):
            p = likelihood(params)
            if cls.support.is_discrete:
                x = levels(cls.support)
                mass = p.log_prob(x).exp()
                first_moment = x * mass
            else:
                _, mass, first_moment = cells(p, p.sample((500,)))
            assert mass.sum().item() == pytest.approx(1, abs=1e-5)
            assert p.mean.item() == pytest.approx(first_moment.sum().item(), rel=1e-5, abs=1e-5)


@every_likelihood
def test_it_is_normalised_at_extreme_parameters(cls):
    likelihood = cls().eval()
    rows = corners(likelihood, 60)
    if cls.support is constraints.nonnegative_integer:
        rows[:, 0].clamp_(max=6)  # log-mean: to sum beyond is too long
    with torch.no_grad(), seeded(0):
        for params in rows:
            p = likelihood(params)
            mass = p.log_prob(levels(cls.support)).exp() if cls.support.is_discrete else cells(p, p.sample((500,)))[1]
            assert mass.sum().item() == pytest.approx(1, abs=1e-5), params


@pytest.mark.parametrize("cls", [c for c in LIKELIHOODS if isinstance(c.support, constraints.integer_interval)])
def test_masses_of_256_levels_sum_to_one_in_float32(cls):
    likelihood = cls()
    rows = torch.cat([ordinary(likelihood, 20), corners(likelihood, 1), corners(likelihood, 60)]).float()
    total = likelihood(rows).log_prob(levels(cls.support).float()[:, None]).double().exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@every_likelihood
def test_samples_follow_the_log_prob(cls):
    """The empirical cdf of n samples is within e of the cdf everywhere, but for probability 2 exp(-2 n e^2) (Dvoretzky,
    Kiefer, Wolfowitz; Massart): here 1e-4."""
    likelihood, n = cls().eval(), 20_000
    for params in ordinary(likelihood, 2):
        with torch.no_grad(), seeded(1):
            p = likelihood(params)
            samples = p.sample((n,)).double()
            assert bool(cls.support.check(samples).all())
            if cls.support.is_discrete:
                x = levels(cls.support)
                cdf = p.log_prob(x).exp().cumsum(0)
            else:
                x, mass, _ = cells(p, samples)
                cdf = nn.functional.pad(mass.cumsum(0), (1, 0))
        empirical = torch.searchsorted(samples.sort().values, x, right=True) / n
        assert (empirical - cdf).abs().max() < math.sqrt(math.log(2 / 1e-4) / (2 * n))


def softplus(s):
    return mp.log1p(mp.exp(s))


def normal(x, mean, scale):
    return -(((x - mean) / scale) ** 2) / 2 - mp.log(scale * mp.sqrt(2 * mp.pi))


def logistic(x, loc, scale):
    """log P(level x): of the tails at levels 0 and 255."""
    low, high = (((x + half) / 127.5 - 1 - loc) / scale for half in (-0.5, 0.5))
    log_at_most, log_at_least = -softplus(-high), -softplus(low)
    if x in (0, 255):
        return log_at_most if x == 0 else log_at_least
    return log_at_most + log_at_least + mp.log(-mp.expm1(low - high))


def poisson(x, log_rate):
    return x * capped(log_rate) - mp.exp(capped(log_rate)) - mp.loggamma(x + 1)


def negative_binomial(x, m, c):
    m, c = mp.exp(capped(m)), mp.exp(c)
    terms = x * mp.log(m / (m + c)) - c * mp.log1p(m / c)
    return mp.loggamma(x + c) - mp.loggamma(c) - mp.loggamma(x + 1) + terms


def capped(t):
    return t if t <= 60 else 60 + mp.log1p(t - 60)


def log_sum(terms):
    return mp.log(mp.fsum(map(mp.exp, terms)))


def log_ndtr(t):
    return mp.log(mp.erfc(-t / mp.sqrt(2)) / 2)


def logit_normal(x, loc, scale):
    edge = mp.log(EPS) - mp.log1p(-EPS)
    if x < EPS or x > 1 - EPS:
        return log_ndtr((edge - (loc if x < EPS else -loc)) / scale) - mp.log(EPS)
    return normal(mp.log(x) - mp.log1p(-x), loc, scale) - mp.log(x) - mp.log1p(-x)


def beta(x, a, b):
    x = min(max(x, mp.mpf(EPS)), 1 - mp.mpf(EPS))
    return (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x) + mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b)


FORMULAS = {  # log p(x) of the parameters as their docstrings have it, at defaults, in 60 digits
    "bernoulli": lambda x, logit: x * logit - softplus(logit),
    "continuous-bernoulli": lambda x, logit: logit * x - (mp.log(mp.expm1(logit) / logit) if logit else 0),
    "gaussian": lambda x, m: normal(x, m, 0.1),
    "gaussian-learned": lambda x, m: normal(x, m, 0.3),
    "gaussian-optimal": lambda x, m: normal(x, m, 1.0),
    "gaussian-per-pixel": lambda x, m, s: normal(x, m, 0.01 + softplus(s)),
    "laplace": lambda x, m: -abs(x - m) / 0.3 - mp.log(2 * 0.3),
    "student-t": lambda x, m: (
        mp.loggamma(2.5) - mp.loggamma(2) - mp.log(4 * mp.pi * 0.3**2) / 2 - 2.5 * mp.log1p(((x - m) / 0.3) ** 2 / 4)
    ),
    "logit-normal": lambda x, m, s: logit_normal(x, m, 0.04 + softplus(s)),
    "beta": lambda x, a, b: beta(x, 1 + softplus(a), 1 + softplus(b)),
    "discretized-logistic": lambda x, m, s: logistic(x, m, 0.001 + softplus(s)),
    "discretized-logistic-mixture": lambda x, *p: (
        log_sum(w + logistic(x, m, 0.001 + softplus(s)) for w, m, s in zip(p[:5], p[5:10], p[10:], strict=True))
        - log_sum(p[:5])
    ),
    "categorical": lambda x, *logits: logits[int(x)] - log_sum(logits),
    "poisson": poisson,
    "negative-binomial": negative_binomial,
    "zero-inflated-negative-binomial": lambda x, m, c, g: (
        log_sum([-softplus(-g), negative_binomial(x, m, c) - softplus(g)])
        if x == 0
        else negative_binomial(x, m, c) - softplus(g)
    ),
}
EDGES = {
    constraints.boolean: (0.0, 1.0),
    constraints.real: (-1e3, 0.0, 0.5, 1e3),
    constraints.unit_interval: (0.0, 2.0**-32, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0),
    constraints.nonnegative_integer: (0.0, 1.0, 255.0, 1e4, 1e5, 1e6, 1e7),
}
SIZES = (-120.0, -100.0, -20.0, -1.0, 0.5, 11.5, 16.0, 60.0, 89.0, 120.0)


def edges(support):
    return EDGES.get(support, (0.0, 1.0, 128.0, 254.0, 255.0))


def held_to_its_formula(name, params, x, **tolerance):
    """log p(x) in float32, of float32 parameters (n, k) and x (n,)."""
    likelihood = choices(Likelihood)[name]().eval()
    with torch.no_grad():
        log_prob = likelihood(params).log_prob(x).double()
    with mp.workdps(60):
        rows = zip(x.tolist(), params.tolist(), strict=True)
        exact = [float(FORMULAS[name](mp.mpf(x), *map(mp.mpf, row))) for x, row in rows]
    torch.testing.assert_close(log_prob, torch.tensor(exact, dtype=torch.float64), **tolerance)


@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_the_family_that_it_is_named_for(name):
    """Another one might be as normalised, with samples of its own."""
    likelihood = choices(Likelihood)[name]
    scale = {constraints.boolean: 1.0, constraints.unit_interval: 0.99}.get(likelihood.support, 5.0)
    x = scale * torch.rand(20, generator=generator())
    x = x.round() if likelihood.support.is_discrete else x
    if "logistic" in name:
        x += 120  # inside: the levels at the ends have the tails
    held_to_its_formula(name, ordinary(likelihood(), 20).float(), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_no_digits_are_lost_at_extremes(name):
    """Counts of 10^7 and outputs of -120 to 120, at which log-gammas cancel and exp overflows."""
    likelihood = choices(Likelihood)[name]
    k, support = likelihood().params_per_dim, edges(likelihood.support)
    if k <= 2:
        rows = torch.tensor([*itertools.product(SIZES, repeat=k)])
    else:
        rows = torch.tensor(SIZES)[torch.randint(len(SIZES), (60, k), generator=generator())]
    params, x = rows.repeat(len(support), 1), torch.tensor(support).repeat_interleave(len(rows))
    held_to_its_formula(name, params, x, rtol=1e-5, atol=1e-4)


@every_likelihood
@pytest.mark.parametrize("training", [True, False])
def test_log_prob_and_gradients_are_finite_at_extremes(cls, training):
    likelihood = cls().train(training)
    for x in edges(cls.support):
        for size in (1e-20, 1e-4, 60.0, 89.0, 120.0):
            params = corners(likelihood, size).float().requires_grad_()
            log_prob = likelihood(params).log_prob(torch.tensor(x))
            assert bool(log_prob.isfinite().all()), (x, size)
            for grad in torch.autograd.grad(log_prob.sum(), [params, *likelihood.parameters()]):
                assert bool(grad.isfinite().all()), (x, size)


@every_likelihood
@pytest.mark.parametrize("size", [20.0, 120.0])
def test_samples_at_extremes_are_in_the_support_and_means_finite(cls, size):
    likelihood = cls()
    params = corners(likelihood, size).float()
    with seeded(0):
        p = likelihood(params)
        samples = p.sample((100,))
    assert samples.dtype == torch.float32
    assert samples.shape == (100, len(params))
    assert bool(cls.support.check(samples).all())
    assert bool(p.mean.isfinite().all())


@every_likelihood
def test_support_says_whether_it_is_a_mass(cls):
    likelihood = cls()
    assert likelihood(ordinary(likelihood)).support.is_discrete == cls.support.is_discrete


@every_likelihood
def test_particles_are_the_same_likelihood_many_times(cls):
    likelihood = cls().eval()
    params = ordinary(likelihood, 5, 2, 3)
    p = likelihood(params)
    with seeded(0):
        x = p.sample()[0]
    together = p.expand((4, 5, 2, 3)).to_event(1).log_prob(x)
    assert together.shape == (4, 5, 2)
    one_by_one = torch.stack([likelihood(params[k]).log_prob(x).sum(-1) for k in range(5)])
    torch.testing.assert_close(together, one_by_one.expand(4, 5, 2))


@every_likelihood
def test_what_make_fx_traces_is_the_same_function(cls):
    """Samples, log-probs, gradients and buffers, on other inputs than those that it was traced with."""
    likelihood = cls()

    def run(state, params, x):
        state = {k: v.clone() for k, v in state.items()}
        p = functional_call(likelihood, state, params)
        log_prob = p.log_prob(x)
        return p.sample(), log_prob, torch.autograd.grad(log_prob.sum(), params)[0], state

    state = dict(likelihood.state_dict())
    first, second = torch.randn(2, 4, likelihood.params_per_dim, generator=generator()).unbind(0)
    first, second = first.requires_grad_(), (2 * second).requires_grad_()
    with pyro.validation_enabled(False), seeded(0):
        traced = make_fx(run)(state, first, torch.tensor([0.0, 0.0, 1.0, 1.0]))
        x = torch.tensor([1.0, 0.0, 1.0, 0.0])
        results = []
        for function in (run, traced):
            torch.manual_seed(1)
            results.append(function(state, second, x))
    torch.testing.assert_close(*results)


def test_bernoulli_is_normalised_and_does_not_saturate():
    p = Bernoulli()(EXTREME[:, None])
    total = p.log_prob(torch.zeros(6)).double().exp() + p.log_prob(torch.ones(6)).double().exp()
    torch.testing.assert_close(total, torch.ones(6, dtype=torch.float64))
    # by way of a probability it would be -15.9 nats
    assert p.log_prob(torch.ones(6))[0].item() == pytest.approx(-120)


@pytest.mark.parametrize(
    ("likelihood", "s"),
    [(Gaussian(0.05), 0.0), (GaussianLearned(2.0), 0.0), *[(GaussianPerPixel(), s) for s in (-9, 3)]],
)
def test_gaussians_integrate_to_one(likelihood, s):
    params = torch.tensor([0.3, s][: likelihood.params_per_dim])
    with torch.no_grad():
        p = likelihood(params)
        x = torch.linspace(-40, 40, 4_000_001, dtype=torch.float64)
        density = p.log_prob(x).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=1e-4)


def test_gaussian_has_its_constants():
    """log 2 pi and the scale, which a mean squared error leaves out."""
    x, mean, scale = 0.7, 0.2, 0.1
    expected = -0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
    assert Gaussian(scale)(torch.tensor([mean])).log_prob(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("cls", "name"), [(Gaussian, "scale"), (GaussianLearned, "initial_scale")])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_out_of_range_is_refused(cls, name, value):
    with pytest.raises(ValueError, match=rf"expected {name} > 0; got"):
        cls(value)


def test_the_scale_per_pixel_has_a_floor():
    p = GaussianPerPixel(min_scale=0.01)(torch.tensor([0.5, -100.0]))
    assert p.scale.item() == pytest.approx(0.01)
    with pytest.raises(ValueError, match="min_scale > 0"):
        GaussianPerPixel(0.0)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (GaussianOptimal, {"momentum": 0.0}, "gaussian-optimal: expected momentum > 0; got 0.0"),
        (GaussianOptimal, {"momentum": 1.5}, "gaussian-optimal: expected momentum <= 1; got 1.5"),
        (GaussianOptimal, {"min_scale": -1.0}, "gaussian-optimal: expected min_scale > 0; got -1.0"),
        (StudentT, {"df": 1.0}, "student-t: expected 1 < df <= 100; got 1.0"),
        (StudentT, {"df": math.nan}, "student-t: expected 1 < df <= 100; got nan"),
        (StudentT, {"initial_scale": 0.0}, "student-t: expected initial_scale > 0; got 0.0"),
        (DiscretizedLogisticMixture, {"num_components": 0}, "expected num_components >= 1; got 0"),
    ],
)
def test_an_argument_out_of_range_is_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize("log_rate", [-60.0, -5.0, 0.0, 8.0, 60.0])
def test_poisson_does_not_saturate(log_rate):
    log_prob = Poisson()(torch.tensor([log_rate])).log_prob(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(log_prob, torch.tensor([-math.exp(log_rate), log_rate - math.exp(log_rate)]))


def test_the_optimal_variance_is_the_mean_squared_error():
    """Of dimensions, data and particles together; and no other variance gives a higher log-prob."""
    loc, x = torch.randn(6, 5, 4, 3, generator=generator()), torch.randn(4, 3, generator=generator())
    log_prob = GaussianOptimal()(loc[..., None]).to_event(1).log_prob(x).sum()
    mse = (x - loc).square().mean()
    assert log_prob.item() == pytest.approx(-loc.numel() / 2 * (math.log(2 * math.pi * mse) + 1), rel=1e-5)
    for factor in (0.99, 1.01):
        assert Gaussian(factor * mse.sqrt().item())(loc[..., None]).log_prob(x).sum() < log_prob


def test_the_gradient_under_the_optimal_variance_is_that_of_log_mse():
    loc, x = (torch.randn(4, 3, generator=generator(), dtype=torch.float64) for _ in range(2))
    x = x + 1
    params = loc[..., None].requires_grad_()
    (ours,) = torch.autograd.grad(GaussianOptimal()(params).log_prob(x).sum(), params)
    (papers,) = torch.autograd.grad(-loc.numel() / 2 * (x - params[..., 0]).square().mean().log(), params)
    torch.testing.assert_close(ours, papers)


def test_evaluation_has_the_running_variance_and_leaves_it():
    """It is the mean of the batches' until momentum = 1/4 is more than 1/n."""
    likelihood, zero = GaussianOptimal(momentum=0.25), torch.zeros(2, 1)
    expected = 0.0
    for n, mse in enumerate((4.0, 1.0, 9.0, 2.0, 16.0, 25.0), 1):
        p = likelihood(zero)
        with seeded(0):
            p.sample()
        p.log_prob(torch.tensor([math.sqrt(mse), -math.sqrt(mse)]))
        expected += max(1 / n, 0.25) * (mse - expected)
    assert likelihood.variance.item() == pytest.approx(expected)
    x = torch.tensor([0.3, -70.0])
    alone = [likelihood.eval()(zero[:1]).log_prob(x[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(likelihood(zero).log_prob(x), torch.cat(alone))
    torch.testing.assert_close(torch.cat(alone), Gaussian(math.sqrt(expected))(zero).log_prob(x))
    assert likelihood.variance.item() == pytest.approx(expected)
    assert likelihood.count == 6


def test_a_perfect_fit_stops_at_the_least_scale():
    likelihood = GaussianOptimal(min_scale=0.01)
    params = torch.ones(3, 1, requires_grad=True)
    log_prob = likelihood(params).log_prob(torch.ones(3))
    torch.testing.assert_close(log_prob, Gaussian(0.01)(params).log_prob(torch.ones(3)))
    assert likelihood.eval()(params).scale.min().item() == pytest.approx(0.01)


@pytest.mark.parametrize("cls", [c for c in LIKELIHOODS if c.support is constraints.real])
def test_a_rescaled_likelihood_is_the_density_of_x_in_its_own_units(cls):
    """log p(x) = log p((x - mean) / scale) - log scale, with its mean, samples and particles."""
    units = torch.tensor([3.0, 1000.0, 1e-3])
    x = torch.tensor([-5.0, 1e6, 0.0]) + units * torch.randn(400, 3, generator=generator())
    rescaled, plain = Rescaled(cls().eval(), (3,)).eval(), cls().eval()
    rescaled.initialise(x)
    scale = x.double().std(0, correction=0)
    torch.testing.assert_close(rescaled.scale.double(), scale, rtol=1e-5, atol=0)
    params = torch.randn(2, 400, 3, plain.params_per_dim, generator=generator())
    p, y = rescaled(params), (x - rescaled.mean) / rescaled.scale
    expected = plain(params).log_prob(y) - scale.log()
    torch.testing.assert_close(p.log_prob(x).double(), expected.double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(p.to_event(1).log_prob(x).double(), expected.sum(-1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(p.mean, rescaled.mean + rescaled.scale * plain(params).mean)
    assert p.expand((4, 2, 400, 3)).log_prob(x).shape == (4, 2, 400, 3)
    with seeded(0):
        drawn = p.sample()
    with seeded(0):
        torch.testing.assert_close(drawn, rescaled.mean + rescaled.scale * plain(params).sample())
    with pytest.raises(ValueError, match="expected a density on the real line; got bernoulli"):
        Rescaled(Bernoulli(), (3,))
    assert Rescaled not in choices(Likelihood).values()


@pytest.mark.parametrize("c", [19.9, 20.1, 30.0, 200.0, 1e6])
def test_a_negative_binomial_is_exact_where_its_series_begins(c):
    """Stirling's series has an error of 1e-9 from a concentration of 20 on, and of its second term 3e-6."""
    x = torch.tensor([0.0, 1.0, 5.0, 100.0, 1e4], dtype=torch.float64)
    m, log_c = torch.tensor(2.0, dtype=torch.float64), torch.tensor(math.log(c), dtype=torch.float64)
    with mp.workdps(40):
        exact = [float(negative_binomial(mp.mpf(v), mp.mpf(2), mp.mpf(log_c.item()))) for v in x.tolist()]
    log_p = NegativeBinomial(m, log_c).log_prob(x)
    torch.testing.assert_close(log_p, torch.tensor(exact, dtype=torch.float64), rtol=1e-10, atol=1e-8)
