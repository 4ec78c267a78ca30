"""Objectives against exact bounds and gradients of linear-Gaussian pairs, and against Pyro's own on the same noise.

Parameters of the pairs here belong to one datum each, and the data are copies of one: the gradient of the summed
loss is then one independent draw of the estimator for each datum.
"""

import gc
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.components import choices, create
from ppl_vae.evaluation.importance import log_weights
from ppl_vae.kl_weights import Constant, CyclicalWarmUp, KLWeight, LinearWarmUp
from ppl_vae.objectives import (
    AnalyticKL,
    ClosedFormKL,
    DoublyReparameterized,
    Elbo,
    FreeBits,
    GumbelSoftmax,
    ImportanceWeighted,
    KLScale,
    LeaveOneOut,
    Objective,
    StickingTheLanding,
)
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit
from ppl_vae.training.monitoring import elbo_parts

OBJECTIVES = [*choices(Objective).values()]
REPARAMETERISED = [cls for cls in OBJECTIVES if cls not in (Elbo, LeaveOneOut)]


class Linear(nn.Module):
    """z ~ N(0, I), x ~ N(W z + b, scale^2), W with orthogonal columns, so that the exact posterior is a diagonal
    normal; the guide is that, its standard deviations times `width` and its means moved by `shift`."""

    scale = 0.5

    def __init__(self, N=3, D=4, L=2, width=1.0, shift=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        W = torch.linalg.qr(torch.randn(D, L, generator=generator))[0] * torch.linspace(0.5, 1.5, L)
        self.register_buffer("W", W)
        self.x = torch.randn(D, generator=generator).expand(N, D)
        variance = 1 / (1 + self.W.square().sum(0) / self.scale**2)
        self.b = nn.Parameter(torch.zeros(N, D))
        self.loc = nn.Parameter(self.x @ self.W * variance / self.scale**2 + shift)
        self.log_scale = nn.Parameter((width * variance.sqrt()).log().repeat(N, 1))

    def model(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.W.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.W.T + self.b, self.scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))

    @property
    def kl(self):
        """Shape (data, latent)."""
        return 0.5 * (self.loc**2 + (2 * self.log_scale).exp() - 1) - self.log_scale

    @property
    def elbo(self):
        error = (self.x - self.loc @ self.W.T - self.b).square().sum(-1)
        spread = ((2 * self.log_scale).exp() * self.W.square().sum(0)).sum(-1)
        constant = 0.5 * len(self.W) * math.log(2 * math.pi * self.scale**2)
        return -(error + spread) / (2 * self.scale**2) - constant - self.kl.sum(-1)

    @property
    def log_p(self):
        D = len(self.W)
        covariance = self.W @ self.W.T + self.scale**2 * torch.eye(D)
        return torch.distributions.MultivariateNormal(torch.zeros(D), covariance).log_prob(self.x)


class Flow(Linear):
    """The same guide as a transformed distribution."""

    def guide(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1)
            affine = dist.transforms.AffineTransform(self.loc, self.log_scale.exp(), event_dim=1, cache_size=1)
            pyro.sample("z", dist.TransformedDistribution(base, [affine]))


