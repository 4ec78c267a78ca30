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
# # Ask the model: noise removed, pixels filled in, detail restored, by inference
#
# A VAE of clean images is a prior over images, and a corruption is a likelihood. p(clean | corrupted) is then an
# inference, and nothing is trained on corrupted images.

# %%
# %matplotlib inline
import torch

import ppl_vae as pv
from ppl_vae import plots

data, observe = pv.load("mnist-mini"), pv.Observe(pv.Binarize(), pv.NoNoise())
vae = pv.build(pv.TrainConfig(model="dense-vae", latent_size=10), data.image_shape)
with pv.programs.seeded(0):
    pv.fit(vae.model, vae.guide, data.train, encode=observe, epochs=10, batch_size=64, show_progress=False)
clean = data.test[:8] / 255


def show(rows, title):
    fig, ax = plots.figure(8, 0.7 * len(rows) + 0.4)
    plots.rows_of_images(ax, {name: row.numpy() for name, row in rows.items()})
    fig.suptitle(title, fontsize=10)
    return fig


# %% [markdown]
# ## Noise
#
# x + 0.5 e, clipped to [0, 1]: p(y | clean) is a normal that is censored at 0 and at 1. The encoder alone has never
# seen such images.

# %%
noise = pv.GaussianNoise(0.5)
y = noise(clean, torch.Generator().manual_seed(0))
restored = pv.restore(vae.model, vae.guide, y, corruption=noise, climb=False)
with torch.no_grad():
    encoder_alone = vae.reconstruct(y)
alone, inferred = (((x - clean) ** 2).mean().item() for x in (encoder_alone, restored.mean))
assert inferred < alone
print(f"mean squared error: encoder alone {alone:.3f}, by inference {inferred:.3f}\n{restored}")
show(
    {
        "original": clean,
        "noisy": y,
        "encoder alone": encoder_alone,
        "by inference": restored.mean,
        "std x 2": (2 * restored.std).clamp(max=1),
        "a draw": restored.samples[0],
        "another": restored.samples[1],
    },
    "Noise removed",
)

# %% [markdown]
# ## Half of a digit
#
# Where the upper half allows for several digits, the draws are several digits. Pixels that are missing are NaN, and
# have no part in the likelihood. Those that are seen lie around the decoder's mean, with a standard deviation of 0.2.

# %%
missing = pv.Then(pv.Missing("bottom", 0.5), pv.NoNoise())
y = missing(clean)
filled = pv.restore(vae.model, vae.guide, y, corruption=missing, misfit=0.2, climb=False)
show(
    {"seen": y.nan_to_num(nan=0.5), "mean": filled.mean} | {f"draw {i + 1}": filled.samples[i] for i in range(5)},
    "The lower half, by the model",
)

# %% [markdown]
# ## Fewer pixels, and blurred
#
# *Operator, then noise* is a corruption: any known linear operator that torch can differentiate.

# %%
corruption = pv.Then(pv.Blur(1.0), pv.Then(pv.Downsampling(4), pv.GaussianNoise(0.05)))
y = corruption(clean, torch.Generator().manual_seed(1))
sharp = pv.restore(vae.model, vae.guide, y, corruption=corruption, climb=False)
show(
    {"original": clean, "7 x 7 pixels": corruption.guess(y), "restored": sharp.mean, "a draw": sharp.samples[0]},
    "Detail restored",
)

# %% [markdown]
# ## How strong was the noise?
#
# log p(y) as a function of its scale has its highest point there, if what images lie from the decoder's mean is told
# apart from noise: `misfit`. Noise as weak as the misfit is hidden by it, and the estimate is at the end of the grid.

# %%
for true in (0.2, 0.5):
    y = pv.GaussianNoise(true)(data.test[:10] / 255, torch.Generator().manual_seed(2))
    found = pv.estimate_scale(
        vae.model,
        vae.guide,
        y,
        scales=(0.14, 0.25, 0.44, 0.78),
        corruption=pv.GaussianNoise,
        num_samples=64,
        misfit=0.2,
    )
    print("true {:.2f}, estimated {:.3f} ± {:.3f}".format(true, *found.of_all))

# %% [markdown]
# ## Any pair, any corruption
#
# `restore(model, guide, y, corruption=...)` takes any Pyro pair with one data plate. A corruption of your own is a
# frozen dataclass with one method, `likelihood(clean, spread)`; on the command line,
# `ppl-vae restore RUN --corruption blur:sigma=2 gaussian-noise:scale=0.1`.
