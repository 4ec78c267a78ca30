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
# # Your own data: counts, tables, images, and torch's datasets
#
# `pv.load(path)` reads files of your own, and `pv.fit` takes any torch `Dataset` or `DataLoader`. The files here are
# made first, so that the notebook runs anywhere; on the command line, `ppl-vae train --dataset PATH` reads the same.

# %%
# %matplotlib inline
import os
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import sparse
from torch.utils.data import DataLoader, Dataset

import ppl_vae as pv
from ppl_vae import plots

SHORT = "PPL_VAE_SHORT" in os.environ
EPOCHS, NUM_ROWS = (1, 120) if SHORT else (60, 1200)
folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)


def train(path, epochs=EPOCHS, **options):
    """A small VAE of the data at a path, as `ppl-vae train --model dense-vae --dataset PATH ...` makes one."""
    fixed = {"model": "dense-vae", "hidden": (64,), "latent_size": 2, "batch_size": 64, "learning_rate": 3e-3}
    config = pv.TrainConfig(dataset=str(path), epochs=epochs, compiled=False, **fixed, **options)
    return pv.train(config, folder / "runs" / path.stem, show_progress=False)


def show_latents(run, title):
    data = run.dataset
    z = run.encode(data.test)
    fig, ax = plots.figure(5, 3.5)
    for label, name in enumerate(data.classes):
        chosen = z[data.test_labels == label]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=8, label=name)
    ax.set(title=title, xlabel="$z_1$", ylabel="$z_2$")
    ax.legend(fontsize=8)
    return fig


# %% [markdown]
# ## Counts of cells: `.h5ad`
#
# Three kinds of cells, which differ in the rates of 200 genes. X is sparse, and stays so in memory. `label` is a column
# of obs; the counts have a likelihood of counts.

# %%
kind = rng.integers(0, 3, NUM_ROWS)
rates = rng.gamma(0.5, 2.0, (3, 200))[kind] * rng.gamma(10, 0.1, (NUM_ROWS, 1))
names = pd.Categorical(np.array(["B", "NK", "T"])[kind])
cells = anndata.AnnData(
    sparse.csr_matrix(rng.poisson(rates).astype(np.float32)),
    obs=pd.DataFrame({"kind": names}, index=[f"cell{i}" for i in range(NUM_ROWS)]),
    var=pd.DataFrame(index=[f"gene{i}" for i in range(200)]),
)
cells.write_h5ad(folder / "cells.h5ad")

run = train(folder / "cells.h5ad", label="kind", likelihood="negative-binomial")
data = run.dataset  # or pv.load(path, label="kind")
print(data, data.classes, data.columns[:3])
print(pv.log_likelihood(*run.programs, *run.observe.frozen(data.test[:20], seed=0), num_samples=100))
show_latents(run, "Cells of three kinds, told apart by their counts alone")

# %% [markdown]
# ## A table: `.csv` or `.parquet`
#
# Columns are numbers; text is refused, with its columns, unless it is the label. Empty cells are missing values: the
# model is trained on what is seen, if `missing` says that it shall.

# %%
sort = rng.integers(0, 3, NUM_ROWS)
size = rng.normal([3.0, 4.5, 6.0], 0.4, (NUM_ROWS, 3))[np.arange(NUM_ROWS), sort]
table = pd.DataFrame(
    {
        "length": size + rng.normal(0, 0.2, NUM_ROWS),
        "width": size / 2 + rng.normal(0, 0.2, NUM_ROWS),
        "weight": size**2 + rng.normal(0, 1.0, NUM_ROWS),
        "sort": np.array(["small", "middle", "large"])[sort],
    }
)
table.loc[rng.random(NUM_ROWS) < 0.1, "weight"] = np.nan
table.to_csv(folder / "plants.csv", index=False)

options = {"label": "sort", "likelihood": "gaussian-learned", "standardize": True}
try:
    train(folder / "plants.csv", **options)
except ValueError as error:
    print(error)
run = train(folder / "plants.csv", missing=True, **options)
show_latents(run, "Plants, with a tenth of their weights missing")

# %% [markdown]
# ## A folder of images
#
# Subfolders are labels. Sizes that differ are refused, with the files; `resize` and `channels` mend it
# (`--resize 16 16 --channels 1`).

# %%
yy, xx = np.mgrid[-1:1:24j, -1:1:24j]
for i in range(NUM_ROWS // 4):
    shape, scale = ("disc", "ring", "bar")[i % 3], rng.uniform(0.4, 0.9)
    r = np.hypot(xx, yy)
    inside = {"disc": r < scale, "ring": np.abs(r - scale) < 0.15, "bar": np.abs(xx) < scale / 3}[shape]
    (folder / "shapes" / shape).mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((255 * inside).astype(np.uint8))
    image.resize((20, 20) if i % 7 == 0 else (24, 24)).save(folder / "shapes" / shape / f"{i:04}.png")
try:
    pv.load(str(folder / "shapes"))
except ValueError as error:
    print(str(error).replace(str(folder), "..."))
run = train(folder / "shapes", epochs=4 * EPOCHS, resize=(16, 16), channels=1)
images = run.dataset.test[::5]
print(run.dataset, run.dataset.classes)
fig, ax = plots.figure(8, 1.8)
plots.rows_of_images(ax, {"image": (images / 255).numpy(), "reconstructed": run.reconstruct(images).numpy()})
fig

# %% [markdown]
# ## Larger than memory
#
# A `.npy` file of 64 MB or more is memory-mapped, and a `.zarr` folder is read by rows: a batch is read when it is
# used. A torch dataset is read in the same way, in an order that the seed decides and that can be resumed; an iterable
# one is streamed. Its items are tensors, or tuples of them for programs with further arguments.


# %%
class Waves(Dataset):
    """Sine waves, made when they are asked for."""

    def __len__(self):
        return NUM_ROWS

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        phase, noise = 6.28 * torch.rand(1, generator=generator), 0.1 * torch.randn(20, generator=generator)
        return torch.sin(torch.linspace(0, 6.28, 20) + phase) + noise


config = pv.TrainConfig(model="dense-vae", likelihood="gaussian-learned", hidden=(64,), latent_size=2)
vae = pv.build(config, (20,))
options = {"epochs": EPOCHS, "learning_rate": 3e-3, "compiled": False, "show_progress": False}
history = pv.fit(vae.model, vae.guide, DataLoader(Waves(), batch_size=64), **options)
print(pv.log_likelihood(vae.model, vae.guide, Waves(), num_samples=50))
fig, ax = plots.figure(8, 2.5)
ax.plot([row["epoch"] for row in history.rows], [row["train_elbo"] for row in history.rows], marker=".")
ax.set(xlabel="epoch", ylabel="ELBO, nats", title="Training from a dataset that is nowhere stored")
fig
