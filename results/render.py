"""Renders results/README.md from the numbers on disk, and the list of components that --help shows.

python results/render.py
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppl_vae.evaluation.results import PerDatum
from ppl_vae.experiments.evaluating import load_evaluation
from ppl_vae.experiments.folders import QUALITY, best_evaluation, checked_json
from ppl_vae.experiments.listing import components
from ppl_vae.report.markdown import table
from ppl_vae.report.sections import SECTIONS, versions
from ppl_vae.report.tables import quality_table
from ppl_vae.system.files import read_json, write_json

ROOT = Path(__file__).parents[1]
ROUNDING = 1e-5  # nats, of float32

CONTENDERS = {
    "ours": "this package",
    "ours_eager": "this package, not compiled",
    "ours_two_ranks": "this package, two processes of one thread",
    "svi_compiled": "Pyro's SVI with `CompiledTrace_ELBO`",
    "pyro_svi": "Pyro's SVI, images in memory",
    "pyro_tutorial": "Pyro's tutorial, with its data loader",
    "pyro_vectorized": "Pyro's vectorised handlers",
    "pyro_naive": "Pyro, one sample after another",
    "by_hand": "torch by hand",
    "by_hand_compiled": "torch by hand, `torch.compile`",
    "numpyro_jit": "NumPyro under jit",
    "pythae": "pythae",
    "bare_products": "the bare products (the floor)",
}

TARGETS = [
    # case, contender, and the least of its time in units of this package's
    ("dense 400-20, batch 128", "pyro_svi", 2.4),
    ("dense 400-20, batch 128", "pyro_tutorial", 8.0),
    ("dense 400-20, batch 128", "by_hand_compiled", 1.0),
    ("dense 400-20, batch 128", "numpyro_jit", 1.0),
    ("dense 400-20, batch 128", "bare_products", 1 / 1.8),
    ("conv, batch 128", "pyro_svi", 1.6),
    ("dense 400-20, K = 1,000", "pythae", 6.0),
    ("dense 400-20, K = 1,000", "pyro_vectorized", 1.9),
    ("dense 400-20, K = 1,000", "numpyro_jit", 1.4),
    ("dense 400-20, K = 1,000", "bare_products", 1 / 1.6),
]


def results_page(results: Path) -> str:
    """`results/README.md`, from the experiments and benchmarks below it."""
    lines = [
        "# Results",
        "",
        "Rendered from the `metrics.json` files by `python results/render.py`. Beside each lie the runs that it "
        "summarises: config, seed, versions, history by epoch and figures; of the study also the weights.",
        "",
    ]
    if (results / "swaps" / "categorical.py").is_file():
        lines += [
            "The runs of the categorical likelihood are by [swaps/categorical.py](swaps/categorical.py), which takes "
            "its last layer in parts: each step and estimate is that of `ppl-vae run swaps` to rounding.",
            "",
        ]
    found = [(path.parent, read_json(path)) for path in sorted(results.glob("*/*/metrics.json"))]
    for key, section in SECTIONS.items():
        for folder, metrics in found:
            if key in metrics:
                lines.append(section(folder).replace(f"({folder.name}/", f"({folder.parent.name}/{folder.name}/"))
    lines += refit_lines(results)
    lines += quality_lines(results)
    if (results / "calibration" / "calibration.json").is_file():
        lines += calibration_section(results / "calibration")
    if (results / "benchmarks" / "benchmarks.json").is_file():
        lines += benchmark_section(results / "benchmarks")
    return "\n".join(lines).rstrip() + "\n"


def calibration_section(folder: Path) -> list[str]:
    """Whether the stated errors hold, from `calibration.json`."""
    calibration = read_json(folder / "calibration.json")

    def number(value: float | None, digits: str) -> str:
        return "—" if value is None else format(value, digits)

    rows = [
        [
            f"{row['data']}: {row['guide']}",
            row["method"],
            f"{row['num_samples']:,}",
            number(row["coverage"], ".0%"),
            f"{row['mean_error']:+.3f} ± {row['mean_error_se']:.3f}",
            number(row["rms_error"], ".3f"),
            number(row["sd_of_z"], ".2f"),
            number(row["over_limit"], ".0%"),
        ]
        for row in calibration["rows"]
    ]
    head = ["data: guide", "method", "K", "coverage", "mean error", "rms error", "sd of z", "k̂ over"]
    return [
        "## Calibration",
        "",
        "Errors of log p(x) against exact values (closed form, or quadrature), in nats per datum, and the share of the "
        "stated 95 % intervals that cover them. `compare` is a paired difference to another model. The errors of "
        "importance sampling widen by the share of data whose k̂ is over its limit; where that is large the estimate is "
        "biased, and no error helps. By `python results/calibration/run.py`; "
        f"{versions(calibration)}.",
        "",
        table(head, rows),
        "",
        *ladder_lines(folder.parent / "study"),
    ]


def refit_lines(results: Path) -> list[str]:
    """Priors that were fitted afterwards, from `refit/DATASET/MODEL/PRIOR`, beside the study's model with its own; both
    scored by the ladder, on the same images."""
    rows, pictures = [], []
    for path in sorted(results.glob("refit/*/*/*/refit.json")):
        run, fit = path.parent, read_json(path)
        base = results / "study" / run.parts[-3] / run.parts[-2]
        before, after = (load_evaluation(folder, "ladder") for folder in (base, run))
        if before.fingerprint != after.fingerprint:
            raise ValueError(f"{run}: expected an evaluation of the images of {base}; got another")
        gain = PerDatum.of(after) - PerDatum.of(before)
        cells = [run.parts[-3], run.parts[-2], fit["from"]["prior"], fit["prior"]]
        cells += [f"{fit['elbo_gain']:+.2f} ± {fit['elbo_gain_se']:.2f}", f"{before.mean:.2f}", f"{after.mean:.2f}"]
        rows.append([*cells, f"{gain.mean:+.2f} ± {gain.data_se_of_mean:.2f}", f"{after.num_unreliable}/{len(after)}"])
        picture = run / "figures" / "samples-before-and-after.png"
        if picture.is_file():
            pictures += [f"![Samples before and after: {fit['prior']}]({picture.relative_to(results)})", ""]
    if not rows:
        return []
    columns = ["dataset", "model", "prior", "fitted afterwards", "ELBO, validation", "log p(x)", "after", "gain"]
    text = (
        "The study's models, whose encoder, decoder and likelihood stay as they are, with another prior that is fitted "
        "to the latents of the training images (`ppl-vae refit-prior`). Nats per image: the gain of the ELBO on "
        "validation images ± s.e., log p(x) by the ladder on the same test images, its paired gain ± s.e. over them, "
        "and for how many k̂ is over its limit after the fit."
    )
    return ["## Priors fitted afterwards", "", table([*columns, "k̂ over limit"], rows), "", text, "", *pictures]


def quality_lines(results: Path) -> list[str]:
    """How good samples are beside log p(x), from the `quality*.json` of runs, a table for each set of features, number
    of samples and kind of them."""
    tables: dict[tuple[str, str, bool, int], dict[str, Any]] = {}
    for path in sorted([*results.glob("*/*/*/quality*.json"), *results.glob("*/*/*/*/quality*.json")]):
        quality = read_json(path)
        of = quality["features"]["fingerprint"], quality["dataset_fingerprint"]
        key = *of, path.name == QUALITY[1], quality["num_data"]
        run = path.parent.relative_to(results).as_posix()
        experiment = path.parents[1] / "metrics.json"
        known = read_json(experiment).get("log_likelihood", {}) if experiment.is_file() else {}
        log_p = best_evaluation(path.parent, known.get(path.parent.name))
        tables.setdefault(key, {})[run] = quality | {"log_p": log_p}
    lines = []
    for (_, _, draws, number), rows in tables.items():
        first = next(iter(rows.values()))
        kind = "x ~ p(x|z), beside data as the likelihood sees them" if draws else "E[x|z]"
        likelihoods = {name: row["log_p"] for name, row in rows.items() if row["log_p"]}
        shown = {name: f"{of['log_p']:.2f} ({of['measure']})" for name, of in likelihoods.items()}
        classifier = first["features"]
        lines += [
            f"### {first['dataset']}: {'draws' if draws else 'means'}",
            "",
            quality_table(rows, shown),
            "",
            f"{number:,} samples, {kind}, against as many test images, on features of {classifier['name']} (right for "
            f"{classifier['accuracy']:.1%} of test images, fingerprint {classifier['fingerprint']}); {versions(first)}."
            + ranks(rows, likelihoods),
            "",
        ]
    text = (
        "By `ppl-vae quality`, of runs whose weights are here, with k = 5 neighbours; ± s.e. over images and samples. "
        "Training images in the place of samples show what can be reached. Figures compare within a table alone: "
        "features are those of a small classifier of the same images, whose file is in study."
    )
    return ["## Sample quality", "", text, "", *lines] if lines else []


def ranks(rows: dict[str, Any], likelihoods: dict[str, Any]) -> str:
    """Whether the model of the highest log p(x) has the best samples too, of those with a mass of the same images."""
    shared = Counter(of["fingerprint"] for of in likelihoods.values() if of["measure"] == "mass").most_common(1)
    names = [name for name, of in likelihoods.items() if of["fingerprint"] == shared[0][0]] if shared else []
    if len(names) < 2:
        return ""

    def best(value: Callable[[str], float]) -> str:
        return max(names, key=value)

    return (
        f" Of models with log p(x) of the same images, {best(lambda n: likelihoods[n]['log_p'])} has the highest, "
        f"{best(lambda n: -rows[n]['quality']['frechet']['value'])} the smallest Fréchet distance, and "
        f"{best(lambda n: rows[n]['quality']['coverage']['value'])} the highest coverage."
    )


def ladder_lines(study: Path) -> list[str]:
    """How far up the ladder images went, a row a run; and its errors by image, of the runs of which quadrature tells
    log p(x) of the same images."""
    rows, lines = [], []
    for path in sorted(study.glob("*/*/log_likelihood-ladder.npz")):
        run = path.parent
        summary = checked_json(run, "log_likelihood-ladder.json")
        with np.load(path) as ladder:
            log_p, mc_se, num_samples = (ladder[name] for name in ("log_p", "mc_se", "num_samples"))
        shares = (num_samples > summary["num_samples"]).mean(), summary["rungs"].get("annealed", 0) / len(log_p)
        over = summary["khat_over_limit"] / len(log_p)
        rows.append([run.parent.name, run.name, str(len(log_p)), *(f"{share:.1%}" for share in (*shares, over))])
        exact_path = run / "log_likelihood-quadrature.npz"
        if not exact_path.is_file():
            continue
        exact_summary = checked_json(run, "log_likelihood-quadrature.json")
        if summary["fingerprint"] != exact_summary["fingerprint"]:
            continue
        with np.load(exact_path) as exact:
            error = log_p - exact["log_p"]
        lines += [
            f"The ladder on {len(error):,} test images of {run.parent.name}, {run.name}, against quadrature: rms error "
            f"by image {np.sqrt(np.square(error).mean()):.3f} nats, the largest {np.abs(error).max():.2f}; the stated "
            f"95 % intervals cover {np.mean(np.abs(error) <= 1.96 * mc_se + ROUNDING):.1%}.",
            "",
        ]
    columns = ["dataset", "model", "images", "of the refined posterior with more samples", "annealed", "k̂ over limit"]
    text = "How far up the ladder images went; the others stand on the refined posterior with the samples asked for:"
    return [text, "", table(columns, rows), "", *lines] if rows else []


def ratios(case: dict[str, Any], contender: str) -> tuple[float, float, float]:
    """Quartiles of a contender's time in units of this package's, taken within each round."""
    times = zip(case["seconds"][contender], case["seconds"]["ours"], strict=True)
    low, middle, high = statistics.quantiles([theirs / ours for theirs, ours in times], n=4, method="inclusive")
    return low, middle, high


def benchmark_table(benchmarks: dict[str, Any], *, spread: bool = False) -> str:
    """Time in units of this package's, the median over rounds and with `spread` its quartiles, a row a contender."""
    cases = benchmarks["cases"]

    def cell(case: dict[str, Any], contender: str) -> str:
        if contender == "ours":
            seconds = statistics.median(case["seconds"]["ours"])
            return f"{seconds * 1e3:.2f} ms" if case["unit"] == "step" else f"{seconds * 1e6:.2f} µs"
        if contender not in case["seconds"]:
            return "—"
        low, middle, high = ratios(case, contender)
        return f"{middle:.2f}" + (f" [{low:.2f}, {high:.2f}]" if spread else "")

    present = [name for name in CONTENDERS if any(name in case["seconds"] for case in cases)]
    rows = [[CONTENDERS[name], *(cell(case, name) for case in cases)] for name in present]
    return table(["", *(case["case"] for case in cases)], rows)


