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
# # Swapping priors and posteriors
#
# The best prior for the ELBO of a given encoder is its aggregate posterior, $q(z) = \frac1N \sum_i q(z|x_i)$: any other
# adds $\mathrm{KL}(q(z) \| p(z))$ to its KL. With a latent of two dimensions the two can be plotted. A few minutes on
# two CPU cores.

# %%
# %matplotlib inline
import os

import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.components import choices
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import evaluating, seeded
from ppl_vae.system.hashing import fingerprint
from ppl_vae.training.monitoring import elbo_parts

SHORT = "PPL_VAE_SHORT" in os.environ  # a form that only shows that every cell runs
EPOCHS, IMAGES, TEST, SAMPLES = (1, 200, 20, 10) if SHORT else (10, 5000, 200, 1000)

data = pv.load("mnist-mini")
train, test = data.train[:IMAGES], data.test[:TEST]
observe = pv.Observe(pv.Binarize(), pv.NoNoise())
(x,) = observe.frozen(test, seed=0)


def trained(**components):
    config = pv.TrainConfig(model="gated-dense-vae", dataset=data.name, latent_size=2, **components)
    vae = pv.build(config, data.image_shape)
    vae.prior.initialise(observe.frozen(train, seed=0)[0])
    pv.fit(vae.model, vae.guide, train, encode=observe, epochs=EPOCHS, show_progress=False)
    return vae


def evaluated(vae):
    names = {"encoding": repr(observe.encoding), "source": fingerprint(test)}
    return pv.log_likelihood(vae.model, vae.guide, x, num_samples=SAMPLES, **names)


# %% [markdown]
# ## Every prior, with the diagonal normal posterior

# %%
specs = {name: name for name in choices(Prior) if name != "exemplar-prior"}  # see samples.ipynb
if SHORT:
    specs["vamp-prior"] = "vamp-prior:num_components=20"
vaes = {name: trained(prior=spec) for name, spec in specs.items()}
results = {name: evaluated(vae) for name, vae in vaes.items()}
print(pv.compare(results))

# %% [markdown]
# In two dimensions log p(x) is known, by quadrature on a grid: how far off is importance sampling, on the first twenty?

# %%
for name, vae in vaes.items():
    exact = pv.log_p_by_quadrature(vae.model, x[:20])
    error = results[name].log_p[:20] - exact
    print(
        f"{name:20} exact {exact.mean():8.2f}   importance sampling off by {error.mean():+.3f} on average, "
        f"{error.abs().max():.2f} at most"
    )

# %% [markdown]
# ## The prior against the aggregate posterior
#
# The standard normal covers the latents with a ball, holes and all. Learned priors move to where the latents are.

# %%
encoded = pv.Observe(pv.Binarize(), pv.NoNoise()).frozen(train[:2000], seed=1)[0]
figure, axes = plots.figure(12, 6.4, nrows=2, ncols=4)
for ax, (name, vae) in zip(axes.flat, vaes.items(), strict=False):
    with seeded(0), evaluating(vae.model, vae.guide):
        plots.prior_and_posterior(ax, vae.prior().sample((len(encoded),)), vae.encode(encoded).sample())
    ax.set_title(name, fontsize=9)
axes.flat[-1].set_axis_off()
figure

# %% [markdown]
# ## Samples

# %%
samples = {}
for name, vae in vaes.items():
    with seeded(0), evaluating(vae.model):
        samples[name] = observe.encoding.grey(vae.decode(vae.prior().sample((10,))))
figure, ax = plots.figure(8, 0.62 * len(samples) + 0.5)
plots.rows_of_images(ax, samples)
figure

# %% [markdown]
# ## Per image
#
# The best prior against the standard normal, image by image.

# %%
best = max(results, key=lambda name: results[name].mean if name != "standard-normal" else -float("inf"))
difference = PerDatum.of(results[best]) - PerDatum.of(results["standard-normal"])
figure, ax = plots.figure(7, 3)
plots.per_datum_differences(ax, difference.values, (best, "standard-normal"))
figure

# %% [markdown]
# ## Every posterior, with the standard normal prior
#
# A richer $q(z|x)$ closes the gap between ELBO and log p(x), and the model that it trains is another one for it.

# %%
specs = list(choices(Posterior))
vaes = {name: trained(posterior=name) for name in specs}
results = {name: evaluated(vae) for name, vae in vaes.items()}
print(pv.compare(results))
for name, vae in vaes.items():
    parts = elbo_parts(vae.model, vae.guide, x, seed=0)
    gap = results[name].log_p.mean() - (parts.reconstruction - parts.kl).double().mean()
    print(f"{name:28} log p(x) - ELBO = {gap:5.2f} nats")

# %% [markdown]
# What a posterior looks like beyond its mean: samples from $q(z|x)$ for three digits, under each family.

# %%
figure, axes = plots.figure(12, 6.4, nrows=2, ncols=3)
for ax, (name, vae) in zip(axes.flat, vaes.items(), strict=True):
    with seeded(0), evaluating(vae.guide):
        draws = vae.encode(x[:3]).sample((400,))
    plots.latent_scatter(ax, draws.flatten(0, 1), torch.arange(3).expand(400, 3).flatten(), names=["1st", "2nd", "3rd"])
    ax.set(xlabel="$z_1$", ylabel="$z_2$")  # draws, where the function's own labels speak of means
    ax.set_title(name, fontsize=9)
figure
