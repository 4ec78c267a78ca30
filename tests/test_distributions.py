"""Against what is known exactly: quadrature, sums in float64, and limits."""

import math

import pyro.distributions as dist
import pytest
import torch

from ppl_vae import distributions
from ppl_vae.distributions import (
    EPS,
    Beta,
    ContinuousBernoulli,
    DiscretizedLogistic,
    LevelCategorical,
    LogitNormal,
    NegativeBinomial,
    OneHot,
    RelaxedOneHot,
    ZeroInflatedNegativeBinomial,
)
from ppl_vae.programs import seeded


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def integral(f, low, high, n=200_001):
    x = torch.linspace(low, high, n, dtype=torch.float64)
    return torch.trapezoid(f(x), x).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-60.0, -5.0, -1.001, -0.999, -1e-4, 0.0, 1e-4, 0.999, 1.001, 5.0, 60.0])
def test_the_continuous_bernoulli_normaliser_against_quadrature(logit, dtype):
    """-log p(1/2) = A(l) - l/2 is the log-integral of exp(l (x - 1/2))."""
    exact = math.log(integral(lambda x: (logit * (x - 0.5)).exp(), 0, 1))
    p = ContinuousBernoulli(torch.tensor(logit, dtype=dtype))
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-7}[dtype]
    assert -p.log_prob(torch.tensor(0.5, dtype=dtype)).item() == pytest.approx(exact, abs=tolerance)


def test_torchs_normaliser_saturates_where_ours_does_not():
    """log C = log p(0) + softplus(l), here log 60 = 4.094."""
    logit = torch.tensor(-60.0)
    ours, torchs = (
        p(logits=logit).log_prob(torch.tensor(0.0)).item()
        for p in (lambda logits: ContinuousBernoulli(logits), torch.distributions.ContinuousBernoulli)
    )
    assert ours == pytest.approx(4.094, abs=1e-3)
    assert torchs < 2.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_continuous_bernoullis_derivatives(dtype):
    """d log p(x) / dl = x - mean, and d mean / dl = variance, 1/12 at l = 0; across the limits of the series."""
    logits = torch.tensor([-60.0, -2.0, -1.0001, -0.9999, -0.3, -1e-4, 0.0, 1e-4, 0.9999, 1.0001, 60.0], dtype=dtype)
    logits.requires_grad_()
    p, x = ContinuousBernoulli(logits), torch.tensor(0.3, dtype=dtype)
    exact, variance = [], []
    for l in logits.tolist():  # noqa: E741
        Z = integral(lambda x: (l * x).exp(), 0, 1)  # noqa: B023
        mean = integral(lambda x: x * (l * x).exp() / Z, 0, 1)  # noqa: B023
        exact.append(mean)
        variance.append(integral(lambda x: (x - mean) ** 2 * (l * x).exp() / Z, 0, 1))  # noqa: B023
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-7}[dtype]
    torch.testing.assert_close(p.mean.detach().double(), double(*exact), atol=tolerance, rtol=0)
    (score,) = torch.autograd.grad(p.log_prob(x).sum(), logits)
    torch.testing.assert_close((x - score).double(), double(*exact), atol=tolerance, rtol=0)
    (slope,) = torch.autograd.grad(p.mean.sum(), logits)
    torch.testing.assert_close(slope.double(), double(*variance), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logit", [-60.0, -5.0, -0.101, -0.099, -1e-4, 0.0, 1e-4, 0.099, 0.101, 5.0, 60.0])
def test_continuous_bernoulli_samples_are_the_inverse_cdf_with_its_gradient(logit, dtype):
    """F(x(u)) = u, and by differentiation dx/dl = -(dF/dl) / p(x)."""
    n = 1000
    logits = torch.full((n,), logit, dtype=dtype, requires_grad=True)
    with seeded(0):
        x = ContinuousBernoulli(logits).rsample()
        torch.manual_seed(0)
        u = torch.rand(n, dtype=dtype).double()
    (gradient,) = torch.autograd.grad(x.sum(), logits)
    x = x.detach().double()
    l = logits.detach().double().requires_grad_()  # noqa: E741
    if logit == 0:
        F, slope = x, u * (1 - u) / 2
    else:
        F = torch.expm1(l * x) / torch.expm1(l)
        slope = -torch.autograd.grad(F.sum(), l)[0] / ContinuousBernoulli(l.detach()).log_prob(x).exp()
    # in units of the density: float32 has x in [0, 1] to 6e-8
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-8}[dtype] * max(1, abs(logit))
    torch.testing.assert_close(F.detach(), u, atol=tolerance, rtol=0)
    torch.testing.assert_close(gradient.double(), slope, atol=2 * tolerance, rtol=1e-4)


