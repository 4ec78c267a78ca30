import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, biject_to
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae import flows
from ppl_vae.components import choices, create
from ppl_vae.flows import Flow
from ppl_vae.posteriors import MixtureNormal, NormalMixture, Posterior
from ppl_vae.programs import seeded

SPECS = {
    "mixture-normal": "mixture-normal:num_components=3",
    "inverse-autoregressive-flow": "inverse-autoregressive-flow:hidden_size=16,context_size=3",
    "neural-spline-flow": "neural-spline-flow:hidden_size=16,context_size=3",
}
FLOWS = ["inverse-autoregressive-flow", "neural-spline-flow"]


def build(name, latent_size=2, *, noise=0.0, seed=0, dtype=torch.float64):
    """A posterior, with noise added to all its parameters."""
    with seeded(seed):
        posterior = create(Posterior, SPECS.get(name, name), latent_size=latent_size)
        with torch.no_grad():
            for parameter in posterior.parameters():
                parameter += noise * torch.randn_like(parameter)
    return posterior.to(dtype)


def params_of(posterior, *shape, dtype=torch.float64):
    """What an encoder might say."""
    generator = torch.Generator().manual_seed(1)
    return 0.5 * torch.randn(*shape, posterior.num_params, generator=generator, dtype=dtype)


def plane():
    """Points (n, 2) of R^2, and the areas (n,) that make a sum over them an integral."""
    t = torch.linspace(-3.2, 3.2, 161, dtype=torch.float64)
    area = t.cosh() * 6.4 / 160
    return torch.cartesian_prod(t.sinh(), t.sinh()), torch.cartesian_prod(area, area).prod(-1)


@pytest.mark.parametrize("latent_size", [1, 3])
@pytest.mark.parametrize("name", choices(Posterior))
def test_shapes_and_independent_particles(name, latent_size):
    posterior = build(name, latent_size, noise=0.3)
    params = params_of(posterior, 5)
    q = posterior(params)
    assert (q.batch_shape, q.event_shape) == ((5,), (latent_size,))
    assert q.mean.shape == (5, latent_size)
    assert posterior(params_of(posterior, 4, 5)).batch_shape == (4, 5)
    with seeded(0), pyro.plate("particles", 4, dim=-2), pyro.plate("data", 5, dim=-1):
        z = pyro.sample("z", q)
        assert q.rsample((2, 3)).shape == (2, 3, 5, latent_size)
    assert z.shape == (4, 5, latent_size)
    assert torch.equal(biject_to(q.support)(z), z)
    assert len(z.flatten().unique()) == z.numel()
    log_q = q.expand((4, 5)).log_prob(z)
    alone = [posterior(params[i]).log_prob(z[:, i]) for i in range(5)]
    torch.testing.assert_close(log_q, torch.stack(alone, 1))


