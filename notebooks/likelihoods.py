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
# # Swapping likelihoods
#
# One VAE, one dataset, and a likelihood after another in its place. On grey images of 256 levels most of them can be
# compared: a mass on the levels as it is, and a density of dequantised images through its bound on that mass, which is
# exactly $D \ln 256$ nats away. A few minutes on two CPU cores.

# %%
# %matplotlib inline
import os

import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.components import create
from ppl_vae.evaluation.comparison import density_to_mass_bound
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.likelihoods import Likelihood
from ppl_vae.programs import evaluating, seeded
from ppl_vae.system.hashing import fingerprint

SHORT = "PPL_VAE_SHORT" in os.environ  # a form that only shows that every cell runs
EPOCHS, IMAGES, TEST, SAMPLES = (1, 200, 20, 10) if SHORT else (15, 8000, 200, 300)

data = pv.load("fashion-mnist-mini")
train, test = data.train[:IMAGES], data.test[:TEST]
num_dims = train[0].numel()

# %% [markdown]
# ## What a likelihood observes
#
# A likelihood states its support, and the support says what becomes of an 8-bit image: levels stay levels under a mass
# on $\{0, \ldots, 255\}$, and are dequantised to $(\text{level} + u) / 256$, $u \sim U[0, 1)$, under a density.

# %%
SPECS = [
    "gaussian-learned",
    "gaussian-per-pixel",
    "laplace",
    "continuous-bernoulli",
    "logit-normal",
    "discretized-logistic",
    "discretized-logistic-mixture:num_components=3",
]
for spec in SPECS:
    likelihood = create(Likelihood, spec)
    print(f"{spec:46} {pv.default_encoding(likelihood.support)!r}: {pv.default_encoding(likelihood.support).log_p_is}")

# %% [markdown]
# ## Train one VAE with each

# %%
results, samples = {}, {}
for spec in SPECS:
    config = pv.TrainConfig(model="dense-vae", dataset=data.name, likelihood=spec, latent_size=10)
    vae = pv.build(config, data.image_shape)
    observe = pv.Observe(pv.default_encoding(vae.likelihood.support), pv.NoNoise())
    pv.fit(vae.model, vae.guide, train, encode=observe, epochs=EPOCHS, show_progress=False)
    results[spec] = pv.log_likelihood(
        vae.model,
        vae.guide,
        *observe.frozen(test, seed=0),
        num_samples=SAMPLES,
        encoding=repr(observe.encoding),
        source=fingerprint(test),
    )
    with seeded(0), evaluating(vae.model):
        samples[spec.partition(":")[0]] = observe.encoding.grey(vae.decode(vae.prior().sample((10,))))

# %% [markdown]
# ## Which finds the test images likelier?
#
# A mass and a density do not compare, and asking for it is refused:

# %%
try:
    pv.compare(results)
except ValueError as error:
    print(error)

# %% [markdown]
# With `levels=True` each density is turned into a bound on the mass of the levels. The differences are paired by image,
# so that what is common to all models (some images are likelier than others) cancels.

# %%
print(pv.compare(results, unit="bits per dimension", num_dims=num_dims, levels=True))

# %% [markdown]
# ## Per image
#
# A mean hides on which images a model is better.

# %%
first, second = (
    row.name for row in pv.compare(results, unit="bits per dimension", num_dims=num_dims, levels=True).rows[:2]
)


def mass(name):
    result = results[name]
    return PerDatum.of(result if result.measure == "mass" else density_to_mass_bound(result, num_dims))


figure, ax = plots.figure(7, 3)
plots.per_datum_differences(ax, (mass(first) - mass(second)).values, (first, second))
figure

# %% [markdown]
# ## Samples
#
# $E[x|z]$ for $z$ from the prior. What is likely is not always what looks best: a likelihood with a wide noise spends
# its latent on what the noise can't explain, and a narrow one on every pixel.

# %%
figure, ax = plots.figure(8, 0.62 * len(samples) + 0.5)
plots.rows_of_images(ax, samples)
figure

# %% [markdown]
# ## A Bernoulli on grey pixels
#
# It is what many scripts train, and it is no likelihood: over $[0, 1]$ its "density" does not integrate to one. It can
# be trained by name (`--likelihood bernoulli --encoding scale`), and its log p(x) is refused.

# %%
vae = pv.build(
    pv.TrainConfig(model="dense-vae", likelihood="bernoulli", encoding="scale", latent_size=10), data.image_shape
)
try:
    pv.log_likelihood(vae.model, vae.guide, test / 255)
except ValueError as error:
    print(error)

# %% [markdown]
# And its integral, by summing over a fine grid, at three logits:

# %%
x = torch.linspace(0, 1, 100_001)
for logit in (-5.0, 0.0, 2.0):
    logit = torch.tensor(logit)
    print(f"logit {logit:4.1f}: {torch.trapezoid((x * logit - torch.nn.functional.softplus(logit)).exp(), x):.3f}")
