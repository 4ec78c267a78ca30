"""The sections of a page of results, in Markdown: an experiment's tables and figures, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppl_vae.experiments.folders import best_evaluations
from ppl_vae.report.markdown import is_exact, number
from ppl_vae.report.tables import (
    denoising_table,
    exact_table,
    likelihood_table,
    reference_table,
    restoration_table,
    swap_table,
    trust_table,
)
from ppl_vae.system.files import read_json

GROUPS = {
    "prior": "Priors, under Bernoulli with the diagonal normal posterior",
    "posterior": "Posteriors, under Bernoulli with the standard normal prior",
    "objective": "Objectives of training",
    "layers": "Layers of latent variables",
    "likelihood": "Likelihoods of images with 256 levels",
}

OVERFITTED = 1.0  # nats per image


def study_section(folder: Path) -> str:
    """One study, from its `metrics.json`; paths are relative to the folder above it."""
    metrics = read_json(folder / "metrics.json")
    metrics["log_likelihood"] = best_evaluations(metrics["log_likelihood"], folder.joinpath)
    config = metrics["config"]
    lines = [
        f"## {config['dataset']}",
        "",
        f"{metrics['train_images']} training images, {config['autoencoder_epochs']} epochs for autoencoders and "
        f"{config['vae_epochs']} for VAEs, batch {config['batch_size']}, seed {config['seed']}; {versions(metrics)}.",
        "",
        f"### Denoising: {config['noise']}, {metrics['denoising']['num_images']} test images, mean ± s.e.",
        "",
        denoising_table(metrics),
        "",
        verdict(metrics),
        "",
        f"![Originals, noisy and restored images]({folder.name}/figures/denoising.png)",
        "",
        *restoration_lines(folder),
        "### Log-likelihood",
        "",
        likelihood_table(metrics),
        "",
        likelihood_caption(metrics),
        "",
    ]
    if (folder / "trust.json").is_file():
        lines += [trust_section(folder)]
    for stem, text in (
        ("conv-vae/figures/samples", "Samples of the convolutional VAE"),
        ("vamp-vae/figures/samples", "Samples of a VAE whose prior is learned, a VampPrior"),
        ("conv-vae-256/figures/samples", "Samples of the convolutional VAE with a dense layer of 256 units"),
        ("conv-vae/figures/interpolations", "Interpolations of the convolutional VAE"),
        ("dense-vae-2d/figures/latent-grid", "The grid over a 2-d latent space"),
        ("dense-vae-2d/figures/latent-codes", "Latents of test images in a 2-d latent space, by label"),
        ("conv-vae/figures/training", "ELBO, reconstruction and KL of the convolutional VAE by epoch"),
    ):
        if (folder / f"{stem}.png").is_file():
            lines += [f"![{text}]({folder.name}/{stem}.png)", ""]
    return "\n".join(lines)


def restoration_lines(folder: Path) -> list[str]:
    """What VAEs restore by inference, from `inference.json` if there is one."""
    if not (folder / "inference.json").is_file():
        return []
    lines = [
        "### By inference",
        "",
        "The same VAEs, asked for p(clean | noisy) with the noise as likelihood: none of their networks is trained for "
        "it. Beside the quality: what share of pixels is in the 50 % and 90 % intervals of the stated mean and "
        "standard deviation, the same for images that the model itself made, how many of the images have a k̂ over its "
        "limit, CPU time an image, that of one core, and the number of test images, the first ones. Where noise leaves "
        "pixels as they are, a clean pixel is taken to lie around the decoder's mean with a standard deviation of 0.2. "
        "PCA projects on components of clean images; the Wiener filter is the best linear map from noisy to clean.",
        "",
    ]
    inference = read_json(folder / "inference.json")
    for noise, rows in inference["rows"].items():
        lines += [f"{noise}:", "", restoration_table(rows, inference.get("baselines", {}).get(noise, {})), ""]
    if (folder / "figures" / "restoration-curves.png").is_file():
        text = "SSIM against CPU time, and estimated scales of noise"
        lines += [
            "Left: the first test images against the time that is spent, not compiled, and the number of Adam's steps "
            "from each start. "
            "Right: the scale of noise, from noisy images alone, by the highest log p(y) (± 2 s.e.), for test images "
            "and for images that the model made; by how much test images differ from the model's counts as noise.",
            "",
            f"![{text}]({folder.name}/figures/restoration-curves.png)",
            "",
        ]
    if (folder / "figures" / "restoration.png").is_file():
        text = "Corrupted images, restored by inference, with their uncertainty and draws"
        lines += [f"![{text}]({folder.name}/figures/restoration.png)", ""]
    return lines


def reference_section(folder: Path) -> str:
    """Published figures beside ours, from `metrics.json`."""
    metrics = read_json(folder / "metrics.json")
    config, rows = metrics["config"], metrics["reference"].values()
    units = " and ".join(dict.fromkeys(row["unit"] for row in rows)) or "nats"
    sources = "; ".join(dict.fromkeys(row["source"] for row in rows if row["source"]))
    num_images = max((row["importance"]["num_images"] for row in rows), default=0)
    num_refined = max((row["ladder"]["num_images"] for row in rows), default=0)
    gains = f", of the first {num_refined:,}, whose gain is added to importance sampling on all" * (
        num_refined < num_images
    )
    binarised = "" if units == "bits per dimension" else ", binarised once"
    first = next(iter(metrics["reference"]), "ROW")
    of_file = f" --dataset {metrics['data']}" if metrics.get("data", "").endswith(".npz") else ""
    lines = [
        f"## Reference: {metrics['dataset']}",
        "",
        reference_table(metrics),
        "",
        f"Minus log p(x) in {units} per image, ± Monte Carlo error, of {num_images:,} test images{binarised}. "
        f"Importance sampling: from the guide with K = {config['num_samples']:,}, as the published figures have it, on "
        "which the verdict is; its error is that of the samples, without what they missed, which the ladder shows. "
        f"Ladder: refined for each image, K = {config['num_refined_samples']:,}{gains}. Gap: what the ladder misses at "
        f"most on data simulated from the model. Trained for {config['epochs']:,} epochs at most, batch "
        f"{config['batch_size']}, Adam at {config['learning_rate']:g} falling by half a cosine, the KL's weight rising "
        f"for {config['warm_up']} epochs; the weights are those of the best epoch on validation data. Hours are of one "
        f"training on {metrics['processor']}, beside other work. Published: {sources}. {versions(metrics)}. To score a "
        f"row again: `ppl-vae evaluate results/reference/{folder.name}/{first}/seed-0{of_file}`.",
        "",
    ]
    for stem, about in (("reference", "Published and ours, and the validation ELBO by epoch"), ("samples", "Samples")):
        if (folder / "figures" / f"{stem}.png").is_file():
            lines += [f"![{about}]({folder.name}/figures/{stem}.png)", ""]
    return "\n".join(lines)


def versions(metrics: dict[str, Any]) -> str:
    """The versions of packages that wrote a file, as in "python 3.12.1, torch 2.7.0"."""
    return ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())


def verdict(metrics: dict[str, Any]) -> str:
    """Which networks do not beat the better linear method at the same noise, by more than two standard errors, in SSIM
    and squared error."""
    rows = metrics["denoising"]["rows"]
    linear = {name: row for name, row in rows.items() if name.startswith(("PCA", "Wiener"))}
    networks = {name: row for name, row in rows.items() if name != "noisy" and name not in linear}
    if any(row["ssim"]["se"] is None for row in linear.values()):
        return "One image tells nothing of their order."

    def behind(metric: str, sign: int) -> list[str]:
        best = max((row[metric] for row in linear.values()), key=lambda cell: sign * cell["mean"])

        def lead(row: dict[str, Any]) -> float:
            return sign * (row[metric]["mean"] - best["mean"]) - 2 * (row[metric]["se"] + best["se"])

        return [name for name, row in networks.items() if lead(row) <= 0]

    in_ssim, in_mse = behind("ssim", 1), behind("mse", -1)
    if in_ssim:
        text = f"Not ahead of the better linear method in SSIM: {', '.join(in_ssim)}."
        if not any(networks[name]["trained_on_noise"] for name in in_ssim):
            text += " These never saw noise in training; every network that learned noisy → clean is ahead in SSIM."
    else:
        text = "Every network is ahead of linear methods in SSIM."
    text += f" Not ahead in squared error: {', '.join(in_mse) or 'none'}."
    return text + (
        " (PCA projects on components of clean images, as many as serve best at this noise on validation images. The "
        "Wiener filter is the best linear map from noisy images to clean ones, fitted to pairs.)"
    )


def likelihood_caption(metrics: dict[str, Any]) -> str:
    rows = metrics["log_likelihood"].values()
    exact = "± MC is exact: by quadrature. " if any(map(is_exact, rows)) else ""
    sampled_rows = sorted((row for row in rows if not is_exact(row)), key=lambda row: "rungs" not in row)
    if not sampled_rows:
        return f"Nats per image; {exact}± data: sd / √N over these images."
    row = sampled_rows[0]
    guide = next((row["guide"] for row in rows if "guide" in row), row)
    sampled = f"importance sampling from the guide with K = {guide['num_samples']}"
    if "rungs" in row:
        sampled = (
            f"the ladder with K = {row['num_samples']}, for each image the first of guide, refined posterior and "
            f"annealing whose pilot samples can be trusted, and beside it {sampled}. Gap: what the ladder misses at "
            "most on data simulated from the model"
        )
    text = (
        f"Nats per image, the first {row['num_images']} test images, one training run each; {sampled}; all lower "
        "bounds in expectation. ± MC: the Monte Carlo error, by the jackknife over groups of samples, times "
        "1 / (1 - share of images with k̂ over its limit, min(0.7, 1 - 1 / log10 K)); ± data: sd / √N over these "
        f"images. {exact}Probabilities (mass, of binarised pixels) and densities (of dequantised ones) are not "
        "comparable. The guide of a -denoising model sees only the noisy image."
    )
    if any((row["khat_over_limit"] or 0) > row["num_images"] / 2 for row in sampled_rows):
        text += (
            " Where most images have k̂ over its limit, the values are lower bounds with different gaps, which do not "
            "rank models of one kind either."
        )
    return text


def gaps_lines(gaps: dict[str, Any]) -> list[str]:
    """Where log p(x) - ELBO comes from and what latents tell of their images, a sentence a line, from `gaps.json`."""

    def of(name: str) -> str:
        return f"{number(gaps[name]['mean'])} ± {number(gaps[name]['mc_se'])}"

    ahead = gaps["generalisation"]
    return [
        f"nats per image, ± MC; {gaps['num_images']} images:",
        f"log p(x) - ELBO {of('total')} = approximation {of('approximation')} + amortisation {of('amortisation')}; "
        "an underestimate of log p(x) lowers the first two by as much",
        f"log p(x) of training images - of test images {number(ahead['mean'])} ± {number(ahead['mc_se'])}, "
        f"± data {number(ahead['data_se'])}",
        f"KL(q(z|x) || p(z)) {of('kl')} = I(x; z) {of('mutual_information')} + KL(q(z) || p(z)) {of('marginal_kl')}",
        f"I(x; z) is at most log {gaps['num_images']} = {gaps['log_num_images']:.2f}, whatever the latents",
        f"active units: {gaps['active_units']} of {gaps['latent_size']}",
    ]


def trust_section(folder: Path) -> str:
    """Accuracy and cost of the estimators of log p(x), from `trust.json`."""
    trust = read_json(folder / "trust.json")
    config = trust["config"]
    lines = [
        "### Accuracy and cost of the estimators",
        "",
        trust_table(trust),
        "",
        f"Nats per image ± Monte Carlo s.e. on the first {config['num_images']} test images; the s.e. is wider by the "
        "share of images with k̂ over its limit, which is unknown for few chains. Each estimate is a lower bound in "
        "expectation: beyond its Monte Carlo error, a higher one is closer. The ELBO is of 16 samples per image. "
        f"Annealing: {config['num_chains']} chains of "
        f"{config['num_steps']} steps with {config['leapfrog_steps']} leapfrog steps each, whose rows are gradients "
        f"and cost three times as much as those of importance sampling. The sandwich is on {config['num_images']} data "
        "simulated from each model (the upper bound is valid only there): its gap bounds the error of annealing from "
        "the better of guide and prior. Where it is tens of nats or more, as under narrow Gaussians, chains of so "
        "few steps don't mix, and it says nothing about log p(x).",
        "",
        f"![log p(x) against K, by model]({folder.name}/figures/trust.png)",
        "",
    ]
    if exact := exact_table(trust):
        lines += [
            "Where z has two dimensions log p(x) is known, by quadrature on a grid. Posteriors have modes there that "
            "the guide never samples: the Monte Carlo error does not show it, and k̂ not always.",
            "",
            exact,
            "",
            "Samples spent where they are needed, against the same number for each image (the rows of annealing "
            "among them are gradients, which cost three times as much):",
            "",
            savings(trust),
            "",
        ]
    return "\n".join(lines)


def savings(trust: dict[str, Any]) -> str:
    """What a tolerance costs against the smallest fixed K with the same rms error, or else the largest K there is."""
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


def swaps_section(folder: Path) -> str:
    """One dataset's swapped components, from `metrics.json`; paths are relative to the folder above it."""
    metrics = read_json(folder / "metrics.json")
    config = metrics["config"]
    made_by = versions(metrics)
    lines = [
        f"## Swapped components: {metrics['dataset']}",
        "",
        f"Gated dense networks 300-300 with {config['latent_size']} latent dimensions, {config['epochs']} epochs, "
        f"batch {config['batch_size']}, learning rate {config['learning_rate']:g} falling to 0 by a cosine; log p(x) "
        f"of the first {config['num_images']} test images, K = {config['num_samples']}; {made_by}. Each table has the "
        "best first, chosen on the images that it is scored on, and the paired differences to it, with their error "
        "over the choice of images. With one training seed the spread between seeds is not known; `elbo` and "
        "`analytic-kl`, which maximise the same bound, show how large it may be, and smaller differences rank "
        "nothing. Where k̂ is over its limit all are lower bounds, and their difference is not a bound: a prior or "
        "posterior that lets the guide fit better also makes a better proposal, which is part of its lead. Few epochs "
        "favour what converges fast. Objectives of 5 particles do five times the work of a step.",
        "",
    ]
    for name, heading in GROUPS.items():
        if len(metrics["groups"].get(name, {"rows": ()})["rows"]) > 1:  # else there is nothing to compare yet
            lines += [f"### {heading}", "", swap_table(metrics["groups"][name]), ""]
            if overfitted := [r for r in metrics["groups"][name]["rows"] if r.get("overfitting", 0.0) > OVERFITTED]:
                named = ", ".join(f"{r['component']} {r['overfitting']:.1f}" for r in overfitted)
                lines += [
                    f"Overfitted at the end, their validation ELBO below that of their best epoch: {named} nats.",
                    "",
                ]
            lines += [f"![Differences to the best {name}]({folder.name}/figures/{name}.png)", ""]
    if "likelihood" in metrics["groups"]:
        lines += [
            "Bits per dimension of the 256 levels, less is better. A density of dequantised images gives a bound on "
            "their mass, by D ln 256: it falls short where the density varies within a level; a mass does not. Some "
            "spend mass where no image is: Poisson and the negative binomials above level 255, those on the real line "
            "outside of [0, 1]. And the defaults set floors: scales of Gaussians are at least 0.01, and 0.1 where "
            "fixed. So this ranks these components with their defaults, not families of distributions; and with "
            "k̂ over its limit for all images, a few hundredths of a bit are within the error of the estimate.",
            "",
        ]
    if metrics["failed"]:
        lines += ["Failed: " + "; ".join(f"{name}: {why}" for name, why in metrics["failed"].items()) + ".", ""]
    return "\n".join(lines)


