"""Clean images from corrupted ones by inference: p(clean | corrupted), for any Pyro pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ppl_vae.contract import tensors_of
from ppl_vae.evaluation.corrupted import Clean, CorruptedGuide, CorruptedModel, Corruption, Observation, Units
from ppl_vae.evaluation.results import PerDatum, num_over_limit, over_limit, rungs_of
from ppl_vae.evaluation.weighing import infer
from ppl_vae.programs import Program
from ppl_vae.system.hashing import chunks


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
        num_samples: K, shape (data,).
        rung: what was sampled, its number in `RUNGS` (the guide, the refined posterior, or chains annealed from it),
            shape (data,).
    """

    mean: Tensor
    std: Tensor
    samples: Tensor
    log_p: PerDatum
    ess: Tensor
    khat: Tensor
    num_samples: Tensor
    rung: Tensor

    def __len__(self) -> int:
        return len(self.ess)

    @property
    def num_unreliable(self) -> int | None:
        """How many images have a k-hat over its limit, or None where K < 25 leaves one unknown."""
        return num_over_limit(self.khat, self.num_samples)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in rungs_of(self.rung).items())
        text = (
            f"{len(self)} images restored ({counts}); median ESS {self.ess.median().item():.1f} of "
            f"{int(self.num_samples.median())}; log p(y) = {self.log_p.mean:.3f} nats per image, Monte Carlo s.e. "
            f"{self.log_p.mc_se_of_mean:.3f}"
        )
        if unknown := int(self.khat.isnan().sum()):
            text += f"\nwarning: k-hat unknown for {unknown} of {len(self)} images: take 25 num_samples or more"
        if over := int(over_limit(self.khat, self.num_samples).sum()):
            text += (
                f"\nwarning: k-hat over its limit for {over} of {len(self)} images: log p(y) may be too low and std "
                "too small. Take more num_samples, num_starts or num_newton"
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
    climb: bool = True,
    seed: int = 0,
    **fitting: Any,
) -> Restoration:
    """E[x | y] of images y that were corrupted in a known way, its uncertainty, draws of x, and log p(y), by

        p(x | y) ~ int p(z) p(x | z) p(y | x) dz:

    the model is a prior of clean images, and the corruption a likelihood. Nothing is trained on corrupted images. The
    posterior of z is found by `refine_modes` from prior draws and the guide at y, and corrected by self-normalised
    importance weights. Images for which pilot samples have a k-hat over its limit get 4 and 16 times as many samples,
    and where that does not help either, chains that are annealed from the posterior that was found, 128 in 25, 100 or
    400 steps: z where they end, with their weights. `result.rung` tells where each image stands. Weights are of other
    samples than the pilots'.

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
        climb: whether images whose k-hat is over its limit get more than K samples, and chains: for the sake of log
            p(y) and std, which are too small in such images without it. It takes a few times as long, for one that is
            annealed up to a hundred times; and of digits with much noise it changes the squared error of the mean by
            less than that varies from image to image. For means of many images, climb=False.
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
    sizes: dict[str, Any] = {"num_samples": num_samples, "num_draws": num_draws, "climb": climb, "seed": seed}
    found = infer(pair[0], pair[1], data, **sizes, **fitting)
    mean, square = found.averages
    return Restoration(
        mean=mean.clamp(0, 1),
        std=(square - mean.square()).clamp(min=0).sqrt(),
        samples=found.samples.clamp(0, 1),
        **{name: getattr(found, name) for name in ("log_p", "ess", "khat", "num_samples", "rung")},
    )


def _check(how: Observation, y: Tensor) -> None:
    """Raises `ValueError` for images, or a corruption, that there is no likelihood of."""
    if not y.is_floating_point():
        raise ValueError(f"y: expected floats in [0, 1]; got {y.dtype}. Of 8-bit images, give y / 255")
    num_missing, low, high = 0, math.inf, -math.inf
    for part in chunks(y):
        missing = part.isnan()
        num_missing += int(missing.flatten(1).any(1).sum())
        shown = part.where(~missing, 0.5)
        low, high = min(low, shown.min().item()), max(high, shown.max().item())
    if num_missing and not how.corruption.hides:
        raise ValueError(
            f"y: expected numbers; got NaN in {num_missing} images. Where that means pixels "
            "that are missing, say so: corruption=Then(Missing(), noise)"
        )
    if low < 0 or high > 1:
        raise ValueError(f"y: expected values in [0, 1]; got {low:.4g} to {high:.4g}")
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
