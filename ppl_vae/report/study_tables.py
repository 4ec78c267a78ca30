"""A study as Markdown: denoising, log p(x), and what codes tell of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppl_vae.report.markdown import number, table, unreliable
from ppl_vae.report.trust_tables import trust_section
from ppl_vae.system.files import read_json


def denoising_table(metrics: dict[str, Any]) -> str:
    """Mean and standard error over the test images of MSE, PSNR and SSIM, a row a model."""

    def cell(row: dict, metric: str, digits: int) -> str:
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


def verdict(metrics: dict[str, Any]) -> str:
    """Which networks do not beat PCA at the same noise, by more than two standard errors, in SSIM and squared error."""
    rows = metrics["denoising"]["rows"]
    pca = next(row for name, row in rows.items() if name.startswith("PCA"))
    networks = {name: row for name, row in rows.items() if name != "noisy" and not name.startswith("PCA")}
    if pca["ssim"]["se"] is None:
        return "One image tells nothing of their order."

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
            *(number(row[key]) for key in ("log_p", "mc_se", "data_se", "elbo", "reconstruction", "kl")),
            unreliable(row),
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
        return f"{number(gaps[name]['mean'])} ± {number(gaps[name]['mc_se'])}"

    ahead = gaps["generalisation"]
    return [
        f"nats per image, ± MC; {gaps['num_images']} images:",
        f"log p(x) - ELBO {of('total')} = approximation {of('approximation')} + amortisation {of('amortisation')}; "
        "by as much as log p(x) is put too low, so are the first two",
        f"log p(x) of training images - of test images {number(ahead['mean'])} ± {number(ahead['mc_se'])}, "
        f"± data {number(ahead['data_se'])}",
        f"KL(q(z|x) || p(z)) {of('kl')} = I(x; z) {of('mutual_information')} + KL(q(z) || p(z)) {of('marginal_kl')}",
        f"I(x; z) is at most log {gaps['num_images']} = {gaps['log_num_images']:.2f}, whatever the codes",
        f"active units: {gaps['active_units']} of {gaps['latent_size']}",
    ]


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
