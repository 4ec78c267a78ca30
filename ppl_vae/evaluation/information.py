"""What a latent tells of its datum: active units, and mutual information."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_vae.contract import latents, raise_first, tensors_of
from ppl_vae.evaluation.chunks import chunks_of_data
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.evaluation.single_latent import moments_of, posterior_of
from ppl_vae.programs import Program, evaluating, model_trace_of, seeded


@dataclass(frozen=True, eq=False)
class ActiveUnits:
    """How many dimensions of the latent are in use, and each one's ratio of variances, shape (*latent)."""

    num_active: int
    ratios: Tensor


def active_units(guide: Program, x: Tensor, *args: Tensor, threshold: float = 0.01, chunk: int = 512) -> ActiveUnits:
    """The dimensions of z with Var_x(E_q[z|x]) / E_x[Var_q(z|x)] > threshold, in nats of information about x some
    0.5 log(1 + ratio) each: 0.005 at the threshold.

    Yuri Burda, Roger Grosse, Ruslan Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv:1509.00519, have the
    variance of the mean alone, which is small where a guide uses a part of a wide prior, at whatever precision.
    Raises `ValueError` for fewer than 2 data, and as `refine` does.
    """
    data = tensors_of(guide, guide, x, *args)
    if len(data[0]) < 2:
        raise ValueError(f"x: expected at least 2 data, for a variance; got {len(data[0])}")
    with seeded(0), evaluating(guide):
        moments = [moments_of(posterior_of(guide, *part)[1]) for part in chunks_of_data(chunk, *data)]
    means, stddevs = (torch.cat(part).double() for part in zip(*moments, strict=True))
    ratios = means.var(0) / stddevs.square().mean(0)
    return ActiveUnits(int((ratios > threshold).sum()), ratios)


@dataclass(frozen=True, eq=False)
class Information:
    """E_x KL(q(z|x) || p(z)) = mutual_information + marginal_kl, in nats, each the mean of a share per datum.

    The last two know one aggregate posterior, of these data: only `mc_se_of_mean` is an error of theirs.
    """

    kl: PerDatum
    mutual_information: PerDatum
    marginal_kl: PerDatum


def aggregate_posterior(
    model: Program, guide: Program, x: Tensor, *args: Tensor, num_samples: int = 8, seed: int = 0, chunk: int = 256
) -> Information:
    """What a latent tells of its datum, I_q(x; z), and how far the aggregate is from the prior, KL(q(z) || p(z)):

        E_x KL(q(z|x) || p(z)) = E[log q(z|x) - log q(z)] + E[log q(z) - log p(z)],   q(z) = 1/N sum_j q(z|x_j),

    over the N data at hand, with `num_samples` samples z ~ q(z|x_i) for each (N^2 num_samples densities). On the same
    samples the two add up to the KL. I <= log N for any guide: close to it, N is too small to tell more. The
    prior must not depend on `args`. Matthew Hoffman, Matthew Johnson: ELBO surgery, 2016 (NeurIPS workshop).

    Raises `ValueError` for a latent site that only one of the two has, and as `refine` does.
    """
    whole, parts, qs = tensors_of(model, guide, x, *args), [], []
    with seeded(seed), evaluating(model, guide):
        for data in chunks_of_data(chunk, *whole):
            name, q, trace = posterior_of(guide, *data)
            model_trace = model_trace_of(model, trace, *data, num_samples=1)
            raise_first(latents(model_trace, trace))
            z = q.sample((num_samples,))
            qs.append(q)
            parts.append([t[:, 0] for t in (z, q.log_prob(z), model_trace.nodes[name]["fn"].log_prob(z))])
        z, log_q, log_p = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        rows = z.flatten(0, 1).split(chunk)
        mixture = torch.cat([torch.cat([q.log_prob(z[:, None]) for q in qs], 1).double().logsumexp(1) for z in rows])
    log_aggregate = mixture.reshape(log_q.shape) - math.log(len(whole[0]))
    terms = (log_q - log_p.double(), log_q - log_aggregate, log_aggregate - log_p)
    return Information(*(PerDatum.of_samples(term) for term in terms))
