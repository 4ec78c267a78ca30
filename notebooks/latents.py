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
# # Latents in layers, and discrete ones
#
# A ladder of any depth: what does each of its layers add? And latents that are one of a few categories, whose draws
# have no gradient: three that stand for it. Two minutes of one CPU core.

# %%
# %matplotlib inline
import os

import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.distributions import kl_divergence
from ppl_vae.experiments.preparation import assemble
from ppl_vae.programs import evaluating, guide_trace_of, model_trace_of, sample_sites, seeded

SHORT = "PPL_VAE_SHORT" in os.environ  # a form that only shows that every cell runs
EPOCHS, IMAGES, TEST, SAMPLES = (1, 200, 10, 100) if SHORT else (12, 5000, 200, 500)

data = pv.load("mnist-mini")
train, test = data.train[:IMAGES], data.test[:TEST]
observe = pv.Observe(pv.Binarize(), pv.NoNoise())
(x,) = observe.frozen(test, seed=0)


def trained(model, **settings):
    assembly = assemble(pv.TrainConfig(model=model, dataset=data.name, **settings))
    vae = assembly.build(data.image_shape)
    options = {"encode": observe, "elbo": assembly.objective, "epochs": EPOCHS, "batch_size": 64}
    return vae, pv.fit(vae.model, vae.guide, train, validation=test, show_progress=False, **options)


# %% [markdown]
# ## A ladder
#
# $p(z_3)\, p(z_2|z_3)\, p(z_1|z_2, z_3)\, p(x|z_1, z_2, z_3)$, and a posterior that goes the same way down, with
# $16 + 8 + 4$ dimensions from the bottom up. Its settings are written behind its name. The KL of a layer tells how much
# of the image it holds, in nats.

# %%
ladder, history = trained(
    "dense-ladder:layers=16+8+4,hidden=200", objective="analytic-kl", kl_weight="linear-warm-up:epochs=5"
)
with seeded(0), evaluating(ladder.model, ladder.guide):
    q = guide_trace_of(ladder.guide, x, num_samples=1)
    p = model_trace_of(ladder.model, q, x, num_samples=1)
    for name, site in sample_sites(q, observed=False).items():
        print(f"{name}: KL {kl_divergence(site['fn'], p.nodes[name]['fn']).mean():5.2f} nats")
print(f"ELBO {history['validation_elbo'][-1]:.2f} nats")

# %% [markdown]
# What each layer adds: the top layers are drawn from the posterior, and those below are the means of
# $p(z_l | z_{>l})$.

# %%
with seeded(0), evaluating(ladder.model):
    rows = {f"top {k}": ladder.reconstruct(x[:10], k, sample=True) for k in range(1, ladder.num_layers + 1)}
figure, ax = plots.figure(8, 3.4)
plots.rows_of_images(ax, {"original": x[:10], **rows})
figure

# %% [markdown]
# log p(x) refines the posterior of all layers together, where samples of the guide can't be trusted.

# %%
score = pv.log_likelihood if SHORT else pv.log_likelihood_within
print(score(ladder.model, ladder.guide, x[: TEST // 10], num_samples=SAMPLES))

# %% [markdown]
# ## Discrete latents
#
# Twenty latents of ten categories each. The score function with a control variate has no bias; a relaxed draw has, and
# less variance; straight through, the draw is discrete and its gradient that of the relaxed one. The curves are of the
# ELBO of discrete latents, whatever was trained.

# %%
gradients = {
    "leave-one-out": "leave-one-out:num_particles=4",
    "relaxed": "gumbel-softmax",
    "straight-through": "gumbel-softmax:straight_through=true",
}
discrete = {name: trained("dense-dvae:hidden=200,categories=10", objective=o) for name, o in gradients.items()}
figure, ax = plots.figure(6, 3)
for name, (_, history) in discrete.items():
    ax.plot(history["epoch"], history["validation_elbo"], label=name)
ax.set(xlabel="epoch", ylabel="ELBO of test images (nats)")
ax.legend()
figure

# %% [markdown]
# log p(x) of the same models, by importance sampling from the guide. A guide of discrete latents leaves out codes that
# it takes for impossible, and there is no posterior to refine: these are loose lower bounds, and they say so.

# %%
log_p = {n: pv.log_likelihood(vae.model, vae.guide, x, num_samples=SAMPLES) for n, (vae, _) in discrete.items()}
print(pv.compare(log_p))

# %% [markdown]
# The code of one image, with one of its latents at a time put to each of its ten categories, in five latents. One alone
# changes little: the digit is in all of them together.

# %%
vae, _ = discrete["straight-through"]
with evaluating(vae.model):
    z = vae.encode(x[:1]).mode.expand(5, 10, -1, -1).clone()
    for latent in range(5):
        z[latent, :, latent] = torch.eye(10)
    figure, ax = plots.figure(8, 4)
    plots.interpolations(ax, vae.decode(z))
figure
