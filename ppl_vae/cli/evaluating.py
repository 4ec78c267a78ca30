"""`ppl-vae evaluate`: log p(x), shown in any case, and written where it replaces nothing larger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppl_vae.cli.options import EvaluateCommand
from ppl_vae.cli.plugins import setup_of
from ppl_vae.cli.terminal import say
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.evaluation.separation import auroc
from ppl_vae.experiments.evaluating import (
    SIMULATED,
    anneal_run,
    evaluate_run,
    evaluation_files,
    gaps_run,
    ladder_run,
    load_evaluation,
    output_of,
    outranks,
    sandwich_run,
    save_evaluation,
)
from ppl_vae.experiments.exact import integrate_run
from ppl_vae.experiments.runs import Run
from ppl_vae.experiments.tracking import tell
from ppl_vae.report.figures import draw_histograms
from ppl_vae.report.sections import gaps_lines
from ppl_vae.report.words import evaluation_lines
from ppl_vae.system.executors import executor_of
from ppl_vae.system.files import writable, write_json
from ppl_vae.training.trackers import tracker_of

FEW, SOME = 100, 500  # images, where each takes seconds, and where it takes some tenths of one


def evaluate(options: EvaluateCommand) -> None:
    tracker = options.tracker and tracker_of(options.tracker)()
    run = options.load()
    output = writable(options.output or output_of(run, options.run))
    with executor_of(options.executor, output.absolute(), setup_of(options.plugin)) as executor:
        _evaluate(options, run, output, {} if executor is None else {"executor": executor})
    if tracker:
        tell(tracker, options.run)


def _evaluate(options: EvaluateCommand, run: Run, output: Path, apart: dict[str, Any]) -> None:
    if options.method == "sandwich":
        _sandwich(options, run, output)
        return
    method = "tolerance" if options.tolerance is not None else options.method
    num_images = min(len(run.dataset.test), options.num_images or _default(options) or len(run.dataset.test))
    chains: dict[str, Any] = {"num_chains": options.num_chains, "num_steps": options.num_steps}
    of_method: dict[str, dict[str, float]] = {
        "importance": {"num_samples": options.num_samples},
        "ladder": {"num_samples": options.num_samples},
        "tolerance": {"tolerance": options.tolerance or 0.0},
        "annealed": chains,
        "quadrature": {},
    }
    settings = of_method[method]
    is_kept = _is_kept(output / evaluation_files(method)[0], options, {"num_images": num_images, **settings})
    shared: dict[str, Any] = {"num_images": num_images, "seed": options.seed, "show_progress": True, **apart}
    if method == "annealed":
        result, summary = anneal_run(run, **chains, **shared)
    elif method == "quadrature":
        result, summary = integrate_run(run, **shared)
    else:
        sizes = {"num_samples": options.num_samples, **shared}
        if method == "importance":
            result, summary = evaluate_run(run, **sizes)
        else:
            result, summary = ladder_run(run, tolerance=options.tolerance or math.inf, **sizes)
    for line in evaluation_lines(summary, median_ess=result.ess[result.done].median().item(), of=_data_of(run)):
        say(line)
    if not (is_kept and result.complete):
        path = save_evaluation(output, result, summary, method=method, settings=settings)
        say(f"Written to {path}, and by datum to {path.with_suffix('.npz').name}")
    if not result.complete:
        raise KeyboardInterrupt
    if not run.has_its_own_data:
        _separation(options, run, output, method, result)
    if options.gaps:
        _gaps(options, run, output, result, shared)


def _data_of(run: Run) -> str:
    return f"{'images' if run.is_of_images else 'vectors'} of {run.dataset.name}"


def _default(options: EvaluateCommand) -> int | None:
    """How many images, None for all: such that it ends in minutes."""
    if options.gaps or options.tolerance is not None or options.method in ("annealed", "quadrature"):
        return FEW
    return SOME if options.method == "ladder" else None


def _is_kept(path: Path, options: EvaluateCommand, settings: Mapping[str, float]) -> bool:
    if options.overwrite or not outranks(path, settings):
        return False
    say(
        f"{path} has more images or samples than are asked for: it is kept, and what is computed now is only shown "
        "(--overwrite replaces it, --output FOLDER writes elsewhere)"
    )
    return True


def _sandwich(options: EvaluateCommand, run: Run, output: Path) -> None:
    num_data = options.num_images or SIMULATED
    settings = {"num_data": num_data, "num_chains": options.num_chains, "num_steps": options.num_steps}
    is_kept = _is_kept(output / "sandwich.json", options, settings)
    sandwich = sandwich_run(
        run,
        num_images=num_data,
        num_chains=options.num_chains,
        num_steps=options.num_steps,
        seed=options.seed,
        show_progress=True,
    )
    say(str(sandwich))
    complete = sandwich.lower.complete and sandwich.upper.complete
    if not (is_kept and complete):
        path = output / ("sandwich.json" if complete else "sandwich-partial.json")
        bounds = {"lower": sandwich.lower.mean, "upper": sandwich.upper.mean, "gap_se": sandwich.gap_se}
        write_json(path, {**bounds, **settings, "seed": options.seed, "complete": complete})
        say(f"Written to {path}")
    if not complete:
        raise KeyboardInterrupt


def _separation(options: EvaluateCommand, run: Run, output: Path, method: str, result: LogLikelihood) -> None:
    """How these data differ in log p(x) from those of the training, where those have been evaluated likewise."""
    try:
        own = load_evaluation(options.run, method)
    except FileNotFoundError:
        return
    if (own.measure, own.quantity) != (result.measure, result.quantity):
        return
    trained, area = run.config.dataset, auroc(own.log_p, result.log_p)
    say(
        f"{len(own)} test data of {trained} have a higher log p(x) than these with probability {area[0]:.3f} ± "
        f"{area[1]:.3f} (AUROC); 0.5 tells nothing apart, and below it these are the likelier ones: log p(x) alone is "
        "no test of what is like the training data"
    )
    values = {trained: own.log_p.numpy(), run.dataset.name: result.log_p.numpy()}
    say(str(draw_histograms(output, values, f"log p(x) under {options.run.name}, trained on {trained}")))


def _gaps(options: EvaluateCommand, run: Run, output: Path, result: LogLikelihood, shared: dict[str, Any]) -> None:
    is_kept = _is_kept(output / "gaps.json", options, {"num_images": len(result)})
    tolerance = options.tolerance or (math.inf if options.method == "ladder" else None)
    gaps = gaps_run(run, result, num_samples=options.num_samples, tolerance=tolerance, **shared)
    for line in gaps_lines(gaps):
        say(line)
    if not is_kept:
        write_json(output / "gaps.json", gaps)
        say(f"Written to {output / 'gaps.json'}")
