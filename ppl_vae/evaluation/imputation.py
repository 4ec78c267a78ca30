"""Missing dimensions of x given the others, by importance resampling, for any Pyro pair with one data plate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent

from ppl_vae.contract import (
    check_same_without_x,
    check_scores_any,
    check_structure,
    observed_sites,
    observed_x,
    plain_trace,
    support_name,
    tensors_of,
)
from ppl_vae.evaluation.chunks import chunks_of_data, rows_per_chunk, seed_of
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.results import LogMeanExp, PerDatum, khat_warnings, num_over_limit, widening
from ppl_vae.programs import (
    Program,
    evaluating,
    guide_trace_of,
    model_trace_of,
    sample_sites,
    seeded,
    sum_of_sites,
    trace_of,
)
from ppl_vae.system.progress import progress

BLOCK_DATA = 64  # sampled from a seed of their own, whatever the chunks that they are decoded in
FILLS = 8  # guesses at the missing dimensions, from each of which the guide makes a proposal
ROUND_SAMPLES = 64  # for each datum, in the first guess and in a round that improves the guesses
PRIOR_SHARE = 8  # one sample in so many is from the prior

Values = dict[str, Tensor]


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
        ess: effective sample size of the samples of z given x_seen, 1..num_samples, shape (data,).
        khat: Pareto k-hat of their weights, and of those of log p(x), the larger of the two, shape (data,): the
            share of data that are over the limit of `num_samples` is the verdict on all. NaN for fewer than 25.
        num_samples: K.
    """

    mean: Tensor
    samples: Tensor
    log_p_seen: PerDatum
    log_p_missing: PerDatum
    ess: Tensor
    khat: Tensor
    num_samples: int

    @property
    def num_unreliable(self) -> int | None:
        """How many data have a k-hat over its limit, or None where K < 25 leaves one unknown."""
        return num_over_limit(self.khat, torch.tensor(self.num_samples))

    def __len__(self) -> int:
        return len(self.ess)

    def __str__(self) -> str:
        known = self.log_p_missing.values.isfinite()
        text = f"{len(self)} data imputed; median ESS {self.ess.median().item():.1f}"
        if known.any():
            p = PerDatum(self.log_p_missing.values[known], self.log_p_missing.mc_se[known])
            text += (
                f"; log p(missing | seen) = {p.mean:.3f} nats per datum (no bound), Monte Carlo s.e. "
                f"{p.mc_se_of_mean:.3f}, s.e. over {int(known.sum())} data {p.data_se_of_mean:.3f}"
            )
        return text + khat_warnings(self.khat, torch.tensor(self.num_samples), len(self))


