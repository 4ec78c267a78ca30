# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own Pyro pair
#
# Nothing in this package's training and evaluation knows its own models: they take any Pyro model and guide with one
# plate of data. Here are two that are none of its classes, as a Pyro user would write them: a VAE of plain modules, and
# a mixed-effects logistic regression, whose $\log p(x)$ is also found by quadrature. A few minutes on one CPU core.

# %%
# %matplotlib inline
import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.util import torch_item
from torch import nn

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.evaluation.arviz_groups import elpd
from ppl_vae.evaluation.diagnostics import khat_limit
from ppl_vae.evaluation.gaps import gap_decomposition
from ppl_vae.evaluation.information import active_units
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.programs import own_param_store, seeded
from ppl_vae.system.hashing import fingerprint

with warnings.catch_warnings(action="ignore"):  # ArviZ 0.x announces 1.x at each import
    import arviz as az

SHORT = "PPL_VAE_SHORT" in os.environ  # fewer steps and samples: what is asserted holds in this form too
EPOCHS, IMAGES, TEST, SAMPLES = (1, 500, 20, 50) if SHORT else (15, 9000, 200, 1000)
GROUPS, GROUP_EPOCHS = (200, 40) if SHORT else (1000, 150)


# %% [markdown]
# ## A VAE of plain modules
#
# As in Pyro's tutorial, but for logits in place of probabilities, which saturate.


# %%
# a VAE as in Pyro's tutorial
class TutorialVAE(nn.Module):
    def __init__(self, latent_size=20, hidden=400):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent_size))
        self.decoder = nn.Sequential(nn.Linear(latent_size, hidden), nn.Softplus(), nn.Linear(hidden, 784))
        self.latent_size = latent_size

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_size), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x.reshape(-1, 784))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x.reshape(-1, 784)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


data, observe = pv.load("mnist-mini"), pv.Observe(pv.Binarize(), pv.NoNoise())
train, test = data.train[:IMAGES], data.test[:TEST]
(x,) = observe.frozen(test, seed=0)
with seeded(0):
    vae = TutorialVAE()
report = pv.check_model(vae.model, vae.guide, x)
assert report.ok
print(report)


# %% [markdown]
# `check_model` tries out what evaluation will ask of the pair: to run in a plate of particles, to score each datum
# apart, and some more. A decoder that flattens too much, say, trains well and could never be evaluated:


