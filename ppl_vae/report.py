"""From metrics.json to tables in Markdown: nothing here computes a figure, it only sets what is on disk."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl_vae.configs import read_json

BEGIN, END = "<!-- rendered: {} -->", "<!-- end -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right.

    >>> print(table(["model", "MSE"], [["PCA", "0.02"]]))
    | model | MSE |
    |---|---:|
    | PCA | 0.02 |
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("|" + "|".join(line if line[:3] == "---" else f" {line} " for line in row) + "|" for row in lines)


def denoising_table(metrics: dict[str, Any]) -> str:
    """Mean and standard error over the test images of MSE, PSNR and SSIM, a row a model."""

    def cell(row: dict, metric: str, digits: int) -> str:
        return f"{row[metric]['mean']:.{digits}f} ± {row[metric]['se']:.{digits}f}"

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


def verdict(metrics: dict[str, Any]) -> str:
    """Which networks do not beat PCA at the same noise, by more than two standard errors, in SSIM and squared error."""
    rows = metrics["denoising"]["rows"]
    pca = next(row for name, row in rows.items() if name.startswith("PCA"))
    networks = {name: row for name, row in rows.items() if name != "noisy" and not name.startswith("PCA")}

    def behind(metric: str, sign: int) -> list[str]:
        def lead(row: dict) -> float:
            return sign * (row[metric]["mean"] - pca[metric]["mean"]) - 2 * (row[metric]["se"] + pca[metric]["se"])

        return [name for name, row in networks.items() if lead(row) <= 0]

    in_ssim, in_mse = behind("ssim", 1), behind("mse", -1)
    if in_ssim:
        text = f"Not ahead of PCA in SSIM: {', '.join(in_ssim)}."
        if not any(networks[name]["trained_on_noise"] for name in in_ssim):
            text += " These never saw noise in training; every network that learned noisy → clean is ahead in SSIM."
    else:
        text = "Every network is ahead of PCA in SSIM."
    text += f" Not ahead in squared error: {', '.join(in_mse) or 'none'}."
    return text + (
        " (PCA projects on components of clean images, as many as serve best at this noise on validation images; it is "
        "no linear regression from noisy to clean ones.)"
    )


def likelihood_table(metrics: dict[str, Any]) -> str:
    """log p(x) per test image with both errors, and the ELBO with its parts, in nats, a row a VAE."""
    rows = [
        [
            name,
            row["likelihood"],
            row["measure"],
            f"{row['log_p']:.2f}",
            f"{row['mc_se']:.2f}",
            f"{row['data_se']:.2f}",
            f"{row['elbo']:.2f}",
            f"{row['reconstruction']:.2f}",
            f"{row['kl']:.2f}",
            "unknown" if row["khat_over_limit"] is None else f"{row['khat_over_limit']}/{row['num_images']}",
        ]
        for name, row in metrics["log_likelihood"].items()
    ]
    header = [
        "model",
        "likelihood",
        "kind",
        "log p(x)",
        "± MC",
        "± data",
        "ELBO",
        "reconstruction",
        "KL",
        "k̂ > 0.7",
    ]
    return table(header, rows)


def likelihood_caption(metrics: dict[str, Any]) -> str:
    row = next(iter(metrics["log_likelihood"].values()))
    return (
        f"Nats per image, the first {row['num_images']} test images, one training run each; importance sampling with "
        f"K = {row['num_samples']} from the guide, a lower bound in expectation. ± MC: from the samples, by the delta "
        "method, which is at most 1 nat per image and too small where k̂ > 0.7; ± data: sd / √N over these images. A "
        "mass on binarised pixels and a density on dequantised ones do not compare; and where most have k̂ > 0.7, "
        "these are lower bounds of unequal looseness, which do not rank models of one kind either. The guide of a "
        "-denoising model sees the noisy image alone."
    )


def gaps_lines(gaps: dict[str, Any]) -> list[str]:
    """Where log p(x) - ELBO comes from and what codes tell of their images, a sentence a line, from `gaps.json`."""

    def of(name: str) -> str:
        return f"{gaps[name]['mean']:.2f} ± {gaps[name]['mc_se']:.2f}"

    ahead = gaps["generalisation"]
    return [
        f"nats per image, ± MC; {gaps['num_images']} images:",
        f"log p(x) - ELBO {of('total')} = approximation {of('approximation')} + amortisation {of('amortisation')}; "
        "by as much as log p(x) is put too low, so are the first two",
        f"log p(x) of training images - of test images {ahead['mean']:.2f} ± {ahead['mc_se']:.2f}, ± data "
        f"{ahead['data_se']:.2f}",
        f"KL(q(z|x) || p(z)) {of('kl')} = I(x; z) {of('mutual_information')} + KL(q(z) || p(z)) {of('marginal_kl')}",
        f"I(x; z) is at most log {gaps['num_images']} = {gaps['log_num_images']:.2f}, whatever the codes",
        f"active units: {gaps['active_units']} of {gaps['latent_size']}",
    ]


def trust_table(trust: dict[str, Any]) -> str:
    """log p(x) by every method, nats per image, and the gap of the sandwich on simulated data, a row a VAE."""
    methods = [f"K = {K:,}" for K in trust["config"]["num_samples"]]
    rows = []
    for name, row in trust["models"].items():
        estimates = [*row["importance"], *row["annealed"].values()]
        cells = [f"{r['log_p']:.2f} ± {r['mc_se']:.2f}" for r in estimates]
        gap = row["sandwich"]
        exact = f"{row['exact']:.2f}" if "exact" in row else ""
        rows.append([name, f"{row['elbo']:.2f}", *cells, exact, f"{gap['gap']:.2f} ± {gap['gap_se']:.2f}"])
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
            numbers = [f"{error:+.3f}", f"{r['mc_se']:.3f}", f"{r['rms_error']:.3f}"]
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


CONTENDERS = {
    "ours": "this package",
    "ours_eager": "this package, not compiled",
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
    versions = ", ".join(f"{k} {v}" for k, v in benchmarks["versions"].items())
    return [
        "## Speed",
        "",
        "Time per training step, or per decoder row of importance sampling, in units of this package's (first row): "
        "the median over rounds, and its quartiles. Above 1 is slower than this package.",
        "",
        benchmark_table(benchmarks, spread=True),
        "",
        f"{benchmarks['rounds']} rounds, each contender in a process of its own, on {benchmarks['threads']} threads of "
        f"{benchmarks['processor']}; {versions}. By `python tests/benchmarks --output results/benchmarks`.",
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


GROUPS = {
    "prior": "Priors, under Bernoulli with the diagonal normal posterior",
    "posterior": "Posteriors, under Bernoulli with the standard normal prior",
    "objective": "Objectives of training",
    "layers": "Layers of latent variables",
    "likelihood": "Likelihoods of grey images",
}


def swap_table(group: dict[str, Any]) -> str:
    """A row a component, the best first: log p(x) with its errors, and the paired difference to the best."""
    nats = group["unit"] == "nats"
    digits = 2 if nats else 3
    rows = []
    for i, row in enumerate(group["rows"]):
        difference = f"{row['difference']:.{digits}f} ± {row['difference_se']:.{digits}f}" if i else "—"
        khat = "unknown" if row["khat_over_limit"] is None else f"{row['khat_over_limit']}/{row['num_images']}"
        spread = "—" if row["sd_of_seeds"] is None else f"{row['sd_of_seeds']:.{digits}f}"
        cells = [f"{row[key]:.{digits}f}" for key in ("value", "data_se", "mc_se")]
        cells = [row["component"], *cells, difference, str(row["num_seeds"]), spread, khat]
        rows.append(cells if nats else [*cells, row["measure"]])
    header = ["", "log p(x)" if nats else "bits per dimension", "± data", "± MC", "to the best", "seeds", "sd of seeds"]
    return table([*header, "k̂ > 0.7", *([] if nats else ["kind"])], rows)


def swaps_section(folder: Path) -> list[str]:
    """One data set's swapped components, from `metrics.json`; paths are relative to the folder above it."""
    metrics = read_json(folder / "metrics.json")
    config = metrics["config"]
    versions = ", ".join(f"{k} {v}" for k, v in metrics["versions"].items())
    lines = [
        f"## Swapped components: {metrics['dataset']}",
        "",
        f"Gated dense networks 300-300 with a code of {config['latent_size']}, {config['epochs']} epochs, batch "
        f"{config['batch_size']}, learning rate {config['learning_rate']:g} falling to 0 by a cosine; log p(x) of the "
        f"first {config['num_images']} test images, K = {config['num_samples']}; {versions}. Each table has the best "
        "first, chosen on the images that it is scored on, and the paired differences to it, with their error over the "
        "choice of images. Of one training seed the spread between seeds is not known; `elbo` and `analytic-kl`, which "
        "maximise the same bound, show what it may be, and smaller differences rank nothing. Where k̂ > 0.7 all are "
        "lower bounds, and a difference of two is none: a prior or posterior that lets the guide fit better also makes "
        "a better proposal, and part of its lead is that. Few epochs favour what converges fast. Objectives of 5 "
        "particles do five times the work of a step.",
        "",
    ]
    for name, heading in GROUPS.items():
        if len(metrics["groups"].get(name, {"rows": ()})["rows"]) > 1:  # else there is nothing to compare yet
            lines += [f"### {heading}", "", swap_table(metrics["groups"][name]), ""]
            lines += [f"![Differences to the best {name}]({folder.name}/figures/{name}.png)", ""]
    if "likelihood" in metrics["groups"]:
        lines += [
            "Bits per dimension of the 256 levels, less is better. A density of dequantised images gives a bound on "
            "their mass, by D ln 256: it falls short where the density varies within a level; a mass does not. Some "
            "spend mass where no image is: Poisson and the negative binomials above level 255, those on the real line "
            "outside of [0, 1]. And the defaults set floors: scales of Gaussians are at least 0.01, and 0.1 where "
            "fixed. So it is these components as they come that are in order here, and not families; and with k̂ > 0.7 "
            "for all images a few hundredths of a bit are the estimate's.",
            "",
        ]
    if metrics["failed"]:
        lines += ["Failed: " + "; ".join(f"{name}: {why}" for name, why in metrics["failed"].items()) + ".", ""]
    return lines


