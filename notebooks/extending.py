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
# # Extending
#
# Every part can be one of your own. Here is an example of each that runs as it stands, in less than a minute.
#
# A component is a subclass of a base class, and the base class's docstring says what it has to define. It is registered
# when its class is made, under its class name in kebab case: `SoftLaplace` is `soft-laplace`. A name that is taken is
# refused. Keyword arguments of `__init__` with a type and a default can be set by name, as in `two-modes:distance=2`.
# The command line takes your components from a file named with `--plugin`.
#
# | yours | in Python | on the command line |
# |---|---|---|
# | likelihood | `VAE(likelihood=...)` | `--likelihood` |
# | prior | `VAE(prior=...)` | `--prior` |
# | posterior | `VAE(posterior=...)` | `--posterior` |
# | network | any `nn.Module`; a `Network` to have a name | `--model` |
# | encoding | `fit(encode=Observe(...))` | `--encoding` |
# | noise | `fit(encode=Observe(...))` | `--noise`, of `train` and `denoise` |
# | objective | `fit(elbo=...)`, or Pyro's `SVI(loss=...)` | `--objective` |
# | KL weight | `objective.weighted(...)` | `--kl-weight` |
# | kind of model | any Pyro pair; a `Kind` to have a name | `--model`; not listed by `--help` |
# | schedule of the learning rate | `fit(schedule=...)` | `--schedule` |
# | optimiser | `fit(optim=...)` | no: `--learning-rate`, `--weight-decay` |
# | tracker | `train(tracker=...)`, `fit(metrics=...)` | `--tracker NAME:PLACE` |
# | encoding of a batch, logging, stopping | `fit(encode=..., metrics=..., stop=...)` | no |
# | dataset | a tensor, or `load(path)` | `--dataset PATH`, without a plugin |
# | Pyro pair | `fit`, `check_model` and all of `ppl_vae.evaluation` | no |
# | training loop | `SVI(loss=CompiledTrace_ELBO())` | no |
#
# The examples share 64 data of four dimensions, and a function that builds a VAE of the components named, trains it and
# returns it.

# %%
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn

import ppl_vae as pv
from ppl_vae.data.encodings import Encoding
from ppl_vae.data.noise import Noise
from ppl_vae.experiments.architectures import Kind, register
from ppl_vae.experiments.preparation import assemble
from ppl_vae.kl_weights import KLWeight
from ppl_vae.likelihoods import Likelihood
from ppl_vae.networks import Network
from ppl_vae.objectives import Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import own_param_store, sample_sites, seeded
from ppl_vae.training.history import Stopped
from ppl_vae.training.optimizers import OneOptimizer
from ppl_vae.training.schedules import Schedule
from ppl_vae.training.trackers import Tracker

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) @ torch.ones(4, 4).tril()


def trained(**components):
    usual = {"model": "dense-vae:hidden=8", "likelihood": "gaussian-learned", "latent_size": 2, "epochs": 3}
    config = pv.TrainConfig(**usual | components)
    vae = pv.build(config, x.shape[1:])
    options = {
        "elbo": assemble(config).objective,
        "epochs": config.epochs,
        "learning_rate": 0.01,
        "show_progress": False,
    }
    vae.history = pv.fit(vae.model, vae.guide, x, **options)
    return vae


def log_p(vae):
    return pv.log_likelihood(vae.model, vae.guide, x, num_samples=30)


# %% [markdown]
# ## A VAE of parts
#
# `VAE` takes its parts as objects: two modules, and a prior, a likelihood and a posterior, each ours or yours.
# `params_per_dim` is how many numbers the likelihood takes for each dimension of x, and `num_outputs` how many the
# posterior takes.

# %%
vae = pv.VAE(
    pv.networks.ConvEncoder((1, 28, 28), num_outputs=40),
    pv.networks.ConvDecoder(20, (1, 28, 28), params_per_dim=1),
    prior=pv.priors.StandardNormal(20),
    likelihood=pv.likelihoods.Bernoulli(),
    posterior=pv.posteriors.DiagonalNormal(20),
)
assert vae.reconstruct(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 28, 28)
vae.prior, vae.likelihood, vae.posterior

# %% [markdown]
# ## Likelihoods
#
# `ppl_vae.likelihoods.Likelihood`: how many numbers the decoder gives for a dimension, where x lives, and the
# distribution. The support makes log p(x) a mass or a density, and chooses the default encoding of images.


# %%
class SoftLaplace(Likelihood):
    """x ~ SoftLaplace(location, scale), both from the decoder: a density, in nats."""

    params_per_dim = 2
    support = dist.constraints.real

    def forward(self, params):
        location, log_scale = params.unbind(-1)
        return dist.SoftLaplace(location, log_scale.exp())


