"""What is in `metrics.json` and `trust.json`, as tables in Markdown."""

from __future__ import annotations

from typing import Any

from ppl_vae.report.markdown import is_exact, number, over_limit, table, to_its_error, unreliable

SHARES = ("precision", "recall", "density", "coverage")
QUALITY = (("mse", 5), ("psnr", 2), ("ssim", 4))  # figures of an image, and how many digits


def denoising_table(metrics: dict[str, Any]) -> str:
    """Mean and standard error over the test images of MSE, PSNR and SSIM, a row a model."""

    def cell(row: dict[str, Any], metric: str, digits: int) -> str:
        return f"{number(row[metric]['mean'], digits)} ± {number(row[metric]['se'], digits)}"

    rows = [
        [
            name,
            "noisy → clean" if row["trained_on_noise"] else "—" if name == "noisy" else "clean only",
            cell(row, "mse", 5),
            cell(row, "psnr", 2),
            cell(row, "ssim", 4),
        ]
        for name, row in metrics["denoising"]["rows"].items()
    ]
    return table(["model", "trained on", "MSE", "PSNR (dB)", "SSIM"], rows)


def restoration_table(rows: dict[str, Any], baselines: dict[str, Any]) -> str:
    """What `inference.json` says of one noise: a row a VAE, by inference and by its networks alone, below the noisy
    images and linear methods."""

    def quality(row: dict[str, Any]) -> list[str]:
        return [f"{number(row[m]['mean'], digits)} ± {number(row[m]['se'], digits)}" for m, digits in QUALITY]

    def shares(row: dict[str, Any] | None) -> str:
        return "—" if row is None else f"{row['50%']:.0%} / {row['90%']:.0%}"

    cells = [[name, *quality(row), *"———", "", f"{row['num_images']:,}"] for name, row in baselines.items()]
    for name, row in rows.items():
        inference, network, count = row["inference"], row["network"], f"{row['inference']['num_images']:,}"
        of_inference = [shares(inference["covers"]), shares(row.get("simulated")), unreliable(inference)]
        ms = [1e3 * r["cpu_seconds_per_image"] for r in (inference, network)]
        cells.append([f"{name}, by inference", *quality(inference), *of_inference, f"{ms[0]:.0f}", count])
        cells.append([f"{name}, its networks", *quality(network), *"———", f"{ms[1]:.1f}", count])
    columns = ["model", "MSE", "PSNR (dB)", "SSIM", "in 50 % / 90 %", "of simulated", "k̂ over limit", "ms", "images"]
    return table(columns, cells)


def elbo(row: dict[str, Any]) -> str:
    """With its Monte Carlo error, which evaluations of older versions do not have."""
    return number(row["elbo"]) + (f" ± {number(row['elbo_mc_se'])}" if "elbo_mc_se" in row else "")


def likelihood_table(metrics: dict[str, Any]) -> str:
    """log p(x) per test image with both errors and what it misses on simulated data, importance sampling from the guide
    beside it where another method is better, and the ELBO with its parts, in nats, a row a VAE."""
    evaluations = metrics["log_likelihood"]
    has_guide = any("guide" in row for row in evaluations.values())
    rows = []
    for name, row in evaluations.items():
        cells = [name, row["likelihood"], row["measure"], number(row["log_p"])]
        cells += ["exact" if is_exact(row) else number(row["mc_se"]), number(row["data_se"])]
        cells += ["—" if is_exact(row) else unreliable(row)]
        if has_guide:
            guide = row.get("guide", row)
            cells += [gap_of(row), number(guide["log_p"]), unreliable(guide)]
        rows.append([*cells, elbo(row), *(number(row[key]) for key in ("reconstruction", "kl"))])
    header = ["model", "likelihood", "kind", "log p(x)", "± MC", "± data", "k̂ over limit"]
    header += ["gap", "from the guide", "k̂ over limit"] if has_guide else []
    return table([*header, "ELBO", "reconstruction", "KL"], rows)


def gap_of(row: dict[str, Any]) -> str:
    """What the ladder misses on simulated data, with its error."""
    return f"{number(row['gap'], 3)} ± {number(row['gap_se'], 3)}" if "gap" in row else "—"


