"""Evaluate a trained run on its test set; save and load the results."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.encodings import Dequantize, Identity
from ppl_vae.data.noise import NoNoise
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.certificate import certify
from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.gaps import gap_decomposition, generalisation_gap
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.information import active_units, aggregate_posterior
from ppl_vae.evaluation.results import LogLikelihood, rungs_of
from ppl_vae.evaluation.sandwich import Sandwich, bidirectional
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.models import SemiSupervisedVAE
from ppl_vae.programs import evaluating
from ppl_vae.system.arrays import read_npz
from ppl_vae.system.files import check, read_json, to_json, write_checked
from ppl_vae.system.hashing import fingerprint
from ppl_vae.training.monitoring import elbo_parts

SIMULATED = 64  # data, to see what the ladder misses
ELBO_DRAWS = 16  # of each image, and their spread its error

METHODS = {"importance": "importance sampling from the guide", "ladder": "the ladder"}
PER_IMAGE = ("log_p", "mc_se", "ess", "khat", "num_samples")


def held_out(run: Run, num_images: int | None, seed: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The programs' arguments for the first test images, observed once under `seed`, and how that is named.

    Raises `ValueError` for an autoencoder.
    """
    if not run.model.has_log_p:
        raise ValueError(f"{run.config.model}: expected a VAE; got an autoencoder, which has no log p(x)")
    likelihood, encoding = run.assembly.likelihood, run.observe.encoding
    if not likelihood.support.is_discrete and not isinstance(encoding, Dequantize | Identity):
        raise ValueError(
            f"{run.config.likelihood}: expected images encoded by dequantize; got {run.config.encoding}, whose "
            "values are a discrete set, on which a density has no bound and is no likelihood"
        )
    images = run.dataset.test[:num_images]
    names = {"encoding": f"{run.observe.encoding!r}, seed {seed}", "source": fingerprint(images)}
    data = *run.observe.frozen(images, seed), *run.test_labels(num_images)
    return tuple(t.to(run.device) for t in data), names


def evaluate_run(
    run: Run,
    *,
    num_samples: int,
    num_images: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    **options: Any,
) -> tuple[LogLikelihood, dict[str, Any]]:
    """log p(x) of the first test images by `log_likelihood`, or by the ladder, `log_likelihood_within` a tolerance in
    nats (inf for any), with their `options`, and a summary of it for JSON.

    Raises `ValueError` for an autoencoder, and for an encoding under which the model has no likelihood.
    """
    data, names = held_out(run, num_images, seed)
    estimate = log_likelihood if tolerance is None else partial(log_likelihood_within, tolerance=tolerance)
    result = estimate(*run.programs, *data, num_samples=num_samples, seed=seed, **options)
    result = dataclasses.replace(result, **names)
    return result, summarise(run, result, data, seed)


def ladder_run(
    run: Run,
    *,
    num_samples: int,
    num_images: int | None = None,
    seed: int = 0,
    tolerance: float = math.inf,
    **options: Any,
) -> tuple[LogLikelihood, dict[str, Any]]:
    """The same by the ladder, and in the summary what it misses on as many data from the model, up to `SIMULATED`, as
    far as that can be told: the mean "gap" of its two bounds, in nats, or why there is "no_gap"."""
    sizes: dict[str, Any] = {"num_samples": num_samples, "seed": seed, **options}
    result, summary = evaluate_run(run, num_images=num_images, tolerance=tolerance, **sizes)
    if result.complete:
        try:
            data, _ = held_out(run, num_data := min(SIMULATED, len(result)), seed)
            sandwich = certify(*run.programs, *data, num_data=num_data, **sizes)
            summary |= {"gap": sandwich.gap, "gap_se": sandwich.gap_se, "gap_num_data": num_data}
        except ValueError as error:  # an autoregressive likelihood, noise that the guide sees, too few samples
            summary["no_gap"] = str(error)
    return result, summary


