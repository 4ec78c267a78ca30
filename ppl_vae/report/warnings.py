"""What a reader has to know before any number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppl_vae.experiments.folders import (
    best_evaluation,
    best_evaluations,
    checked_json,
    kept_epoch,
    name_in,
    name_of,
    runs_of,
)
from ppl_vae.training.monitoring import COLLAPSED


def warnings_of(folder: Path) -> list[str]:
    """Warnings on a folder and the runs in it, a sentence each."""
    name = name_of(folder)
    metrics = checked_json(folder, "metrics.json") if (folder / "metrics.json").is_file() else {}
    found = [f"{name}: {part} failed: {why}" for part, why in metrics.get("failed", {}).items()]
    evaluations = dict(metrics.get("log_likelihood", {}))
    for run in runs_of(folder):
        if (evaluation := best_evaluation(run)) is not None:
            evaluations.setdefault(name_in(folder, run), evaluation)
        kl = kept_epoch(checked_json(run, "metrics.json")).get("validation_kl")
        if kl is not None and 0 < kl < COLLAPSED:  # an autoencoder has no KL
            found.append(
                f"{name_in(folder, run)}: posterior collapse: KL(q(z|x) || p(z)) is {kl:.2g} nats, so latents hold no "
                "information on x"
            )
    found += _of_evaluations(name, best_evaluations(evaluations, lambda run: folder if run == name else folder / run))
    if metrics.get("config", {}).get("seeds", [0])[1:] == [] or "denoising" in metrics:
        found.append(f"{name}: one training run of each model, so the spread between seeds is not known")
    return found


def _of_evaluations(folder: str, evaluations: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    unsure = [f"{name} ({e['khat_over_limit']} of {e['num_images']})" for name, e in evaluations.items()
              if e["khat_over_limit"]]  # fmt: skip
    if unsure:
        yield (
            f"{folder}: k̂ over its limit for images of {', '.join(unsure)}: their log p(x) may be too low, "
            "that of the other images too"
        )
    unknown = [name for name, e in evaluations.items() if e["khat_over_limit"] is None]
    if unknown:
        yield f"k̂ unknown, of too few samples: {', '.join(unknown)}"
    for name, e in evaluations.items():
        if e.get("errors_hold") is False:
            yield f"{name}: Monte Carlo errors are too small: parts of the samples differ by more than they say"
        if "interrupted" in e["bound"]:
            yield f"{name}: the evaluation was interrupted"
