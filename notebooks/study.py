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
# # Autoencoders and VAEs: denoising, generation, log-likelihood
#
# A walk through the study on digits that the package carries: what a deterministic autoencoder learns, what a
# variational one adds, and the figures to judge them by. It takes a few minutes on two CPU cores.

# %%
# %matplotlib inline
import os

import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.evaluation.denoising import PCA, image_quality, mean_and_se
from ppl_vae.training.monitoring import elbo_parts

SHORT = "PPL_VAE_SHORT" in os.environ  # a form that only shows that every cell runs
EPOCHS, IMAGES, SAMPLES = (1, 500, 30) if SHORT else (10, 8000, 500)

data = pv.load("mnist-mini")
train, validation, test = data.train[:IMAGES], data.train[-1000:], data.test[:1000]
data

# %% [markdown]
# ## Noise to remove
#
# Pixels lie in [0, 1]; the noise is Gaussian with standard deviation 0.5, clipped to [0, 1] again. All models see
# the same noisy test images, because the noise is frozen by a seed.

# %%
noise = pv.GaussianNoise(scale=0.5)
clean = test / 255
noisy = noise(clean, torch.Generator().manual_seed(0))

figure, ax = plots.figure(8, 1.8)
plots.rows_of_images(ax, {"clean": clean[:10], "noisy": noisy[:10]})
figure

# %% [markdown]
# ## Autoencoders
#
# An autoencoder is $x' = g(f(x))$ with $f: \mathbb{R}^D \to \mathbb{R}^M$ and $g: \mathbb{R}^M \to \mathbb{R}^D$.
# Here it is a Pyro pair with no latent variable and an empty guide: the same SVI trains it, and its loss is the
# negative log-likelihood of its reconstruction. It sees the noisy image and scores the clean one.

# %%
shape = data.image_shape
models, histories = {}, {}
for name in ("dense-ae", "conv-ae"):
    models[name] = pv.build(pv.TrainConfig(model=name, latent_size=32), shape)
    histories[name] = pv.fit(
        models[name].model,
        models[name].guide,
        train,
        validation=validation,
        encode=pv.Observe(pv.Scale(), noise),
        epochs=EPOCHS,
        batch_size=64,
        show_progress=False,
    )
{name: round(history["validation_elbo"][-1], 2) for name, history in histories.items()}

# %% [markdown]
# ## A VAE
#
# $p(x, z) = p(z)\, p(x \mid z)$ with $p(z) = N(0, I)$, pixels binarised anew at each use, and a Bernoulli
# likelihood by logits. The guide $q(z \mid x)$ is a diagonal Gaussian. One VAE learns noisy to clean, another sees
# clean images alone.

# %%
for name, seen in (("vae, noisy to clean", noise), ("vae, clean only", pv.NoNoise())):
    models[name] = pv.build(pv.TrainConfig(model="dense-vae", latent_size=20), shape)
    histories[name] = pv.fit(
        models[name].model,
        models[name].guide,
        train,
        validation=validation,
        encode=pv.Observe(pv.Binarize(), seen),
        epochs=EPOCHS,
        batch_size=64,
        show_progress=False,
    )

figure, axes = plots.figure(10, 3, ncols=3)
plots.training_curves(axes, histories["vae, clean only"])
figure

# %% [markdown]
# The objective in its two parts, for training and held-out images: the ELBO is the reconstruction minus the KL.
#
# ## Who removes noise?
#
# The figure to judge by is the quality against the clean image, per image, with its standard error, beside the
# rows that tell whether a network earns its keep: the noisy image itself, and PCA fitted on the same images, with
# the number of components that serves best on validation images.

# %%
validation_noisy = noise(validation / 255, torch.Generator().manual_seed(1))
pca = PCA.tuned(train / 255, validation_noisy, validation / 255)
restored = {"noisy": noisy, f"PCA ({pca.num_components})": pca(noisy)}
with torch.no_grad():
    restored |= {name: model.reconstruct(noisy).clamp(0, 1) for name, model in models.items()}

quality = {name: image_quality(x, clean) for name, x in restored.items()}
summary = {metric: {name: mean_and_se(q[metric]) for name, q in quality.items()} for metric in ("mse", "psnr", "ssim")}

figure, axes = plots.figure(10, 3, ncols=3, sharey=True)
plots.denoising_dots(
    axes,
    list(quality),
    {m.upper(): tuple(zip(*rows.values(), strict=True)) for m, rows in summary.items()},
)
figure

# %%
figure, ax = plots.figure(8, 0.75 * len(restored) + 1)
plots.rows_of_images(ax, {"clean": clean[:10], **{name: x[:10] for name, x in restored.items()}})
figure

# %% [markdown]
# The VAE that saw clean images alone takes the noise for content: its encoder was never shown such images.
#
# ## Generation
#
# Samples from the prior, and steps from one image's latent to another's.

# %%
vae = models["vae, clean only"]
with torch.no_grad():
    z = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    samples = vae.decode(z)
    codes = vae.encode(clean[:10]).mean
    t = torch.linspace(0, 1, 10)[:, None]
    between = torch.stack([vae.decode((1 - t) * a + t * b) for a, b in zip(codes[:5], codes[5:], strict=True)])

figure, axes = plots.figure(10, 5, ncols=2)
plots.images(axes[0], samples)
plots.interpolations(axes[1], between)
figure

# %% [markdown]
# ## Log-likelihood
#
# $\log p(x)$ of held-out images by importance sampling from the guide,
# $\log \frac{1}{K} \sum_k p(x, z_k) / q(z_k \mid x)$ with $z_k \sim q(z \mid x)$, per image. It is a mass on
# binarised pixels: the test images are binarised once, under a seed. The Monte Carlo error (another seed's samples)
# stands apart from the error over the images (another test set), and k-hat says for how many images the weights
# have so heavy a tail that the estimate must be read as a lower bound.

# %%
x = pv.Binarize()(test[: 20 if SHORT else 200], torch.Generator().manual_seed(0))
result = pv.log_likelihood(vae.model, vae.guide, x, num_samples=SAMPLES, encoding="Binarize(), seed 0")
print(result)
print(f"ELBO {elbo_parts(vae.model, vae.guide, x, num_samples=10).elbo.mean():.3f} nats, below it as it must be")

# %% [markdown]
# More samples tighten the bound:

# %%
for num_samples in (1, 10, 100, SAMPLES):
    print(num_samples, round(pv.log_likelihood(vae.model, vae.guide, x, num_samples=num_samples).mean, 2))