@pytest.mark.parametrize("logit", [-100.0, -60.0, -1.0, 0.0, 1.0, 60.0, 100.0])
def test_continuous_bernoulli_samples_at_the_ends_of_torch_rand(logit, monkeypatch):
    """0 and 1 - 2^-24 are among its values: once in 16 million, which a batch of images is."""
    monkeypatch.setattr(ContinuousBernoulli, "_uniform", lambda *_: torch.tensor([0.0, 1 - 2**-24]))
    logits = torch.full((2,), logit, requires_grad=True)
    x = ContinuousBernoulli(logits).rsample()
    assert bool(((x >= 0) & (x <= 1)).all())
    assert bool(torch.autograd.grad(x.sum(), logits)[0].isfinite().all())


@pytest.mark.parametrize("loc", [-8.0, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("scale", [0.05, 0.99, 1.01, 3.0, 60.0])
def test_the_mean_of_a_logit_normal_against_quadrature(loc, scale):
    exact = integral(lambda t: (loc + scale * t).sigmoid() * (-t * t / 2).exp() / math.sqrt(2 * math.pi), -12, 12)
    assert LogitNormal(double(loc), double(scale)).mean.item() == pytest.approx(exact, abs=3e-6)


def test_the_end_cells_of_a_logit_normal_hold_their_mass():
    edge = math.log(EPS) - math.log1p(-EPS)
    for loc in (-50.0, -16.0, 0.0, 17.0):
        p = LogitNormal(double(loc), double(2.0))
        for x, distance in ((0.0, loc - edge), (1.0, -edge - loc)):
            mass = math.erfc(distance / 2 / math.sqrt(2)) / 2
            assert p.log_prob(double(x)).item() == pytest.approx(math.log(mass) - math.log(EPS), rel=1e-9)


def test_between_its_ends_the_logit_normal_is_the_transformed_normal():
    x = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    base, loc, scale = torch.distributions.Normal, double(0.4), double(1.3)
    exact = torch.distributions.TransformedDistribution(base(loc, scale), torch.distributions.SigmoidTransform())
    torch.testing.assert_close(LogitNormal(loc, scale).log_prob(x), exact.log_prob(x))


def test_beta_is_clamped_at_its_ends_alone():
    a, b = torch.tensor(2.5), torch.tensor(4.0)
    p, exact = Beta(a, b), torch.distributions.Beta(a, b)
    x = torch.tensor([EPS, 0.3, 1 - EPS])
    torch.testing.assert_close(p.log_prob(x), exact.log_prob(x))
    torch.testing.assert_close(p.expand((2,)).log_prob(torch.tensor([0.0, 1.0])), exact.log_prob(x[[0, 2]]))


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.7), (0.3, 0.001), (-1.2, 0.02), (0.9, 60.0)])
def test_the_discretised_logistic_is_a_difference_of_cdfs(loc, scale):
    """In float32, against float64, and its mean against the sum over the levels."""
    v = torch.arange(256.0)
    p = DiscretizedLogistic(torch.tensor(loc), torch.tensor(scale))
    edges = ((v[:-1].double() + 0.5) / 127.5 - 1 - loc) / scale
    cdf, sf = edges.sigmoid(), (-edges).sigmoid()  # each is exact where it is small
    cdf, sf = torch.cat([double(0), cdf, double(1)]), torch.cat([double(1), sf, double(0)])
    mass = torch.where(cdf[1:] < 0.5, cdf.diff(), -sf.diff())
    log_prob = p.log_prob(v).double()
    seen = mass > 1e-30
    rounding = 1e-6 * (1 + log_prob.abs()) + 1e-6 / scale
    assert bool(((log_prob - mass.log()).abs() < rounding)[seen].all())
    assert p.mean.item() == pytest.approx((v * mass).sum().item(), abs=1e-2 if scale < 0.01 else 1e-3)


@pytest.mark.parametrize("scale", [0.002, 0.7])
def test_discretised_logistic_samples_are_the_inverse_cdf(scale, monkeypatch):
    """P(V < v(u)) <= u <= P(V <= v(u))."""
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    monkeypatch.setattr(DiscretizedLogistic, "_uniform", lambda *_: u)
    p = DiscretizedLogistic(double(0.31), double(scale))
    v = p.sample((1000,)).long()
    cdf = p.log_prob(torch.arange(256.0, dtype=torch.float64)).exp().cumsum(0)
    assert bool((u <= cdf[v] + 1e-9).all())
    assert bool((u >= torch.cat([double(0), cdf])[v] - 1e-9).all())


def test_the_mean_of_categorical_levels():
    probs = torch.tensor([[0.2, 0.0, 0.8], [0.5, 0.25, 0.25]])
    torch.testing.assert_close(LevelCategorical(probs=probs).mean, torch.tensor([1.6, 0.75]))


