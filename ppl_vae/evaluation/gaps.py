"""Where log p(x) - ELBO comes from, for any Pyro pair with continuous latent sites."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.contract import tensors_of
from ppl_vae.evaluation.chunks import chunks_of_data, seed_of
from ppl_vae.evaluation.comparison import require_likelihoods, require_same
from ppl_vae.evaluation.importance import log_weights
from ppl_vae.evaluation.refinement import refine
from ppl_vae.evaluation.results import LogLikelihood, PerDatum
from ppl_vae.programs import Program, seeded
from ppl_vae.system.hashing import fingerprint

CHUNK = 64  # data at a time


@dataclass(frozen=True, eq=False)
class Gaps:
    """In nats: total = log p(x) - ELBO(q) = KL(q(z|x) || p(z|x)) = approximation + amortisation.

    - approximation: log p(x) - ELBO(q*), what no normal with full covariance can do. Below 0, log p(x) was too low.
    - amortisation: ELBO(q*) - ELBO(q), what the guide loses. Below 0, q is richer than a normal.
    """

    total: PerDatum
    approximation: PerDatum
    amortisation: PerDatum


def gap_decomposition(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    log_p: LogLikelihood,
    num_samples: int = 100,
    num_steps: int = 300,
    seed: int = 0,
    **options: Any,
) -> Gaps:
    """What the ELBO lacks of log p(x), for each datum, split between the family of q and the guide.

    q* is the normal that `refine` fits to the datum in unconstrained space in `num_steps` steps, of which a third would
    leave an exact guide worse by some thousandths; `options` go there. The ELBOs are measured
    with `num_samples` fresh samples. `log_p` is of the same model and data: by as much as it is too low, so are total
    and approximation gap. Chris Cremer, Xuechen Li, David Duvenaud: Inference Suboptimality in Variational
    Autoencoders, 2018, arXiv:1801.03558.

    Raises `ValueError` for a log_p of other data, for num_samples < 2, and as `refine` does.
    """
    data = tensors_of(model, guide, x, *args)
    if log_p.fingerprint != (of_x := fingerprint(data[0])):
        raise ValueError(f"log_p: expected that of x, with fingerprint {of_x}; got {log_p.fingerprint}")
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, for a standard error; got {num_samples}")
    refined = refine(model, guide, *data, num_steps=num_steps, seed=seed, **options).normals
    q = _elbo(model, guide, data, num_samples, seed_of(seed, 0))
    best = _elbo(model, refined, data, num_samples, seed_of(seed, 1))
    estimate = PerDatum.of(log_p)
    return Gaps(estimate - q, estimate - best, best - q)


def _elbo(model: Program, guide: Program, data: tuple[Tensor, ...], num_samples: int, seed: int) -> PerDatum:
    """The mean of log w over samples."""
    with seeded(seed):
        chunks = (log_weights(model, guide, *part, num_samples=num_samples) for part in chunks_of_data(CHUNK, *data))
        return PerDatum.of_samples(torch.cat([*chunks], 1))


@dataclass(frozen=True)
class Difference:
    """A difference of two means, with its standard errors over the data and from the samples, in nats."""

    mean: float
    data_se: float
    mc_se: float


def generalisation_gap(train: LogLikelihood, test: LogLikelihood) -> Difference:
    """Mean log p(x) of training data minus that of test data, in nats per datum: unpaired, so that variances add.

    Raises `ValueError` for results that differ in measure or encoding, are no likelihoods, or are of the same data.
    """
    pair = {"train": train, "test": test}
    require_likelihoods(pair)
    require_same(pair, "measure", "encoding")
    if train.fingerprint == test.fingerprint:
        raise ValueError(f"results 'train' and 'test': expected different data; got {test.fingerprint} twice")
    data_se = math.hypot(train.data_se_of_mean, test.data_se_of_mean)
    return Difference(train.mean - test.mean, data_se, math.hypot(train.mc_se_of_mean, test.mc_se_of_mean))
