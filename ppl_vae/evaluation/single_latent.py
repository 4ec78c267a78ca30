"""The posterior of a guide with one latent site, on the reals, and its moments."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppl_vae.contract import only_latent, support_name
from ppl_vae.programs import Program, guide_trace_of, sum_of_sites

MOMENT_SAMPLES = 1000  # for the mean and stddev of a posterior that has no formula for them


def posterior_of(guide: Program, *data: Tensor) -> tuple[str, TorchDistribution, Trace]:
    """The name and distribution, of batch shape (1, data), of the guide's one latent site, and a trace of it.

    Raises `ValueError` unless there is one, reparameterised, on the reals, and independent per datum.
    """
    trace = guide_trace_of(guide, *data, num_samples=1)
    name, site = only_latent("guide", trace)
    q = site["fn"]
    if not q.has_rsample or support_name(q.support) != "real":
        raise ValueError(f"site {name!r}: expected a reparameterised distribution on the reals; got {q}")
    sum_of_sites(trace, (1, len(data[0])))  # raises unless independent per datum
    return name, q, trace


def moments_of(q: TorchDistribution) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, shape (data, *latent), of batch shape (1, data): of a flow, from samples."""
    try:
        return q.mean[0], q.stddev[0]
    except NotImplementedError:
        z = q.sample((MOMENT_SAMPLES,))[:, 0]
        return z.mean(0), z.std(0)