class Chain(nn.Module):
    """z_3 -> z_2 -> z_1 -> x, with a guide from the bottom up, z_1 | x, z_2 | z_1, z_3 | z_2: the exact posterior,
    but for parameters multiplied by `factor`."""

    a, w, scale = 1.5, 0.8, 0.7

    def __init__(self, N=3, factor=1.0):
        super().__init__()
        self.x = torch.full((N,), 1.3)
        v2 = 1 + self.a**2
        v1 = 1 + self.a**2 * v2
        v = 1 / (1 / v1 + self.w**2 / self.scale**2)
        slopes = torch.tensor([v * self.w / self.scale**2, self.a * v2 / v1, self.a / v2])
        self.slopes = nn.Parameter(factor * slopes.repeat(N, 1))
        self.scales = nn.Parameter(factor * torch.tensor([v, v2 / v1, 1 / v2]).sqrt().repeat(N, 1))
        self.b = nn.Parameter(torch.zeros(N))

    def model(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            z3 = pyro.sample("z3", dist.Normal(x.new_zeros(()), 1.0))
            z2 = pyro.sample("z2", dist.Normal(self.a * z3, 1.0))
            z1 = pyro.sample("z1", dist.Normal(self.a * z2, 1.0))
            pyro.sample("x", dist.Normal(self.w * z1 + self.b, self.scale), obs=x)

    def guide(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            above = x
            for i in range(3):
                above = pyro.sample(f"z{i + 1}", dist.Normal(self.slopes[:, i] * above, self.scales[:, i]))


class TopDown(Chain):
    """A guide from the top down, far from the posterior."""

    def guide(self, x):
        pyro.module("chain", self)
        with pyro.plate("data", len(x)):
            above = x
            for i in (2, 1, 0):
                above = pyro.sample(f"z{i + 1}", dist.Normal(self.slopes[:, i] * above, self.scales[:, i]))


class Discrete(nn.Module):
    """A Bernoulli, a Categorical and a normal latent site."""

    def __init__(self, N=3):
        super().__init__()
        self.x = torch.linspace(-1, 2, N)
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
        self.logits = nn.Parameter(torch.linspace(-1, 1, N))
        self.loc = nn.Parameter(torch.linspace(1, -1, N))

    def model(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3))
            c = pyro.sample("c", dist.Categorical(logits=self.bias))
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z + self.bias[c], 0.5), obs=x)

    def guide(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=self.logits))
            pyro.sample("c", dist.Categorical(logits=self.bias * x[:, None]))
            pyro.sample("z", dist.Normal(self.loc + a, 0.7))


class NoLatent(Linear):
    def model(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.b, self.scale).to_event(1), obs=x)

    def guide(self, x): ...


class Tutorial(nn.Module):
    """As in Pyro's VAE tutorial: modules of its own, sites `latent` and `obs`."""

    def __init__(self, D=16, hidden=8, latent=3):
        super().__init__()
        with seeded(0):
            self.encoder = nn.ModuleList([nn.Linear(D, hidden), nn.Linear(hidden, latent), nn.Linear(hidden, latent)])
            self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, D))
        self.latent = latent
        self.x = (torch.rand(5, D, generator=torch.Generator().manual_seed(0)) < 0.5).float()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = torch.zeros(x.shape[0], self.latent, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            hidden = nn.functional.softplus(self.encoder[0](x))
            loc, scale = self.encoder[1](hidden), self.encoder[2](hidden).exp()
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def loss_and_grads(objective, pair, *, handler=None, seed=0):
    """(loss, gradients by name) with one seed; a parameter without a gradient has the gradient 0."""
    model, guide = (pair.model, pair.guide) if handler is None else (handler(pair.model), handler(pair.guide))
    pair.zero_grad()
    with pyro.get_param_store().scope(), seeded(seed):
        loss = objective.loss_and_grads(model, guide, pair.x)
    grads = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in pair.named_parameters()}
    return loss, grads


def assert_same(a, b, **tolerance):
    torch.testing.assert_close(torch.tensor(a[0]), torch.tensor(b[0]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(a[1], b[1], **tolerance or {"rtol": 1e-4, "atol": 1e-5})


def assert_mean(draws, expected, bound=5):
    """The mean over data is the expected one, within `bound` of its standard errors."""
    se = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - expected).abs() <= bound * se + 1e-6).all())


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("cls", [Linear, Chain, Discrete, NoLatent, Flow, Tutorial])
def test_elbo_is_pyros_on_the_same_noise(cls, K):
    pyros = Trace_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    ours = loss_and_grads(Elbo(K), cls())
    assert_same(ours, loss_and_grads(pyros, cls()))
    with pyro.get_param_store().scope(), seeded(0):
        assert Elbo(K).loss(cls().model, cls().guide, cls().x) == pytest.approx(ours[0], rel=1e-6)