def target_table(benchmarks: dict[str, Any]) -> str:
    """What was to be reached, and what was."""
    cases = {case["case"]: case for case in benchmarks["cases"]}
    rows = []
    for name, contender, least in TARGETS:
        if contender in cases.get(name, {"seconds": {}})["seconds"]:
            _, reached, _ = ratios(cases[name], contender)
            verdict = "reached" if reached >= least else "not reached"
            rows.append([CONTENDERS[contender], name, f"≥ {least:.2f}", f"{reached:.2f}", verdict])
    return table(["contender", "case", "wanted", "measured", ""], rows)


def benchmark_section(folder: Path) -> list[str]:
    """How fast, from `benchmarks.json`."""
    benchmarks = read_json(folder / "benchmarks.json")
    return [
        "## Speed",
        "",
        "Time per training step, or per decoder row of importance sampling, in units of this package's (first row): "
        "the median over rounds, and its quartiles. Above 1 is slower than this package.",
        "",
        benchmark_table(benchmarks, spread=True),
        "",
        f"{benchmarks['rounds']} rounds, each contender in a process of its own, on {benchmarks['threads']} threads of "
        f"{benchmarks['processor']}; {versions(benchmarks)}. By `python tests/benchmarks --output results/benchmarks`.",
        "",
        target_table(benchmarks),
        "",
        *profile_lines(folder),
        *chunk_lines(folder),
    ]