def anneal_run(
    run: Run, *, num_images: int | None = None, seed: int = 0, **options: Any
) -> tuple[LogLikelihood, dict[str, Any]]:
    """The same by `annealed_log_likelihood`, with its `options`."""
    data, names = held_out(run, num_images, seed)
    result = dataclasses.replace(annealed_log_likelihood(*run.programs, *data, seed=seed, **options), **names)
    return result, summarise(run, result, data, seed)


def sandwich_run(run: Run, *, num_images: int | None = None, seed: int = 0, **options: Any) -> Sandwich:
    """Both bounds of log p(x), by `bidirectional`, on data simulated from the model like its test images."""
    data, _ = held_out(run, num_images, seed)
    if not isinstance(run.observe.noise, NoNoise):
        raise ValueError(f"{run.config.noise}: expected a guide that sees x; got one that was trained to see it noisy")
    sandwich = bidirectional(*run.programs, *data, num_data=num_images or 64, seed=seed, **options)
    if not sandwich.upper.done.any():
        raise KeyboardInterrupt  # before anything was done that could be kept
    return sandwich


def gaps_run(
    run: Run,
    log_p: LogLikelihood,
    *,
    num_samples: int,
    num_images: int | None = None,
    seed: int = 0,
    num_steps: int = 300,
    **options: Any,
) -> dict[str, Any]:
    """Where log p(x) - ELBO comes from on the first test data, and what latents tell of them, for JSON, in nats per
    image. log_p is `evaluate_run`'s of them; as many training images are evaluated likewise, with its `options`.

    Raises `ValueError` as `evaluate_run` and `gap_decomposition` do, and for a log_p that was interrupted.
    """
    if not log_p.complete:
        raise ValueError(f"log_p: expected all samples of {len(log_p)} images; got work that was interrupted")
    if not run.has_its_own_data:
        raise ValueError(f"{run.dataset.name}: expected the data of the training, to tell the gap to it; got others")
    program, data = run.programs, held_out(run, num_images, seed)[0]
    gaps = gap_decomposition(*program, *data, log_p=log_p, seed=seed, num_steps=num_steps)
    images, labels = run.train_data(len(log_p))
    seen = Dataset(run.dataset.name, run.dataset.train, images, run.dataset.train_labels, *labels)
    trained = run.on(seen)
    train_log_p, _ = evaluate_run(trained, num_samples=num_samples, seed=seed, **options)
    generalisation, units = generalisation_gap(train_log_p, log_p), active_units(program[1], *data)
    aggregate = aggregate_posterior(*program, *data, seed=seed)
    parts = {name: getattr(gaps, name) for name in ("total", "approximation", "amortisation")}
    parts |= {name: getattr(aggregate, name) for name in ("kl", "mutual_information", "marginal_kl")}
    return {
        **{k: {"mean": part.mean, "mc_se": part.mc_se_of_mean} for k, part in parts.items()},
        "generalisation": dataclasses.asdict(generalisation),
        "active_units": units.num_active,
        "latent_size": units.ratios.numel(),
        "log_num_images": math.log(len(log_p)),
        "num_images": len(log_p),
        "num_steps": num_steps,
        "seed": seed,
    }