def swap_table(group: dict[str, Any]) -> str:
    """A row a component, the best first: log p(x) with its errors, and the paired difference to the best."""
    nats = group["unit"] == "nats"
    digits = 2 if nats else 3
    rows = []
    for i, row in enumerate(group["rows"]):
        difference = f"{number(row['difference'], digits)} ± {number(row['difference_se'], digits)}" if i else "—"
        spread = "—" if row["sd_of_seeds"] is None else number(row["sd_of_seeds"], digits)
        cells = [number(row[key], digits) for key in ("value", "data_se", "mc_se")]
        cells = [row["component"], *cells, difference, str(row["num_seeds"]), spread, unreliable(row)]
        rows.append(cells if nats else [*cells, row["measure"]])
    header = ["", "log p(x)" if nats else "bits per dimension", "± data", "± MC", "to the best", "seeds", "sd of seeds"]
    return table([*header, "k̂ over limit", *([] if nats else ["kind"])], rows)


def reference_table(metrics: dict[str, Any]) -> str:
    """A row a model: minus log p(x) as published and as found, by importance sampling as papers have it and by the
    ladder; what the ladder misses; minus the ELBO; how long it was trained; and the verdict."""
    rows = []
    for row in metrics["reference"].values():
        digits = 2 if row["unit"] == "nats" else 3
        published = "—" if row["published"] is None else number(row["published"], digits)
        if row["error"] is not None:
            published += f" ± {number(row['error'], digits)}"
        cells = [row["title"], published]
        for method in ("importance", "ladder"):
            of = row[method]
            cells += [f"{number(of['value'], digits)} ± {number(of['mc_se'], digits)}", unreliable(of)]
        gap = "—" if row["gap"] is None else number(row["gap"], 3)
        spread = row["importance"]["sd_of_seeds"]
        seeds = str(row["num_seeds"]) + ("" if spread is None else f" (sd {number(spread, digits)})")
        epochs = ", ".join(f"{best} of {of}" for best, of in zip(row["best_epochs"], row["epochs"], strict=True))
        cells += [number(row["ladder"]["data_se"], digits), gap, number(row["elbo"], digits), str(row["active_units"])]
        rows.append([*cells, epochs, number(row["hours"]), seeds, row["verdict"] or "—"])
    header = ["", "published", "importance sampling", "k̂ over limit", "ladder", "k̂ over limit", "± data", "gap"]
    return table([*header, "- ELBO", "active", "best epoch", "hours", "seeds", "verdict"], rows)


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
            costs.append(f"{r['decoder_rows']:,} rows, k̂ over limit: {over_limit(r)}")
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
        methods |= {f"`log_likelihood_within(tolerance={r['tolerance']})`": r for r in row["tolerance"]}
        for method, r in methods.items():
            error = r["log_p"] - row["exact"]
            numbers = [f"{error:+.3f}", number(r["mc_se"], 3), f"{r['rms_error']:.3f}"]
            rows.append([name, method, *numbers, f"{r['decoder_rows']:,}"])
    header = ["model", "method", "error of the mean", "its Monte Carlo s.e.", "rms error by image", "rows"]
    return table(header, rows) if rows else ""


def quality_table(rows: dict[str, dict[str, Any]], log_p: dict[str, str] | None = None) -> str:
    """What `quality.json` files say, a row a model, perhaps with its log p(x), and last training data in the place of
    samples."""

    def cells(quality: dict[str, Any]) -> list[str]:
        shares = [f"{number(quality[n]['value'], 3)} ± {number(quality[n]['se'], 3)}" for n in SHARES]
        return shares + [to_its_error(**quality[name]) for name in ("frechet", "kernel")]

    figures = {name: row["quality"] for name, row in rows.items()}
    figures["training data"] = next(iter(rows.values()))["training"]
    lines = [[name, *([log_p.get(name, "—")] if log_p else []), *cells(of)] for name, of in figures.items()]
    return table(["model", *(["log p(x)"] if log_p else []), *SHARES, "Fréchet distance", "kernel distance"], lines)