@pytest.mark.parametrize("log_mean", [-3.0, 0.0, 3.0, 5.0])
@pytest.mark.parametrize("log_concentration", [-20.0, -3.0, 0.0, 2.99, 3.0, 8.0, 14.0, 60.0])
def test_the_negative_binomial_in_float32(log_mean, log_concentration):
    """log G(x + c) - log G(c) = sum_k log(c + k), k < x; and as c grows it is Poisson."""
    x = torch.tensor([0.0, 1.0, 7.0, 100.0, 255.0])
    c, mean = math.exp(log_concentration), math.exp(log_mean)
    exact = [
        sum(math.log1p(k / c) for k in range(int(n)))
        + n * (log_mean - math.log1p(mean / c))
        - math.lgamma(n + 1)
        - c * math.log1p(mean / c)
        for n in x.tolist()
    ]
    log_prob = NegativeBinomial(torch.tensor(log_mean), torch.tensor(log_concentration)).log_prob(x)
    torch.testing.assert_close(log_prob.double(), double(*exact), atol=5e-4, rtol=5e-6)
    if log_concentration == 60:
        poisson = torch.distributions.Poisson(torch.tensor(log_mean).exp()).log_prob(x)
        torch.testing.assert_close(log_prob, poisson, atol=5e-4, rtol=5e-6)


def test_torchs_negative_binomial_is_lost_at_a_large_concentration():
    """Which is why there is one here: total_count = exp(14), mean 20, x = 20, where Poisson has -2.4 nats."""
    logits = torch.tensor(math.log(20) - 14)
    torchs = torch.distributions.NegativeBinomial(torch.tensor(14.0).exp(), logits=logits)
    exact = 20 * math.log(20) - 20 - math.lgamma(21)
    assert abs(torchs.log_prob(torch.tensor(20.0)).item() - exact) > 0.1
    ours = NegativeBinomial(torch.tensor(20.0).log(), torch.tensor(14.0))
    assert ours.log_prob(torch.tensor(20.0)).item() == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("gate", [-60.0, -1.0, 0.0, 2.0, 60.0])
def test_zero_inflation_mixes_with_a_mass_at_zero(gate):
    log_mean, log_concentration, gate_logits = double(1.0), double(0.3), double(gate)
    p, base = ZeroInflatedNegativeBinomial(log_mean, log_concentration, gate_logits), NegativeBinomial
    inner = base(log_mean, log_concentration)
    x, weight = double(0, 1, 5), torch.sigmoid(gate_logits)
    exact = ((1 - weight) * inner.log_prob(x).exp() + weight * double(1, 0, 0)).log()
    if gate == 60:  # 1 - weight is rounded to 0
        exact[1:] = inner.log_prob(x[1:]) - gate
    torch.testing.assert_close(p.log_prob(x), exact)
    assert p.mean.item() == pytest.approx(math.e / (1 + math.exp(gate)))
    with seeded(0):
        p.sample()
    torch.testing.assert_close(p.expand((2, 3)).log_prob(x), exact.expand(2, 3))


@pytest.mark.parametrize("batch", [(), (3,), (4, 3)])
@pytest.mark.parametrize("low_rank", [False, True])
def test_the_kl_of_a_normal_of_any_covariance_to_independent_ones(low_rank, batch):
    """Against torch's, between full covariances."""
    with seeded(0):
        mean, scale = torch.randn(*batch, 2, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.5
        factor, diagonal = torch.randn(*batch, 2, 1, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.1
    low = dist.LowRankMultivariateNormal(mean, factor, diagonal.expand(*batch, 2))
    q = low if low_rank else dist.MultivariateNormal(mean, low.covariance_matrix)
    p = dist.Normal(torch.tensor([0.3, -1.0], dtype=torch.float64), scale).to_event(1)
    full = dist.MultivariateNormal(p.mean, p.variance.diag_embed())
    ours = distributions.kl_divergence(q, p.expand(batch))
    assert ours.shape == batch
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(q, full))
    with pytest.raises(NotImplementedError):
        distributions.kl_divergence(q, dist.Laplace(mean, 1.0).to_event(1))


def test_a_relaxed_one_hot_draw_is_a_category_with_a_gradient():
    """Its largest number is at a draw of the categorical distribution (Gumbel-max); straight through it is that unit
    vector, with the gradient of the relaxed draw."""
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]], requires_grad=True)
    n, w = 20_000, torch.tensor([1.0, 3.0, 7.0])
    draws, grads = [], []
    for straight_through in (False, True):
        with seeded(0):
            draws.append(RelaxedOneHot(logits, 0.6, straight_through).rsample((n,)))
        grads.append(torch.autograd.grad((draws[-1] * w).sum(), logits)[0])
    soft, hard = draws
    assert torch.equal(hard, torch.nn.functional.one_hot(soft.argmax(-1), 3).to(hard))
    torch.testing.assert_close(soft.sum(-1), torch.ones(n, 2))
    torch.testing.assert_close(*grads)
    assert grads[0].abs().min() > 0
    p = logits.detach().softmax(-1)
    with seeded(1):
        plain = OneHot(logits=logits).to_event(1).expand((n,)).sample()
    for draws in (hard, plain):
        assert bool(((draws.mean(0) - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all())
