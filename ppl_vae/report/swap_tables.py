"""Swapped components as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppl_vae.report.markdown import number, table, unreliable
from ppl_vae.system.files import read_json

GROUPS = {
    "prior": "Priors, under Bernoulli with the diagonal normal posterior",
    "posterior": "Posteriors, under Bernoulli with the standard normal prior",
    "objective": "Objectives of training",
    "layers": "Layers of latent variables",
    "likelihood": "Likelihoods of grey images",
}


OVERFITTED = 1.0  # nats per image


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
            "fixed. So it is these components as they come that are in order here, and not families; and with k̂ > 0.7 "
            "for all images a few hundredths of a bit are the estimate's.",
            "",
        ]
    if metrics["failed"]:
        lines += ["Failed: " + "; ".join(f"{name}: {why}" for name, why in metrics["failed"].items()) + ".", ""]
    return lines