def test_what_is_left_out_has_no_say_where_all_is_reparameterised():
    assert_same(loss_and_grads(LeaveOneOut(4), Tutorial()), loss_and_grads(Elbo(4), Tutorial()))
    loss, grads = loss_and_grads(LeaveOneOut(4), Discrete())
    plain, of_score = loss_and_grads(Elbo(4), Discrete())
    assert loss == pytest.approx(plain)
    torch.testing.assert_close(grads["loc"], of_score["loc"])  # of the reparameterised site
    assert not torch.allclose(grads["logits"], of_score["logits"])


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("cls", [Linear, TopDown, Tutorial])
def test_analytic_kl_is_pyros_on_the_same_noise(cls, K):
    pyros = TraceMeanField_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)
    assert_same(loss_and_grads(AnalyticKL(K), cls()), loss_and_grads(pyros, cls()))


@pytest.mark.parametrize("cls", [Linear, Chain, Tutorial])
def test_importance_weighted_is_pyros_on_the_same_noise(cls):
    pyros = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert_same(loss_and_grads(ImportanceWeighted(5), cls()), loss_and_grads(pyros, cls()))


@pytest.mark.parametrize("K", [1, 6])
@pytest.mark.parametrize("cls", [Elbo, ImportanceWeighted, StickingTheLanding, DoublyReparameterized])
def test_at_the_exact_posterior_every_draw_gives_log_p(cls, K):
    pair = Linear()
    loss, _ = loss_and_grads(cls(num_particles=K), pair)
    assert loss == pytest.approx(-pair.log_p.sum().item(), rel=1e-5)


@pytest.mark.parametrize("pair", [Linear(3000, width=1.4, shift=0.2), Flow(3000, width=1.4, shift=0.2)])
@pytest.mark.parametrize(
    "objective",
    [
        *(Elbo(), Elbo(3), StickingTheLanding(), StickingTheLanding(3)),
        *(AnalyticKL(), FreeBits(0.0), ImportanceWeighted(1), DoublyReparameterized(1)),
    ],
    ids=lambda o: f"{type(o).__name__}-{o.num_particles}",
)
def test_gradients_have_the_mean_of_the_exact_elbo(objective, pair):
    if isinstance(pair, Flow) and isinstance(objective, AnalyticKL | FreeBits):
        return
    _, grads = loss_and_grads(objective, pair)
    exact = torch.autograd.grad(-pair.elbo.sum(), [*pair.parameters()])
    for (name, _), gradient in zip(pair.named_parameters(), exact, strict=True):
        assert_mean(grads[name], gradient[0])


def test_the_bound_rises_with_k_to_log_p():
    """With q of 1.3 times the standard deviation, E_q[w^2] / E_q[w]^2 = 1.3^2 / sqrt(2 1.3^2 - 1) = 1 + c, and the
    bound is c / 2K below log p(x), to first order in 1/K."""
    pair = Linear(N=2000, L=1, width=1.3)
    c = 1.3**2 / math.sqrt(2 * 1.3**2 - 1) - 1
    bounds = {}
    for K in (1, 4, 64):
        draws = torch.tensor([-loss_and_grads(ImportanceWeighted(K), pair, seed=s)[0] / 2000 for s in range(10)])
        bounds[K] = draws.mean(), draws.std() / 10**0.5
    log_p, (elbo, se) = pair.log_p[0], bounds[1]
    # 7 standard errors: ten draws estimate them with nine degrees of freedom
    assert abs(elbo - pair.elbo[0]) < 7 * se
    assert bounds[1][0] < bounds[4][0] < bounds[64][0]
    assert abs(bounds[64][0] - (log_p - c / 128)) < 7 * bounds[64][1] + 2e-5


