"""The groups that ArviZ knows, from arrays: NumPy, xarray and ArviZ alone, in its 0.x and in its 1.x."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import xarray as xr

from ppl_vae.evaluation.diagnostics import khat_limit

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
"""Arrays by the name of their sample site."""

SampledFrom = Literal["guide", "importance resampling"]

_ARVIZ_0 = version("arviz").startswith("0.")
_OBSERVED_DIMS = {1: ("dimension",), 2: ("height", "width"), 3: ("channel", "height", "width")}


def arviz_groups(
    posterior: Arrays,
    *,
    log_weight: Array,
    statistics: Arrays,
    log_likelihood: Arrays,
    observed: Arrays,
    posterior_predictive: Arrays,
    prior: Arrays,
    prior_predictive: Arrays,
    sampled_from: SampledFrom = "guide",
    datum: Sequence[Any] | None = None,
    attributes: Mapping[str, str | int | float] | None = None,
) -> Any:
    """An `arviz.InferenceData` (ArviZ 0.x) or an xarray `DataTree` (1.x), of one chain.

    Arguments:
        posterior, prior: latent sites, (draws, data, *event).
        log_weight: log p(x, z) - log q(z|x) of K draws of the guide, in nats, (K, data).
        statistics: of these weights, `log_p`, `mc_se`, `ess` and `khat`, each (data,).
        log_likelihood: log p(x|z) of each observed site at the posterior's draws, in nats, (draws, data).
        observed: observed sites, (data, *event).
        posterior_predictive, prior_predictive: draws of them, (draws, data, *event).
        sampled_from: whether the posterior's draws are the guide's own, and `log_weight` is theirs draw by draw, or
            were resampled by these weights. Then `log_weight` has a dimension `guide_draw` of its own, as draws that
            were resampled must not be weighted again.
        datum: a coordinate for each datum; their number from 0 by default.
        attributes: of the whole.

    `to_arviz` describes the groups. A dimension whose name a site has is called otherwise, `latent_dim`. Raises
    `ValueError` for arrays whose shapes don't fit together, and a site named chain or draw.
    """
    num_samples, num_data = log_weight.shape
    if sampled_from not in ("guide", "importance resampling"):
        raise ValueError(f"sampled_from: expected 'guide' or 'importance resampling'; got {sampled_from!r}")
    of_data = np.arange(num_data) if datum is None else np.asarray(datum)
    if of_data.shape != (num_data,):
        raise ValueError(f"datum: expected a coordinate for each of {num_data} data; got {of_data.shape}")
    sites = {*posterior, *observed}
    if taken := sites & {"chain", "draw"}:
        raise ValueError(f"site {min(taken)!r}: expected another name; got that of a dimension in ArviZ")
    of_datum = _free("datum", sites)
    coords = {of_datum: of_data}
    latent = {name: _latent_dims(name, array.ndim - 2, len(posterior)) for name, array in posterior.items()}
    pixels = {name: _observed_dims(name, array.ndim - 1, len(observed)) for name, array in observed.items()}
    latent, pixels = ({k: tuple(_free(dim, sites) for dim in v) for k, v in dims.items()} for dims in (latent, pixels))

    def draws(group: str, arrays: Arrays, dims: Mapping[str, tuple[str, ...]], **attributes: str) -> xr.Dataset:
        if arrays.keys() != dims.keys():
            raise ValueError(f"{group}: expected sites {sorted(dims)}; got {sorted(arrays)}")
        variables = {}
        for name, array in arrays.items():
            if array.ndim != 2 + len(dims[name]) or array.shape[1] != num_data:
                got = f"got {array.shape}"
                raise ValueError(f"{group}, site {name!r}: expected {_shape(num_data, dims[name])}; {got}")
            variables[name] = (("chain", "draw", of_datum, *dims[name]), array[None])
        return _dataset(variables, coords, attributes)

    of_draws = {"sampled_from": sampled_from}
    groups = {
        "posterior": draws("posterior", posterior, latent, **of_draws),
        "posterior_predictive": draws("posterior_predictive", posterior_predictive, pixels, **of_draws),
        "prior": draws("prior", prior, latent),
        "prior_predictive": draws("prior_predictive", prior_predictive, pixels),
        "log_likelihood": draws(
            "log_likelihood", log_likelihood, dict.fromkeys(observed, ()), **of_draws, units="nats per datum"
        ),
        "sample_stats": _sample_stats(log_weight, statistics, sampled_from, coords),
        "observed_data": _dataset({name: ((of_datum, *pixels[name]), x) for name, x in observed.items()}, coords),
    }
    attributes = {"K": num_samples, "sampled_from": sampled_from, **(attributes or {})}
    attributes |= {f"{name}_version": version(name) for name in ("arviz", "numpy", "xarray")}
    if _ARVIZ_0:
        return _arviz().InferenceData(attrs=attributes, **groups)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), **groups})


def elpd(data: Any) -> Any:
    """log p(x) of each datum of what `to_arviz` returned, as the `ELPDData` that `arviz.compare` and
    `arviz.plot_khat` take.

    The weights of the networks are held fixed, so log p(x) is the log predictive density of a datum that they were
    not fitted to, whatever else was seen, and the effective number of parameters, p, is 0. `arviz.compare` then gives
    the sum over data of paired differences, and their standard error over the data, which knows nothing of the bias
    of log p(x), a lower bound in expectation. It can't see that two models were given different data, or that a mass
    is compared with a density: `ppl_vae.evaluation.comparison.compare` refuses that. Below -700 nats exp(log p) is 0,
    where its weights by stacking fail: ask for method="pseudo-BMA".
    """
    stats = data["sample_stats"]
    log_p, khat, K = stats["log_p"], stats["khat"], int(stats.attrs["K"])
    total, se = float(log_p.sum()), math.sqrt(log_p.size * float(log_p.var()))
    good_k = float(khat_limit(K))
    unreliable = not bool((khat <= good_k).all())  # unknown for few samples
    if _ARVIZ_0:
        values = {"elpd_loo": total, "se": se, "p_loo": 0.0, "n_samples": K, "n_data_points": log_p.size}
        pointwise = {"warning": unreliable, "loo_i": log_p, "pareto_k": khat, "scale": "log", "good_k": good_k}
        return _arviz().stats.stats_utils.ELPDData({**values, **pointwise})
    from arviz_stats.utils import ELPDDataLOO

    return ELPDDataLOO(
        elpd=total,
        se=se,
        p=0.0,
        n_samples=K,
        n_data_points=log_p.size,
        scale="log",
        warning=unreliable,
        good_k=good_k,
        elpd_i=log_p,
        pareto_k=khat,
    )


def _sample_stats(
    log_weight: Array, statistics: Arrays, sampled_from: SampledFrom, coords: Mapping[str, Array]
) -> xr.Dataset:
    (of_datum,) = coords
    of_draws = {
        "guide": (("chain", "draw", of_datum), log_weight[None]),
        "importance resampling": (("guide_draw", of_datum), log_weight),
    }
    nats, K = {"units": "nats"}, len(log_weight)
    names = {
        "log_p": nats | {"long_name": "log p(x), importance-weighted bound"},
        "mc_se": nats | {"long_name": "Monte Carlo standard error of log_p"},
        "ess": {"long_name": f"effective sample size of {K} weights"},
        "khat": {"long_name": "Pareto k-hat of the weights"},
    }
    weights = (*of_draws[sampled_from], nats | {"long_name": "log p(x, z) - log q(z|x) of a guide's draw"})
    variables = {name: (of_datum, statistics[name], attributes) for name, attributes in names.items()}
    return _dataset({"log_weight": weights, **variables}, coords, {"K": K})


def _free(dim: str, sites: set[str]) -> str:
    """The name of a dimension that no site has: xarray takes the two for one."""
    while dim in sites:
        dim += "_dim"
    return dim


def _latent_dims(name: str, ndim: int, num_sites: int) -> tuple[str, ...]:
    if ndim == 1:
        return ("latent",) if num_sites == 1 else (f"{name}_latent",)
    return tuple(f"{name}_dim_{i}" for i in range(ndim))


def _observed_dims(name: str, ndim: int, num_sites: int) -> tuple[str, ...]:
    if num_sites == 1 and ndim in _OBSERVED_DIMS:
        return _OBSERVED_DIMS[ndim]
    return tuple(f"{name}_dim_{i}" for i in range(ndim))


def _shape(num_data: int, dims: tuple[str, ...]) -> str:
    return f"({', '.join(('draws', f'{num_data} data', *dims))})"


def _dataset(
    variables: Mapping[str, Any], coords: Mapping[str, Any], attributes: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """With a coordinate, from 0, for each dimension that has none."""
    dataset = xr.Dataset(variables, coords=dict(coords), attrs=attributes)
    return dataset.assign_coords({dim: np.arange(n) for dim, n in dataset.sizes.items() if dim not in dataset.coords})


def _arviz() -> Any:
    """ArviZ 0.x, imported on use: it takes seconds, and announces 1.x at each import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    return arviz