result = log_p(trained(likelihood="soft-laplace"))
assert result.measure == "density"
print(result)

# %% [markdown]
# ## Priors
#
# `ppl_vae.priors.Prior`: takes the size of the latent first, then settings, and returns a distribution of the latent.


# %%
class TwoModes(Prior):
    """z_d ~ N(-distance, 1) or N(distance, 1), each as likely."""

    def __init__(self, latent_size, distance: float = 1.0):
        super().__init__(latent_size)
        self.distance = distance

    def forward(self):
        locations = torch.stack([self.zeros - self.distance, self.zeros + self.distance], -1)
        which = dist.Categorical(logits=torch.zeros_like(locations))
        return dist.MixtureSameFamily(which, dist.Normal(locations, 1.0)).to_event(1)


vae = trained(prior="two-modes:distance=2")
assert (vae.prior.distance, len(log_p(vae))) == (2.0, 64)
vae.prior

# %% [markdown]
# ## Posteriors
#
# `ppl_vae.posteriors.Posterior`: says also how many numbers it takes from the encoder.


# %%
class Logistic(Posterior):
    """z_d ~ Logistic(location, scale), both from the encoder."""

    def __init__(self, latent_size):
        super().__init__(latent_size, num_params=2 * latent_size)

    def forward(self, params):
        location, log_scale = params.chunk(2, -1)
        return dist.Logistic(location, log_scale.exp()).to_event(1)


vae = trained(posterior="logistic")
assert vae.encode(x).event_shape == (2,)
vae.encode(x)

# %% [markdown]
# ## Networks
#
# An encoder or a decoder alone is any module of the right shapes, given to `VAE`. A `ppl_vae.networks.Network` builds
# both for data of any shape, and has a name, which begins that of a model: here `linear-vae`, `linear-hvae` and so on.


# %%
@dataclass(frozen=True)
class Linear(Network):
    """Linear maps."""

    bias: bool = True

    def encoder(self, event_shape, num_outputs):
        flat = nn.Flatten(-len(event_shape))
        return nn.Sequential(flat, nn.Linear(math.prod(event_shape), num_outputs, self.bias))

    def decoder(self, num_inputs, event_shape, params_per_dim):
        shape = (*event_shape, params_per_dim)
        return nn.Sequential(nn.Linear(num_inputs, math.prod(shape), self.bias), nn.Unflatten(-1, shape))


vae = trained(model="linear-vae:bias=false")
assert sum(p.numel() for p in vae.decoder.parameters()) == 8
vae.decoder

# %% [markdown]
# ## Encodings
#
# `ppl_vae.data.encodings.Encoding`: what the likelihood observes of 8-bit images. Its support has to be that of the
# likelihood.


# %%
@dataclass(frozen=True)
class AboveMean(Encoding):
    """x = 1 where a pixel is brighter than the mean of its image."""

    support = dist.constraints.boolean
    log_p_is = "mass on {0, 1}^D (binarised by the mean)"

    def __call__(self, images, generator=None):
        means = images.flatten(1).float().mean(1).reshape(-1, *(1,) * (images.dim() - 1))
        return (images > means).float()


(binarised,) = pv.Observe(AboveMean(), pv.NoNoise())(torch.tensor([[[[0, 10], [20, 200]]]], dtype=torch.uint8))
assert binarised.tolist() == [[[[0.0, 0.0], [0.0, 1.0]]]]
binarised

# %% [markdown]
# ## Noise
#
# `ppl_vae.data.noise.Noise`: what the encoder sees in place of the image. The model still scores the image itself.


# %%
@dataclass(frozen=True)
class DeadRows(Noise):
    """With probability `fraction`, a row of pixels is 0."""

    fraction: float = 0.2

    def __call__(self, x, generator=None):
        return x * (torch.rand(*x.shape[:-1], 1, generator=generator) >= self.fraction)


images = torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
clean, noisy = pv.Observe(AboveMean(), DeadRows(fraction=0.5)).frozen(images, seed=0)
assert sorted({*noisy.mean(-1).flatten().tolist()}) == [0.0, 1.0]  # whole rows
noisy[0, 0, :, 0]

# %% [markdown]
# ## Objectives
#
# `ppl_vae.objectives.Objective`: a loss of the traces of model and guide, whose gradient is the estimator's. It takes
# any Pyro pair, is compiled as the others are, and takes KL weights.


