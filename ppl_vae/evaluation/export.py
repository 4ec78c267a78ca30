"""To ArviZ, from any Pyro pair with one data plate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppl_vae.contract import measure_of, tensors_of
from ppl_vae.evaluation.arviz_groups import arviz_groups
from ppl_vae.evaluation.chunks import blocks_of, chunks_of, seed_of
from ppl_vae.evaluation.importance import LogWeights, chunked_log_weights
from ppl_vae.evaluation.results import LogMeanExp
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    innermost,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    seeded,
    trace_of,
)
from ppl_vae.system.hashing import fingerprint

Values = dict[str, Tensor]


def to_arviz(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    num_samples: int = 100,
    num_predictive: int = 100,
    resample: bool = False,
    seed: int = 0,
    datum: Sequence[Any] | None = None,
    encoding: str = "",
    attributes: Mapping[str, str | int | float] | None = None,
) -> Any:
    """What is known of a pair at the data x (data, *event), as an `arviz.InferenceData` (ArviZ 0.x) or an xarray
    `DataTree` (1.x), one chain of `num_samples` = K independent draws:

    | group | variables | shape |
    |---|---|---|
    | `posterior` | latent sites z_k ~ q(z|x) | chain, draw, datum, latent |
    | `log_likelihood` | log p(x|z_k) of each observed site, nats | chain, draw, datum |
    | `sample_stats` | `log_weight`, log p(x, z_k) - log q(z_k|x), nats | chain, draw, datum |
    | | `log_p`, log 1/K sum_k w_k, and its Monte Carlo error `mc_se`, nats; `ess`, `khat` of the weights | datum |
    | `posterior_predictive` | draws of x given the first z_k | chain, draw, datum, channel, height, width |
    | `prior`, `prior_predictive` | z ~ p(z), and x given it | as posterior and posterior predictive |
    | `observed_data` | x as the model observes it | datum, channel, height, width |

    Vectors have `dimension` in place of channel, height and width; of several latent sites each has a dimension of its
    own, `<site>_latent`. `log_p`, `mc_se`, `ess` and `khat` are those of `log_likelihood(..., num_samples, seed)`, from
    the same draws.

    `log_weight` weighs draws of z towards p(z|x), for each datum by itself. **These are not the weights of LOO:**
    `arviz.loo` (and `compare` and `plot_khat` on its result) leaves one datum out of a posterior of parameters that all
    data share, by weights 1 / p(x|z). Here each datum has a z of its own; without the datum there is nothing left to
    know of it, and what `loo` would give is the harmonic mean estimate of p(x), the worst there is. `elpd` makes what
    `compare` and `plot_khat` want of `log_p` and `khat`.

    Arguments:
        args: the programs' further arguments, batched with x.
        num_samples: K.
        num_predictive: draws, at most K, in the predictive groups and the prior: they fill memory, draws x data x
            dimensions each.
        resample: draw the posterior anew from the K draws, with probabilities in proportion to their weights. Where
            `ess` is low these are few draws many times. The attribute `sampled_from` of the groups says which, "guide"
            or "importance resampling"; `log_weight` is then of the guide's draws, with shape (guide_draw, datum).
        datum: a coordinate for each datum, their number in a test set say.
        encoding: how x was made from images.
        attributes: further ones of the whole, beside `model`, `guide`, `prior`, `likelihood`, `posterior`, `measure`,
            `fingerprint` of x, `K`, `seed` and versions.

    `.to_netcdf(path)` of the result and `arviz.from_netcdf(path)` write and read it.

    Raises `ValueError` as `ppl_vae.evaluation.importance.log_likelihood` does.
    """
    for name, number in (("num_samples", num_samples), ("num_predictive", num_predictive)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1; got {number}")
    data = tensors_of(model, guide, x, *args)
    x = data[0]
    num_draws = min(num_predictive, num_samples)
    with evaluating(model, guide), seeded(seed):
        measure, space = measure_of(model, guide, *data)
        weights = chunked_log_weights(model, guide, *data, memory=None)
        log_weight, z = _guide_draws(weights, data, num_samples, seed)
        statistics = LogMeanExp(len(x), num_samples, device=x.device)
        statistics.add(log_weight)
        if resample:
            torch.manual_seed(seed_of(seed, 1))
            k = torch.multinomial(log_weight.double().softmax(0).T, num_samples, replacement=True).T
            z = {name: value[k, torch.arange(len(x), device=x.device)] for name, value in z.items()}
        log_p_x, predictive, observed = _decoded(model, z, data, num_draws, weights.rows, seed_of(seed, 2))
        prior, prior_predictive = _prior_draws(model, list(z), data, num_draws, weights.rows, seed_of(seed, 3))
        law = _laws(model, guide, *(t[:1] for t in data))
    of_pair: dict[str, str | int | float] = {
        "model": _name(model),
        "guide": _name(guide),
        **law,
        "measure": f"{measure} on {space}",
        "encoding": encoding,
        "fingerprint": fingerprint(x),
        "seed": seed,
        **{f"{name}_version": version(name) for name in ("torch", "pyro-ppl")},
    }
    return arviz_groups(
        _numpy(z),
        log_weight=log_weight.cpu().numpy(),
        statistics=_numpy(statistics.estimates()),
        log_likelihood=_numpy(log_p_x),
        observed=_numpy(observed),
        posterior_predictive=_numpy(predictive),
        prior=_numpy(prior),
        prior_predictive=_numpy(prior_predictive),
        sampled_from="importance resampling" if resample else "guide",
        datum=datum,
        attributes={**of_pair, **(attributes or {})},
    )


def _guide_draws(weights: LogWeights, data: tuple[Tensor, ...], num_samples: int, seed: int) -> tuple[Tensor, Values]:
    """log w (samples, data), and the latent sites' values, of the draws of `log_likelihood`."""
    log_w, z = data[0].new_empty(0), dict[str, Tensor]()
    shape = (num_samples, len(data[0]))
    for number, (samples, part) in enumerate(blocks_of(len(data[0]), num_samples)):
        torch.manual_seed(seed_of(seed_of(seed, 0), number))
        some, *values = weights.with_values(*(t[part] for t in data), num_samples=samples.stop - samples.start)
        if number == 0:
            log_w = some.new_empty(shape)
            z = {n: v.new_empty(shape + v.shape[2:]) for n, v in zip(weights.names, values, strict=True)}
        log_w[samples, part] = some
        for name, value in zip(weights.names, values, strict=True):
            z[name][samples, part] = value
    return log_w, z


