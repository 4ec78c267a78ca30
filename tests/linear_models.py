"""The models built of linear networks: log p(x) is that of Gaussians, or of a mixture of them, and known exactly."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import (
    PPCA,
    ConditionalVAE,
    HierarchicalVAE,
    JointEncoder,
    LadderLayer,
    LadderVAE,
    SemiSupervisedVAE,
)
from ppl_vae.models.ladder import Residual
from ppl_vae.posteriors import FullNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.programs import seeded

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
    p_x: MultivariateNormal | None = None


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
    return Case(vae, (vae.model, vae.guide), (x.reshape(N, *EVENT),), p.log_prob(x), p)


def ladder(width=1.0, N=6, sizes=(2, 1, 1), family=FullNormal):
    """Layers of these sizes from the bottom up, along a state in R. Each variable is M (e, 1), e the noise of all."""
    with seeded(7):
        num_noise, num_drawn = sum(sizes) + D, 0
        M = {}

        def of(layer, *names):
            """What a linear layer makes of variables."""
            rows = layer.weight @ torch.cat([M[name] for name in names])
            rows[:, -1] += layer.bias
            return rows.detach()

        def noise(scale):
            nonlocal num_drawn
            rows = torch.zeros(len(scale), num_noise + 1)
            rows[:, num_drawn : num_drawn + len(scale)] = scale.diag()
            num_drawn += len(scale)
            return rows

        top, L = sizes[-1], len(sizes)
        M[f"z{L}"], layers, nets = noise(torch.ones(top)), [], []
        for number in range(L - 1, 0, -1):
            above, size = sizes[number], sizes[number - 1]
            inputs = [f"h{number + 1}"] * (number < L - 1) + [f"z{number + 1}"]
            step = linear(torch.randn(1, above + len(inputs) - 1), torch.randn(1))
            M[f"h{number}"] = of(step, *inputs) + (M[inputs[0]] if len(inputs) > 1 else 0)
            s, A, a = torch.linspace(0.7, 1.2, size), torch.randn(size, 1), torch.randn(size)
            M[f"z{number}"] = of(linear(A, a), f"h{number}") + noise(s)
            nets.append((number, step, linear(torch.cat([A, torch.zeros(size, 1)]), torch.cat([a, 2 * s.log()]))))
        lowest = ["h1"] * (L > 1) + ["z1"]
        W, b = torch.randn(D, (L > 1) + sizes[0]), torch.randn(D)
        M["d1"] = of(linear(W, b), *lowest) + noise(torch.full((D,), SCALE))  # x
        ups = [Residual(linear(torch.randn(D, D) / 4, torch.randn(D))) for _ in sizes[1:]]
        for number, up in enumerate(ups, 1):
            M[f"d{number + 1}"] = of(up.net, f"d{number}") + M[f"d{number}"]

        def exact(z, *names):
            """The linear layer to p(z|names), through the joint of all: z is that of its layer."""
            joint = torch.cat([M[name] for name in (z, *names)]).double()
            m, S, size = joint[:, -1], joint[:, :-1] @ joint[:, :-1].T, len(M[z])
            parts = given(S, m, torch.arange(size), torch.arange(size, len(m)))
            return normal_layer(*(t.float() for t in parts), width)

        for number, step, conditional in nets:
            head = exact(f"z{number}", f"h{number}", f"d{number}")
            layers.append(LadderLayer(step, conditional, head, family(sizes[number - 1])))
        vae = LadderVAE(
            flatten(),
            ups,
            exact(f"z{L}", f"d{L}"),
            layers,
            decoder(W, b),
            prior=StandardNormal(top),
            likelihood=Gaussian(SCALE),
            posterior=family(top),
        )
        x = M["d1"]
        p = MultivariateNormal(x[:, -1], x[:, :-1] @ x[:, :-1].T)
        data = p.sample((N,))
    return Case(vae, (vae.model, vae.guide), (data.reshape(N, *EVENT),), p.log_prob(data), p)


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


CASES = [hierarchical, ladder, conditional, semi_supervised, marginalised, labelled, partly_labelled, linear_gaussian]