def summarise(run: Run, result: LogLikelihood, data: tuple[Tensor, ...], seed: int) -> dict[str, Any]:
    """A result for JSON, with the ELBO and its parts beside it, in nats per image, and how many units are active (None
    for more than one latent site). That none is, the posterior has collapsed, is told by a `RuntimeWarning`."""
    if not result.done.any():
        raise KeyboardInterrupt  # before anything was done that could be kept
    done = [t[result.done] for t in data]
    draws = [elbo_parts(*run.programs, *done, seed=seed_of(seed, i)) for i in range(ELBO_DRAWS)]
    elbos = torch.stack([parts.elbo.double().mean() for parts in draws])
    reconstruction, kl = (
        torch.stack([getattr(parts, name) for parts in draws]).double().mean().item()
        for name in ("reconstruction", "kl")
    )
    try:
        num_active = active_units(run.programs[1], *done).num_active
    except ValueError:  # one datum, or not one latent site on the reals
        num_active = None
    if num_active == 0:
        warnings.warn(
            f"posterior collapse: expected active units; got 0 of {run.config.latent_size}: latents hold no "
            "information on the data. Try a KL warm-up, free bits, a smaller beta or a weaker decoder",
            RuntimeWarning,
            stacklevel=2,
        )
    return {
        "likelihood": run.config.likelihood,
        "measure": result.measure,
        "space": result.space,
        "quantity": result.quantity,
        "given": result.given,
        "bound": result.bound,
        "encoding": result.encoding,
        "fingerprint": result.fingerprint,
        "source": result.source,
        "num_images": int(result.done.sum()),
        "num_samples": int(result.num_samples.max()),
        "least_samples": int(result.num_samples[result.done].min()),
        "complete": result.complete,
        "decoder_rows": result.decoder_rows,
        "seed": seed,
        "log_p": result.mean,
        "mc_se": result.mc_se_of_mean,
        "data_se": result.data_se_of_mean,
        "khat_over_limit": result.num_unreliable,
        "errors_hold": result.errors_hold,
        "elbo": elbos.mean().item(),
        "elbo_mc_se": elbos.std().item() / math.sqrt(ELBO_DRAWS),
        "reconstruction": reconstruction,
        "kl": kl,
        "active_units": num_active,
        "accuracy": _accuracy(run, data[0]),
        **({} if result.rung is None else {"rungs": rungs_of(result.rung)}),
    }


def _accuracy(run: Run, x: Tensor) -> float | None:
    """The share of the first test data, as observed, whose class a semi-supervised model finds, of those that have a
    label; None for other models, and without labels."""
    labels = run.dataset.test_labels
    if not isinstance(run.model, SemiSupervisedVAE) or labels is None:
        return None
    labels = labels[: len(x)].to(x.device)
    with evaluating(run.model.model):
        right = run.model.predict(x).logits.argmax(-1) == labels
    return right[labels >= 0].double().mean().item()


def evaluation_files(method: str = "importance", *, complete: bool = True) -> tuple[str, str]:
    """The names of the two files of an evaluation, for each method its own: its summary, and its numbers by datum.

    >>> evaluation_files(), evaluation_files("annealed", complete=False)[0]
    (('log_likelihood.json', 'log_likelihood.npz'), 'log_likelihood-annealed-partial.json')
    """
    stem = "log_likelihood" + (f"-{method}" if method != "importance" else "") + ("" if complete else "-partial")
    return f"{stem}.json", f"{stem}.npz"


def save_evaluation(
    folder: Path,
    result: LogLikelihood,
    summary: dict[str, Any],
    *,
    method: str = "importance",
    settings: Mapping[str, float] = MappingProxyType({}),
) -> Path:
    """Writes a summary with the settings of its method, and per datum log_p, mc_se, ess, khat and num_samples, to the
    files of `evaluation_files`. Returns the path of the summary."""
    arrays = io.BytesIO()
    np.savez(arrays, **{name: getattr(result, name).numpy() for name in PER_IMAGE})
    summary = summary | {"method": method, **settings, "versions": versions()}
    name, per_datum = evaluation_files(method, complete=result.complete)
    write_checked(folder, {per_datum: arrays.getvalue(), name: to_json(summary)})
    return folder / name