# %%
# the same with a mistake in it
class Flattens(TutorialVAE):
    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_size), 1.0).to_event(1))
            logits = self.decoder(z.reshape(len(x), -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(-1, 784))


flattens = Flattens()
report = pv.check_model(flattens.model, flattens.guide, x)
assert not report.ok
print(report)

# %% [markdown]
# ### Pyro's own loop, compiled
#
# `CompiledTrace_ELBO` takes the place of `Trace_ELBO`: the first step of a shape runs as it is, the second is traced
# and compiled, and the others are replayed. The same noise is drawn, so the losses are the same but for rounding.

# %%
NUM_STEPS = 1 if SHORT else 6  # one is not compiled: that takes longer than all the rest of the short form
batches = [observe.frozen(train[i : i + 50], seed=i)[0] for i in range(0, 50 * NUM_STEPS, 50)]


def losses(loss):
    with own_param_store(), seeded(0):
        vae = TutorialVAE()
        svi = SVI(vae.model, vae.guide, pv.adam(1e-3), loss=loss)
        return torch.tensor([torch_item(svi.step(batch)) / len(batch) for batch in batches])


eager, compiled = losses(Trace_ELBO()), losses(pv.CompiledTrace_ELBO())
assert torch.allclose(eager, compiled, rtol=1e-4)
for row in zip(("Trace_ELBO", "CompiledTrace_ELBO"), (eager, compiled), strict=True):
    print(f"{row[0]:20}", " ".join(f"{loss:9.3f}" for loss in row[1]), " nats per image")

# %% [markdown]
# ### fit, and log p(x)
#
# `fit` is that loop with epochs, noise that is drawn anew, and the rest. Beside it one of the package's models, trained
# in the same way: the two compare, since their results are of the same images, encoded alike.

# %%
pairs = {"tutorial": vae, "gated-dense-vae": pv.build(pv.TrainConfig(model="gated-dense-vae"), data.image_shape)}
results = {}
for name, pair in pairs.items():
    pv.fit(pair.model, pair.guide, train, encode=observe, epochs=EPOCHS, show_progress=False)
    results[name] = pv.log_likelihood(
        pair.model, pair.guide, x, num_samples=SAMPLES, encoding=repr(observe.encoding), source=fingerprint(test)
    )
print(pv.compare(results))

# %%
first, second = (row.name for row in pv.compare(results).rows)
figure, ax = plots.figure(7, 3)
difference = PerDatum.of(results[first]) - PerDatum.of(results[second])
plots.per_datum_differences(ax, difference.values, (first, second))
figure

# %% [markdown]
# ### Where the ELBO is lost
#
# $\log p(x)$ less the ELBO is the KL to the posterior: in part no normal could do better (approximation), in
# part the encoder does worse than it (amortisation).

# %%
few = x[: 5 if SHORT else 50]
log_p = pv.log_likelihood_within(vae.model, vae.guide, few, num_samples=SAMPLES)
gaps = gap_decomposition(vae.model, vae.guide, few, log_p=log_p)
for name, gap in vars(gaps).items():
    print(f"{name:14} {gap.mean:6.2f} ± {gap.mc_se_of_mean:.2f} nats per image")
assert torch.allclose(gaps.total.values, gaps.approximation.values + gaps.amortisation.values)
assert gaps.total.mean > -4 * gaps.total.mc_se_of_mean
assert SHORT or gaps.amortisation.mean > -4 * gaps.amortisation.mc_se_of_mean
print(f"{active_units(vae.guide, x).num_active} of {vae.latent_size} dimensions of the code are in use")

# %% [markdown]
# ## Mixed effects
#
# Not a VAE at all: $T = 8$ yes-or-no answers of each of many subjects, at times $t$, with a random intercept and
# perhaps a random slope for each subject,
#
# $$y_{it} \sim \mathrm{Bernoulli}(\mathrm{logit}^{-1}(a + b\, t + u_{i1} + u_{i2}\, t)), \qquad
# u_i \sim N(0, \mathrm{diag}(\tau^2)).$$
#
# The datum is a subject, its latent site $u_i$, and $t$ a further argument that is batched with $y$. The data are
# simulated, with a random slope.

# %%
TIMES, NUM_TIMES = torch.linspace(-1, 1, 8), 8


class MixedEffects(nn.Module):
    """Logistic regression with as many random effects as `log_tau` has entries: an intercept, and a slope."""

    def __init__(self, num_effects):
        super().__init__()
        self.fixed = nn.Parameter(torch.zeros(2))  # a, b
        self.log_tau = nn.Parameter(torch.zeros(num_effects))
        self.network = nn.Sequential(nn.Linear(2 * NUM_TIMES, 32), nn.Tanh(), nn.Linear(32, 2 * num_effects))

    def model(self, y, t):
        pyro.module("mixed", self)
        with pyro.plate("subjects", len(y), dim=-1):
            u = pyro.sample("u", dist.Normal(torch.zeros_like(self.log_tau), 1.0).to_event(1))  # in units of tau
            design = torch.stack([torch.ones_like(t), t], -1)  # (subjects, times, 2)
            logits = design @ self.fixed + (design[..., : u.shape[-1]] * (self.log_tau.exp() * u)[..., None, :]).sum(-1)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    def guide(self, y, t):
        pyro.module("mixed", self)
        with pyro.plate("subjects", len(y), dim=-1):
            loc, log_scale = self.network(torch.cat([y, t], -1)).chunk(2, -1)
            pyro.sample("u", dist.Normal(loc, log_scale.exp()).to_event(1))


with seeded(1):
    t = TIMES + 0.1 * torch.randn(2 * GROUPS, NUM_TIMES)
    u = torch.randn(2 * GROUPS, 2, 1) * torch.tensor([1.5, 2.0])[:, None]
    y = dist.Bernoulli(logits=-0.5 + t + u[:, 0] + u[:, 1] * t).sample()
    models = {"random intercept": MixedEffects(1), "random intercept and slope": MixedEffects(2)}
(y, new_y), (t, new_t) = y.split(GROUPS), t.split(GROUPS)  # subjects to fit by, and others
for name, mixed in models.items():
    report = pv.check_model(mixed.model, mixed.guide, y[:20], t[:20])
    assert report.ok
    print(f"{name}: {report}")

# %%
for mixed in models.values():
    pv.fit(mixed.model, mixed.guide, y, t, epochs=GROUP_EPOCHS, learning_rate=5e-3, show_progress=False)

# %% [markdown]
# With one or two random effects for each subject the integral over them can be done on a grid, which is what mixed
# models are usually fitted by, at best. So the importance sampling is seen to be right, by subject:

# %%
names = {"encoding": "simulated"}
estimates = {
    name: pv.log_likelihood(mixed.model, mixed.guide, new_y, new_t, num_samples=500, **names)
    for name, mixed in models.items()
}
exact = {name: pv.log_p_by_quadrature(mixed.model, new_y, new_t) for name, mixed in models.items()}
for name, estimate in estimates.items():
    error = estimate.log_p - exact[name]
    in_errors = (error / estimate.mc_se).square().mean().sqrt()
    print(f"{name:27} {estimate.mean:.4f} ± {estimate.mc_se_of_mean:.4f} nats, by quadrature {exact[name].mean():.4f}")
    print(f"{'':27} off by {in_errors:.2f} standard errors (root mean square over subjects)")
    bias = estimate.mc_se.square().mean() / 2  # a lower bound's, to first order
    assert abs(error.mean()) < 4 * estimate.mc_se_of_mean + bias
    assert 0.7 < in_errors < 1.4

# %% [markdown]
# With a tolerance, subjects whose guide fits badly get more samples, or are annealed:

# %%
mixed = models["random intercept and slope"]
TOLERANCE = 0.01
some = slice(0, 100 if SHORT else 300)
tolerant = pv.log_likelihood_within(
    mixed.model, mixed.guide, new_y[some], new_t[some], num_samples=200, max_samples=12_800, tolerance=TOLERANCE
)
error = (tolerant.log_p - exact["random intercept and slope"][some]).square().mean().sqrt()
before = (
    (estimates["random intercept and slope"].log_p - exact["random intercept and slope"])[some].square().mean().sqrt()
)
print(f"K from {tolerant.num_samples.min()} to {tolerant.num_samples.max()}; {tolerant.bound}")
print(f"root mean square error {error:.4f} nats, {before:.4f} with K = 500 for all")
assert error < TOLERANCE

# %% [markdown]
# ## Is there a random slope?
#
# The two models on subjects that neither was fitted to, paired. The difference is checked against quadrature, too.

# %%
comparison = pv.compare(estimates)
print(comparison)
best, other = comparison.rows
difference = exact[other.name] - exact[best.name]
assert best.name == "random intercept and slope"
assert other.difference.mean < -4 * other.difference.data_se_of_mean
assert abs(other.difference.mean - difference.mean().item()) < 4 * other.difference.mc_se_of_mean + 0.001
print(f"\nby quadrature {difference.mean():.4f}")

# %%
figure, ax = plots.figure(7, 3)
difference = PerDatum.of(estimates[best.name]) - PerDatum.of(estimates[other.name])
plots.per_datum_differences(ax, difference.values, (best.name, other.name))
figure

# %% [markdown]
# And how good is the guide? What the ELBO lacks is little here, and all of it is known:

# %%
few = slice(0, 20 if SHORT else 200)
log_p = pv.log_likelihood(mixed.model, mixed.guide, new_y[few], new_t[few], num_samples=2000)
gaps = gap_decomposition(mixed.model, mixed.guide, new_y[few], new_t[few], log_p=log_p, num_samples=400)
for name, gap in vars(gaps).items():
    print(f"{name:14} {gap.mean:7.4f} ± {gap.mc_se_of_mean:.4f} nats per subject")
    assert gap.mean > -4 * gap.mc_se_of_mean, name

# %% [markdown]
# ## In ArviZ
#
# `to_arviz` hands over what is known of a pair: samples of the guide (or resampled by their weights, and then named
# so), of the prior, of what either predicts, log-likelihoods and log-weights, with names for the dimensions. It is an
# `InferenceData` in ArviZ 0.x, which made these pictures; in 1.x it is a `DataTree`, and `plot_ppc` is
# `plot_ppc_dist`.

# %%
exports = {
    name: pv.to_arviz(mixed.model, mixed.guide, new_y, new_t, num_samples=500, resample=True, **names)
    for name, mixed in models.items()
}
for name, export in exports.items():
    assert np.allclose(export.sample_stats.log_p, estimates[name].log_p, atol=1e-5)
export

# %% [markdown]
# What do the models predict of subjects that nobody has seen? By how many answers more a subject says yes in the later
# half than in the earlier, say: without slopes of their own, subjects change too little.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
gain = torch.tensor([-1] * (NUM_TIMES // 2) + [1] * (NUM_TIMES // 2))
for ax, (name, export) in zip(axes, exports.items(), strict=True):
    gains = export.map(
        lambda y: (y * xr.DataArray(gain, dims="dimension")).sum("dimension").astype(int),
        groups=["prior_predictive", "observed_data"],
    )
    az.plot_ppc(gains, group="prior", observed=True, num_pp_samples=50, random_seed=0, ax=ax, legend=ax is axes[1])
    ax.set(title=name, xlabel="more often yes in the later half")
_ = axes[1].get_legend().set(loc="upper left", bbox_to_anchor=(1, 1))

# %% [markdown]
# The random intercept of ten subjects, in units of its standard deviation $\tau_1$, with 94 % intervals, under either
# model; and intercept and slope of one subject:

# %%
(ax,) = az.plot_forest(
    list(exports.values()), model_names=list(exports), var_names=["u"], combined=True, figsize=(7, 6),
    coords={"datum": range(10), "latent": [0]},
)  # fmt: skip
_ = ax.get_legend().set(loc="upper left", bbox_to_anchor=(1, 1))

# %%
axes = az.plot_pair(exports[best.name], var_names=["u"], coords={"datum": [0]}, marginals=True, figsize=(5, 5))

# %% [markdown]
# `arviz.compare` and `plot_khat` take `elpd` of an export: $\log p(x)$ by subject, with the $\hat k$ of its weights.
# The difference is that of `compare` above, as a sum over subjects. It is not `arviz.loo` of the export, whose weights
# are for parameters that all data share, and not for a $u_i$ that each subject has for itself.

# %%
elpds = {name: elpd(export) for name, export in exports.items()}
table = az.compare(elpds, method="pseudo-BMA")
assert np.isclose(-table.elpd_diff[other.name], len(new_y) * other.difference.mean, rtol=1e-3)
table[["rank", "elpd_loo", "se", "elpd_diff", "dse", "warning"]]

# %%
ax = az.plot_khat(elpds[best.name], show_hlines=True, hlines_kwargs={"hlines": [khat_limit(SAMPLES)]}, figsize=(7, 3))
_ = ax.set(xlabel="subject", ylabel=r"Pareto $\hat k$ of its weights")
