"""One HTML page for finished experiments: what was run, warnings, tables with errors, figures, a latent space to move
through, and how to run it again. It holds all that it shows: it opens from a file, without a network or a server."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import torch
from markdown_it import MarkdownIt
from PIL import Image
from torch import Tensor

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.evaluation.comparison import compare
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.decoding import decode, encode
from ppl_vae.experiments.evaluating import load_evaluation
from ppl_vae.experiments.runs import Run, load_run
from ppl_vae.experiments.study import StudyConfig
from ppl_vae.experiments.swaps import SwapsConfig
from ppl_vae.report.markdown import number, table
from ppl_vae.report.study_tables import gaps_lines, likelihood_caption, likelihood_table, study_section
from ppl_vae.report.swap_tables import swaps_section
from ppl_vae.system.files import check, read_json, write_whole
from ppl_vae.training.monitoring import COLLAPSED

GRID = 25
ALT = {
    "training": "Loss, ELBO, reconstruction and KL by epoch",
    "reconstructions": "Test images above their reconstructions",
    "samples": "Images decoded from codes drawn from the prior",
    "interpolations": "Images decoded between the codes of two test images, a row a pair",
    "latent-grid": "Images decoded on a grid over the two latent dimensions",
    "latent-codes": "Codes of test images in the two latent dimensions, coloured by label",
    "denoising": "Original images, noisy images, and what each model makes of them",
    "denoising-quality": "Squared error, PSNR and SSIM of each model, with their standard errors",
    "log-likelihood-mass": "log p(x) of each model of binarised images, with its errors",
    "log-likelihood-density": "log p(x) of each model of dequantised images, with its errors",
    "imputation": "Test images, what is seen of them, and draws of the missing pixels",
    "trust": "log p(x) against the number of importance samples, by model, with annealed estimates",
}


def write_page(
    folders: Sequence[Path], output: Path, *, data_dir: Path | None = None, say: Callable[[str], object] = print
) -> None:
    """Writes the page of one or several folders to `output`: of runs, or of a study or swaps with the runs below.

    `data_dir` is where data sets are looked for. Without a model's data, the page is without its explorer.
    Raises `FileNotFoundError` for a folder that holds nothing finished, and `ValueError` for damaged files.
    """
    dataset_of = cache(lambda name: load(name, data_dir))  # runs of an experiment share it
    sections = [_section(folder, dataset_of, say) for folder in folders]
    warnings = [warning for folder in folders for warning in warnings_of(folder)]
    titles = [name_of(folder) for folder in folders]
    title = f"ppl_vae: {', '.join(titles)}"
    links = " ".join(f'<a href="#s{i}">{escape(name)}</a>' for i, name in enumerate(titles))
    body = [f"<h1>{escape(title)}</h1>", f"<nav>{links}</nav>" if len(folders) > 1 else ""]
    if warnings:
        items = "".join(f"<li>{escape(w)}</li>" for w in warnings)
        body.append(f"<aside><h2>Read this first</h2><ul>{items}</ul></aside>")
    body += _comparison(folders)
    body += [f'<section id="s{i}">{section}</section>' for i, section in enumerate(sections)]
    template = Template(resources.files("ppl_vae.report").joinpath("page.html").read_text(encoding="utf-8"))
    write_whole(output, template.substitute(title=escape(title), body="\n".join(body)).encode())


def name_of(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])


def runs_of(folder: Path) -> list[Path]:
    """The folders of finished runs: this one, or those below it, one or two levels down."""
    if is_run(folder):
        return [folder]
    return [f for pattern in ("*", "*/seed-*") for f in sorted(folder.glob(pattern)) if f.is_dir() and is_run(f)]


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "metrics.json").is_file()


def warnings_of(folder: Path) -> list[str]:
    """What a reader has to know before any number: of a folder and of the runs in it, a sentence each."""
    found = []
    metrics = _json(folder, "metrics.json") if (folder / "metrics.json").is_file() else {}
    for name, why in metrics.get("failed", {}).items():
        found.append(f"{name_of(folder)}: {name} failed: {why}")
    evaluations = dict(metrics.get("log_likelihood", {}))
    for run in runs_of(folder):
        name = run.relative_to(folder).as_posix() if run != folder else name_of(folder)
        if (run / "log_likelihood.json").is_file():
            evaluations.setdefault(name, _json(run, "log_likelihood.json"))
        kl = _json(run, "metrics.json").get("last_epoch", {}).get("validation_kl")
        if kl is not None and 0 < kl < COLLAPSED:  # an autoencoder has no KL
            found.append(f"{name}: posterior collapse: KL(q(z|x) || p(z)) is {kl:.2g} nats, codes say nothing of x")
    unsure = [f"{name} ({e['khat_over_limit']} of {e['num_images']})" for name, e in evaluations.items()
              if e["khat_over_limit"]]  # fmt: skip
    if unsure:
        found.append(
            f"{name_of(folder)}: k̂ > 0.7 for images of {', '.join(unsure)}: read their log p(x) as a lower bound, and "
            "± MC as too small"
        )
    unknown = [name for name, e in evaluations.items() if e["khat_over_limit"] is None]
    if unknown:
        found.append(f"k̂ unknown, of too few samples: {', '.join(unknown)}")
    for name, e in evaluations.items():
        if "interrupted" in e["bound"]:
            found.append(f"{name}: the evaluation was interrupted")
    if metrics.get("config", {}).get("seeds", [0])[1:] == [] or "denoising" in metrics:
        found.append(f"{name_of(folder)}: one training run of each model, so the spread between seeds is not known")
    return found


def _json(folder: Path, name: str) -> dict[str, Any]:
    """What a run or an experiment left; `ValueError` where it is damaged."""
    check(folder, name)
    return read_json(folder / name)


def _section(folder: Path, dataset_of: Callable[[str], Dataset], say: Callable[[str], object]) -> str:
    runs = runs_of(folder)
    if not runs and not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run or experiment; got a folder without metrics.json")
    say(f"{folder}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}")
    parts = [f"<h2>{escape(name_of(folder))}</h2>"]
    if is_run(folder):
        return "\n".join([*parts, *_run(folder), *explorer(folder, dataset_of)])
    metrics = _json(folder, "metrics.json")
    lines = study_section(folder).splitlines() if "denoising" in metrics else swaps_section(folder)
    parts += _blocks(lines[1:], folder.parent)
    parts += _reproduced(_experiment(metrics), metrics)
    for run in runs:
        name = escape(run.relative_to(folder).as_posix())
        space = list(explorer(run, dataset_of))
        if space and read_config(run / "config.json")[0].latent_size == 2:  # the one that shows all of the space
            parts, space = [*parts, f"<h3>{name}</h3>", *space], []
        parts += [f"<details><summary>{name}</summary>", *_run(run), *space, "</details>"]
    return "\n".join(parts)


def _experiment(metrics: dict[str, Any]) -> str:
    """The command of a study or of swaps, from the config in its `metrics.json`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in metrics["config"].items()}
    try:
        if "denoising" in metrics:
            return command_of("ppl-vae run study", StudyConfig(**values), StudyConfig())
        dataset = shlex.quote(metrics["dataset"])
        return command_of(f"ppl-vae run swaps --dataset {dataset}", SwapsConfig(**values), SwapsConfig())
    except ValueError as error:
        raise ValueError(f"metrics.json: config: {error}") from None