def evaluate_once(
    run: Run,
    folder: Path,
    method: str,
    sizes: Mapping[str, int],
    *,
    say: Callable[[str], object] = lambda text: None,
    **options: Any,
) -> tuple[LogLikelihood, dict[str, Any]]:
    """A run's evaluation by importance sampling or the ladder, and its summary: from its folder where one of just these
    sizes is whole, and else computed, and written there unless there is one of more."""
    if (known := evaluated(folder, method=method, **sizes)) is not None:
        return load_evaluation(folder, method), known
    evaluate = {"importance": evaluate_run, "ladder": ladder_run}[method]
    say(f"by {METHODS[method]}")
    result, summary = evaluate(run, **sizes, **options)
    if not result.complete:
        raise KeyboardInterrupt  # and not kept: the next time it would be taken for a whole one
    settings = {"num_samples": sizes["num_samples"]}
    if not outranks(folder / evaluation_files(method)[0], {**settings, "num_images": sizes["num_images"]}):
        save_evaluation(folder, result, summary, method=method, settings=settings)
    return result, summary


def outranks(path: Path, settings: Mapping[str, float]) -> bool:
    """Whether the finished result at `path` is of more of something than `settings` (of a tolerance: less): it is then
    not to be replaced unasked. False for a damaged one, and where there is none."""
    try:
        check(path.parent, path.name)
        stored = read_json(path)
    except (OSError, ValueError):
        return False

    def more(name: str, value: float) -> bool:
        known = stored.get(name)
        return isinstance(known, int | float) and (known < value if name == "tolerance" else known > value)

    return stored.get("complete", True) is True and any(more(name, value) for name, value in settings.items())


def output_of(run: Run, folder: Path) -> Path:
    """The folder for what is computed of a run and its data: its own, or one below it for other data."""
    return folder if run.has_its_own_data else folder / f"on-{run.dataset.name}"


def evaluated(
    folder: Path, *, num_samples: int, num_images: int, seed: int, method: str = "importance"
) -> dict[str, Any] | None:
    """The summary of the evaluation in a run folder, if it is just this one, by importance sampling or the ladder, and
    whole."""
    bound = {"importance": "lower (importance-weighted", "ladder": "lower (by rung of a ladder"}[method]
    try:
        check(folder, *evaluation_files(method))
        summary = read_json(folder / evaluation_files(method)[0])
    except (OSError, ValueError):  # one that is damaged is made again
        return None
    asked = {"num_samples": num_samples, "num_images": num_images, "seed": seed, "complete": True}
    same = all(summary.get(name) == value for name, value in asked.items())
    return summary if same and summary.get("bound", "").startswith(bound) else None


def load_evaluation(folder: Path, method: str = "importance") -> LogLikelihood:
    """The result of a method that `ppl-vae evaluate` left in a run folder.

    Raises `FileNotFoundError` where it left none, and `ValueError` for files that are damaged.
    """
    names = evaluation_files(method)
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder}: expected {name}, as ppl-vae evaluate writes it; got a folder without it"
            )
    check(folder, *names)
    summary, path = read_json(folder / names[0]), folder / names[1]
    try:
        arrays = read_npz(path, PER_IMAGE)
    except ValueError as error:
        raise ValueError(f"{path}: expected an evaluation; got {str(error).removeprefix(f'{path}: ')}") from None
    kinds = {name: np.dtype(np.int64 if name == "num_samples" else np.float64) for name in PER_IMAGE}
    shapes = {array.shape for array in arrays.values()}
    if {name: array.dtype for name, array in arrays.items()} != kinds or len(shapes) > 1 or len(shapes.pop()) != 1:
        got = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{path}: expected an evaluation, {', '.join(PER_IMAGE)} (images,); got {got or 'nothing'}")
    text = dict.fromkeys(("measure", "encoding", "fingerprint", "bound", "source", "space", "quantity", "given"), str)
    others = {**text, "decoder_rows": int, "complete": bool}
    summary = {
        "space": "",
        "quantity": "log p(x)",
        "given": "",
        "complete": bool((arrays["num_samples"] > 0).all()),
        **summary,
    }  # of older versions
    for name, kind in others.items():
        if type(summary.get(name)) is not kind:
            got = str(summary.get(name))[:100]
            raise ValueError(f"{folder / names[0]}: {name}: expected {kind.__name__}; got {got!r}")
    fields: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return LogLikelihood(**fields, **{name: summary[name] for name in others})