@pytest.mark.parametrize("name", choices(Posterior))
def test_gradients_reach_all_parameters(name):
    posterior = build(name)
    params = params_of(posterior, 5).requires_grad_()
    with seeded(0):
        q = posterior(params).expand((4, 5))
        z = q.rsample()
    (q.log_prob(z) + z.square().sum(-1)).sum().backward()
    assert bool((params.grad != 0).all())
    assert all(p.grad is not None and p.grad.any() for p in posterior.parameters())


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("name", choices(Posterior))
def test_density_samples_and_gradients_against_quadrature(name, noise):
    """The density integrates to 1, the samples have its characteristic function, and their pathwise gradient is
    the gradient of the integral."""
    posterior = build(name, noise=noise)
    params = params_of(posterior).requires_grad_()
    points, area = plane()
    with seeded(0):
        each = params.detach().expand(8000, -1).clone().requires_grad_()
        z = posterior(each).rsample()
        t = torch.randn(2, 8, dtype=torch.float64)
    mass = posterior(params).log_prob(points).exp() * area
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    for wave in (torch.cos, torch.sin):
        exact, drawn = mass.detach() @ wave(points @ t), wave(z.detach() @ t)
        assert bool(((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / len(z) ** 0.5 + 1e-3).all())
    expected, *_ = torch.autograd.grad((mass @ (points @ t + 1).cos()).sum(), params)
    pathwise, *_ = torch.autograd.grad((z @ t + 1).cos().sum(), each)
    error = (pathwise.mean(0) - expected).abs()
    quadrature = 0.02  # the slope of a spline's density jumps: on grids of 1.5 to 3 times as many points, 0.012
    assert bool((error < 5 * pathwise.std(0) / len(z) ** 0.5 + quadrature).all())
    assert expected.abs().max() > 0.1  # there is something to get wrong


class Drawn(nn.Module):
    """A draw and its log-density as a module: a flow calls its networks when it is sampled, and not before."""

    def __init__(self, posterior):
        super().__init__()
        self.posterior = posterior

    def forward(self, params):
        q = self.posterior(params).expand((2, len(params)))
        z = q.rsample()
        return z, q.log_prob(z)


@pytest.mark.parametrize("name", choices(Posterior))
def test_it_can_be_traced(name):
    posterior = build(name, dtype=torch.float32)
    params = params_of(posterior, 5, dtype=torch.float32).requires_grad_()
    drawn = Drawn(posterior)
    parameters = dict(drawn.named_parameters())

    def run(parameters, params):
        z, log_q = torch.func.functional_call(drawn, parameters, (params,))
        loss = (log_q + z.square().sum(-1)).sum()
        return loss, *torch.autograd.grad(loss, [params, *parameters.values()])

    with pyro.validation_enabled(False):
        with seeded(0):
            traced = make_fx(run)(parameters, params)
        other = {k: (v + 0.1).detach().requires_grad_() for k, v in parameters.items()}
        with seeded(1):
            expected = run(other, params)
        with seeded(1):
            got = traced(other, params)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", choices(Posterior))
def test_it_is_saved_whole_and_named_without_noise(name):
    posterior, other = build(name, noise=0.3), build(name, noise=0.3, seed=1)
    other.load_state_dict(posterior.state_dict())
    params = params_of(posterior, 7)
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(posterior(params).log_prob(z), other(params).log_prob(z))
    assert "latent_size=2" in repr(posterior)  # zuko's own repr draws from the global generator


def test_a_full_normal_has_the_covariance_of_its_factor():
    posterior = build("full-normal", 3)
    q = posterior(torch.tensor([1.0, 2, 3, 0, 0, math.log(4), 0.1, 0.2, 0.3], dtype=torch.float64))
    N = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0.3, 0]], dtype=torch.float64)
    L = torch.tensor([1.0, 1, 2], dtype=torch.float64).diag() @ (torch.eye(3) + N / 3**0.5)
    assert q.mean.tolist() == [1, 2, 3]
    torch.testing.assert_close(q.covariance_matrix, L @ L.T)


def test_a_full_normal_of_many_dimensions_begins_about_as_wide_as_a_diagonal_one():
    """The variance of dimension i is scale_i^2 (1 + sum_j N_ij^2 / latent_size), with j < i."""
    posterior = build("full-normal", 400)
    params = params_of(posterior)
    variance = posterior(params).covariance_matrix.diagonal()
    ratio = variance / params[400:800].exp()
    assert ratio.min() >= 1 - 1e-9
    assert ratio.mean() < 1 + params[800:].square().mean()


def test_a_low_rank_normal_has_the_covariance_it_says():
    posterior = build("low-rank-normal", 3)
    params = params_of(posterior)
    S, U = (0.5 * params[3:6]).exp().diag(), params[6:].reshape(3, 4)
    torch.testing.assert_close(posterior(params).covariance_matrix, S @ (U @ U.T + torch.eye(3)) @ S)


@pytest.mark.parametrize("name", FLOWS)
def test_flows_begin_at_the_diagonal_normal(name):
    posterior = build(name, 3)
    params = params_of(posterior, 50)
    mean, log_variance = params[:, :3], params[:, 3:6]
    with seeded(0):
        z = posterior(params).sample()
    log_q = dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1).log_prob(z)
    torch.testing.assert_close(posterior(params).log_prob(z), log_q, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_keeps_its_own_determinant_and_any_other_value_is_inverted(name, monkeypatch):
    posterior = build(name, noise=0.3)
    params = params_of(posterior, 5).requires_grad_()
    inverted = []
    original = flows.zuko.transforms.AutoregressiveTransform._inverse

    def counted(self, y):
        inverted.append(y)
        return original(self, y)

    monkeypatch.setattr(flows.zuko.transforms.AutoregressiveTransform, "_inverse", counted)
    with seeded(0):
        q = posterior(params).expand((4, 5))
        first, last = q.rsample(), q.rsample()
    log_q = q.log_prob(last)
    assert not inverted
    by_inverse = q.log_prob(last.clone())
    assert inverted
    torch.testing.assert_close(by_inverse, log_q)
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), params, retain_graph=True) for t in (by_inverse, log_q)))
    torch.testing.assert_close(q.log_prob(first), posterior(params).log_prob(first))  # of the last draw alone


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_without_gradients_has_a_score(name):
    posterior = build(name, noise=0.3)
    params = params_of(posterior, 5).requires_grad_()
    with seeded(0):
        q = posterior(params)
        z = q.sample()
    score, *_ = torch.autograd.grad(q.log_prob(z).sum(), params)
    expected, *_ = torch.autograd.grad(posterior(params).log_prob(z).sum(), params)
    torch.testing.assert_close(score, expected)


