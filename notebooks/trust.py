# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How far to trust a log-likelihood
#
# An estimate of $\log p(x)$ is worth what is known of its error. Here the error itself is known: the model is a
# probabilistic PCA of digits, whose $\log p(x)$ has a closed form, and the guides are as wrong as we choose. A few
# minutes on one CPU core.

# %%
# %matplotlib inline
import math
import os

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.evaluation.importance import log_weights
from ppl_vae.evaluation.sandwich import simulate
from ppl_vae.plots import OKABE_ITO
from ppl_vae.programs import evaluating, guide_trace_of, seeded

SHORT = "PPL_VAE_SHORT" in os.environ  # fewer images and samples: what is asserted holds in this form too
IMAGES, FEW, FIT, STEPS = (8, 8, 3000, 30) if SHORT else (30, 12, 10_000, 100)
KS = [10, 100, 1000] if SHORT else [10, 100, 1000, 10_000, 30_000]
LATENT = 10

data, observe = pv.load("mnist-mini"), pv.Observe(pv.Dequantize(), pv.NoNoise())
(train,), (test,) = observe.frozen(data.train[:FIT], seed=0), observe.frozen(data.test, seed=0)
ppca = pv.PPCA.maximum_likelihood(train, LATENT).requires_grad_(False)
x = test[:IMAGES]
exact = ppca.log_prob(x)
names = {"encoding": repr(observe.encoding)}
print(f"log p(x) = {exact.mean():.3f} nats per image (a density of dequantised pixels), exactly")


# %% [markdown]
# ## Is it a pair?
#
# First, whether the two programs can be evaluated at all. The guides here are the exact posterior with `width` times
# its standard deviations.


# %%
def guide_of(ppca, width):
    def guide(x):
        pyro.module("ppca", ppca)
        with pyro.plate("data", len(x), dim=-1):
            posterior = ppca.encode(x)
            pyro.sample("z", dist.MultivariateNormal(posterior.mean, scale_tril=width * posterior.scale_tril))

    return guide


report = pv.check_model(ppca.model, guide_of(ppca, 0.5), x)
assert report.ok
print(report)

# %% [markdown]
# Three that can't: a guide that standardises its batch, so that an image's latent depends on the others; one whose
# dropout is never switched off; and one that forgot the plate. Each runs, and would train.


# %%
def of_the_batch(x):
    with pyro.plate("data", len(x), dim=-1):
        posterior = ppca.encode(x - x.mean(0))
        pyro.sample("z", dist.MultivariateNormal(posterior.mean, scale_tril=posterior.scale_tril))


def with_dropout(x):
    with pyro.plate("data", len(x), dim=-1):
        posterior = ppca.encode(nn.functional.dropout(x, 0.1))
        pyro.sample("z", dist.MultivariateNormal(posterior.mean, scale_tril=posterior.scale_tril))


def without_plate(x):
    posterior = ppca.encode(x)
    pyro.sample("z", dist.MultivariateNormal(posterior.mean, scale_tril=posterior.scale_tril).to_event(1))


wrong = {"independence": of_the_batch, "repeatable": with_dropout, "plates": without_plate}
for check, guide in wrong.items():
    report = pv.check_model(ppca.model, guide, x)
    assert not report.ok
    assert check in [finding.check for finding in report.findings]
    print(f"{guide.__name__}: {report.findings[0]}\n")

# %% [markdown]
# ## K
#
# Importance sampling from the guide is a lower bound in expectation, which rises with $K$ from the ELBO to
# $\log p(x)$. Its error band, of two Monte Carlo standard errors, is honest if the weights' variance is finite. With
# the posterior at `width` $s$ it is known for each of the $L$ dimensions:
#
# $$\frac{E_q[w^2]}{p(x)^2} = \left(\frac{s}{\sqrt{2 - s^{-2}}}\right)^L, \quad \text{infinite for } s^2 \le 1/2;
# \qquad \mathrm{ELBO} = \log p(x) - \tfrac{L}{2} (s^2 - 1 - \log s^2).$$
#
# So a guide that is too wide is a nuisance, and one too narrow a trap.

# %%
WIDTHS = [1.5, 0.8, 0.4]
results = {
    width: [pv.log_likelihood(ppca.model, guide_of(ppca, width), x, num_samples=K, **names) for K in KS]
    for width in WIDTHS
}
print(
    f"{'width':>5} {'K':>6} {'error':>8} {'MC s.e. claimed':>16} {'known':>7} {'median k-hat':>13} {'over limit':>12}"
)
for width, row in results.items():
    second = (width / math.sqrt(2 - width**-2)) ** LATENT if width**2 > 0.5 else math.inf
    for K, result in zip(KS, row, strict=True):
        error, known = result.mean - exact.mean().item(), math.inf
        claimed = result.mc_se_of_mean / result.widening  # what the weights claim, but for their k-hats
        if width**2 > 0.5:
            known = math.sqrt((second - 1) / K / len(x))
        khat, bad = result.khat.median().item(), result.num_unreliable
        share = "unknown" if bad is None else f"{bad}/{len(x)}"
        print(f"{width:5} {K:6} {error:8.3f} {claimed:16.3f} {known:7.3f} {khat:13.2f} {share:>12}")
    if width**2 > 0.5:  # at the largest K, estimate and error are right, ...
        assert abs(error) < 4 * known
        assert 0.5 < claimed / known < 2
        assert bad < len(x) / 4
    else:  # ... or both wrong, and k-hat says so
        assert error < -4 * claimed
        assert bad > len(x) / 2