# %%
class Capacity(Objective):
    """E_q[log p(x|z)] - gamma |KL - nats|, with the mean KL over the data.

    Christopher P. Burgess et al.: Understanding disentangling in beta-VAE, 2018, arXiv:1804.03599.
    """

    def __init__(self, nats: float = 5.0, gamma: float = 100.0, num_particles: int = 1):
        super().__init__(num_particles)
        self.nats, self.gamma = nats, gamma

    def estimate(self, model_trace, guide_trace):
        q, p = (sample_sites(trace, observed=False)["z"]["log_prob"] for trace in (guide_trace, model_trace))
        x_given_z = sample_sites(model_trace, observed=True)["x"]["log_prob"]
        return p.shape[-1] * (self.gamma * ((q - p).mean() - self.nats).abs() - x_given_z.mean())


kl = trained(objective="capacity:nats=2", epochs=50).history["train_kl"]
assert abs(np.mean(kl[-10:]) - 2) < 0.5
print(f"{np.mean(kl[-10:]):.1f} nats")

# %% [markdown]
# ## KL weights
#
# `ppl_vae.kl_weights.KLWeight`: beta as a function of the number of gradient steps, a tensor.


# %%
class Switch(KLWeight):
    """0 for the first `steps` steps, then 1."""

    def __init__(self, steps: int = 1000):
        super().__init__()
        self.steps = steps

    def beta(self, step):
        return (step >= self.steps).to(torch.get_default_dtype())


weight = Switch(steps=2)
assert [weight().item() for _ in range(4)] == [0.0, 0.0, 1.0, 1.0]
assert len(trained(kl_weight="switch:steps=2").history) == 3

# %% [markdown]
# ## Kinds of model
#
# `ppl_vae.experiments.architectures.register` gives a kind of model a name, for every network: here `dense-linear`,
# `conv-linear` and so on. A `Kind` says how it is built, and which class comes out: a `ppl_vae.models.PyroPair`, whose
# class attributes say what it can do (`has_log_p`, `labelled`, ...). Keyword
# arguments of the function that builds it, with a type and a default, are settings, as in `dense-ladder:layers=8+4`.


# %%
def linear_decoder(parts):
    posterior = parts.posterior()
    return pv.VAE(
        parts.encoder(posterior.num_params),
        Linear().decoder(parts.latent_size, parts.event_shape, parts.likelihood.params_per_dim),
        prior=parts.prior(),
        likelihood=parts.likelihood,
        posterior=posterior,
    )


register("linear", Kind("VAE with a linear decoder", pv.VAE, linear_decoder, shares_encoder=False))

# %%
for network in ("dense", "gated-dense"):
    assert len(log_p(trained(model=f"{network}-linear:hidden=8"))) == 64

# %% [markdown]
# ## From the command line
#
# With the classes above, and the line that registers the kind, in a file `mine.py`:
#
#     ppl-vae train --plugin mine.py --model linear-vae --likelihood soft-laplace --prior two-modes:distance=2 \
#         --posterior logistic --output runs/mine --tracker json-lines:runs/mine.jsonl
#     ppl-vae evaluate runs/mine --plugin mine.py
#     ppl-vae train --plugin mine.py --model dense-linear --encoding above-mean --noise dead-rows --output runs/rows
#     ppl-vae denoise runs/rows --plugin mine.py --noise dead-rows:fraction=0.4
#     ppl-vae train --plugin mine.py --model dense-vae --objective capacity:nats=9 --kl-weight switch:steps=3 \
#         --schedule inverse-square-root --output runs/nine
#
# A run folder stores the names of components, and never imports your file by itself: every command that reads the
# folder needs `--plugin`.
#
# ### Run folders
#
# A run folder holds `config.json`, `weights.safetensors`, `history.csv`, `metrics.json` and `figures/`. Nothing in it
# is pickled. `checksums.json` has the SHA-256 of each file, and a file that was changed or damaged since is refused;
# folders of older versions have no checksums and are read without.
#
# A run that was stopped, by Ctrl-C, SIGTERM or a crash, is resumed by the same command with `--resume`: its weights are
# bit for bit those of a run that was not stopped. Checkpoints are written after each epoch and every 5 minutes
# (`--checkpoint-epochs`, `--checkpoint-minutes`), verified when they are read, and removed when the run is finished.
# `ppl-vae run` resumes by itself; if one of its runs fails, the others are finished, and the failed one is named at the
# end. In Python that is `pv.fit(..., checkpoints=pv.Checkpoints(folder), resume=True)`.

# %% [markdown]
# ## Schedules
#
# `ppl_vae.training.schedules.Schedule`: the factor of the learning rate, a function of where a training is: the share
# of its steps that are `done`, its `epochs`, and the history's `rows`.


# %%
class InverseSquareRoot(Schedule):
    """1 / sqrt(1 + epochs / scale)."""

    def __init__(self, scale: float = 10.0):
        self.scale = scale

    def __call__(self, now):
        return (1 + now.epochs / self.scale) ** -0.5