def sweep_section(folder: Path) -> str:
    """The grid of a sweep, from its `metrics.json`; paths are relative to the folder above it."""
    metrics = read_json(folder / "metrics.json")
    config, sweep = metrics["config"], metrics["sweep"]
    settings = {name.replace("_", "-"): values for name, values in sweep["settings"].items()}
    grid = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in settings.items()) or "one model"
    num_images = max((row["num_images"] for table in sweep["tables"] for row in table["rows"]), default=0)
    lines = [
        f"## Sweep: {metrics['dataset']}",
        "",
        f"{grid[0].upper()}{grid[1:]}; seeds {', '.join(map(str, config['seeds']))}. log p(x) of the first "
        f"{num_images} test data by the ladder, K = {config['num_samples']}, in nats per datum, the mean over seeds; "
        "sd of seeds is the spread between them. Each table has the best first, chosen on the data that it is scored "
        "on, and the paired differences to it, with their error over the choice of data. What cannot be compared, a "
        f"mass with a density, is in tables of its own. {versions(metrics)}.",
        "",
    ]
    for i, table in enumerate(sweep["tables"], 1):
        lines += [swap_table(table), ""]
        for name in settings:
            stem = f"{name}-{i}" if i > 1 else name
            if (folder / "figures" / f"{stem}.png").is_file():
                lines += [f"![log p(x) by {name}]({folder.name}/figures/{stem}.png)", ""]
    if any("figures" in line for line in lines):
        lines += [
            "Each point is the mean over the seeds, which are the faint dots; its bar is two standard errors of the "
            "paired difference to the best.",
            "",
        ]
    for what, why in (sweep["left_out"] | metrics["failed"]).items():
        lines += [f"Without {what}: {why}.", ""]
    return "\n".join(lines)


SECTIONS = {"sweep": sweep_section, "reference": reference_section, "denoising": study_section, "groups": swaps_section}
"""By a key that the `metrics.json` of the experiment has; in the order in which they are shown."""