def impute(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Tensor,
    seen: Tensor,
    num_samples: int = 1000,
    num_draws: int = 10,
    num_rounds: int = 5,
    fill: Tensor | None = None,
    seed: int = 0,
    memory: int | None = None,
    show_progress: bool = False,
) -> Imputation:
    """Samples from p(x_missing | x_seen) = E[p(x_missing | z) | x_seen], its mean, and its log-density at x. With
    weights for the part that is seen,

        log w_k = log p(z_k) + log p(x_seen | z_k) - log r(z_k),   z_k ~ r,   log p(x_seen) ~ log 1/K sum_k w_k,

    latents are resampled in proportion to w, and the missing dimensions from p(x_missing | z).

    The proposal r is a mixture of the guide at 8 guesses at x, with 7/8 of the samples, and the prior: a guide trained
    on complete data is overconfident on partial data, and the prior bounds the weights by 8 p(x_seen|z), for K
    divisible by 8.
    Guesses start from E[x] of the model, or from `fill`, and in each of `num_rounds` rounds are drawn anew from
    p(x_missing | z), given such z. They are then frozen, and weights are of fresh samples, so that E[w] = p(x_seen),
    and its logarithm is a lower bound in expectation. Values of x that are not seen have no part in any of this. log
    p(x) is `log_likelihood`'s, with as many samples from the guide at x itself, so that log p(x_missing | x_seen) is
    for judging a model where x is known.

    The rounds are the pseudo-Gibbs sampling of Danilo J. Rezende, Shakir Mohamed, Daan Wierstra: Stochastic
    Backpropagation and Approximate Inference in Deep Generative Models, 2014, arXiv:1401.4082, appendix F, weighted as
    by Pierre-Alexandre Mattei, Jes Frellsen: MIWAE, 2018, arXiv:1812.02633; what it is exact for: the same, Leveraging
    the Exact Likelihood of Deep Latent Variable Models, 2018, arXiv:1802.04826.

    Arguments:
        x, args: data (data, *event) and the programs' further arguments, batched with it. x may be NaN where it is
            not seen.
        seen: which of x is seen, bool, (data, *event) or what broadcasts to it, such as (*event).
        num_samples: K, of each datum.
        num_draws: imputations of each datum that are returned.
        num_rounds: 0 leaves the guesses at the first.
        fill: the first guess, (data, *event) or what broadcasts to it.
        seed: of all samples. The result does not depend on how the work is cut into chunks.
        memory: bytes that a chunk may take; chosen to fit the cache by default.
        show_progress: a bar, on standard error, while it works.

    Programs run in evaluation mode and are left as they were found. Raises `ValueError` as `log_likelihood` does, and
    unless num_samples >= 16, seen is boolean, x is a number where seen, and the model has one observed site, of x
    itself, whose distribution has independent dimensions (`.to_event`), and does not depend on x.
    """
    limits = {"num_samples": (num_samples, 16), "num_draws": (num_draws, 1), "num_rounds": (num_rounds, 0)}
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"{name}: expected at least {least}; got {value}")
    x, *args = tensors_of(model, guide, x, *args)  # type: ignore[assignment]
    seen = _like(x, "seen", torch.as_tensor(seen))
    if seen.dtype is not torch.bool:
        raise ValueError(f"seen: expected booleans; got {seen.dtype}")
    if x[seen].isnan().any():
        raise ValueError("x: expected numbers where it is seen; got NaN")
    visible = x.where(seen, x.new_zeros(()))  # all that the programs are told of x
    fills = None if fill is None else torch.where(seen, x, _like(x, "fill", fill).to(x))
    statistics = LogMeanExp(len(x), num_samples, device=x.device)
    means, samples = [], []
    with seeded(seed), evaluating(model, guide):
        datum = [t[:1] for t in (visible, *args)]
        _check_pair(model, guide, *datum)
        check_scores_any(guide, *datum)
        for x_of, seen_of, *args_of in chunks_of_data(BLOCK_DATA, visible, seen, *args):
            _check_support(model, guide, x_of, seen_of, *args_of)
        max_rows = rows_per_chunk(model, guide, *datum, memory=memory)
        blocks = torch.arange(len(x), device=x.device).split(BLOCK_DATA)
        with progress("impute", len(blocks), enabled=show_progress) as report:
            for number, rows in enumerate(blocks):
                torch.manual_seed(seed_of(seed, number))
                block = _Block(model, guide, visible[rows], seen[rows], [t[rows] for t in args], max_rows)
                block.guess(None if fills is None else fills[rows])
                for _ in range(num_rounds):
                    values, log_w, _ = block.draw(ROUND_SAMPLES)
                    block.fills = block.impute(values, log_w, FILLS)
                values, log_w, mean = block.draw(num_samples)
                statistics.add(log_w, rows)
                means.append(mean)
                samples.append(block.impute(values, log_w, num_draws))
                report()
    by_datum = seen.reshape(len(x), -1)
    none, everything = ~by_datum.any(1).cpu(), by_datum.all(1).cpu()
    khat_seen = statistics.khat()
    mc_se = statistics.standard_error().cpu() * widening(khat_seen, statistics.count.cpu())
    # p of nothing is 1
    p_seen = PerDatum(*(t.masked_fill(none, 0) for t in (statistics.log_mean().cpu(), mc_se)))
    p_x, khat = _log_p(model, guide, x, *args, num_samples=num_samples, seed=seed, memory=memory)
    p_missing = p_x - p_seen
    return Imputation(
        mean=torch.cat(means).cpu(),
        samples=torch.cat(samples, 1).cpu(),
        log_p_seen=p_seen,
        log_p_missing=PerDatum(*(t.masked_fill(everything, 0) for t in (p_missing.values, p_missing.mc_se))),
        ess=statistics.ess().cpu(),
        khat=torch.maximum(khat_seen, khat),
        num_samples=num_samples,
    )


def _like(x: Tensor, name: str, t: Tensor) -> Tensor:
    try:
        return t.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"{name}: expected the shape of x, {tuple(x.shape)}; got {tuple(t.shape)}") from None


def _log_p(
    model: Program, guide: Program, x: Tensor, *args: Tensor, num_samples: int, seed: int, memory: int | None
) -> tuple[PerDatum, Tensor]:
    """log p(x) and its k-hat: NaN and -inf where x has NaN."""
    known = ~x.reshape(len(x), -1).isnan().any(1)
    log_p = torch.full((len(x),), math.nan, dtype=torch.float64)
    mc_se, khat = log_p.clone(), torch.full_like(log_p, -math.inf)
    if known.any():
        data = (t[known] for t in (x, *args))
        result = log_likelihood(model, guide, *data, num_samples=num_samples, seed=seed, memory=memory)
        p_x = PerDatum.of(result)
        for t, of_result in ((log_p, p_x.values), (mc_se, p_x.mc_se), (khat, result.khat)):
            t[known.cpu()] = of_result
    return PerDatum(log_p, mc_se), khat


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