assert InverseSquareRoot(scale=1.0).by_step(12, per_epoch=4)(12) == 0.5  # after three epochs
pv.fit(vae.model, vae.guide, x, batch_size=16, epochs=1, schedule=InverseSquareRoot(), show_progress=False)

# %% [markdown]
# ## Optimisers
#
# `fit(optim=...)` takes any `PyroOptim`. `ppl_vae.training.optimizers.OneOptimizer` makes one of a torch optimiser,
# with a schedule, or a factor by the number of steps. It alone is compiled into the step, and stored in checkpoints.

# %%
optim = OneOptimizer(torch.optim.RMSprop, lr=1e-3, schedule=lambda step: 0.5**step, clip_norm=10.0)
pv.fit(vae.model, vae.guide, x, batch_size=16, epochs=1, optim=optim, show_progress=False)
assert optim.optimizer.param_groups[0]["lr"] == 0.000125  # of the fourth step

# %% [markdown]
# ## Hooks of fit
#
# `encode` turns a batch of the stored data into the programs' arguments, anew at each step, with noise from the
# generator that it is given. `stop` is called after each step, and training ends when it returns a reason.

# %%
steps = iter(["", "", "my budget is spent"])


def jitter(batch, generator):
    return (batch + 0.1 * torch.randn(batch.shape, generator=generator),)


try:
    pv.fit(vae.model, vae.guide, x, batch_size=16, encode=jitter, stop=lambda: next(steps), show_progress=False)
except Stopped as stopped:
    message = f"{stopped}: {stopped.reason}"
assert message == "stopped in epoch 1 of 10, after 3 of 4 steps: my budget is spent"
print(message)

# %% [markdown]
# ## Trackers
#
# `ppl_vae.training.trackers.Tracker`: what is told of a training. `pv.TensorBoard("runs/log")`, `pv.Wandb("project")`
# and `pv.MLflow(uri)` are such, and `ppl-vae train --tracker tensorboard:runs/log` uses one
# (`pip install 'ppl-vae[tensorboard]'`). To `fit`, `metrics` is any function of a row of the history; a tracker is one.


# %%
class JsonLines(Tracker):
    """A line of JSON in the file `place` for all that it is told."""

    def write(self, **values):
        with open(self.place, "a") as file:
            print(json.dumps(values), file=file)

    def begin(self, name, config, known=None):
        self.write(name=name, latent_size=config["latent_size"])

    def __call__(self, row):
        self.write(**row)

    def end(self, results, pictures=(), *, failed=False):
        self.write(**results)


with tempfile.TemporaryDirectory() as folder:
    tracker = JsonLines(f"{folder}/log.jsonl")
    history = pv.fit(vae.model, vae.guide, x[:48], validation=x[48:], epochs=3, metrics=tracker, show_progress=False)
    told = [json.loads(line) for line in Path(tracker.place).read_text().splitlines()]
assert told == history.rows
[row["epoch"] for row in told]

# %% [markdown]
# ## Datasets
#
# `fit` takes tensors. `pv.load` reads your own data from `.npz`, `.npy` or a folder of pictures, as does
# `--dataset PATH`: 8-bit images (N, H, W), (N, H, W, C) or (N, C, H, W), and vectors (N, D) of floats or counts.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "counts.npz"
    labels = {"train_labels": np.arange(60) % 3, "test_labels": np.arange(10) % 3}
    np.savez(path, train=np.ones((60, 7), int), test=np.ones((10, 7), int), **labels)
    data = pv.load(str(path))
assert (data.train.shape, data.is_images, data.train_labels[:4].tolist()) == ((60, 7), False, [0, 1, 2, 0])
data

# %% [markdown]
# ## A Pyro pair of your own
#
# `fit` and all of `ppl_vae.evaluation` know nothing but Pyro's programs: one data plate at dim -1, and room for
# particles to the left of it. `check_model` says whether a pair is sound. For this one log p(x) is known.


# %%
def model(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 4]).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.sum(-1) / 5, 0.2**0.5))


report = pv.check_model(model, guide, x)
assert report.ok
print(report)
exact = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1).log_prob(x)
estimate = pv.log_likelihood(model, guide, x, num_samples=30)
assert (estimate.log_p - exact).abs().max() < 1e-3  # the guide is the posterior: each weight is p(x)
print(estimate)

# %% [markdown]
# ## A training loop of your own
#
# `CompiledTrace_ELBO` takes the place of `Trace_ELBO` in Pyro's own `SVI`: the first step runs as it is, the second is
# traced and compiled, and the rest are replayed.

# %%
with seeded(0), own_param_store():  # the notebook's random numbers and parameters stay as they are
    svi = SVI(vae.model, vae.guide, pv.adam(1e-3), loss=pv.CompiledTrace_ELBO())
    loss = svi.step(x)
assert math.isfinite(loss)