def study_section(folder: Path, *, level: int = 2, figures: bool = True) -> str:
    """One study as Markdown, from its `metrics.json`; paths are relative to the folder above it."""
    metrics = read_json(folder / "metrics.json")
    config = metrics["config"]
    heading = "#" * level
    lines = [
        f"{heading} {config['dataset']}",
        "",
        f"{metrics['train_images']} training images, {config['autoencoder_epochs']} epochs for autoencoders and "
        f"{config['vae_epochs']} for VAEs, batch {config['batch_size']}, seed {config['seed']}; "
        + ", ".join(f"{k} {v}" for k, v in metrics["versions"].items())
        + ".",
        "",
        f"{heading}# Denoising: {config['noise']}, {metrics['denoising']['num_images']} test images, mean ± s.e.",
        "",
        denoising_table(metrics),
        "",
        verdict(metrics),
        "",
    ]
    if figures:
        lines += [f"![Originals, noisy and restored images]({folder.name}/figures/denoising.png)", ""]
    lines += [
        f"{heading}# Log-likelihood",
        "",
        likelihood_table(metrics),
        "",
        likelihood_caption(metrics),
        "",
    ]
    if (folder / "trust.json").is_file():
        lines += trust_section(folder, f"{heading}#")
    if figures:
        for stem, text in (
            ("conv-vae/figures/samples", "Samples of the convolutional VAE"),
            ("conv-vae/figures/interpolations", "Interpolations of the convolutional VAE"),
            ("dense-vae-2d/figures/latent-grid", "The grid over a 2-d latent space"),
            ("dense-vae-2d/figures/latent-codes", "Codes of test images in a 2-d latent space, by label"),
            ("conv-vae/figures/training", "ELBO, reconstruction and KL of the convolutional VAE by epoch"),
        ):
            if (folder / f"{stem}.png").is_file():
                lines += [f"![{text}]({folder.name}/{stem}.png)", ""]
    return "\n".join(lines)


def results_page(results: Path) -> str:
    """`results/README.md`, from every study below it."""
    lines = [
        "# Results",
        "",
        "Rendered from the `metrics.json` files by `python -m ppl_vae.report results README.md`. Beside each lie the "
        "runs that it summarises: config, seed, versions, history by epoch and figures; of the study also the weights.",
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


def fill(text: str, blocks: dict[str, str]) -> str:
    """`text` with each block between its two markers replaced. Raises `ValueError` for a missing marker."""
    for name, block in blocks.items():
        begin = BEGIN.format(name)
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(END)
        if not (found and closed):
            raise ValueError(f"expected the markers {begin!r} and {END!r}; got a text without them")
        text = f"{before}{begin}\n{block}\n{END}{after}"
    return text


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


def main() -> None:
    """python -m ppl_vae.report RESULTS README: renders RESULTS/README.md, and the tables in README."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("readme", type=Path)
    args = parser.parse_args()
    (args.results / "README.md").write_text(results_page(args.results))
    args.readme.write_text(fill(args.readme.read_text(), readme_blocks(args.results)))


if __name__ == "__main__":
    main()
