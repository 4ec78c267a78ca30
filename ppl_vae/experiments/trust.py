"""Accuracy and cost of the estimators of log p(x): the trained VAEs of a study, by every method.

On the same few test images: the ELBO, importance sampling with ever more samples, and annealing from the guide and
from the prior; on data simulated from each model, where the truth can be bracketed, annealing from both sides; and
where z has two dimensions, the error of each against quadrature.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ppl_vae.data.loading import load
from ppl_vae.data.noise import NoNoise
from ppl_vae.evaluation.quadrature import MAX_SIZE, log_p_by_quadrature
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.experiments.evaluating import anneal_run, evaluate_run, held_out, sandwich_run
from ppl_vae.experiments.folders import kept_epoch
from ppl_vae.experiments.runs import Run, load_run, versions
from ppl_vae.experiments.settings import TrustConfig
from ppl_vae.system.files import read_json, write_json
from ppl_vae.system.signals import attempted

OF_EXACT = ("most_samples", "tolerances")  # what concerns VAEs alone whose log p(x) is known exactly


def run_trust(
    study: Path,
    config: TrustConfig,
    *,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluates the VAEs of the study in the folder `study`; writes `trust.json` there.

    A VAE that is there already with the same weights and config, as far as it concerns it, is not evaluated again.
    One that fails is said, and in `trust.json` under "failed"; the others continue.
    Raises `FileNotFoundError` for a folder without a study.
    """
    if not (study / "metrics.json").is_file():
        raise FileNotFoundError(f"{study}: expected a finished study (ppl-vae run study); got no metrics.json there")
    dataset = load(read_json(study / "metrics.json")["config"]["dataset"], data_dir)
    path, asked = study / "trust.json", {k: _for_json(v) for k, v in dataclasses.asdict(config).items()}
    known = read_json(path) if path.is_file() else {"config": {}, "models": {}}
    changed = {name for name in asked if known["config"].get(name) != asked[name]}
    models: dict[str, Any] = {
        name: {"versions": known.get("versions"), **row}
        for name, row in known["models"].items()
        if not changed - set(OF_EXACT if "exact" not in row else ())
    }
    failed: dict[str, str] = {}

    def save() -> None:
        write_json(path, {"config": asked, "models": models, "failed": failed})

    for folder in sorted(p.parent for p in study.glob("*/weights.safetensors")):
        with attempted(folder.name, failed, say):
            run = load_run(folder, dataset=dataset, device=device)
            trained = kept_epoch(run.metrics)  # other weights leave other numbers here
            if folder.name in models and models[folder.name].get("trained", trained) == trained:
                continue
            # A guide that sees noisy images has no simulated ones to see: the others are enough to compare methods.
            if run.model.has_log_p and isinstance(run.observe.noise, NoNoise):
                say(f"{study.name} {folder.name}: log p(x) of {config.num_images} images by every method")
                row = {"versions": versions(), "trained": trained, **trust_of(run, config)}
                models = dict(sorted({**models, folder.name: row}.items()))
                save()
    if failed != known.get("failed", {}):
        save()
    return models


def trust_of(run: Run, config: TrustConfig) -> dict[str, Any]:
    """Every method on one VAE, for JSON: nats per image, with Monte Carlo errors, decoder rows and seconds.

    Where z has one or two dimensions log p(x) is known by quadrature, and each row has its error against it.
    """
    images: dict[str, Any] = {"num_images": config.num_images, "seed": config.seed}
    chains: dict[str, Any] = {k: getattr(config, k) for k in ("num_chains", "num_steps", "leapfrog_steps")}
    exact = None
    if run.config.latent_size <= MAX_SIZE:
        data, _ = held_out(run, config.num_images, config.seed)
        exact = log_p_by_quadrature(run.model.model, *data)

    def row(evaluate: Callable[..., tuple[LogLikelihood, dict[str, Any]]], **options: Any) -> dict[str, Any]:
        start = time.perf_counter()
        result, summary = evaluate(run, **options, **images)
        seconds = round(time.perf_counter() - start, 3)
        if not result.complete:
            raise KeyboardInterrupt  # and not kept: the next time it would be taken for a whole one
        error = None if exact is None else (result.log_p - exact).square().mean().sqrt().item()
        kept = ("num_samples", "log_p", "mc_se", "khat_over_limit", "decoder_rows", "elbo", "measure")
        return {name: summary[name] for name in kept} | {"rms_error": error, "seconds": seconds}

    importance = [row(evaluate_run, num_samples=K) for K in config.num_samples]
    annealed = {start: row(anneal_run, start=start, **chains) for start in ("guide", "prior")}
    start = time.perf_counter()
    sandwich = sandwich_run(run, start="better", **chains, **images)
    if not sandwich.upper.complete:
        raise KeyboardInterrupt
    trust = {
        "likelihood": run.config.likelihood,
        "measure": importance[0]["measure"],
        "elbo": importance[0]["elbo"],
        "importance": importance,
        "annealed": annealed,
        "sandwich": {
            "lower": sandwich.lower.mean,
            "upper": sandwich.upper.mean,
            "gap": sandwich.gap,
            "gap_se": sandwich.gap_se,
            "seconds": round(time.perf_counter() - start, 1),
        },
    }
    if exact is None:
        return trust
    return trust | {
        "exact": exact.mean().item(),
        "most": row(evaluate_run, num_samples=config.most_samples),
        "tolerance": [
            {"tolerance": tolerance, **row(evaluate_run, num_samples=100, max_samples=1600, tolerance=tolerance)}
            for tolerance in config.tolerances
        ],
    }


def _for_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