def test_the_mean_of_a_flow_is_exact_if_it_is_affine_and_near_otherwise():
    mean, scale = torch.tensor([3.0, -2.0]), torch.tensor([0.1, 5.0])
    torch.testing.assert_close(Flow(torch.zeros(2), AffineTransform(mean, scale)).mean, mean)
    for name in FLOWS:
        posterior = build(name, noise=0.3)
        q = posterior(params_of(posterior))
        with seeded(0):
            z = q.sample((20_000,))
        assert torch.equal(q.mean, q.mean)
        # far closer than 32 draws: the odd part of f cancels
        assert bool(((q.mean - z.mean(0)).abs() < z.std(0) / math.sqrt(32)).all())


def test_gradients_of_a_mixture_are_finite_where_densities_overflow():
    """In 100 dimensions densities are beyond float32, and components may coincide."""
    for scale in (0.01, 1.0):
        with seeded(0):
            mean = torch.randn(3, 4, 100)
            mean[:, 1] = mean[:, 0]
            params = [mean, torch.full_like(mean, scale), torch.zeros(3, 4)]
            mean, stddev, logits = (p.requires_grad_() for p in params)
            NormalMixture(
                dist.Categorical(logits=logits), dist.Normal(mean, stddev).to_event(1)
            ).rsample().sum().backward()
        assert all(p.grad.isfinite().all() for p in params)


def test_the_gradient_of_a_mixture_knows_that_dimensions_depend_on_each_other():
    """E[z_1 z_2] = sum_k w_k mean_k1 mean_k2, where which component z_2 is from shows in z_1."""
    posterior = MixtureNormal(2, num_components=2)
    params = torch.tensor([0.3, 0, -1, -1, 0, 0, 1, 1, 0, 0]).requires_grad_()
    w, means = params[:2].softmax(-1), params[2:].reshape(2, 4)[:, :2]
    expected, *_ = torch.autograd.grad((w * means.prod(-1)).sum(), params)
    each = params.detach().expand(20_000, -1).clone().requires_grad_()
    with seeded(0):
        z = posterior(each).rsample()
    pathwise, *_ = torch.autograd.grad(z.prod(-1).sum(), each)
    assert bool(((pathwise.mean(0) - expected).abs() < 5 * pathwise.std(0) / len(z) ** 0.5).all())


def test_a_mixture_of_one_is_its_component():
    posterior = MixtureNormal(2, num_components=1)
    params = params_of(posterior, 5, dtype=torch.float32).requires_grad_()
    with seeded(0):
        z = posterior(params).rsample()
    (z * torch.tensor([1.0, 2.0])).sum().backward()
    mean = params[:, 1:3].detach()
    torch.testing.assert_close(params.grad[:, 0], torch.zeros(5))
    torch.testing.assert_close(params.grad[:, 1:3], torch.tensor([1.0, 2.0]).expand(5, 2))
    torch.testing.assert_close(params.grad[:, 3:], 0.5 * (z.detach() - mean) * torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "spec", ["low-rank-normal:rank=0", "mixture-normal:num_components=0", *(f"{f}:context_size=0" for f in FLOWS)]
)
def test_a_size_out_of_range_is_refused(spec):
    with pytest.raises(ValueError, match=r"posterior [a-z-]+: expected \w+ >= 1; got 0"):
        create(Posterior, spec, latent_size=2)


def test_zuko_leaves_the_validation_of_distributions_on():
    program = "import ppl_vae.flows; from torch.distributions import Distribution; assert Distribution._validate_args"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("size", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("name", choices(Posterior))
def test_an_encoder_out_of_bounds_gives_finite_log_probs_and_gradients(name, size):
    """A log-variance of 200 would be an infinite variance in float32, and one of -200 none."""
    posterior = build(name, dtype=torch.float32)
    params = torch.full((3, posterior.num_params), size, requires_grad=True)
    with seeded(0):
        q = posterior(params)
        z = q.rsample()
    log_q = q.log_prob(z)
    assert bool(z.isfinite().all())
    assert bool(log_q.isfinite().all())
    (gradient,) = torch.autograd.grad((log_q + z.sum(-1)).sum(), params)
    assert bool(gradient.isfinite().all())
