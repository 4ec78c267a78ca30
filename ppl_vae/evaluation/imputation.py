"""Missing dimensions of x given the others, from the posterior of z given what is seen, for any Pyro pair with one data
plate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from ppl_vae.contract import (
    check_same_without_x,
    check_scores_any,
    check_structure,
    is_observation,
    observed_sites,
    observed_x,
    plain_trace,
    support_name,
    tensors_of,
)
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.chunks import BLOCK_DATA, chunks_of_data, seed_of
from ppl_vae.evaluation.diagnostics import khat_limit
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.results import GUIDE, PerDatum, khat_warnings, num_over_limit, rungs_of
from ppl_vae.evaluation.weighing import NOT_REFINED, Inferred, Weighed, infer, why_not_refined
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    log_prob_per_datum,
    model_trace_of,
    sample_sites,
    seeded,
    sum_of_sites,
    trace_of,
)

ROUND_SAMPLES = 64  # for each datum, in the first guess and in a round that improves the guesses
FILLS, ROUNDS = 8, 5  # guesses at the missing dimensions, and how often they are improved, where nothing is refined
PRIOR_SHARE = 8  # one sample in so many is from the prior


@dataclass(frozen=True, eq=False)
class Imputation:
    """What a model makes of the missing dimensions. x has shape (data, *event); tensors are on the CPU.

    Attributes:
        mean: E[x | x_seen], and x itself where it was seen, shape (data, *event); of whole numbers it is none.
        samples: from p(x_missing | x_seen), with replacement, and x itself where it was seen, shape (num_draws,
            data, *event). Those of one datum share latents where its `ess` is not far above num_draws.
        log_p_seen: log p(x_seen), in nats: a lower bound in expectation.
        log_p_missing: log p(x_missing | x_seen) at the values that x has there, in nats: log p(x) - log p(x_seen), a
            difference of two lower bounds, which is no bound. NaN where x has NaN.
        ess: effective sample size of the samples of z given x_seen, shape (data,).
        khat: Pareto k-hat of their weights, or of those of log p(x): of the two that which is more over its limit,
            shape (data,). NaN where one is unknown.
        num_samples: of these weights, shape (data,).
        rung: what was sampled given x_seen, its number in `RUNGS`, shape (data,).
    """

    mean: Tensor
    samples: Tensor
    log_p_seen: PerDatum
    log_p_missing: PerDatum
    ess: Tensor
    khat: Tensor
    num_samples: Tensor
    rung: Tensor

    @property
    def num_unreliable(self) -> int | None:
        """How many data have a k-hat over its limit, or None where K < 25 leaves one unknown."""
        return num_over_limit(self.khat, self.num_samples)

    def __len__(self) -> int:
        return len(self.ess)

    def __str__(self) -> str:
        known = self.log_p_missing.values.isfinite()
        counts = ", ".join(f"{count} {name}" for name, count in rungs_of(self.rung).items())
        text = f"{len(self)} data imputed ({counts}); median ESS {self.ess.median().item():.1f}"
        if known.any():
            p = PerDatum(self.log_p_missing.values[known], self.log_p_missing.mc_se[known])
            text += (
                f"; log p(missing | seen) = {p.mean:.3f} nats per datum (no bound), Monte Carlo s.e. "
                f"{p.mc_se_of_mean:.3f}, s.e. over {int(known.sum())} data {p.data_se_of_mean:.3f}"
            )
        return text + khat_warnings(self.khat, self.num_samples, len(self))


def impute(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    seen: Tensor,
    num_samples: int = 1000,
    num_draws: int = 10,
    fill: Tensor | None = None,
    climb: bool = True,
    seed: int = 0,
    memory: int | None = None,
    show_progress: bool = False,
    **fitting: Any,
) -> Imputation:
    """Samples from p(x_missing | x_seen) = E[p(x_missing | z) | x_seen], its mean, and its log-density at x.

    The posterior of z given x_seen is that of a model that observes x_seen alone. It is found and weighed as `restore`
    does it: by `refine_modes`, from prior draws and from the guide at x with E[x], or `fill`, for what is missing;
    where pilot samples have a k-hat over its limit, with 4 and 16 times as many samples, then with chains that are
    annealed from there. With weights w of such z, log p(x_seen) ~ log 1/K sum_k w_k; latents are resampled in
    proportion to w, and the missing dimensions from p(x_missing | z). Values of x that are not seen have no part in
    any of this.

    log p(x_missing | x_seen) = log p(x) - log p(x_seen), with log p(x) by `log_likelihood_within`, is for judging a
    model where x is known. An underestimate of the second term makes it too high.

    Where the posterior can't be refined (a discrete latent site, a likelihood without a gradient), it says so in a
    `RuntimeWarning`, and z are drawn from the guide at 8 guesses at x, with 7/8 of the samples, and from the prior,
    which bounds the weights by 8 p(x_seen | z). Guesses begin with E[x], or `fill`, and are five times drawn anew from
    p(x_missing | z), given z so weighted; then they are frozen. This is the pseudo-Gibbs sampling of Danilo J. Rezende,
    Shakir Mohamed, Daan Wierstra: Stochastic Backpropagation and Approximate Inference in Deep Generative Models, 2014,
    arXiv:1401.4082, appendix F, weighted as by Pierre-Alexandre Mattei, Jes Frellsen: MIWAE, 2018, arXiv:1812.02633.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it. x may be NaN where it is
            not seen.
        seen: which of x is seen, bool, (data, *event) or what broadcasts to it, such as (*event).
        num_samples: K, of each datum, on the first rung.
        num_draws: imputations of each datum that are returned.
        fill: the first guess, (data, *event) or what broadcasts to it.
        climb: whether data whose k-hat is over its limit get more samples, and chains. log p(x) is then by its ladder,
            and else of K samples from the guide at x.
        seed: of all samples. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take; chosen to fit the cache by default.
        show_progress: bars, on standard error, while it works.
        fitting: num_starts, num_steps, num_modes and num_newton of `refine_modes`.

    Programs run in evaluation mode and are left as they were found. Raises `ValueError` as `log_likelihood` does, and
    unless num_samples >= 16, seen is boolean, x is a number where seen, and the model has one observed site, of x
    itself, whose distribution has independent dimensions (`.to_event`), and does not depend on x.
    """
    for name, (value, least) in {"num_samples": (num_samples, 16), "num_draws": (num_draws, 1)}.items():
        if value < least:
            raise ValueError(f"{name}: expected at least {least}; got {value}")
    x, *args = tensors_of(model, guide, x, *args)  # type: ignore[assignment]
    seen = _like(x, "seen", torch.as_tensor(seen))
    if seen.dtype is not torch.bool:
        raise ValueError(f"seen: expected booleans; got {seen.dtype}")
    if x[seen].isnan().any():
        raise ValueError("x: expected numbers where it is seen; got NaN")
    visible = x.where(seen, x.new_zeros(()))  # all that the programs are told of x
    _check(model, guide, visible, seen, args, seed=seed)
    mean, drawn = (torch.cat(t) for t in zip(*_of_prior(model, visible, args, seed_of(seed, 0)), strict=True))
    guess = mean if fill is None else _like(x, "fill", fill).to(x)
    data = (x.where(seen, drawn), seen, x.where(seen, guess)[:, None], *args)
    pair = _SeenModel(model), _SeenGuide(guide)
    sizes: dict[str, Any] = {"num_samples": num_samples, "num_draws": num_draws, "memory": memory}
    if reason := why_not_refined(*pair, data, seed=seed):
        warnings.warn(f"{NOT_REFINED}: {reason}", RuntimeWarning, stacklevel=2)
        found = _by_guesses(*pair, data, seed=seed_of(seed, 1), **sizes)
    else:
        fitting |= {"climb": climb, "show_progress": show_progress}
        found = infer(pair[0], pair[1], data, seed=seed_of(seed, 1), **sizes, **fitting)
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "memory": memory}
    p_x, khat_x, count_x = _log_p(model, guide, x, *args, climb=climb, show_progress=show_progress, **options)
    by_datum = seen.reshape(len(x), -1)
    none, everything = ~by_datum.any(1).cpu(), by_datum.all(1).cpu()
    # p of nothing is 1
    p_seen = PerDatum(*(t.masked_fill(none, 0) for t in (found.log_p.values, found.log_p.mc_se)))
    p_missing = p_x - p_seen
    # unknown ones stay so
    weights = ((khat_x, count_x), (found.khat, found.num_samples))
    over_x, over_seen = (khat - torch.as_tensor(khat_limit(K)) for khat, K in weights)
    of_x = over_x.isnan() | (over_x > over_seen)
    return Imputation(
        mean=torch.where(seen.cpu(), x.cpu(), found.averages[0]),
        samples=found.samples,
        log_p_seen=p_seen,
        log_p_missing=PerDatum(*(t.masked_fill(everything, 0) for t in (p_missing.values, p_missing.mc_se))),
        ess=found.ess,
        khat=khat_x.where(of_x, found.khat),
        num_samples=count_x.where(of_x, found.num_samples),
        rung=found.rung,
    )


def _like(x: Tensor, name: str, t: Tensor) -> Tensor:
    try:
        return t.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"{name}: expected the shape of x, {tuple(x.shape)}; got {tuple(t.shape)}") from None


def _log_p(
    model: Program, guide: Program, x: Tensor, *args: Tensor, climb: bool, num_samples: int, **options: Any
) -> tuple[PerDatum, Tensor, Tensor]:
    """log p(x), its k-hat and its K: NaN and -inf where x has NaN."""
    known = ~x.reshape(len(x), -1).isnan().any(1).cpu()
    log_p = torch.full((len(x),), math.nan, dtype=torch.float64)
    mc_se, khat, count = log_p.clone(), torch.full_like(log_p, -math.inf), torch.full((len(x),), num_samples)
    if known.any():
        data = (t[known.to(t.device)] for t in (x, *args))
        estimate = log_likelihood_within if climb else log_likelihood
        result = estimate(model, guide, *data, num_samples=num_samples, **options)
        if not result.complete:
            raise KeyboardInterrupt
        p_x = PerDatum.of(result)
        found = (p_x.values, p_x.mc_se, result.khat, result.num_samples)
        for t, of_result in zip((log_p, mc_se, khat, count), found, strict=True):
            t[known] = of_result
    return PerDatum(log_p, mc_se), khat, count


def _check(model: Program, guide: Program, x: Tensor, seen: Tensor, args: Any, *, seed: int) -> None:
    with seeded(seed), evaluating(model, guide):
        datum = [t[:1] for t in (x, *args)]
        _check_pair(model, guide, *datum)
        check_scores_any(guide, *datum)
        for x_of, seen_of, *args_of in chunks_of_data(BLOCK_DATA, x, seen, *args):
            _check_support(model, guide, x_of, seen_of, *args_of)


def _check_pair(model: Program, guide: Program, *datum: Tensor) -> None:
    """The observed site has independent dimensions and observes x alone."""
    x, *args = datum
    _, guide_trace = check_structure(model, guide, *datum)
    name, site = observed_x(plain_trace(model, *datum, latents=guide_trace), x)
    fn = _per_dimension(site["fn"])
    if fn.event_shape:
        raise ValueError(f"site {name!r}: expected independent dimensions, .to_event(...); got {type(fn).__name__}")
    other = site["fn"].sample()
    again = plain_trace(model, other.reshape(x.shape).to(x), *args, latents=guide_trace).nodes[name]["fn"]
    check_same_without_x(name, site["fn"].log_prob(other), again.log_prob(other))


def _check_support(model: Program, guide: Program, x: Tensor, seen: Tensor, *args: Tensor) -> None:
    """Each datum is in its own support where it is seen."""
    (site,) = observed_sites(plain_trace(model, x, *args, latents=plain_trace(guide, x, *args))).values()
    fn = _per_dimension(site["fn"])
    value, shown = (t.reshape(len(x), *site["value"].shape[1:]) for t in (x, seen))
    if len(bad := value[shown & ~fn.support.check(value).expand(value.shape)]):
        space = support_name(fn.support)
        raise ValueError(f"x: expected values in {space} where it is seen; got {bad.min():.4g} to {bad.max():.4g}")


def _per_dimension(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _of_prior(model: Program, x: Tensor, args: Any, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """E[x], and an x that is drawn, of blocks of data."""
    with evaluating(model), seeded(seed):
        for x_of, *args_of in chunks_of_data(BLOCK_DATA, x, *args):
            trace = guide_trace_of(model, x_of, *args_of, num_samples=ROUND_SAMPLES)
            (site,) = sample_sites(trace, observed=True).values()
            fn = _per_dimension(site["fn"])
            mean = fn.mean.mean(0).reshape(x_of.shape)
            drawn = fn.sample()[0].reshape(x_of.shape)
            yield (mean if x.is_floating_point() else mean.round()).to(x), drawn.to(x)


@dataclass(frozen=True, eq=False)
class _SeenModel:
    """p(x_seen, z), of a model p(x, z). Its result says what is known of x, of which values that are not seen may be
    any in the support."""

    model: Program

    def __call__(self, x: Tensor, seen: Tensor, fills: Tensor, *args: Tensor) -> _Filled:
        with _Hide(x, seen) as handler:
            self.model(x, *args)
        return handler.known


@dataclass(frozen=True, eq=False)
class _SeenGuide:
    """q(z | x) at the first guess at x."""

    guide: Program

    def __call__(self, x: Tensor, seen: Tensor, fills: Tensor, *args: Tensor) -> None:
        self.guide(fills[:, 0], *args)


@dataclass(frozen=True, eq=False)
class _Filled:
    """What is known of x, (data, *event), given z: it is seen, or distributed as `p_x`."""

    x: Tensor
    seen: Tensor
    p_x: Any

    def averaged(self) -> tuple[Tensor]:
        return (self._of(self.p_x.mean),)

    def sample(self) -> Tensor:
        return self._of(self.p_x.sample()).to(self.x)

    def _of(self, values: Tensor) -> Tensor:
        num_batch = self.p_x.batch_shape.numel() // self.x.numel()  # samples, of which each has all data
        return torch.where(self.seen, self.x, values.reshape(num_batch, *self.x.shape))


class _Hide(Messenger):
    """Has the observed site score what is seen."""

    known: _Filled

    def __init__(self, x: Tensor, seen: Tensor):
        super().__init__()
        self.x, self.seen = x, seen

    def _pyro_sample(self, msg: Any) -> None:
        if is_observation(msg):
            shape = msg["value"].shape
            msg["fn"] = _per_dimension(msg["fn"]).mask(self.seen.reshape(shape)).to_event(len(shape) - 1)

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_observation(msg):  # and of all samples, by now
            self.known = _Filled(self.x, self.seen, _per_dimension(msg["fn"]).base_dist)


def _by_guesses(
    model: _SeenModel,
    guide: _SeenGuide,
    data: tuple[Tensor, ...],
    *,
    num_samples: int,
    num_draws: int,
    memory: int | None,
    seed: int,
) -> Inferred:
    """What samples of the guide at guesses at x, and of the prior, say of x."""
    x, seen, fills, *args = data
    fills, everyone = fills.expand(-1, FILLS, *x.shape[1:]), torch.arange(len(x), device=x.device)
    proposal = _Guesses(model.model, guide.guide, x[:1], *(t[:1] for t in args))
    sizes = [(ROUND_SAMPLES, FILLS)] * ROUNDS + [(num_samples, num_draws)]
    for number, (K, draws) in enumerate(sizes):
        data = (x, seen, fills, *args)
        with evaluating(model, guide), seeded(seed):
            weighed = Weighed(model, guide, proposal.names, data, K, draws, memory)
        weighed.add_samples(proposal, everyone, K, seed=seed_of(seed, number), compiled=False)
        fills = weighed.samples.transpose(0, 1).to(x.device)
    return weighed.result(torch.full((len(x),), GUIDE))


class _Guesses:
    """z from the guide at guesses at x, and from the prior: for pairs whose posterior can't be refined."""

    def __init__(self, model: Program, guide: Program, *datum: Tensor):
        self.model, self.guide = model, guide
        with evaluating(model, guide), torch.random.fork_rng():
            self.names = [*sample_sites(plain_trace(guide, *datum), observed=False)]

    def compile(self) -> None:
        """It is as it is."""

    def draw(self, x: Tensor, seen: Tensor, fills: Tensor, *args: Tensor, num_samples: int) -> tuple[Tensor, ...]:
        """log r (samples, data), and the latent sites' values."""
        from_prior = num_samples // PRIOR_SHARE
        counts = [(num_samples - from_prior + i) // FILLS for i in range(FILLS)]  # as even as can be
        guesses = [*zip(fills.unbind(1), counts, strict=True)]
        traces = [guide_trace_of(self.guide, fill, *args, num_samples=n) for fill, n in guesses]
        # in pieces that do not depend on the memory at hand, for the model decodes each sample
        pieces = [min(ROUND_SAMPLES, from_prior - k) for k in range(0, from_prior, ROUND_SAMPLES)]
        traces += [guide_trace_of(self.model, x, *args, num_samples=n) for n in pieces]
        values = {name: torch.cat([trace.nodes[name]["value"] for trace in traces]) for name in self.names}
        z, shape = trace_of(values), (num_samples, len(x))
        log_r = [
            math.log(n / num_samples)
            + sum_of_sites(model_trace_of(self.guide, z, fill, *args, num_samples=num_samples), shape)
            for fill, n in guesses
        ]
        log_prior = torch.cat(
            [self._log_prior(z, slice(k, k + ROUND_SAMPLES), x, *args) for k in range(0, num_samples, ROUND_SAMPLES)]
        )
        log_r.append(math.log(from_prior / num_samples) + log_prior)
        return torch.stack(log_r).logsumexp(0), *values.values()

    def _log_prior(self, z: Any, some: slice, x: Tensor, *args: Tensor) -> Tensor:
        part = trace_of({name: z.nodes[name]["value"][some] for name in self.names})
        num_samples = len(part.nodes[self.names[0]]["value"])
        trace = model_trace_of(self.model, part, x, *args, num_samples=num_samples)
        log_p = log_prob_per_datum(trace, (num_samples, len(x)))
        return torch.stack([log_p[name] for name in self.names]).sum(0)
