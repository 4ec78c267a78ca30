"""Clean images from corrupted ones by inference: p(clean | corrupted), for any Pyro pair."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ppl_vae.contract import check_structure, plain_trace, tensors_of
from ppl_vae.evaluation.chunks import BLOCK_DATA, seed_of
from ppl_vae.evaluation.corrupted import Clean, CorruptedGuide, CorruptedModel, Corruption, Observation, Pixels, Units
from ppl_vae.evaluation.hamiltonian import latent_sites
from ppl_vae.evaluation.importance import LogWeights
from ppl_vae.evaluation.modes import refine_modes
from ppl_vae.evaluation.results import LogMeanExp, PerDatum, num_over_limit, widening
from ppl_vae.graphs import Compiled
from ppl_vae.programs import Constants, Program, evaluating, model_trace_of, seeded, sum_of_sites, trace_of

ROUND_SAMPLES = 64  # decoded at a time, of a block of data


@dataclass(frozen=True, eq=False)
class Restoration:
    """What a model makes of corrupted images y (data, ...). Images have the clean one's shape and values in [0, 1];
    tensors are on the CPU.

    Attributes:
        mean: E[x | y], (data, C, H, W).
        std: the standard deviation of x given y, of each pixel, (data, C, H, W).
        samples: x ~ p(x | y), with replacement, (num_draws, data, C, H, W). Those of one image are the same where
            its `ess` is not far above num_draws.
        log_p: log p(y), in nats: a lower bound in expectation. Pixels that are black or white may have a mass, and
            others a density.
        ess: effective sample size of the samples of z, 1..num_samples, shape (data,).
        khat: Pareto k-hat of their weights, shape (data,). NaN for fewer than 25.
        num_samples: K.
    """

    mean: Tensor
    std: Tensor
    samples: Tensor
    log_p: PerDatum
    ess: Tensor
    khat: Tensor
    num_samples: int

    def __len__(self) -> int:
        return len(self.ess)

    @property
    def num_unreliable(self) -> int | None:
        """How many images have a k-hat over its limit, or None where K < 25 leaves one unknown."""
        return num_over_limit(self.khat, torch.tensor(self.num_samples))

    def __str__(self) -> str:
        text = (
            f"{len(self)} images restored; median ESS {self.ess.median().item():.1f} of {self.num_samples}; log p(y) = "
            f"{self.log_p.mean:.3f} nats per image, Monte Carlo s.e. {self.log_p.mc_se_of_mean:.3f}"
        )
        if self.num_unreliable:
            text += (
                f"\nwarning: k-hat over its limit for {self.num_unreliable} of {len(self)} images: log p(y) may be too "
                "low and std too small. Take more num_samples, num_starts or num_newton"
            )
        return text


def restore(
    model: Program,
    guide: Program,
    y: Tensor,
    *args: Tensor,
    corruption: Corruption,
    clean: Clean = "mean",
    misfit: float | Tensor = 0.0,
    encoding: Units | None = None,
    num_samples: int = 256,
    num_draws: int = 10,
    seed: int = 0,
    **fitting: Any,
) -> Restoration:
    """E[x | y] of images y that were corrupted in a known way, its uncertainty, draws of x, and log p(y), by

        p(x | y) ~ int p(z) p(x | z) p(y | x) dz:

    the model is a prior of clean images, and the corruption a likelihood. Nothing is trained on corrupted images. The
    posterior of z is found by `refine_modes` from prior draws and the guide at y, and corrected by self-normalised
    importance weights.

    Arguments:
        y, args: images with values in [0, 1], (data, C, H, W), and the programs' further arguments.
        corruption: how y came from clean images: a `Noise`, `Then(operator, noise)`, or an object like them.
        clean: what a clean image is: "mean", the decoder's mean E[x|z]; or "drawn", x ~ p(x|z) itself, integrated out
            exactly, for a Gaussian likelihood or a misfit under noise that says what a pixel was before it, and for a
            Bernoulli likelihood, whose pixels are 0 or 1, under any noise of each pixel.
        misfit: the standard deviation of clean pixels around the decoder's mean, a number or a tensor (C, H, W), which
            the corruption's likelihood takes into account. Where noise leaves pixels as they are it has to be above 0.
        encoding: how the model sees images, where that isn't as their brightness.
        num_samples: K, of z for each image, to be weighted.
        num_draws: draws of x that are returned.
        seed: of all samples.
        fitting: num_starts, num_steps, num_modes, num_newton, memory, compiled and show_progress of `refine_modes`.

    Raises `ValueError` for images of another shape than the model's or not in [0, 1], for NaN unless the corruption
    says that pixels are missing, a corruption without a density, a pair without latent sites (an autoencoder), and as
    `log_likelihood` does.

    >>> restore(*run.programs, y, corruption=GaussianNoise(0.5)).mean  # doctest: +SKIP
    """
    for name, value in {"num_samples": num_samples, "num_draws": num_draws}.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1; got {value}")
    if clean not in get_args(Clean):
        raise ValueError(f"clean: expected one of {get_args(Clean)}; got {clean!r}")
    how = Observation(corruption, clean, misfit, encoding)
    pair = CorruptedModel(model, how), CorruptedGuide(guide, how)
    data = tensors_of(*pair, y, *args)
    _check(how, data[0])
    posterior = _posterior(*pair, data, seed=seed_of(seed, 0), **fitting)
    return weigh(pair[0], posterior, data, num_samples, num_draws, seed_of(seed, 1), fitting.get("compiled"))


def _posterior(model: Program, guide: Program, data: tuple[Tensor, ...], *, seed: int, **fitting: Any) -> Program:
    """The posterior of each image, or the guide where there are no gradients to find one by, with a
    `RuntimeWarning`."""
    datum = [t[:1] for t in data]
    with evaluating(model, guide), seeded(seed):
        plain_trace(model, *datum)  # which says so, where the images are not of its shape
        check_structure(model, guide, *datum)
        try:
            latent_sites(model, guide, *datum)
        except ValueError as error:
            warnings.warn(f"not refined, samples are of the guide: {error}", RuntimeWarning, stacklevel=3)
            return guide
    return refine_modes(model, guide, *data, seed=seed, **fitting)


def _check(how: Observation, y: Tensor) -> None:
    """Raises `ValueError` for images, or a corruption, that there is no likelihood of."""
    if not y.is_floating_point():
        raise ValueError(f"y: expected floats in [0, 1]; got {y.dtype}. Of 8-bit images, give y / 255")
    missing = y.isnan()
    if missing.any() and not how.corruption.hides:
        raise ValueError(
            f"y: expected numbers; got NaN in {int(missing.flatten(1).any(1).sum())} images. Where that means pixels "
            "that are missing, say so: corruption=Then(Missing(), noise)"
        )
    shown = y[~missing]
    if ((shown < 0) | (shown > 1)).any():
        raise ValueError(f"y: expected values in [0, 1]; got {shown.min().item():.4g} to {shown.max().item():.4g}")
    if how.clean == "drawn" and not isinstance(how.misfit, Tensor) and how.misfit == 0:
        return  # then the model's likelihood says how far x is from its mean
    try:
        grey = torch.full_like(how.corruption.guess(y[:1]), 0.5)
        p = how.corruption.likelihood(grey, how.misfit)
        log_p = p.log_prob(torch.full_like(y[:1], 0.3))
    except NotImplementedError as error:
        raise ValueError(f"corruption: {error}") from None
    if log_p.shape != y[:1].shape:
        raise ValueError(
            f"corruption: expected a distribution of each pixel, {tuple(y[:1].shape)}; got {tuple(log_p.shape)}"
        )
    if not log_p.isfinite().all():
        raise ValueError(
            f"corruption: expected pixels to have a density around the decoder's mean; got {how.corruption}, which "
            "leaves some as they are. Say how far images are from it, misfit=0.1 for example"
        )


class _Scored:
    """log p(y, z), and the mean and variance of x given both, of z at given values: a function of tensors."""

    def __init__(self, model: Program, names: list[str]):
        self.model, self.names = model, names
        self.function: Callable[..., tuple[Tensor, ...]] = self._scored

    def _scored(self, *values_and_data: Tensor) -> tuple[Tensor, ...]:
        values, data = values_and_data[: len(self.names)], values_and_data[len(self.names) :]
        shape = (len(values[0]), len(data[0]))
        trace = model_trace_of(
            self.model, trace_of(dict(zip(self.names, values, strict=True))), *data, num_samples=shape[0]
        )
        return sum_of_sites(trace, shape), *_pixels(trace).moments()


def _pixels(trace: Any) -> Pixels:
    return trace.nodes["_RETURN"]["value"]


def weigh(
    model: Program,
    posterior: Program,
    data: tuple[Tensor, ...],
    num_samples: int,
    num_draws: int,
    seed: int,
    compiled: bool | None = None,
) -> Restoration:
    """What self-normalised weights of samples of a posterior say of x."""
    statistics = LogMeanExp(len(data[0]), num_samples, device=data[0].device)
    means, deviations, draws = [], [], []
    with evaluating(model, posterior), seeded(seed):
        weights = LogWeights(model, posterior, *(t[:1] for t in data))
        scored = _Scored(model, weights.names)
        blocks = torch.arange(len(data[0]), device=data[0].device).split(BLOCK_DATA)
        for number, rows in enumerate(blocks):
            torch.manual_seed(seed_of(seed, number))
            filled = torch.arange(len(blocks[0]), device=rows.device) % len(rows)  # one graph serves all
            block = [t[rows[filled]] for t in data]
            log_q, *values = weights.draw(*block, num_samples=num_samples)
            log_w, mean, square = _moments(scored.function, log_q, values, block)
            if (log_w == -math.inf).all(0).any():
                row = int(rows[int((log_w == -math.inf).all(0).nonzero()[0])])
                raise ValueError(
                    f"y: expected images that this corruption can make of clean ones; got one that it can't, row {row}"
                )
            chosen = torch.multinomial(log_w.softmax(0).T, num_draws, replacement=True).T
            at = chosen, torch.arange(len(filled), device=rows.device)
            z = trace_of({name: value[at] for name, value in zip(weights.names, values, strict=True)})
            x = _pixels(model_trace_of(model, z, *block, num_samples=num_draws)).sample()
            n = len(rows)
            statistics.add(log_w[:, :n], rows)
            means.append(mean[:n])
            deviations.append((square - mean.square()).clamp(min=0).sqrt()[:n])
            draws.append(x[:, :n])
            if number == 0 and (compiled or (compiled is None and len(blocks) > 8)):
                weights.compile()
                scored.function = Compiled(scored.function, Constants(model).changed)
    khat = statistics.khat()
    log_p = PerDatum(
        statistics.log_mean().cpu(), statistics.standard_error().cpu() * widening(khat, statistics.count.cpu())
    )
    return Restoration(
        mean=torch.cat(means).clamp(0, 1).cpu(),
        std=torch.cat(deviations).cpu(),
        samples=torch.cat(draws, 1).clamp(0, 1).cpu(),
        log_p=log_p,
        ess=statistics.ess().cpu(),
        khat=khat,
        num_samples=num_samples,
    )


def _moments(
    scored: Callable[..., tuple[Tensor, ...]], log_q: Tensor, values: list[Tensor], block: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """log w (samples, data), E[x | y] and E[x^2 | y], a part of the samples after another."""
    log_w, log_sum, sums = torch.empty_like(log_q), log_q.new_full(log_q.shape[1:], -math.inf), None
    for part in torch.arange(len(log_q), device=log_q.device).split(ROUND_SAMPLES):
        log_p, mean, variance = scored(*(value[part] for value in values), *block)
        log_w[part] = log_p - log_q[part]
        before, log_sum = log_sum, torch.logaddexp(log_sum, log_w[part].logsumexp(0))
        finite = log_sum.clamp(min=torch.finfo(log_sum.dtype).min)  # while no weight is above 0
        w, kept = (log_w[part] - finite).exp().to(mean), (before - finite).exp().to(mean)
        new = torch.stack([torch.einsum("kd,kd...->d...", w, t) for t in (mean, variance + mean.square())])
        sums = new if sums is None else new + kept.reshape(-1, *(1,) * (mean.dim() - 2)) * sums
    assert sums is not None
    return log_w, sums[0], sums[1]
