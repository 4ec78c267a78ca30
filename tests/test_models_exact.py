"""The models built of linear networks: log p(x) is that of Gaussians, or of a mixture of them, and known exactly."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from torch import nn
from torch.distributions import MultivariateNormal

from ppl_vae.components import choices, create
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import PPCA, ConditionalVAE, HierarchicalVAE, JointEncoder, SemiSupervisedVAE
from ppl_vae.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder
from ppl_vae.objectives import ClosedFormKL, DoublyReparameterized, Elbo, ImportanceWeighted, Objective
from ppl_vae.posteriors import DiagonalNormal, FullNormal
from ppl_vae.priors import StandardNormal, VampPrior
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO
from ppl_vae.training.fitting import fit
from ppl_vae.training.monitoring import elbo_parts
from ppl_vae.training.optimizers import adam

EVENT, D, SCALE, CLASSES = (1, 4), 4, 0.5, 3
PROBS = torch.tensor([0.6, 0.3, 0.1])
ROUNDING = 2e-4  # of float32, in log-weights


def linear(A, b):
    layer = nn.Linear(A.shape[1], A.shape[0])
    with torch.no_grad():
        layer.weight.copy_(A)
        layer.bias.copy_(b)
    return layer


def normal_layer(A, b, C, width=1.0):
    """From u to the parameters of a `FullNormal`, N(A u + b, width^2 C)."""
    T = width * torch.linalg.cholesky(C)
    i, j = torch.tril_indices(*C.shape, -1)
    rest = torch.cat([2 * T.diag().log(), T[i, j] / T.diag()[i] * len(T) ** 0.5])
    return linear(torch.cat([A, torch.zeros(len(rest), A.shape[1])]), torch.cat([b, rest]))


def given(S, m, a, b):
    """Of N(m, S): the A, c and C of u[a] | u[b] ~ N(A u[b] + c, C)."""
    A = S[a][:, b] @ S[b][:, b].inverse()
    return A, m[a] - A @ m[b], S[a][:, a] - A @ S[b][:, a]


def decoder(W, b):
    return nn.Sequential(linear(W, b), nn.Unflatten(-1, (*EVENT, 1)))


def flatten():
    return nn.Flatten(-len(EVENT))


@dataclass
class Case:
    """A pair, data from it, and the exact log of what it estimates."""

    module: nn.Module
    pair: tuple
    data: tuple
    exact: torch.Tensor


def hierarchical(width=1.0, N=6, latent1=2, family=FullNormal):
    """z2 in R, z1 in R^latent1."""
    with seeded(3):
        A, a, s = torch.randn(latent1, 1), torch.randn(latent1), torch.linspace(0.7, 1.2, latent1)
        W, b = torch.randn(D, latent1 + 1), torch.randn(D)  # [z1, z2] to x
        # (z2, z1, x) = L (e2, e1, e) + a constant
        n = 1 + latent1
        L = torch.zeros(n + D, n + D)
        L[0, 0], L[1:n, :1], L[1:n, 1:n] = 1.0, A, s.diag()
        L[n:] = W[:, :-1] @ L[1:n] + W[:, -1:] @ L[:1]
        L[n:, n:] = SCALE * torch.eye(D)
        m, S = torch.cat([torch.zeros(1), a, W[:, :-1] @ a + b]), L @ L.T
        z2, z1, x_ = torch.arange(1), torch.arange(1, n), torch.arange(n, n + D)
        vae = HierarchicalVAE(
            nn.Sequential(flatten(), normal_layer(*given(S, m, z2, x_), width)),
            JointEncoder(flatten(), normal_layer(*given(S, m, z1, torch.cat([x_, z2])), width)),
            linear(torch.cat([A, torch.zeros(latent1, 1)]), torch.cat([a, 2 * s.log()])),
            decoder(W, b),
            prior=StandardNormal(1),
            likelihood=Gaussian(SCALE),
            posterior2=family(1),
            posterior1=family(latent1),
        )
        p = MultivariateNormal(m[n:], S[n:, n:])
        x = p.sample((N,))
    return Case(vae, (vae.model, vae.guide), (x.reshape(N, *EVENT),), p.log_prob(x))


def classes(width=1.0, latent_size=2):
    """A linear `ConditionalVAE`, and its p(x|y) for all y: x ~ N(mean_y, W W^T + scale^2 I)."""
    with seeded(4):
        W, means = torch.randn(D, latent_size), torch.randn(CLASSES, D)
        S = torch.cat([torch.eye(latent_size), W]) @ torch.cat([torch.eye(latent_size), W]).T
        S[latent_size:, latent_size:] += SCALE**2 * torch.eye(D)
        z_, x_ = torch.arange(latent_size), torch.arange(latent_size, latent_size + D)
        A, c, C = given(S, torch.zeros(latent_size + D), z_, x_)
        vae = ConditionalVAE(
            JointEncoder(flatten(), normal_layer(torch.cat([A, -A @ means.T], 1), c, C, width)),
            decoder(torch.cat([W, means.T], 1), torch.zeros(D)),
            num_classes=CLASSES,
            prior=StandardNormal(latent_size),
            likelihood=Gaussian(SCALE),
            posterior=FullNormal(latent_size),
        )
    return vae, MultivariateNormal(means, S[latent_size:, latent_size:])


def labelled_data(p_x, N):
    with seeded(5):
        y = torch.arange(N) % CLASSES
        return p_x.sample((N,))[torch.arange(N), y], y


def conditional(width=1.0, N=6):
    vae, p_x = classes(width)
    x, y = labelled_data(p_x, N)
    return Case(vae, (vae.model, vae.guide), (x.reshape(N, *EVENT), y), p_x.log_prob(x[:, None])[torch.arange(N), y])


class Bayes(nn.Module):
    """log p(y) + log p(x|y): the logits of the exact p(y|x), times `width` for one that is wrong."""

    def __init__(self, p_x, width):
        super().__init__()
        self.means, self.width = nn.Parameter(p_x.loc.clone()), width
        self.register_buffer("covariance", p_x.covariance_matrix)

    def forward(self, x):
        p_x = MultivariateNormal(self.means, self.covariance)
        return self.width * (PROBS.log() + p_x.log_prob(x.flatten(-2)[..., None, :]))


def semi_supervised(width=1.0, N=6, marginal=False, labels=None, latent_size=2):
    vae, p_x = classes(width, latent_size)
    m2 = SemiSupervisedVAE(vae, Bayes(p_x, 1 / width), alpha=0.7, class_probs=2 * PROBS)
    x, y = labelled_data(p_x, N)
    joint = PROBS.log() + p_x.log_prob(x[:, None])
    exact, data = joint.logsumexp(-1), (x.reshape(N, *EVENT),)
    if labels is not None:
        y = torch.where(torch.arange(N) < labels, y, -1)
        exact = torch.where(y >= 0, joint[torch.arange(N), y], exact)
        data = (*data, y)
    pair = (m2.marginal_model, m2.marginal_guide) if marginal else (m2.model, m2.guide)
    return Case(m2, pair, data, exact)


def marginalised(width=1.0, N=6):
    return semi_supervised(width, N, marginal=True)


def labelled(width=1.0, N=6):
    return semi_supervised(width, N, labels=N)


def partly_labelled(width=1.0, N=6):
    return semi_supervised(width, N, labels=N // 2)


def linear_gaussian(width=1.0, N=6):
    with seeded(6):
        ppca = PPCA(EVENT, 2)
        ppca.mean.data.normal_()
        ppca.log_scale.data.fill_(math.log(SCALE))
        p = MultivariateNormal(ppca.mean.detach(), (ppca.W @ ppca.W.T + SCALE**2 * torch.eye(D)).detach())
        x = p.sample((N,))

    def guide(x):
        q = ppca.encode(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(q.loc, scale_tril=width * q.scale_tril))

    pair = (ppca.model, ppca.guide if width == 1.0 else guide)
    return Case(ppca, pair, (x.reshape(N, *EVENT),), p.log_prob(x))


CASES = [hierarchical, conditional, semi_supervised, marginalised, labelled, partly_labelled, linear_gaussian]


@pytest.mark.parametrize("make", CASES)
def test_under_the_exact_posterior_each_weight_is_p_of_x(make):
    case = make()
    assert check_model(*case.pair, *case.data).ok
    with seeded(0):
        log_w = log_weights(*case.pair, *case.data, num_samples=7)
    torch.testing.assert_close(log_w, case.exact.expand(7, -1), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(
        elbo_parts(*case.pair, *case.data, num_samples=500).elbo, case.exact, atol=0.5, rtol=0
    )  # a closed-form KL and a reconstruction that is drawn


@pytest.mark.parametrize("make", CASES)
def test_under_another_guide_log_p_is_within_its_error(make):
    case = make(width=1.2)
    result = log_likelihood(*case.pair, *case.data, num_samples=5000)
    assert result.khat.max() < 0.7
    error = (result.log_p - case.exact).abs()
    assert result.mc_se.max() < 0.05
    assert bool((error < 5 * result.mc_se + ROUNDING).all())
    assert not bool((error < ROUNDING).all())  # there is something to weigh


def test_the_class_that_is_summed_out_weighs_less():
    drawn, summed = semi_supervised(width=1.2), marginalised(width=1.2)
    assert torch.equal(drawn.exact, summed.exact)
    errors = [log_likelihood(*case.pair, *case.data, num_samples=2000).mc_se.mean() for case in (drawn, summed)]
    assert errors[1] < errors[0]
    annealed = annealed_log_likelihood(*summed.pair, *summed.data, num_chains=16, num_steps=10)  # no discrete site
    error = (annealed.log_p - summed.exact).abs()
    assert bool((error < 5 * annealed.mc_se + ROUNDING).all())


def test_a_marginal_pair_against_quadrature():
    case = semi_supervised(marginal=True, latent_size=1)
    by_quadrature = log_p_by_quadrature(case.pair[0], *case.data)
    torch.testing.assert_close(by_quadrature, case.exact.double(), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("make", [hierarchical, conditional, linear_gaussian])
def test_gradients_are_those_of_every_path(make):
    """Against differences of the loss on the same noise, in which a path that is cut off would show."""
    case = make()
    case.module.double()
    data = tuple(t.double() if t.is_floating_point() else t for t in case.data)
    params = [*case.module.parameters()]
    with seeded(0):
        for p in params:
            p.data += 0.1 * torch.randn_like(p)
        directions = [torch.randn_like(p) for p in params]

    def loss(step):
        for p, v in zip(params, directions, strict=True):
            p.data += step * v
        with seeded(1), pyro.get_param_store().scope():
            value = Elbo().differentiable_loss(*case.pair, *data)
        gradients = torch.autograd.grad(value, params)
        for p, v in zip(params, directions, strict=True):
            p.data -= step * v
        return value.item(), sum((g * v).sum() for g, v in zip(gradients, directions, strict=True)).item()

    difference = (loss(1e-5)[0] - loss(-1e-5)[0]) / 2e-5
    assert loss(0.0)[1] == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("objective", [*choices(Objective)])
def test_objectives_of_a_hierarchy(objective):
    """At the exact posterior, where each bound is log p(x), by each draw or on average."""
    case = hierarchical(latent1=1, family=DiagonalNormal)
    elbo = create(Objective, "free-bits:nats=0" if objective == "free-bits" else objective)
    with seeded(0), pyro.get_param_store().scope():
        losses = torch.tensor([elbo.loss(*case.pair, *case.data) for _ in range(200)])
        elbo.loss_and_grads(*case.pair, *case.data)
    error = 5 * losses.std() / math.sqrt(len(losses)) + ROUNDING * len(case.exact)
    assert abs(losses.mean() + case.exact.sum()) < error
    assert (losses.std() < ROUNDING * len(case.exact)) != isinstance(elbo, ClosedFormKL)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in case.module.parameters())


def test_the_bound_of_a_hierarchy_rises_with_its_particles():
    case = hierarchical(width=2.0)
    bounds = []
    with seeded(0), pyro.get_param_store().scope(), torch.no_grad():
        for K in (1, 8, 64):
            losses = torch.tensor([ImportanceWeighted(K).loss(*case.pair, *case.data) for _ in range(200)])
            bounds.append((-losses.mean(), losses.std() / math.sqrt(len(losses))))
    for (low, low_se), (high, high_se) in pairwise(bounds):
        assert high - low > 5 * (low_se**2 + high_se**2).sqrt()
    assert bounds[-1][0] < case.exact.sum() + 5 * bounds[-1][1]


@pytest.mark.parametrize("make", [hierarchical, conditional, linear_gaussian])
def test_a_graph_is_the_program(make, monkeypatch):
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph, **kwargs: graphs.append(graph) or graph)
    weights = []
    for compiled in (False, True):
        case = make()
        history = fit(*case.pair, *case.data, epochs=4, batch_size=6, compiled=compiled, show_progress=False)
        assert history["loss"][-1] < 50
        weights.append(case.module.state_dict())
    torch.testing.assert_close(weights[0], weights[1])
    graphs.clear()
    case, loss = make(), CompiledTrace_ELBO()
    with pyro.get_param_store().scope(), seeded(0):
        for _ in range(3):
            loss.loss_and_grads(*case.pair, *case.data)
    assert len(graphs) == 1


# The semi-supervised model


def summed_by_hand(m2, x, y, noise):
    """-(-L(x, y)) of labelled data, -(-U(x)) of the others, and the classification term, with the noise (K, N, latent)
    of the draws of z under each class."""
    vae, loss = m2.conditional, torch.zeros(())
    log_q_y = m2.classifier(x).log_softmax(-1)
    for n in range(len(x)):
        bounds = []
        for k in range(CLASSES):
            label = torch.tensor([k])
            q = vae.encode(x[n : n + 1], label)
            z = q.loc + q.scale_tril[0] @ noise[k, n]
            log_p = PROBS[k].log() + vae.prior().log_prob(z) + vae.p_x(z, label).log_prob(x[n]).sum()
            bounds.append((log_p - q.log_prob(z)).squeeze())
        if y[n] >= 0:
            loss = loss - bounds[y[n]] - m2.alpha * log_q_y[n, y[n]]
        else:
            loss = loss - sum(log_q_y[n, k].exp() * (bounds[k] - log_q_y[n, k]) for k in range(CLASSES))
    return loss


@pytest.mark.parametrize("labels", [0, 2, 5])
def test_the_class_is_summed_out_exactly(labels):
    case = semi_supervised(width=1.4, N=5, labels=labels)
    x, y = case.data
    params = dict(case.module.named_parameters())
    with pyro.get_param_store().scope():
        with seeded(2):
            loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(*case.pair, x, y)
        with seeded(2):
            noise = torch.randn(CLASSES, 5, 2)
    by_hand = summed_by_hand(case.module, x, y, noise)
    torch.testing.assert_close(loss, by_hand, atol=1e-3, rtol=1e-5)
    for name, p in params.items():
        got, expected = (torch.autograd.grad(t, p, retain_graph=True)[0] for t in (loss, by_hand))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4, msg=name)


def test_without_labels_is_all_unlabelled_and_the_classification_is_for_training_alone():
    case = semi_supervised(width=1.4, labels=0)
    m2, (x, none) = case.module, case.data
    elbo = TraceEnum_ELBO(max_plate_nesting=1)

    def loss(*data):
        with seeded(0), pyro.get_param_store().scope(), torch.no_grad():
            return elbo.loss(m2.model, m2.guide, *data)

    assert loss(x) == pytest.approx(loss(x, none), abs=1e-4)
    y = m2.predict(x).probs.argmax(-1)
    classification = m2.alpha * m2.predict(x).log_prob(y).sum().item()
    training = loss(x, y)
    m2.eval()
    assert loss(x, y) == pytest.approx(training + classification, abs=1e-3)
    assert loss(x) == pytest.approx(loss(x, none), abs=1e-4)


def test_a_classifier_is_learned_from_a_few_labels():
    """Two classes far apart, of which four data are labelled; the marginal likelihood has to know p(y) too."""
    with seeded(0):
        vae = ConditionalVAE(
            JointEncoder(DenseEncoder((2,), 8, (8,)), nn.Linear(8 + 2, 2)),
            DenseDecoder(1 + 2, (2,), 1, (8,)),
            num_classes=2,
            prior=StandardNormal(1),
            likelihood=Gaussian(0.5),
            posterior=DiagonalNormal(1),
        )
        m2 = SemiSupervisedVAE(vae, DenseEncoder((2,), 2, (8,)), alpha=5.0)
        true = torch.arange(200) % 2
        x = torch.randn(200, 2) * 0.5 + torch.where(true[:, None] == 1, 1.0, -1.0)
        y = torch.where(torch.arange(200) < 4, true, -1)
    before = {name: p.detach().clone() for name, p in m2.named_parameters()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    history = fit(
        m2.model, m2.guide, x, y, elbo=elbo, epochs=15, batch_size=20, learning_rate=1e-2, show_progress=False
    )
    assert history["train_elbo"][-1] > history["train_elbo"][0]
    assert not [name for name, p in m2.named_parameters() if torch.equal(p, before[name])]
    assert (m2.predict(x).probs.argmax(-1) == true).float().mean() > 0.95
    assert m2.reconstruct(x).shape == (200, 2)
    assert log_likelihood(m2.marginal_model, m2.marginal_guide, x, num_samples=50).mean < 0


def test_pyros_own_svi_takes_the_same_programs():
    case = partly_labelled()
    with seeded(0), pyro.get_param_store().scope():
        for elbo in (TraceEnum_ELBO(max_plate_nesting=1), Elbo()):
            svi = SVI(*case.pair, adam(1e-3), loss=elbo)
            assert math.isfinite(svi.step(*case.data))


# PPCA


def test_ppcas_log_prob_is_the_dense_gaussians():
    with seeded(0):
        ppca = PPCA((2, 3), 4)
        ppca.mean.data.normal_()
        ppca.log_scale.data.fill_(-4.0)  # float32 would cancel
        x = ppca.generate(50).sample()
    W, mean = ppca.W.detach().double(), ppca.mean.detach().double()
    dense = MultivariateNormal(mean, W @ W.T + math.exp(-8) * torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(ppca.log_prob(x), dense.log_prob(x.double().flatten(1)), rtol=1e-6, atol=1e-6)
    assert ppca.log_prob(x[0]).shape == ()


def test_the_maximum_likelihood_is_one():
    with seeded(0):
        true = PPCA((5, 2), 3)
        true.log_scale.data.fill_(-0.7)
        x = true.generate(4000).sample().detach()
    ppca = PPCA.maximum_likelihood(x.double(), 3)
    assert ppca.W.is_contiguous()
    assert (ppca.W.dtype, ppca.zeros.dtype) == (torch.float64, torch.float64)
    log_p = ppca.log_prob(x).mean()
    for gradient in torch.autograd.grad(log_p, [*ppca.parameters()]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)
    assert log_p > true.log_prob(x).mean()
    # 2 N (log p of the fit - of the truth) ~ chi^2 with 30 - 3 (rotations) + 10 + 1 degrees of freedom
    assert 2 * len(x) * (log_p - true.log_prob(x).mean()) < 38 + 5 * math.sqrt(2 * 38)
    for eigenvalue, of_truth in zip(
        *(torch.linalg.eigvalsh((p.W.T @ p.W).double()) for p in (ppca, true)), strict=True
    ):
        assert eigenvalue.item() == pytest.approx(of_truth.item(), rel=0.2)


@pytest.mark.parametrize("D", [4, 10, 30])
def test_the_maximum_likelihood_of_data_alike_in_all_directions_is_a_sphere(D):
    """The mean of equal eigenvalues may round to more than the largest."""
    x = torch.cat([torch.eye(D), -torch.eye(D)]) * 0.7
    ppca = PPCA.maximum_likelihood(x, 1)
    torch.testing.assert_close(ppca.W.detach(), torch.zeros(D, 1), atol=1e-6, rtol=0)
    assert ppca.log_scale.exp().item() == pytest.approx(0.7 / D**0.5)


def test_ppca_as_the_oracle_and_under_svi():
    with seeded(0):
        x = PPCA((4,), 2).generate(400).sample().detach() + 1.0
    best = PPCA.maximum_likelihood(x, 2)
    result = log_likelihood(best.model, best.guide, x, num_samples=5)
    torch.testing.assert_close(result.log_p, best.log_prob(x), atol=ROUNDING, rtol=0)
    with seeded(1):
        ppca = PPCA((4,), 2)
    fit(ppca.model, ppca.guide, x, epochs=60, batch_size=100, learning_rate=3e-2, show_progress=False)
    gap = (best.log_prob(x) - ppca.log_prob(x)).mean()
    assert 0 <= gap < 0.05
    z = best.encode(x).mean
    torch.testing.assert_close(best.reconstruct(x), best.decode(z))
    assert (x - best.reconstruct(x)).square().mean() < x.var()


# On images, and what is refused


def image_hierarchy():
    with seeded(0):
        shape, q2, q1 = (1, 8, 8), DiagonalNormal(2), DiagonalNormal(3)
        encoder2 = ConvEncoder(shape, q2.num_params, (4,), (8,))
        return HierarchicalVAE(
            encoder2,
            JointEncoder(DenseEncoder(shape, 6, (8,)), nn.Sequential(nn.Linear(6 + 2, 8), nn.ReLU(), nn.Linear(8, 6))),
            nn.Linear(2, 6),
            ConvDecoder(3 + 2, shape, 1, (4,)),
            prior=VampPrior(2, encoder2, q2, shape, 5),
            likelihood=Bernoulli(),
            posterior2=q2,
            posterior1=q1,
        )


def test_a_hierarchy_of_images_under_a_vamp_prior(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **kwargs: graph)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    vae, again = image_hierarchy(), image_hierarchy()
    vae.prior.initialise(x)
    again.prior.initialise(x)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    for model, compiled in ((vae, True), (again, False)):
        fit(model.model, model.guide, x, epochs=3, batch_size=6, compiled=compiled, show_progress=False)
    torch.testing.assert_close(vae.state_dict(), again.state_dict())
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert check_model(vae.model, vae.guide, x).ok
    assert log_likelihood(vae.model, vae.guide, x, num_samples=50).log_p.isfinite().all()
    with torch.no_grad(), seeded(0), pyro.get_param_store().scope():
        assert vae.reconstruct(x).shape == x.shape
        z2 = vae.encode(x).mean
        torch.testing.assert_close(vae.decode(z2), vae.decode(z2, vae.decoder2(z2)[:, :3]))
        assert vae.generate(7).sample().shape == (7, 1, 8, 8)
        # the guide sees what is given, the model scores x
        trace = poutine.trace(vae.guide).get_trace(x, 1 - x)
    assert torch.equal(trace.nodes["z2"]["fn"].base_dist.loc, vae.encode(1 - x).mean)


def test_labels_choose_what_is_generated():
    vae, p_x = classes()
    y = torch.arange(3 * 2000) % CLASSES
    with seeded(0), torch.no_grad():
        x = vae.generate(y).sample().flatten(1)
    for k in range(CLASSES):
        error = x[y == k].mean(0) - p_x.loc[k]
        assert bool((error.abs() < 5 * (p_x.covariance_matrix.diagonal(dim1=-2, dim2=-1) / 2000).sqrt()).all())
    m2 = semi_supervised().module
    with seeded(0), torch.no_grad():
        x = m2.generate(3000).sample()
    log_p = semi_supervised().exact
    assert x.shape == (3000, *EVENT)
    share = (x.flatten(1).mean(0) - PROBS @ p_x.loc).abs()
    assert bool((share < 5 * x.flatten(1).std(0) / math.sqrt(3000)).all())
    assert log_p.isfinite().all()


def test_what_is_refused():
    vae, p_x = classes()
    x = torch.zeros(2, *EVENT)
    for y in (torch.tensor([0, 3]), torch.tensor([-1, 1])):
        with pytest.raises(ValueError, match=r"y: expected labels 0 to 2; got (0 to 3|-1 to -1)"):
            log_likelihood(vae.model, vae.guide, x, y, num_samples=2)
    m2 = SemiSupervisedVAE(vae, Bayes(p_x, 1.0))
    torch.testing.assert_close(m2.class_logits.exp(), torch.full((3,), 1 / 3))
    with pytest.raises(ValueError, match="y: expected labels 0 to 2; got 0 to 3"):
        log_likelihood(m2.model, m2.guide, x, torch.tensor([0, 3]), num_samples=2)
    with pytest.raises(ValueError, match="class_probs: expected 3 numbers above 0; got"):
        SemiSupervisedVAE(vae, Bayes(p_x, 1.0), class_probs=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="alpha: expected a number of at least 0; got -1"):
        SemiSupervisedVAE(vae, Bayes(p_x, 1.0), alpha=-1)
    with pytest.raises(ValueError, match="num_classes: expected at least 1; got 0"):
        ConditionalVAE(
            nn.Identity(),
            nn.Identity(),
            num_classes=0,
            prior=StandardNormal(1),
            likelihood=Gaussian(),
            posterior=DiagonalNormal(1),
        )
    with pytest.raises(ValueError, match="latent_size: expected at least 1; got 0"):
        PPCA((3,), 0)
    with pytest.raises(ValueError, match="latent_size: expected less than the 4 dimensions of x; got 4"):
        PPCA.maximum_likelihood(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 4)
    with pytest.raises(ValueError, match="x: expected data that spread over more than 2 dimensions"):
        PPCA.maximum_likelihood(torch.eye(2).repeat(3, 1) @ torch.ones(2, 4), 2)
    with seeded(0), pyro.get_param_store().scope(), pytest.raises(ValueError, match="'y': expected a reparameterised"):
        DoublyReparameterized().loss(m2.model, m2.guide, x)