def _run(folder: Path) -> Iterator[str]:
    """One run: its numbers, its figures, and its command."""
    check(folder, "config.json")
    config, metrics = read_config(folder / "config.json")[0], _json(folder, "metrics.json")
    rows = [[k.replace("_", " "), number(v)] for k, v in metrics["last_epoch"].items() if k not in ("epoch", "loss")]
    yield from _blocks([table(["after the last epoch", "nats per image"], rows)], folder)
    if (folder / "log_likelihood.json").is_file():
        row = {"log_likelihood": {folder.name: _json(folder, "log_likelihood.json")}}
        yield from _blocks([likelihood_table(row), "", likelihood_caption(row)], folder)
    if (folder / "gaps.json").is_file():
        yield from _blocks(["- " + line for line in gaps_lines(_json(folder, "gaps.json"))], folder)
    yield '<div class="figures">'
    for path in sorted((folder / "figures").glob("*.png")):
        yield _figure(path)
    yield "</div>"
    yield from _reproduced(command_of("ppl-vae train", config, TrainConfig()), metrics)


def command_of(words: str, config: Any, default: Any) -> str:
    """The command that runs a config, a dataclass: what is not as in `default` is an option.

    >>> command_of("ppl-vae train", TrainConfig(model="dense-vae", hidden=(300, 300)), TrainConfig())
    'ppl-vae train --model dense-vae --hidden 300 300'
    """
    found = words.split()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None or value == getattr(default, field.name):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(found)


def _reproduced(command: str, metrics: dict[str, Any]) -> list[str]:
    facts = ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())
    data = metrics.get("dataset_fingerprint", "unknown")
    return [
        "<h3>To run it again</h3>",
        f"<pre><code>{escape(command)}</code></pre>",
        f'<p class="soft">{escape(facts)}; data with the fingerprint {escape(str(data))}.</p>',
    ]