# %%
annealed = {
    width: pv.annealed_log_likelihood(ppca.model, guide_of(ppca, width), x, num_steps=STEPS, **names)
    for width in WIDTHS
}
figure, axes = plots.figure(11, 3.4, ncols=len(WIDTHS))
for ax, (width, row) in zip(axes, results.items(), strict=True):
    elbo = exact.mean().item() - LATENT / 2 * (width**2 - 1 - math.log(width**2))
    means, errors = [r.mean for r in row], [r.mc_se_of_mean for r in row]
    plots.convergence(ax, KS, means, errors, elbo=elbo, annealed=annealed[width].mean)
    ax.axhline(exact.mean(), color=OKABE_ITO["green"], lw=1.2, zorder=0, label="exact")
    ax.legend(fontsize=7, framealpha=0.9, edgecolor="none", loc="lower right")
    ax.set_title(f"posterior at {width} of its width", fontsize=9)
figure

# %% [markdown]
# On the right the estimate climbs slowly, its band is narrow all the way, and the truth is far above it. What tells is
# k-hat: over its limit for most images. More samples are no cure.
#
# ## Annealing
#
# Chains that go from the guide to the posterior in $T$ steps (dashed above) are. From the prior, which knows nothing of
# the image, they need more steps.

# %%
narrow = guide_of(ppca, 0.4)
few = x[:FEW]
print(f"{'from':6} {'T':>4} {'error':>8} {'MC s.e.':>8}")
for start in ("guide", "prior"):
    for num_steps in (STEPS // 10, STEPS):
        result = pv.annealed_log_likelihood(ppca.model, narrow, few, num_steps=num_steps, start=start)
        error = result.mean - exact[:FEW].mean().item()
        print(f"{start:6} {num_steps:4} {error:8.3f} {result.mc_se_of_mean:8.3f}")
        if (start, num_steps) == ("guide", STEPS):
            assert (results[0.4][-1].mean - exact.mean().item()) / 2 < error < 4 * result.mc_se_of_mean

# %% [markdown]
# ## From both sides
#
# Where nothing is known in closed form, annealing can still be checked: on data that the model simulates, the latent
# that made a datum is an exact draw from its posterior, and chains back from it give an upper bound. Here the exact
# value is at hand to see that it lies between.

# %%
sandwich = pv.bidirectional(ppca.model, narrow, x, num_data=2 * FEW, num_steps=STEPS)
simulated, _ = simulate(ppca.model, x, num_data=2 * FEW)  # the same data
between = ppca.log_prob(simulated).mean().item()
print(f"{sandwich}\n\nexact: {between:.3f}")
differences = {
    name: (result.log_p - ppca.log_prob(simulated)) for name, result in vars(sandwich).items()
}  # the bounds hold in expectation
for name, sign in (("lower", 1), ("upper", -1)):
    off, se = differences[name].mean().item(), differences[name].std().item() / math.sqrt(2 * FEW)
    assert sign * off < 4 * se, name
assert sandwich.gap > -4 * sandwich.gap_se

# %% [markdown]
# ## A posterior for each image
#
# The guide is asked once for an image, and one shot is often not enough. `pv.refine` takes its answer as a start: for
# each image a normal with full covariance, by stochastic gradients of its own ELBO, and then draws of a Student-t that
# is a little wider. It is a guide again. Here are two of the ten dimensions for one image, and what both weigh.

# %%
one, draws = x[:1], 300 if SHORT else 1000
posteriors = {"guide": narrow, "refined": pv.refine(ppca.model, narrow, one)}
fig, (left, right) = plots.figure(8, 3.2, ncols=2)
mean, cov = ppca.encode(one).mean[0], ppca.encode(one).covariance_matrix[0]
scale, angle = torch.linalg.cholesky(cov[:2, :2]), torch.linspace(0, 2 * math.pi, 100)
with evaluating(ppca.model), seeded(0):
    for (name, guide), colour in zip(posteriors.items(), ("vermilion", "blue"), strict=True):
        z = guide_trace_of(guide, one, num_samples=draws).nodes["z"]["value"][:, 0]
        log_w = log_weights(ppca.model, guide, one, num_samples=draws)[:, 0].sort(descending=True).values
        left.plot(*z[:, :2].T, ".", ms=2, color=OKABE_ITO[colour], label=name)
        right.plot(log_w - exact[0], color=OKABE_ITO[colour], label=name)
left.plot(*(mean[:2, None] + 2 * scale @ torch.stack([angle.cos(), angle.sin()])), color="black", label="exact, 2 s.d.")
left.set(xlabel="$z_1$", ylabel="$z_2$", title="draws")
right.set(xlabel="draws, the heaviest first", ylabel="log w - log p(x) [nats]", title="their weights")
for ax in (left, right):
    ax.legend(fontsize=7, frameon=False)
fig

# %% [markdown]
# ## The ladder
#
# `log_likelihood_within` climbs it by itself: importance sampling from the guide; for the images whose weights can't be
# trusted, from the refined posterior; and for what is left, annealing from there. Pilot samples choose the rung, and
# the estimate is of fresh ones, so that it stays below $\log p(x)$ in expectation, with errors that hold.

# %%
some = x[:4] if SHORT else few
ladder = pv.log_likelihood_within(ppca.model, narrow, some, num_samples=300 if SHORT else 1000)
error = ladder.log_p - exact[: len(some)]
print(f"{ladder}\n\nerror {error.mean():.4f} nats on average, {error.abs().max():.4f} at most")
assert ladder.num_unreliable == 0
assert (error.abs() < 5 * ladder.mc_se + 0.01).all()

# %% [markdown]
# ## What no weight shows
#
# A k-hat sees heavy tails of the weights that were drawn. Of a mode where the guide never draws there are none.
# $z \sim N(0, 1)$, $x \sim N(|z|, 0.1^2)$: the posterior has two modes, $z \approx \pm x$, and this guide knows of one.
# In one dimension the truth is found by quadrature; what is missed is half of the mass, $\log 2$.


# %%
def folded(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.abs(), 0.1).to_event(1), obs=x)


