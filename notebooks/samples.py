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
# # Samples, and priors of exemplars
#
# log p(x) says how likely test images are, and hardly anything of what samples look like. Here are both, for three
# priors. One of them is a mixture around the latents of training images, the exemplars:
# $p(z) = \frac1K \sum_k \mathcal N(z; \mu(x_k), \sigma^2 I)$. A minute of one CPU core.

# %%
# %matplotlib inline
import os

import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.data.observation import Indexed
from ppl_vae.experiments.features import features_of
from ppl_vae.programs import evaluating, seeded
from ppl_vae.system.hashing import fingerprint

SHORT = "PPL_VAE_SHORT" in os.environ  # a form that only shows that every cell runs
EPOCHS, IMAGES, TEST, SAMPLES = (1, 200, 20, 50) if SHORT else (20, 2000, 100, 1000)

data = pv.load("mnist-mini")
train, index = data.train[:IMAGES], torch.arange(IMAGES)
observe = pv.Observe(pv.Binarize(), pv.NoNoise())

# %% [markdown]
# ## Training with exemplars
#
# A training image must not be its own exemplar: $\sigma$ would shrink until each image had a place of its own. So the
# programs are told which training image each is (`Indexed` passes that on), and leave out its own component. `ppl-vae
# train --prior exemplar-prior` does it by itself.

# %%
priors = ("standard-normal", f"vamp-prior:num_components={IMAGES // 10}", f"exemplar-prior:num_exemplars={IMAGES}")
vaes = {}
for prior in priors:
    config = pv.TrainConfig(model="gated-dense-vae", hidden=(200,), latent_size=10, prior=prior, dataset=data.name)
    vae = pv.build(config, data.image_shape)
    vae.initialise(observe.frozen(train, seed=0)[0])
    of_exemplars = prior.startswith("exemplar")
    x = (train, index) if of_exemplars else (train,)
    encode = Indexed(pv.Binarize(), pv.NoNoise()) if of_exemplars else observe
    pv.fit(vae.model, vae.guide, *x, encode=encode, epochs=EPOCHS, batch_size=100, show_progress=False)
    vaes[prior.partition(":")[0]] = vae
print("scale of the exemplars' components:", round(vaes["exemplar-prior"].prior.log_scale.exp().item(), 3))

# %% [markdown]
# ## What a sample is like
#
# Each sample of this prior lies near a training image in the latents: above, the nearest exemplar; below, the sample.

# %%
vae = vaes["exemplar-prior"]
with seeded(0), evaluating(vae.model):
    z = vae.prior().sample((12,))
    x = vae.decode(z)
nearest = torch.cdist(z, vae.prior.means).argmin(1)
figure, ax = plots.figure(9, 2)
plots.rows_of_images(ax, {"exemplar": train[vae.prior.exemplars[nearest]] / 255, "sample": x})
figure

# %% [markdown]
# ## How good samples are
#
# Precision and density ask whether samples are like test images, recall and coverage whether each test image has
# samples like it. All look at features: here the last hidden layer of a small classifier of these images, trained on
# the spot. Figures on other features are other figures. Training images in place of samples show what can be reached.

# %%
features = features_of(data, show_progress=False)
print(f"{features.about['name']}, right for {features.about['accuracy']:.1%} of test images")
test = features(data.test[:SAMPLES] / 255)
qualities = {}
for name, vae in vaes.items():
    with seeded(0), evaluating(vae.model):
        qualities[name] = pv.sample_quality(test, features(vae.generate(SAMPLES).mean))
qualities["training images"] = pv.sample_quality(test, features(data.train[-SAMPLES:] / 255))
for name, quality in qualities.items():
    print(f"{name}:\n    {quality}")

# %%
names = ["precision", "recall", "density", "coverage"]
values = {}
for name, quality in qualities.items():
    estimates = [getattr(quality, figure) for figure in names]
    values[name] = [e.value for e in estimates], [e.se for e in estimates]
figure, ax = plots.figure(7, 3.6)
plots.side_by_side(ax, names, values, "higher is better; ± 2 s.e.")
figure

# %% [markdown]
# ## And log p(x)

# %%
(x,) = observe.frozen(data.test[:TEST], seed=0)
about = {"encoding": repr(observe.encoding), "source": fingerprint(data.test[:TEST])}
print(pv.compare({name: pv.log_likelihood(vae.model, vae.guide, x, num_samples=SAMPLES // 4, **about)
                  for name, vae in vaes.items()}))  # fmt: skip
