"""What the tests of compilation use: tiny pairs, and runs of them compiled and not, on the same noise."""

import pyro
import pyro.distributions as dist
import torch
from tiny import tiny_vae
from torch import nn

from ppl_vae.components import choices
from ppl_vae.likelihoods import Likelihood
from ppl_vae.objectives import Elbo
from ppl_vae.programs import seeded
from ppl_vae.training.compilation import CompiledTrace_ELBO, Step
from ppl_vae.training.optimizers import OneOptimizer, adam
from ppl_vae.training.schedules import Cosine

SHAPE = (1, 4, 4)


def dense(prior="standard-normal", posterior="diagonal-normal", likelihood="bernoulli", seed=0):
    return tiny_vae(likelihood, prior, posterior, event_shape=SHAPE, seed=seed)


def data(n=6, likelihood="bernoulli"):
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    support = choices(Likelihood)[likelihood].support
    if support is dist.constraints.boolean:
        return x.round()
    return (x * 10).round() if support.is_discrete else 0.9 * x + 0.05


def losses_and_gradients(pair, x, objective, steps, compiled):
    """Of successive calls on the noise of one seed, with the state that they leave. x may be several arguments."""
    args = x if isinstance(x, tuple) else (x,)
    loss = CompiledTrace_ELBO(objective) if compiled else objective
    out = []
    with seeded(1):
        for _ in range(steps):
            for p in pair.parameters():
                p.grad = None
            out.append([torch.as_tensor(loss.loss_and_grads(pair.model, pair.guide, *args))])
            out[-1] += [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in pair.parameters()]
        out.append([*pair.buffers(), torch.rand(())])  # as much noise was drawn
    return out


def assert_same(graphs, make, x, objective=Elbo, steps=4):
    graphs.clear()
    runs = []
    for compiled in (False, True):
        with pyro.get_param_store().scope():
            runs.append(losses_and_gradients(make(), x, objective(), steps, compiled))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
    return runs[1]


def assert_same_steps(make, x, optim, steps=12, switch=None, objective=Elbo, **tolerance):
    """Both runs' weights, buffers, losses and state of the optimiser; the compiled run ends uncompiled at `switch`."""
    ends = []
    for compiled in (False, True):
        pair, opt = make(), optim()
        with seeded(1), pyro.get_param_store().scope(), pyro.validation_enabled(False):
            step = Step(pair.model, pair.guide, objective(), opt, compiled=compiled)
            losses = []
            for i in range(steps):
                if i == switch:
                    step.compiled = False
                losses.append(step(x))
            assert all(p.grad is None for p in pair.parameters())
            end = [*losses, *pair.parameters(), *pair.buffers(), torch.rand(())]
            if isinstance(opt, OneOptimizer):
                state = opt.get_state()
                end += [torch.tensor(state["num_steps"]), torch.tensor([g["lr"] for g in opt.optimizer.param_groups])]
                moments = [s for _, s in sorted(state["optimizer"]["state"].items())]
                end += [t for s in moments for _, t in sorted(s.items()) if t is not None]
            ends.append([t.detach() for t in end])
    torch.testing.assert_close(ends[1], ends[0], **(tolerance or {"rtol": 1e-4, "atol": 1e-5}))


ADAMS = {
    "adam": lambda: adam(1e-2),
    "adamw": lambda: adam(1e-2, weight_decay=0.1),
    "decoupled": lambda: OneOptimizer(
        torch.optim.Adam, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "coupled": lambda: OneOptimizer(torch.optim.Adam, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6),
    "clipped": lambda: adam(1e-2, clip_norm=0.5),
    "schedule": lambda: adam(1e-2, schedule=Cosine().warmed(3).by_step(12), clip_norm=0.5, weight_decay=0.1),
}  # fmt: skip


class Regularised(nn.Module):
    """A tutorial's pair, with dropout, BatchNorm, a module of its own name for each program, and constants."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.encode = nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
            self.decode = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 16))
        self.shift = torch.zeros(16)  # in no state, and changed in place

    def model(self, x):
        pyro.module("decoder", self.decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), torch.tensor(1.0)).to_event(1))
            logits = torch.tensor(0.5) * self.decode(z) + self.shift
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))

    def guide(self, x):
        pyro.module("encoder", self.encode)
        with pyro.plate("data", len(x)):
            mean, s = self.encode(x.flatten(1) + 0.1 * torch.randn(len(x), 16)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, s.exp()).to_event(1))


class Strided(nn.Module):
    """Two parameters whose gradients are views of one, transposed and expanded; one that is fixed, one unused."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2, 3))
        self.fixed, self.unused = nn.Parameter(torch.ones(2, 3), requires_grad=False), nn.Parameter(torch.ones(3))
        self.register_buffer("k", torch.arange(6.0).reshape(2, 3))
        self.eval()  # in training mode pyro.module warns of what is fixed

    def model(self, x):
        pyro.module("strided", self)
        with pyro.plate("data", len(x)):
            loc = ((self.a.T + self.b) * self.k).sum() + (self.a.T + self.b + self.fixed).sum()
            pyro.sample("x", dist.Normal(loc, 10.0), obs=x)

    def guide(self, x): ...
