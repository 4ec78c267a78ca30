"""What the project shows of its results: `results/README.md`, and the tables of the README."""

from __future__ import annotations

from pathlib import Path

from ppl_vae.report.benchmarks import benchmark_section, benchmark_table
from ppl_vae.report.study_tables import denoising_table, likelihood_table, study_section
from ppl_vae.report.swap_tables import swap_table, swaps_section
from ppl_vae.system.files import read_json


def results_page(results: Path) -> str:
    """`results/README.md`, from every study below it."""
    lines = [
        "# Results",
        "",
        "Rendered from the `metrics.json` files by `python -m ppl_vae.report results README.md`. Beside each lie the "
        "runs that it summarises: config, seed, versions, history by epoch and figures; of the study also the weights.",
        "",
    ]
    if (results / "swaps" / "categorical.py").is_file():
        lines += [
            "The runs of the categorical likelihood are by [swaps/categorical.py](swaps/categorical.py), which takes "
            "its last layer in parts: each step and estimate is that of `ppl-vae run swaps` to rounding.",
            "",
        ]
    for path in sorted(results.glob("*/*/metrics.json")):
        folder, metrics = path.parent, read_json(path)
        section = (
            study_section(folder)
            if "denoising" in metrics
            else "\n".join(swaps_section(folder))
            if "groups" in metrics
            else ""
        )
        lines.append(section.replace(f"({folder.name}/", f"({folder.parent.name}/{folder.name}/"))
    if (results / "benchmarks" / "benchmarks.json").is_file():
        lines += benchmark_section(results / "benchmarks")
    return "\n".join(lines).rstrip() + "\n"


def readme_blocks(results: Path) -> dict[str, str]:
    """The rendered blocks of the top-level README, by name."""
    metrics = read_json(results / "study" / "mnist" / "metrics.json")
    swaps = read_json(results / "swaps" / "mnist" / "metrics.json")
    return {
        "denoising": denoising_table(metrics),
        "log-likelihood": likelihood_table(metrics),
        "priors": swap_table(swaps["groups"]["prior"]),
        "likelihoods": swap_table(swaps["groups"]["likelihood"]),
        "benchmarks": benchmark_table(read_json(results / "benchmarks" / "benchmarks.json")),
    }