class _Block:
    """Some data x (data, *event), known where `seen`, with guesses `fills` (fills, data, *event)."""

    fills: Tensor

    def __init__(
        self, model: Program, guide: Program, x: Tensor, seen: Tensor, args: list[Tensor], max_rows: int
    ) -> None:
        self.model, self.guide, self.x, self.seen, self.args = model, guide, x, seen, args
        self.data_step = min(max_rows, len(x))
        self.sample_step = max(max_rows // self.data_step, 1)

    def guess(self, fill: Tensor | None) -> None:
        """All guesses alike: `fill`, or E[x]."""
        if fill is None:
            _, fn = self._split(guide_trace_of(self.model, self.x, *self.args, num_samples=ROUND_SAMPLES))
            mean = fn.mean.mean(0).reshape(self.x.shape)
            fill = torch.where(self.seen, self.x, (mean if self.x.is_floating_point() else mean.round()).to(self.x))
        self.fills = fill.expand(FILLS, *self.x.shape)

    def draw(self, num_samples: int) -> tuple[Values, Tensor, Tensor]:
        """z ~ r, log w (samples, data), and the weighted mean of x (data, *event)."""
        from_prior = num_samples // PRIOR_SHARE
        counts = [(num_samples - from_prior + i) // FILLS for i in range(FILLS)]  # as even as can be
        traces = [
            guide_trace_of(self.guide, fill, *self.args, num_samples=n)
            for fill, n in zip(self.fills, counts, strict=True)
        ]
        # in pieces that do not depend on the memory at hand, for the model decodes each sample
        pieces = [min(ROUND_SAMPLES, from_prior - k) for k in range(0, from_prior, ROUND_SAMPLES)]
        traces += [guide_trace_of(self.model, self.x, *self.args, num_samples=n) for n in pieces]
        names = sample_sites(traces[0], observed=False)
        values = {name: torch.cat([trace.nodes[name]["value"] for trace in traces]) for name in names}
        shape = (num_samples, len(self.x))
        log_r = torch.stack(
            [
                math.log(n / num_samples)
                + sum_of_sites(
                    model_trace_of(self.guide, trace_of(values), fill, *self.args, num_samples=num_samples), shape
                )
                for fill, n in zip(self.fills, counts, strict=True)
            ]
        ).logsumexp(0)
        dtype = torch.promote_types(self.x.dtype, torch.get_default_dtype())
        log_w, mean = torch.empty_like(log_r), torch.zeros(self.x.shape, dtype=dtype, device=self.x.device)
        for d in range(0, len(self.x), self.data_step):
            rows = slice(d, d + self.data_step)
            log_w[:, rows], mean[rows] = self._weigh(
                {name: value[:, rows] for name, value in values.items()}, log_r[:, rows], rows, from_prior / num_samples
            )
        return values, log_w, torch.where(self.seen, self.x, mean)

    def _weigh(self, values: Values, log_r: Tensor, rows: slice, prior_share: float) -> tuple[Tensor, Tensor]:
        x, args = self.x[rows], [t[rows] for t in self.args]
        log_w, log_sum, mean = torch.empty_like(log_r), log_r.new_full((len(x),), -math.inf), log_r.new_zeros(x.shape)
        for k in range(0, len(log_r), self.sample_step):
            some = slice(k, k + self.sample_step)
            shape = (len(log_r[some]), len(x))
            z = trace_of({name: value[some] for name, value in values.items()})
            trace = model_trace_of(self.model, z, x, *args, num_samples=shape[0])
            latents, p_x = self._split(trace)
            seen = self.seen[rows].reshape(len(x), *p_x.batch_shape[2:])
            log_p_seen = p_x.log_prob(x.reshape(seen.shape)).where(seen, 0.0).reshape(*shape, -1)
            log_p_z = sum_of_sites(latents, shape)
            log_p_seen = log_p_seen.sum(-1, dtype=torch.float64)
            log_w[some] = log_p_z + log_p_seen - torch.logaddexp(log_r[some], math.log(prior_share) + log_p_z)
            before, log_sum = log_sum, torch.logaddexp(log_sum, log_w[some].logsumexp(0))
            finite = log_sum.clamp(min=torch.finfo(log_sum.dtype).min)  # while no weight is above 0
            weights = (log_w[some] - finite).exp()
            x_mean = p_x.mean.reshape(*shape, *x.shape[1:])
            mean = _scale((before - finite).exp(), mean) + _scale(weights, x_mean).sum(0)
        return log_w, mean

    def impute(self, values: Values, log_w: Tensor, num_draws: int) -> Tensor:
        """x where seen, and samples of the rest given z, resampled by its weights, (num_draws, data, *event)."""
        k = torch.multinomial(log_w.softmax(0).T, num_draws, replacement=True).T
        chosen = trace_of(
            {name: value[k, torch.arange(len(self.x), device=k.device)] for name, value in values.items()}
        )
        _, p_x = self._split(model_trace_of(self.model, chosen, self.x, *self.args, num_samples=num_draws))
        return torch.where(self.seen, self.x, p_x.sample().reshape(num_draws, *self.x.shape).to(self.x))

    @staticmethod
    def _split(trace: Trace) -> tuple[Trace, Any]:
        """A model's trace without its observed site, and that site's distribution, per dimension."""
        ((name, site),) = sample_sites(trace, observed=True).items()
        trace.remove_node(name)
        return trace, _per_dimension(site["fn"])


def _scale(factor: Tensor, t: Tensor) -> Tensor:
    """factor (*) times t (*, *event)."""
    return factor.reshape(factor.shape + (1,) * (t.dim() - factor.dim())) * t