def _decoded(
    model: Program, z: Values, data: tuple[Tensor, ...], num_draws: int, rows: int, seed: int
) -> tuple[Values, Values, Values]:
    """Of each observed site, log p(x|z) (samples, data), draws given the first z (num_draws, data, *event), and the
    values (data, *event)."""
    log_p, draws, observed = _Joined(), _Joined(), _Joined()
    num_samples = len(next(iter(z.values())))
    for number, (samples, part) in enumerate(chunks_of(num_samples, len(data[0]), rows)):
        torch.manual_seed(seed_of(seed, number))
        values = trace_of({name: value[samples, part] for name, value in z.items()})
        shape = (samples.stop - samples.start, part.stop - part.start)
        trace = model_trace_of(model, values, *(t[part] for t in data), num_samples=shape[0])
        log_probs = log_prob_per_datum(trace, shape)
        for name, site in sample_sites(trace, observed=True).items():
            log_p.add(name, part, log_probs[name])
            if samples.start < num_draws:
                draws.add(name, part, _like(data[0], site["fn"].sample())[: num_draws - samples.start])
            if samples.start == 0:
                value = site["value"].expand(shape + site["fn"].event_shape)[:1]
                observed.add(name, part, _like(data[0], value))
    return log_p.values(), draws.values(), {name: value[0] for name, value in observed.values().items()}


def _prior_draws(
    model: Program, names: list[str], data: tuple[Tensor, ...], num_draws: int, rows: int, seed: int
) -> tuple[Values, Values]:
    """Draws of the latent sites and, given them, of the observed ones, each (num_draws, data, *event)."""
    latent, draws = _Joined(), _Joined()
    for number, (samples, part) in enumerate(chunks_of(num_draws, len(data[0]), rows)):
        torch.manual_seed(seed_of(seed, number))
        trace = guide_trace_of(model, *(t[part] for t in data), num_samples=samples.stop - samples.start)
        for name in names:
            latent.add(name, part, trace.nodes[name]["value"])
        for name, site in sample_sites(trace, observed=True).items():
            draws.add(name, part, _like(data[0], site["fn"].sample()))
    return latent.values(), draws.values()


class _Joined:
    """Sites (samples, data, *event) from chunks of samples of a part of the data, one part after another."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[int, list[Tensor]]] = {}

    def add(self, name: str, part: slice, value: Tensor) -> None:
        self.parts.setdefault(name, {}).setdefault(part.start, []).append(value)

    def values(self) -> Values:
        return {name: torch.cat([torch.cat(c) for c in chunks.values()], 1) for name, chunks in self.parts.items()}


def _like(x: Tensor, values: Tensor) -> Tensor:
    """Values (samples, data, *event) with the event shape of x where the model only flattens it, so that images stay
    images."""
    event_shape = x.shape[1:] if values.shape[2:].numel() == x.shape[1:].numel() else values.shape[2:]
    return values.reshape(values.shape[:2] + event_shape)


def _laws(model: Program, guide: Program, *datum: Tensor) -> dict[str, str]:
    """Which distributions the sites have, and by which component of the pair's module, if it has them by name."""
    guide_trace = guide_trace_of(guide, *datum, num_samples=1)
    trace = model_trace_of(model, guide_trace, *datum, num_samples=1)

    def law(program: Program, part: str, trace: Trace, observed: bool) -> str:
        sites = ", ".join(f"{n} ~ {_law(s['fn'])}" for n, s in sample_sites(trace, observed=observed).items())
        component = getattr(getattr(program, "__self__", None), part, None)
        return f"{type(component).__name__}: {sites}" if isinstance(component, nn.Module) else sites

    return {
        "prior": law(model, "prior", trace, observed=False),
        "likelihood": law(model, "likelihood", trace, observed=True),
        "posterior": law(guide, "posterior", guide_trace, observed=False),
    }


def _law(fn: Any) -> str:
    return f"{type(innermost(fn)).__name__}^{fn.event_shape.numel()}"


def _name(program: Program) -> str:
    return getattr(program, "__qualname__", type(program).__name__)


def _numpy(values: Values) -> dict[str, Any]:
    return {name: value.cpu().numpy() for name, value in values.items()}
