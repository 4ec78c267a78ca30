"""Who can be believed, at what cost, as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppl_vae.report.markdown import number, table
from ppl_vae.system.files import read_json


def trust_table(trust: dict[str, Any]) -> str:
    """log p(x) by every method, nats per image, and the gap of the sandwich on simulated data, a row a VAE."""
    methods = [f"K = {K:,}" for K in trust["config"]["num_samples"]]
    rows = []
    for name, row in trust["models"].items():
        estimates = [*row["importance"], *row["annealed"].values()]
        cells = [f"{number(r['log_p'])} ± {number(r['mc_se'])}" for r in estimates]
        gap = row["sandwich"]
        exact = number(row["exact"]) if "exact" in row else ""
        rows.append([name, number(row["elbo"]), *cells, exact, f"{number(gap['gap'])} ± {number(gap['gap_se'])}"])
        costs = []
        for r in row["importance"]:
            khat = "unknown" if r["khat_over_limit"] is None else r["khat_over_limit"]
            costs.append(f"{r['decoder_rows']:,} rows, k̂ > 0.7: {khat}")
        costs += [f"{r['decoder_rows']:,} rows" for r in row["annealed"].values()]
        rows.append(["", "", *costs, "", ""])
    annealed = ["annealed from the guide", "annealed from the prior"]
    return table(["model", "ELBO", *methods, *annealed, "exact", "sandwich gap"], rows)


def exact_table(trust: dict[str, Any]) -> str:
    """The error of every method against quadrature, for the VAEs whose z has two dimensions; "" for none."""
    rows = []
    for name, row in trust["models"].items():
        if "exact" not in row:
            continue
        methods = {f"importance sampling, K = {r['num_samples']:,}": r for r in (*row["importance"], row["most"])}
        methods |= {f"annealed from the {start}": r for start, r in row["annealed"].items()}
        methods |= {f"`log_likelihood(tolerance={r['tolerance']})`": r for r in row["tolerance"]}
        for method, r in methods.items():
            error = r["log_p"] - row["exact"]
            numbers = [f"{error:+.3f}", number(r["mc_se"], 3), f"{r['rms_error']:.3f}"]
            rows.append([name, method, *numbers, f"{r['decoder_rows']:,}"])
    header = ["model", "method", "error of the mean", "its Monte Carlo s.e.", "rms error by image", "rows"]
    return table(header, rows) if rows else ""


def savings(trust: dict[str, Any]) -> str:
    """What a tolerance costs against the fixed K of the same rms error, or of the least that was come down to."""
    lines = []
    for name, row in trust["models"].items():
        for spent in row.get("tolerance", ()):
            fixed = sorted((*row["importance"], row["most"]), key=lambda r: r["decoder_rows"])
            enough = [r for r in fixed if r["rms_error"] <= spent["rms_error"]]
            r = enough[0] if enough else fixed[-1]
            lines.append(
                f"- {name}, `tolerance={spent['tolerance']}`: an rms error of {spent['rms_error']:.3f} nats by "
                f"{spent['decoder_rows']:,} decoder rows, those of annealing with their gradients, in "
                f"{spent['seconds']:.1f} s. A fixed K = {r['num_samples']:,} takes {r['decoder_rows']:,} without, "
                f"{r['seconds'] / spent['seconds']:.1f} times as long, for {r['rms_error']:.3f}"
                f"{'' if enough else ', and does not reach it'}."
            )
    return "\n".join(lines)


def trust_section(folder: Path, heading: str) -> list[str]:
    """Who can be believed at what cost, from `trust.json`."""
    trust = read_json(folder / "trust.json")
    config = trust["config"]
    lines = [
        f"{heading} Who can be believed, at what cost",
        "",
        trust_table(trust),
        "",
        f"Nats per image ± Monte Carlo s.e. on the first {config['num_images']} test images; the s.e. is at most 1 nat "
        "per image, and is too small where k̂ > 0.7, or unknown for few chains. Each estimate is a lower bound in "
        "expectation: a higher one is nearer, beyond its Monte Carlo error. The ELBO is of one draw per image. "
        f"Annealing: {config['num_chains']} chains of "
        f"{config['num_steps']} steps with {config['leapfrog_steps']} leapfrog steps each, whose rows are gradients, "
        f"three times as dear as the rows of importance sampling. The sandwich is on {config['num_images']} data "
        "simulated from each model, where alone an upper bound holds: its gap bounds what annealing from the better "
        "of guide and prior misses there. Where it is tens of nats or more, as under narrow Gaussians, chains of so "
        "few steps don't mix, and it tells nothing of log p(x).",
        "",
        f"![log p(x) against K, by model]({folder.name}/figures/trust.png)",
        "",
    ]
    if exact := exact_table(trust):
        lines += [
            "Where z has two dimensions log p(x) is known, by quadrature on a grid. Posteriors have modes there that "
            "the guide does not see: neither the Monte Carlo error nor, at times, the k̂ of chains or samples from the "
            "guide shows it.",
            "",
            exact,
            "",
            "Samples spent where they are needed, against the same number for each image (rows of annealing among them "
            "are gradients, three times as dear):",
            "",
            savings(trust),
            "",
        ]
    return lines
