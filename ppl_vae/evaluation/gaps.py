"""Where log p(x) - ELBO comes from, for any Pyro pair with one latent site."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.contract import tensors_of
from ppl_vae.evaluation.chunks import chunks_of_data
from ppl_vae.evaluation.comparison import require_likelihoods, require_same
from ppl_vae.evaluation.importance import log_weights
from ppl_vae.evaluation.results import LogLikelihood, PerDatum
from ppl_vae.evaluation.single_latent import moments_of, posterior_of
from ppl_vae.programs import Program, evaluating, guide_trace_of, model_trace_of, seeded, sum_of_sites
from ppl_vae.system.hashing import fingerprint

STEP_SAMPLES = 8  # for each datum in a step of `refine`


@dataclass(frozen=True, eq=False)
class Refined:
    """A diagonal Gaussian for each datum: mean and stddev (data, *latent), its ELBO and the guide's, in nats."""

    mean: Tensor
    stddev: Tensor
    elbo: PerDatum
    guide_elbo: PerDatum


def refine(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_steps: int = 500,
    learning_rate: float = 0.05,
    num_samples: int = 100,
    seed: int = 0,
    chunk: int = 64,
) -> Refined:
    """For each datum apart, the diagonal Gaussian q*(z) that maximises its ELBO, E_q*[log p(x, z) - log q*(z)].

    It starts from the guide's mean and standard deviation at x. Adam takes `num_steps` steps, at a rate that falls
    to 0; the ELBOs are then measured with `num_samples` fresh samples. The gradient leaves out the score, whose mean
    is 0, so that it has no noise at an exact posterior. Geoffrey Roeder, Yuhuai Wu, David Duvenaud: Sticking the
    Landing, 2017, arXiv:1703.09194. Adam's first steps are whole ones wherever it starts: fewer than about 100 leave
    even an exact guide worse. Programs run in evaluation mode, on `chunk` data at a time, and stay as they are.

    Raises `ValueError` unless the guide has one latent site, reparameterised and on the reals, and num_samples >= 2;
    and as `log_weights` does.
    """
    parts, whole = [], tensors_of(model, guide, x, *args)
    with seeded(seed), evaluating(model, guide):
        for data in chunks_of_data(chunk, *whole):
            name, q, _ = posterior_of(guide, *data)
            before = PerDatum.of_samples(log_weights(model, guide, *data, num_samples=num_samples))
            mean, stddev = _maximise(model, name, *moments_of(q), data, num_steps, learning_rate)
            log_w = log_weights(model, _gaussian(name, mean, stddev), *data, num_samples=num_samples)
            after = PerDatum.of_samples(log_w)
            parts.append((mean, stddev, after.values, after.mc_se, before.values, before.mc_se))
    mean, stddev, *elbos = (torch.cat(part) for part in zip(*parts, strict=True))
    return Refined(mean, stddev, PerDatum(*elbos[:2]), PerDatum(*elbos[2:]))


def _maximise(
    model: Program, name: str, mean: Tensor, stddev: Tensor, data: tuple[Tensor, ...], num_steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    free = mean, log_stddev = mean.clone().requires_grad_(), stddev.log().requires_grad_()
    adam = torch.optim.Adam(free, lr=rate)
    for step in range(num_steps):
        adam.param_groups[0]["lr"] = rate * (1 - step / num_steps)
        with torch.enable_grad():
            trace = guide_trace_of(_gaussian(name, mean, log_stddev.exp()), *data, num_samples=STEP_SAMPLES)
            fixed = dist.Normal(mean.detach(), log_stddev.detach().exp()).to_event(mean.dim() - 1)
            log_q = fixed.log_prob(trace.nodes[name]["value"])
            log_p = sum_of_sites(model_trace_of(model, trace, *data, num_samples=STEP_SAMPLES), log_q.shape)
            # `grad` and not `backward`, which would leave gradients on the model's parameters
            mean.grad, log_stddev.grad = torch.autograd.grad((log_q - log_p).mean(0).sum(), free)
        adam.step()
    return mean.detach(), log_stddev.detach().exp()


def _gaussian(name: str, mean: Tensor, stddev: Tensor) -> Program:
    """A guide for just these data."""

    def guide(*args: Tensor) -> None:
        with pyro.plate("data", len(mean), dim=-1):
            pyro.sample(name, dist.Normal(mean, stddev).to_event(mean.dim() - 1))

    return guide


@dataclass(frozen=True, eq=False)
class Gaps:
    """In nats: total = log p(x) - ELBO(q) = KL(q(z|x) || p(z|x)) = approximation + amortisation.

    - approximation: log p(x) - ELBO(q*), what no diagonal Gaussian can do. Below 0, log p(x) was put too low.
    - amortisation: ELBO(q*) - ELBO(q), what the encoder loses. Below 0, q is richer than a diagonal Gaussian.
    """

    total: PerDatum
    approximation: PerDatum
    amortisation: PerDatum


def gap_decomposition(
    model: Program, guide: Program, x: Tensor, *args: Tensor, log_p: LogLikelihood, **options: Any
) -> Gaps:
    """What the ELBO lacks of log p(x), for each datum, split between the family of q and the encoder.

    `log_p` is of the same model and data: by as much as it is too low, so are total and approximation gap. `options`
    go to `refine`, for q*. Chris Cremer, Xuechen Li, David Duvenaud: Inference Suboptimality in Variational
    Autoencoders, 2018, arXiv:1801.03558. Raises `ValueError` for a log_p of other data, and as `refine` does.
    """
    data = tensors_of(model, guide, x, *args)
    if log_p.fingerprint != (of_x := fingerprint(data[0])):
        raise ValueError(f"log_p: expected that of x, with fingerprint {of_x}; got {log_p.fingerprint}")
    refined, estimate = refine(model, guide, *data, **options), PerDatum.of(log_p)
    return Gaps(estimate - refined.guide_elbo, estimate - refined.elbo, refined.elbo - refined.guide_elbo)


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