def of_one_mode(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x, 0.12).to_event(1))


y = torch.linspace(0.8, 2, 12)[:, None]
truth = pv.log_p_by_quadrature(folded, y)
missed = {
    "importance sampling, K = 10,000": pv.log_likelihood(folded, of_one_mode, y, num_samples=10_000),
    "the ladder": pv.log_likelihood_within(folded, of_one_mode, y),
    "annealed from the guide": pv.annealed_log_likelihood(folded, of_one_mode, y, num_steps=STEPS),
    "annealed from the prior": pv.annealed_log_likelihood(folded, of_one_mode, y, num_steps=STEPS, start="prior"),
}
for name, result in missed.items():
    error, se = result.mean - truth.mean().item(), result.mc_se_of_mean
    over = result.num_unreliable
    bad = "too few for k-hat" if over is None else f"k-hat over its limit for {over}"
    print(f"{name:33} error {error:7.3f}   MC s.e. {se:.3f}   {bad}")
    assert abs(error if "prior" in name else error + math.log(2)) < 4 * se + 0.01, name
assert missed["importance sampling, K = 10,000"].num_unreliable == 0

# %% [markdown]
# Everything that starts from this guide is wrong by $\log 2$, with a small error and a good k-hat. Two things tell: to
# start from the prior as well (`start="better"`), and the sandwich, whose simulated data know both modes: for those
# that came from the other one, almost half, the bounds are far apart.

# %%
blind = pv.bidirectional(folded, of_one_mode, y, num_data=64, num_steps=STEPS)
apart = (blind.upper.log_p - blind.lower.log_p > math.log(2)).double().mean()
print(f"{blind}\n\nmore than log 2 apart: {apart:.0%} of the data")
assert abs(apart - 0.5) < 4 * math.sqrt(0.25 / 64)

# %% [markdown]
# ## Which of two models?
#
# PPCA with 5, 10 and 20 dimensions, with guides good enough. Images differ far more than models do, but alike under
# each: so differences are taken image by image. The exact ones are known, to compare.

# %%
many = test[: 50 if SHORT else 300]
models = {f"{size} dimensions": pv.PPCA.maximum_likelihood(train, size).requires_grad_(False) for size in (5, 10, 20)}
estimates = {
    name: pv.log_likelihood(model.model, guide_of(model, 0.9), many, num_samples=300, encoding=names["encoding"])
    for name, model in models.items()
}
comparison = pv.compare(estimates)
print(comparison)

# %%
exact_values = {name: model.log_prob(many) for name, model in models.items()}
best, *others = comparison.rows
for row in others:
    d = exact_values[row.name] - exact_values[best.name]
    paired, apart = row.difference.data_se_of_mean, math.hypot(row.value.data_se_of_mean, best.value.data_se_of_mean)
    mc_se = row.difference.mc_se_of_mean
    assert abs(row.difference.mean - d.mean().item()) < 4 * mc_se
    assert paired < apart / 2
    print(
        f"{row.name} less {best.name}: {row.difference.mean:.3f} ± {mc_se:.3f} (MC), exactly {d.mean():.3f}; "
        f"s.e. over images {paired:.2f}, {apart:.2f} if not paired"
    )

# %% [markdown]
# What does not compare is refused:

# %%
try:
    pv.compare({"these images": estimates["5 dimensions"], "others": results[1.5][-1]})
except ValueError as error:
    print(error)
else:
    raise AssertionError("compared results of different data")