@pytest.mark.parametrize("cls", [Linear, Flow, Chain])
@pytest.mark.parametrize("objective", [StickingTheLanding(), StickingTheLanding(4), DoublyReparameterized(4)])
def test_the_path_gradient_is_zero_at_the_exact_posterior(cls, objective):
    """For each draw, where `Trace_ELBO`'s is zero on average only."""
    _, grads = loss_and_grads(objective, cls())
    _, pyros = loss_and_grads(Trace_ELBO(), cls())
    for name in grads.keys() - {"b"}:
        assert pyros[name].abs().max() > 0.1
        assert grads[name].abs().max() < 1e-4 * pyros[name].abs().max()


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("make", [lambda: Linear(4000, width=1.4, shift=0.2), lambda: Chain(4000, factor=1.2)])
def test_doubly_reparameterised_gradients_have_the_mean_of_importance_weighted_ones(make, beta):
    pair = make()
    loss, grads = loss_and_grads(DoublyReparameterized(4).weighted(Constant(beta)), pair)
    same_loss, expected = loss_and_grads(ImportanceWeighted(4).weighted(Constant(beta)), pair)
    assert loss == pytest.approx(same_loss, rel=1e-6)
    torch.testing.assert_close(grads["b"], expected["b"])  # the model's are the same for each draw
    for name in grads.keys() - {"b"}:
        assert_mean(grads[name] - expected[name], 0.0)
        assert not torch.allclose(grads[name], expected[name])


def test_sticking_the_landing_has_the_elbos_mean_in_a_hierarchy():
    pair = Chain(4000, factor=1.2)
    _, grads = loss_and_grads(StickingTheLanding(), pair)
    _, expected = loss_and_grads(Elbo(), pair)
    for name, gradient in grads.items():
        assert_mean(gradient - expected[name], 0.0)


def test_the_guides_signal_to_noise_ratio_falls_with_k_unless_doubly_reparameterised():
    def ratio(objective):
        _, grads = loss_and_grads(objective, Linear(4000, L=1, width=1.5, shift=0.3))
        return (grads["loc"].mean(0).abs() / grads["loc"].std(0)).item()

    assert ratio(ImportanceWeighted(64)) < ratio(ImportanceWeighted(1)) / 2
    assert ratio(DoublyReparameterized(64)) > ratio(DoublyReparameterized(1))


@pytest.mark.parametrize("cls", [Elbo, AnalyticKL, StickingTheLanding, FreeBits])
def test_the_weighted_gradient_is_that_of_reconstruction_and_beta_kl(cls):
    pair = Linear(width=1.4, shift=0.2)
    parts = [loss_and_grads(cls().weighted(Constant(beta)), pair) for beta in (0.0, 1.0, 0.3)]
    assert_same(parts[1], loss_and_grads(cls(), pair))
    mixed = {k: 0.7 * parts[0][1][k] + 0.3 * parts[1][1][k] for k in parts[0][1]}
    assert_same(parts[2], (0.7 * parts[0][0] + 0.3 * parts[1][0], mixed))
    if cls is AnalyticKL:  # what beta multiplies is the KL, and nothing else
        kl = torch.autograd.grad(pair.kl.sum(), [pair.loc, pair.log_scale])
        for name, gradient in zip(("loc", "log_scale"), kl, strict=True):
            torch.testing.assert_close(parts[1][1][name] - parts[0][1][name], gradient, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parts[1][1]["b"], parts[0][1]["b"])


def test_a_weight_of_zero_is_the_reconstruction_alone():
    pair = Linear(4000, width=1.4)
    _, grads = loss_and_grads(AnalyticKL().weighted(Constant(0.0)), pair)
    exact = torch.autograd.grad(-(pair.elbo + pair.kl.sum(-1)).sum(), [*pair.parameters()])
    for (name, _), gradient in zip(pair.named_parameters(), exact, strict=True):
        assert_mean(grads[name], gradient[0])


