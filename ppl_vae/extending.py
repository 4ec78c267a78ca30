'''Extending: every part that can be one of your own, with an example of each that runs as it stands.

A component is a class, found because it is a subclass and never registered: define it, and it has a name. What each
has to say is in the docstring of its base class. Fourteen points, and whether `ppl-vae` takes yours by name, from a
file that it is pointed to with `--plugin`:

| yours | in Python | on the command line |
|---|---|---|
| [likelihood](#likelihoods) | `VAE(likelihood=...)` | `--likelihood` |
| [prior](#priors) | `VAE(prior=...)` | `--prior` |
| [posterior](#posteriors) | `VAE(posterior=...)` | `--posterior` |
| [network](#networks) | any `nn.Module`; a `Network` to have a name | `--model` |
| [encoding](#encodings) | `fit(encode=Observe(...))` | `--encoding` |
| [noise](#noise) | `fit(encode=Observe(...))` | `--noise`, of `train` and `denoise` |
| [objective](#objectives) | `fit(elbo=...)`, or Pyro's `SVI(loss=...)` | `--objective` |
| [KL weight](#kl-weights) | `objective.weighted(...)` | `--kl-weight` |
| [kind of model](#kinds-of-model) | any Pyro pair; a `Kind` to have a name | `--model`; not listed by `--help` |
| [optimiser, schedule](#optimisers-and-schedules) | `fit(optim=...)` | no: `--learning-rate`, `--schedule` |
| [what is observed, who is told, when to stop](#hooks-of-fit) | `fit(encode=..., metrics=..., stop=...)` | no |
| [data set](#data-sets) | a tensor, or `load(path)` | `--dataset PATH`, without a plugin |
| [Pyro pair](#a-pyro-pair-of-your-own) | `fit`, `check_model` and all of `evaluation` | no |
| [training loop](#a-training-loop-of-your-own) | `SVI(loss=CompiledTrace_ELBO())` | no |

The examples share 64 data of four dimensions, and a function that builds a VAE with the components named, trains it
and estimates log p(x).

>>> import math, tempfile
>>> from dataclasses import dataclass
>>> from pathlib import Path
>>> import numpy as np
>>> import pyro, torch
>>> import pyro.distributions as dist
>>> from torch import nn
>>> from ppl_vae.evaluation.importance import log_likelihood
>>> from ppl_vae.experiments.config import TrainConfig
>>> from ppl_vae.experiments.preparation import build, objective
>>> from ppl_vae.data.observation import Observe
>>> from ppl_vae.training.fitting import fit
>>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) @ torch.ones(4, 4).tril()
>>> def trained(**components):
...     usual = {"model": "dense-vae:hidden=8", "likelihood": "gaussian-learned", "latent_size": 2, "epochs": 3}
...     config = TrainConfig(**usual | components)
...     vae = build(config, x.shape[1:])
...     options = {"elbo": objective(config), "epochs": config.epochs, "learning_rate": 0.01, "show_progress": False}
...     vae.history = fit(vae.model, vae.guide, x, **options)
...     return vae
>>> def log_p(vae):
...     return log_likelihood(vae.model, vae.guide, x, num_samples=30)

## Likelihoods

`ppl_vae.likelihoods.Likelihood`: how many numbers the decoder gives for a dimension, where x lives, and the
distribution. The support makes log p(x) a mass or a density, and chooses the encoding of images.

>>> from ppl_vae.likelihoods import Likelihood
>>> class SoftLaplace(Likelihood):
...     """x ~ SoftLaplace(location, scale), both from the decoder: a density, in nats."""
...     params_per_dim = 2
...     support = dist.constraints.real
...     def forward(self, params):
...         location, log_scale = params.unbind(-1)
...         return dist.SoftLaplace(location, log_scale.exp())
>>> log_p(trained(likelihood="soft-laplace")).measure
'density'

## Priors

`ppl_vae.priors.Prior`. Keyword arguments with a type and a default are settings by name, of every component.

>>> from ppl_vae.priors import Prior
>>> class TwoModes(Prior):
...     """z_d ~ N(-distance, 1) or N(distance, 1), each as likely."""
...     def __init__(self, latent_size, distance: float = 1.0):
...         super().__init__(latent_size)
...         self.distance = distance
...     def forward(self):
...         locations = torch.stack([self.zeros - self.distance, self.zeros + self.distance], -1)
...         which = dist.Categorical(logits=torch.zeros_like(locations))
...         return dist.MixtureSameFamily(which, dist.Normal(locations, 1.0)).to_event(1)
>>> vae = trained(prior="two-modes:distance=2")
>>> vae.prior.distance, len(log_p(vae))
(2.0, 64)

## Posteriors

`ppl_vae.posteriors.Posterior`: also says how many numbers it wants of the encoder.

>>> from ppl_vae.posteriors import Posterior
>>> class Logistic(Posterior):
...     """z_d ~ Logistic(location, scale), both from the encoder."""
...     def __init__(self, latent_size):
...         super().__init__(latent_size, num_params=2 * latent_size)
...     def forward(self, params):
...         location, log_scale = params.chunk(2, -1)
...         return dist.Logistic(location, log_scale.exp()).to_event(1)
>>> vae = trained(posterior="logistic")
>>> vae.encode(x).event_shape
torch.Size([2])

## Networks

An encoder or a decoder alone is any module of the right shapes, given to `VAE`. A `ppl_vae.networks.Network` builds
both for data of any shape, and has a name, here `linear-vae`, `linear-hvae` and so on.

>>> from ppl_vae.networks import Network
>>> @dataclass(frozen=True)
... class Linear(Network):
...     bias: bool = True
...     def encoder(self, event_shape, num_outputs):
...         flat = nn.Flatten(-len(event_shape))
...         return nn.Sequential(flat, nn.Linear(math.prod(event_shape), num_outputs, self.bias))
...     def decoder(self, num_inputs, event_shape, params_per_dim):
...         shape = (*event_shape, params_per_dim)
...         return nn.Sequential(nn.Linear(num_inputs, math.prod(shape), self.bias), nn.Unflatten(-1, shape))
>>> sum(p.numel() for p in trained(model="linear-vae:bias=false").decoder.parameters())
8

## Encodings

`ppl_vae.data.encodings.Encoding`: what the likelihood observes of 8-bit images. Its support has to be one that the
likelihood has too.

>>> from ppl_vae.data.encodings import Encoding
>>> @dataclass(frozen=True)
... class AboveMean(Encoding):
...     """x = 1 where a pixel is brighter than its image on average."""
...     support = dist.constraints.boolean
...     log_p_is = "mass on {0, 1}^D (binarised by the mean)"
...     def __call__(self, images, generator=None):
...         means = images.flatten(1).float().mean(1).reshape(-1, *(1,) * (images.dim() - 1))
...         return (images > means).float()
>>> from ppl_vae.data.noise import NoNoise
>>> Observe(AboveMean(), NoNoise())(torch.tensor([[[[0, 10], [20, 200]]]], dtype=torch.uint8))
(tensor([[[[0., 0.],
          [0., 1.]]]]),)

## Noise

`ppl_vae.data.noise.Noise`: what the encoder sees instead of the image, which the model still scores.

>>> from ppl_vae.data.noise import Noise
>>> @dataclass(frozen=True)
... class DeadRows(Noise):
...     """With probability `fraction`, a row of pixels is 0."""
...     fraction: float = 0.2
...     def __call__(self, x, generator=None):
...         return x * (torch.rand(*x.shape[:-1], 1, generator=generator) >= self.fraction)
>>> images = torch.full((5, 1, 8, 8), 255, dtype=torch.uint8)
>>> clean, noisy = Observe(AboveMean(), DeadRows(fraction=0.5)).frozen(images, seed=0)
>>> sorted({*noisy.mean(-1).flatten().tolist()})  # whole rows
[0.0, 1.0]

## Objectives

`ppl_vae.objectives.Objective`: a loss of the two traces, whose gradient is the estimator's. It takes any Pyro pair, is
compiled as the others are, and takes KL weights.

>>> from ppl_vae.objectives import Objective
>>> from ppl_vae.programs import sample_sites, seeded
>>> class Capacity(Objective):
...     """E_q[log p(x|z)] - gamma |KL - nats|, the KL that of the mean datum.
...
...     Christopher P. Burgess et al.: Understanding disentangling in beta-VAE, 2018, arXiv:1804.03599.
...     """
...     def __init__(self, nats: float = 5.0, gamma: float = 100.0, num_particles: int = 1):
...         super().__init__(num_particles)
...         self.nats, self.gamma = nats, gamma
...     def estimate(self, model_trace, guide_trace):
...         q, p = (sample_sites(trace, observed=False)["z"]["log_prob"] for trace in (guide_trace, model_trace))
...         x_given_z = sample_sites(model_trace, observed=True)["x"]["log_prob"]
...         return p.shape[-1] * (self.gamma * ((q - p).mean() - self.nats).abs() - x_given_z.mean())
>>> kl = trained(objective="capacity:nats=2", epochs=50).history["train_kl"]
>>> bool(abs(np.mean(kl[-10:]) - 2) < 0.5)
True

## KL weights

`ppl_vae.kl_weights.KLWeight`: beta by the number of gradient steps, a tensor.

>>> from ppl_vae.kl_weights import KLWeight
>>> class Switch(KLWeight):
...     """0 for the first `steps` steps, then 1."""
...     def __init__(self, steps: int = 1000):
...         super().__init__()
...         self.steps = steps
...     def beta(self, step):
...         return (step >= self.steps).to(torch.get_default_dtype())
>>> weight = Switch(steps=2)
>>> [weight().item() for _ in range(4)]
[0.0, 0.0, 1.0, 1.0]
>>> len(trained(kl_weight="switch:steps=2").history)
3

## Kinds of model

`ppl_vae.experiments.architectures.KINDS` is a dictionary: a new entry is a model for every network, `dense-linear`, `conv-linear`, ...
Commands train and evaluate any class with `model`, `guide` and `prior`; they draw from a `VAE` (or a subclass of it),
`HierarchicalVAE`, `ConditionalVAE` or `PPCA`, and `train` ends with drawing.

>>> from ppl_vae.experiments.architectures import KINDS, Kind
>>> from ppl_vae.models import VAE
>>> def linear_decoder(parts):
...     posterior = parts.posterior()
...     decoder = Linear().decoder(parts.latent_size, parts.event_shape, parts.likelihood.params_per_dim)
...     return VAE(parts.encoder(posterior.num_params), decoder, prior=parts.prior(), likelihood=parts.likelihood,
...                posterior=posterior)
>>> KINDS["linear"] = Kind("VAE with a linear decoder", linear_decoder, shares_encoder=False)
>>> [len(log_p(trained(model=f"{network}-linear"))) for network in ("dense", "gated-dense")]
[64, 64]
>>> del KINDS["linear"]  # it alone is registered, so that it can be taken back

## From the command line

The classes above, and the line that adds to `KINDS`, in a file `mine.py`:

    ppl-vae train --plugin mine.py --model linear-vae --likelihood soft-laplace --prior two-modes:distance=2 \\
        --posterior logistic --output runs/mine
    ppl-vae evaluate runs/mine --plugin mine.py
    ppl-vae train --plugin mine.py --model dense-linear --encoding above-mean --noise dead-rows --output runs/rows
    ppl-vae denoise runs/rows --plugin mine.py --noise dead-rows:fraction=0.4
    ppl-vae train --plugin mine.py --model dense-vae --objective capacity:nats=9 --kl-weight switch:steps=3 \\
        --output runs/nine

A run folder names them, and imports nothing by itself: `--plugin` stands in each command.

## Optimisers and schedules

`fit(optim=...)` takes any `PyroOptim`. `ppl_vae.training.optimizers.OneOptimizer` makes one of a torch optimiser, with a
schedule, a function of the number of steps; it alone is compiled into the step, and carried by checkpoints.

>>> from ppl_vae.training.optimizers import OneOptimizer
>>> optim = OneOptimizer(torch.optim.RMSprop, lr=1e-3, schedule=lambda step: 0.5**step, clip_norm=10.0)
>>> _ = fit(vae.model, vae.guide, x, batch_size=16, epochs=1, optim=optim, show_progress=False)
>>> optim.optimizer.param_groups[0]["lr"]  # of the fourth step
0.000125

## Hooks of fit

`encode` makes the programs' arguments of a batch of what is stored, anew at each step, with noise from the generator
that it is given. `stop` is asked after each step, and what it returns, if anything, ends training. `metrics` is told
of each epoch, a row of its history: any tracker is a few lines, and `ppl_vae.training.trackers.TensorBoard` is one.

>>> from ppl_vae.training.history import Stopped
>>> def jitter(batch, generator):
...     return (batch + 0.1 * torch.randn(batch.shape, generator=generator),)
>>> steps = iter(["", "", "my budget is spent"])
>>> try:
...     _ = fit(vae.model, vae.guide, x, batch_size=16, encode=jitter, stop=lambda: next(steps), show_progress=False)
... except Stopped as stopped:
...     print(f"{stopped}: {stopped.reason}")
stopped in epoch 1 of 10, after 3 of 4 steps: my budget is spent
>>> class BestEpoch:
...     """Keeps the row of the epoch with the highest validation ELBO; `log_metrics(row)` of a tracker is as long."""
...     best = {"validation_elbo": -math.inf}
...     def __call__(self, row):
...         self.best = max(self.best, row, key=lambda r: r["validation_elbo"])
>>> best = BestEpoch()
>>> history = fit(vae.model, vae.guide, x[:48], validation=x[48:], epochs=3, metrics=best, show_progress=False)
>>> best.best["validation_elbo"] == max(history["validation_elbo"])
True

## Data sets

`fit` takes tensors. `ppl_vae.data.loading.load` reads your own from `.npz`, `.npy` or a folder of pictures, as does
`--dataset PATH`: 8-bit images (N, H, W), (N, H, W, C) or (N, C, H, W), and vectors (N, D) of floats or counts.

>>> from ppl_vae.data.loading import load
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "counts.npz"
...     np.savez(path, train=np.ones((60, 7), int), test=np.ones((10, 7), int), train_labels=np.arange(60) % 3,
...              test_labels=np.arange(10) % 3)
...     data = load(str(path))
>>> data.train.shape, data.is_images, data.train_labels[:4].tolist()
(torch.Size([60, 7]), False, [0, 1, 2, 0])

## A Pyro pair of your own

`fit` and all of `ppl_vae.evaluation` know Pyro's programs alone: one data plate at dim -1, and room for particles to
the left of it. `check_model` says whether a pair is sound. For this one log p(x) is known.

>>> from ppl_vae.evaluation.checking import check_model
>>> def model(x):
...     with pyro.plate("data", len(x), dim=-1):
...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 4]).to_event(1), obs=x)
>>> def guide(x):
...     with pyro.plate("data", len(x), dim=-1):
...         pyro.sample("z", dist.Normal(x.sum(-1) / 5, 0.2**0.5))
>>> check_model(model, guide, x).ok
True
>>> exact = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1).log_prob(x)
>>> estimate = log_likelihood(model, guide, x, num_samples=30)
>>> bool((estimate.log_p - exact).abs().max() < 1e-3)  # the guide is the posterior: each weight is p(x)
True

## A training loop of your own

`ppl_vae.training.compilation.CompiledTrace_ELBO` in Pyro's own `SVI`: the first step runs as it is, the second is traced and
compiled, and the rest are replayed.

>>> from pyro.infer import SVI
>>> from ppl_vae.training.compilation import CompiledTrace_ELBO
>>> from ppl_vae.training.optimizers import adam
>>> with seeded(0), pyro.get_param_store().scope():  # as if nothing had happened
...     svi = SVI(vae.model, vae.guide, adam(1e-3), loss=CompiledTrace_ELBO())
...     loss = svi.step(x)
>>> math.isfinite(loss)
True
'''
