"""What has to be true of a pair and its data before log p(x) is estimated, and what a row of the model takes."""

from __future__ import annotations

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from ppl_vae.programs import Program, guide_trace_of, model_trace_of, sample_sites


def check_rows(*data: Tensor) -> None:
    """Raises `ValueError` unless every argument has as many rows as the first, and at least one."""
    for i, t in enumerate(data):
        if not len(t) or len(t) != len(data[0]):
            raise ValueError(f"argument {i}: expected {max(len(data[0]), 1)} rows; got {len(t)}")


def check_latents(model_trace: Trace, guide_trace: Trace) -> None:
    """Raises `ValueError` unless both have the same latent sites, at least one, and the guide's have a density."""
    in_model, in_guide = (sample_sites(t, observed=False) for t in (model_trace, guide_trace))
    if not in_guide:
        raise ValueError(
            f"the guide: expected a latent site; got none, and in the model {sorted(in_model) or 'none either'}. p(x) "
            "has no estimate from it (an autoencoder has a reconstruction loss, not a likelihood)"
        )
    for name in sorted(set(in_model) ^ set(in_guide)):
        has, lacks = ("model", "guide") if name in in_model else ("guide", "model")
        raise ValueError(f"site {name!r}: expected it in both model and guide; got it in the {has}, not in the {lacks}")
    for name, site in in_guide.items():
        if is_point(site["fn"]):
            raise ValueError(f"site {name!r}: expected a distribution in the guide; got a point (Delta)")


def is_point(fn: Distribution) -> bool:
    """Whether a distribution is a Delta, which has no density to weight by."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def measure_of(model: Program, guide: Program, *data: Tensor) -> tuple[str, str]:
    """What log p(x) measures, "mass" or "density", and the space that it is spread over ("boolean^784"), from the
    support of the observed sites, which x must lie in.

    Raises `ValueError` for data outside of it, for a model that observes nothing, and for no data plate or plates
    beside it.
    """
    datum = [t[:1] for t in data]
    _check_plates(guide, *datum)
    _check_plates(model, *datum)
    observed = _observed(model, guide, *datum)
    if not observed:
        raise ValueError("the model: expected an observed site; got none")
    discrete, spaces = set(), []
    for name, site in observed.items():
        support = site["fn"].support
        discrete.add(support.is_discrete)
        spaces.append(f"{support_name(support)}^{site['fn'].event_shape.numel()}")
        value = site["value"]
        if value.shape[1:] == data[0].shape[1:] and value.equal(data[0][:1]):
            x = data[0]  # the site observes x itself, as in most programs
        else:
            chunks = zip(*(t.split(256) for t in data), strict=True)
            x = torch.cat(
                [_observed(model, guide, *chunk)[name]["value"].reshape(len(chunk[0]), -1) for chunk in chunks]
            )
            x = x.reshape(len(x), *value.shape[1:])
        bad = x[~support.check(x).reshape(len(x), -1).all(-1)]
        if len(bad):
            values = bad.flatten()
            remedy = ""
            if support_name(support) == "boolean" and bool(((values >= 0) & (values <= 1)).all()):
                remedy = (
                    ". A Bernoulli on grey pixels is no likelihood: binarise the images (encoding binarize), or "
                    "use a likelihood on grey values (continuous-bernoulli, dequantised)"
                )
            raise ValueError(
                f"site {name!r}: expected values in {support_name(support)}; got {len(bad)} data outside, values in "
                f"[{values.min():.4g}, {values.max():.4g}]{remedy}"
            )
    measure = "mixed (mass and density)" if len(discrete) > 1 else "mass" if discrete.pop() else "density"
    return measure, " x ".join(spaces)


def _check_plates(program: Program, *datum: Tensor) -> None:
    trace = prune_subsample_sites(poutine.trace(program).get_trace(*datum))
    random = sample_sites(trace, observed=True) | sample_sites(trace, observed=False)
    for name, site in trace.nodes.items():
        plates = {f.name: f.dim for f in site.get("cond_indep_stack", ()) if f.vectorized}
        if set(plates.values()) - {-1}:
            got = ", ".join(f"{plate!r} at dim {dim}" for plate, dim in plates.items())
            raise ValueError(f"site {name!r}: expected one data plate, at dim -1; got {got}")
        if name in random and not plates and not site["fn"].batch_shape:
            raise ValueError(f"site {name!r}: expected one data plate, at dim -1; got none")


def _observed(model: Program, guide: Program, *data: Tensor) -> dict[str, dict]:
    guide_trace = guide_trace_of(guide, *data, num_samples=1)
    return sample_sites(model_trace_of(model, guide_trace, *data, num_samples=1), observed=True)


def support_name(support: Constraint) -> str:
    while hasattr(support, "base_constraint"):  # of independent dimensions, and of mixtures
        support = support.base_constraint
    return str(support).removesuffix("()").lower()