def _comparison(folders: Sequence[Path]) -> list[str]:
    """Paired differences of the runs that are given by themselves, where they compare."""
    runs = [f for f in folders if is_run(f) and (f / "log_likelihood.json").is_file()]
    if len(runs) < 2:
        return []
    try:
        text = str(compare({name_of(f): load_evaluation(f) for f in runs}))
    except ValueError as error:
        text = f"These runs do not compare: {error}"
    return ["<h2>Side by side</h2>", f"<pre>{escape(text)}</pre>"]


@cache
def _markdown() -> MarkdownIt:
    """Paragraphs, headings, lists, code and tables: what a name or a message holds can be no element or address."""
    return (
        MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink", "html_inline"])
    )


def _blocks(lines: Sequence[str], root: Path) -> Iterator[str]:
    """Markdown as HTML. A line that is an image becomes a figure, of a file below `root`."""
    text: list[str] = []
    for line in [*lines, ""]:
        if found := re.fullmatch(r"!\[(.*)\]\((.*)\)", line):
            yield _html("\n".join(text))
            text = []
            path = (root / found[2]).resolve()
            if path.is_relative_to(root.resolve()) and path.is_file():
                yield _figure(path, found[1])
        else:
            text.append(line)
    yield _html("\n".join(text))


def _html(markdown: str) -> str:
    html = _markdown().render(markdown)
    return html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def _figure(path: Path, alt: str = "") -> str:
    alt = alt or ALT.get(path.stem, path.stem.replace("-", " "))
    try:
        with Image.open(path, formats=["PNG"]) as image:
            address = _address(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a PNG image; got {error}") from None
    return (
        f'<figure><img loading="lazy" src="{address}" alt="{escape(alt)}">'
        f"<figcaption>{escape(alt)}</figcaption></figure>"
    )


def _address(image: Image.Image) -> str:
    """The image itself as an address, without loss, at two thirds of a PNG."""
    data = io.BytesIO()
    image.save(data, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def explorer(folder: Path, dataset_of: Callable[[str], Dataset]) -> Iterator[str]:
    """E[x|z] of images on a grid of codes, decoded here and shown where the pointer or the arrow keys are: at normal
    quantiles of a 2-d code, else on the plane of the two main directions of the test images' codes."""
    try:
        run = load_run(folder, dataset=dataset_of(read_config(folder / "config.json")[0].dataset))
    except (OSError, ValueError) as error:
        yield f'<p class="soft">No latent space to move through: {escape(str(error))}</p>'
        return
    if not (run.dataset.is_images and run.model.has_log_p):
        return
    if run.model.labelled or run.dataset.image_shape[0] not in (1, 3):
        return
    z, right, up, names, where = plane(run)
    tiles = (decode(run, z).clamp(0, 1) * 255).round().to(torch.uint8)  # (up, right, C, H, W)
    sprite = tiles.flip(0).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    address = _address(Image.fromarray(sprite.squeeze(-1).numpy()))
    grid = json.dumps({"right": right, "up": up, "names": names}).replace("<", "\\u003c")
    alt = f"Images decoded on a grid of codes: {where}"
    yield (
        f"<h3>The latent space</h3><p>{escape(alt)}. Move over it, or focus it and use the arrow keys.</p>"
        f'<div class="explorer"><img hidden src="{address}" alt="{escape(alt)}">'
        f'<canvas class="map" tabindex="0" role="application" aria-label="{escape(alt)}. Arrow keys move."></canvas>'
        f'<div><canvas class="shown" role="img" aria-label="The decoded image"></canvas>'
        f'<p><output aria-live="polite"></output></p></div><script type="application/json">{grid}</script></div>'
    )


def plane(run: Run) -> tuple[Tensor, list[float], list[float], list[str], str]:
    """Codes (up, right, latent) on a grid, its two axes, their names, and what plane it is."""
    if run.config.latent_size == 2:
        axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.01, 0.99, GRID))
        z = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        return z, axis.tolist(), axis.tolist(), ["z1", "z2"], "normal quantiles of the two latent dimensions"
    z = encode(run, run.dataset.test[:1000] / 255)
    centre = z.mean(0)
    _, scale, directions = torch.linalg.svd(z - centre, full_matrices=False)
    axis = torch.linspace(-2.5, 2.5, GRID)
    a, b = (scale[:2] / len(z) ** 0.5)[:, None] * directions[:2]  # one standard deviation along each
    plane = centre + axis[None, :, None] * a + axis[:, None, None] * b
    where = "the plane of the two main directions of the test images' codes, in standard deviations"
    return plane, axis.tolist(), axis.tolist(), ["first", "second"], where