@pytest.mark.parametrize(
    ("weight", "betas"),
    [
        (Constant(4.0), [4.0] * 6),
        (LinearWarmUp(steps=4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (CyclicalWarmUp(steps_per_cycle=4, rise=0.5), [0, 0.5, 1, 1, 0, 0.5, 1, 1, 0]),
        (CyclicalWarmUp(steps_per_cycle=2, rise=1.0), [0, 0.5, 0, 0.5]),
    ],
)
def test_weights_follow_their_schedule(weight, betas):
    assert [weight().item() for _ in betas] == betas
    assert weight.state_dict()["step"] == len(betas)


def test_evaluation_is_at_the_present_weight_and_no_step():
    weight, pair = LinearWarmUp(steps=4), Linear(width=1.4)
    objective = AnalyticKL().weighted(weight)
    losses = [loss_and_grads(objective, pair)[0] for _ in range(3)]
    kl = pair.kl.sum().item()
    assert [loss - losses[0] for loss in losses] == pytest.approx([0, kl / 4, kl / 2], rel=1e-4)
    weight.eval()
    assert [weight().item() for _ in range(2)] == [0.75, 0.75]
    weight.train()
    with pyro.get_param_store().scope(), seeded(0):
        loss = objective.loss(pair.model, pair.guide, pair.x)
    assert loss - losses[0] == pytest.approx(0.75 * kl, rel=1e-4)
    assert weight.training
    assert weight.step == 3
    again = LinearWarmUp(steps=4)
    again.load_state_dict(weight.state_dict())
    assert again().item() == 0.75


def test_weights_do_not_leak_into_log_p(ppca):
    """Log p(x) and the ELBO that is reported have the whole KL, also inside of a weight."""
    pair, x = ppca()

    def evaluate():
        with seeded(0):
            return [log_weights(pair.model, pair.guide, x, num_samples=5), *elbo_parts(pair.model, pair.guide, x)]

    plain = evaluate()
    with KLScale(0.01):
        assert all(torch.equal(a, b) for a, b in zip(plain, evaluate(), strict=True))


def test_free_bits_are_per_dimension_and_of_the_batchs_mean():
    pair = Linear(N=3, D=4, L=3, width=1.4)
    with torch.no_grad():  # dimension 0: above the floor on average, but not for each datum; 1: below it
        pair.loc[:, 0] = torch.tensor([0.0, 0.1, 3.0])
        pair.loc[:, 1], pair.log_scale[:, 1] = 0.1, 0.0
    loss, grads = loss_and_grads(FreeBits(nats=1.0), pair)
    plain, plain_grads = loss_and_grads(AnalyticKL(), pair)
    mean = pair.kl.mean(0)
    assert mean[1] < 1 < mean[0]
    assert pair.kl[0, 0] < 1
    kl = 3 * mean.clamp(min=1).sum()
    assert loss - plain == pytest.approx((kl - pair.kl.sum()).item(), rel=1e-4)
    extra = torch.autograd.grad(kl - pair.kl.sum(), [pair.loc, pair.log_scale])
    for name, gradient in zip(("loc", "log_scale"), extra, strict=True):
        torch.testing.assert_close(grads[name] - plain_grads[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", OBJECTIVES)
def test_scales_of_subsampling_weigh_the_data(cls):
    class Subsampled(Linear):
        def _plate(self, x):
            return pyro.plate("data", 12, subsample=torch.arange(len(x)))

        def model(self, x):
            pyro.module("linear", self)
            with self._plate(x):
                z = pyro.sample("z", dist.Normal(x.new_zeros(self.W.shape[1]), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.W.T + self.b, self.scale).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("linear", self)
            with self._plate(x):
                pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))

    objective = cls(num_particles=3).weighted(Constant(0.6))
    loss, grads = loss_and_grads(objective, Linear(width=1.4))
    expected = 4 * loss, {k: 4 * g for k, g in grads.items()}
    assert_same(loss_and_grads(objective, Subsampled(width=1.4)), expected)
    assert_same(loss_and_grads(objective, Linear(width=1.4), handler=lambda p: poutine.scale(p, 4.0)), expected)


@pytest.mark.parametrize("cls", OBJECTIVES)
@pytest.mark.parametrize(("pair", "K"), [(Linear(width=1.4), 1), (Tutorial(), 4), (Chain(factor=1.2), 4)])
def test_the_step_can_be_traced(cls, pair, K):
    """As one graph of tensors, from parameters, data and the step count, to the loss, its gradients and the count."""
    if (isinstance(pair, Chain) and issubclass(cls, ClosedFormKL)) or (K == 1 and cls is LeaveOneOut):
        return
    weight = LinearWarmUp(steps=2)
    objective = cls(num_particles=K).weighted(weight)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.weight = pair, weight

        def forward(self, x):
            return objective.differentiable_loss(self.pair.model, self.pair.guide, x)

    module = Loss()
    names = [name for name, _ in module.named_parameters()]

    def joint(params, buffers, x):
        leaves = [p.detach().requires_grad_() for p in params]
        with pyro.get_param_store().scope():
            loss = functional_call(module, dict(zip(names, leaves, strict=True)) | buffers, (x,))
        return loss.detach(), torch.autograd.grad(loss, leaves, allow_unused=True)

    params = [p.detach() for p in module.parameters()]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with pyro.validation_enabled(False), seeded(1):
        graph = make_fx(joint, tracing_mode="fake")(params, buffers, pair.x)
    for number in (1, 2):
        with seeded(0):
            loss, grads = graph(params, buffers, pair.x)
        assert buffers["weight.step"] == number
        eager = loss_and_grads(objective, pair)
        traced = {k: torch.zeros_like(p) if g is None else g for k, p, g in zip(eager[1], params, grads, strict=True)}
        assert_same((loss.item(), traced), eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", OBJECTIVES)
def test_another_persons_pair_trains_by_svi_and_by_fit(cls):
    vae = Tutorial()
    before = [p.clone() for p in vae.parameters()]
    with pyro.get_param_store().scope(), seeded(0):
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss=cls())
        losses = [svi.step(vae.x) for _ in range(30)]
        assert losses[-1] < losses[0]
        assert isinstance(svi.evaluate_loss(vae.x), float)
    assert all(not torch.equal(p, q) for p, q in zip(vae.parameters(), before, strict=True))
    history = fit(vae.model, vae.guide, vae.x, elbo=cls().weighted(LinearWarmUp(2)), epochs=2, show_progress=False)
    assert len(history) == 2


def refused(objective, model, guide, x, message):
    with pyro.get_param_store().scope(), seeded(0), pytest.raises(ValueError, match=message):
        objective.loss_and_grads(model, guide, x)


@pytest.mark.parametrize("cls", [cls for cls in OBJECTIVES if cls is not FreeBits])
def test_a_masked_datum_has_no_gradient(cls):
    pair, seen = Linear(width=1.5, shift=0.3), torch.tensor([True, False, True])
    model, guide = (poutine.mask(program, mask=seen) for program in (pair.model, pair.guide))
    with seeded(0), pyro.get_param_store().scope():
        cls(num_particles=2).loss_and_grads(model, guide, pair.x)
    for p in (pair.b, pair.loc, pair.log_scale):
        assert p.grad[seen].abs().min() > 0
        torch.testing.assert_close(p.grad[~seen], torch.zeros_like(p[~seen]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cls", REPARAMETERISED)
def test_what_is_not_reparameterised_is_refused(cls):
    pair = Discrete()
    refused(cls(), pair.model, pair.guide, pair.x, "site 'a': expected a reparameterised distribution; got Bernoulli")


@pytest.mark.parametrize("cls", [AnalyticKL, FreeBits, GumbelSoftmax])
def test_a_kl_without_a_closed_form_is_refused(cls):
    """It is an error, and no estimate from samples in its place."""
    flow, chain = Flow(), Chain()
    message = "site 'z': expected a closed-form KL for .*; got TransformedDistribution to Normal, which has none"
    refused(cls(), flow.model, flow.guide, flow.x, message)
    refused(
        cls(), chain.model, chain.guide, chain.x, r"in the model's order \['z3', 'z2', 'z1'\]; got \['z1', 'z2', 'z3'\]"
    )


def test_free_bits_need_dimensions():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def masked(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = poutine.block(model, hide=["x"])
    x = torch.zeros(3, 2)
    message = "site 'z': expected a closed-form KL for FreeBits; got Mult.* to Mult.*, which has none by dimension"
    refused(FreeBits(), model, guide, x, message)
    refused(FreeBits(), masked, masked, x, "site 'z': expected a site without a mask")
    with seeded(0):
        assert AnalyticKL().loss_and_grads(model, guide, x) > 0


def test_weights_are_per_datum_or_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    for K in (1, 4):
        for cls in (ImportanceWeighted, DoublyReparameterized):
            refused(cls(K), model, guide, torch.zeros(3), "site 'z': expected one log-prob a datum")


@pytest.mark.parametrize(
    ("base", "spec", "message"),
    [
        *[
            (Objective, f"{name}:num_particles=0", "num_particles: expected at least 1; got 0")
            for name in choices(Objective)
        ],
        (Objective, "free-bits:nats=-1", "free bits: expected nats >= 0; got -1"),
        (Objective, "leave-one-out:num_particles=1", "leave-one-out: expected num_particles >= 2; got 1"),
        (Objective, "gumbel-softmax:temperature=0", "gumbel-softmax: expected temperature > 0; got 0"),
        (KLWeight, "constant:beta=-1", "expected beta >= 0; got -1"),
        (KLWeight, "constant:beta=nan", "expected beta >= 0; got nan"),
        (KLWeight, "linear-warm-up:steps=0", "expected steps >= 1; got 0"),
        (KLWeight, "linear-warm-up:epochs=-1", "expected epochs >= 0; got -1"),
        (KLWeight, "cyclical-warm-up:steps_per_cycle=0", "expected steps_per_cycle >= 1; got 0"),
        (KLWeight, "cyclical-warm-up:rise=0", "expected 0 < rise <= 1; got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(base, spec, message):
    with pytest.raises(ValueError, match=message):
        create(base, spec)


def test_objectives_and_weights_go_by_name():
    gc.collect()  # objectives that other tests made, and that nothing refers to
    assert {*choices(Objective)} == {
        "elbo",
        "analytic-kl",
        "free-bits",
        "leave-one-out",
        "gumbel-softmax",
        "importance-weighted",
        "sticking-the-landing",
        "doubly-reparameterized",
    }
    assert create(Objective, "importance-weighted:num_particles=7").num_particles == 7
    assert create(Objective, "free-bits:nats=0.1").nats == 0.1
    assert repr(create(KLWeight, "cyclical-warm-up:rise=0.2")) == "CyclicalWarmUp(steps_per_cycle=10000, rise=0.2)"


@pytest.mark.parametrize("objective", [StickingTheLanding(), DoublyReparameterized()])
def test_a_flow_without_an_inverse_is_named(objective):
    with seeded(0):
        planar = dist.transforms.Planar(2)

    def normal(size, loc=0.0):
        return dist.Normal(loc + torch.zeros(size), 1.0).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", normal(2, pyro.sample("z", normal(2))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(normal(2), [planar]))

    with seeded(0), pytest.raises(ValueError, match="site 'z': expected a density at any z; got a flow without an inv"):
        objective.loss_and_grads(model, guide, torch.zeros(3, 2))