def profile_lines(folder: Path) -> list[str]:
    """Where the time of a step goes, from `profile.json` if there is one."""
    if not (folder / "profile.json").is_file():
        return []
    profile = read_json(folder / "profile.json")
    seconds = profile["seconds"]
    rows = [[name, f"{t * 1e3:.2f}", f"{t / sum(seconds.values()):.0%}"] for name, t in seconds.items()]
    return [
        f"Where a step of this package goes ({profile['case']}, by torch's profiler, which slows it a little):",
        "",
        table(["", "ms", "share"], rows),
        "",
        "What is left above the products is bound by memory (Adam reads and writes seven numbers for each parameter) "
        "and by torch's generator, which draws one number after another. Next would be noise drawn in vectors, at the "
        "price of another stream than the uncompiled run's, and one call for the whole step in place of one a kernel.",
        "",
    ]


def chunk_lines(folder: Path) -> list[str]:
    """Time per decoder row by how many are decoded at a time, from `chunks.json` if there is one."""
    if not (folder / "chunks.json").is_file():
        return []
    found = read_json(folder / "chunks.json")["seconds"]
    sizes = list(next(iter(found.values())))
    rows = [[name, *(f"{seconds[size] * 1e6:.2f}" for size in sizes)] for name, seconds in found.items()]
    return [
        "Importance sampling by how many rows (samples x images) are decoded at a time, in µs a row, compiled: it "
        "hardly matters. `log_likelihood` takes what fits the last cache, about 4,000 rows of 784 pixels:",
        "",
        table(["", *(f"{int(size):,} rows" for size in sizes)], rows),
        "",
    ]


def main() -> None:
    (ROOT / "results" / "README.md").write_text(results_page(ROOT / "results"))
    write_json(ROOT / "ppl_vae" / "experiments" / "components.json", components())


if __name__ == "__main__":
    main()
