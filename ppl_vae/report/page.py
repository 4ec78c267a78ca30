"""One HTML page for finished experiments: what was run, warnings, tables with errors, figures, a latent space to move
through, and how to run it again. It holds all that it shows: it opens from a file, without a network or a server."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.loading import load
from ppl_vae.experiments.comparing import compare_folders
from ppl_vae.experiments.config import TrainConfig, read_config
from ppl_vae.experiments.folders import best_evaluation, checked_json, is_run, kept_epoch, name_in, name_of, runs_of
from ppl_vae.experiments.settings import Grid, ReferenceConfig, StudyConfig, SwapsConfig, SweepSizes
from ppl_vae.report.embedding import Figure, figure
from ppl_vae.report.explorer import Plane, explorer
from ppl_vae.report.markdown import number, table
from ppl_vae.report.panel import Panel, panel
from ppl_vae.report.sections import SECTIONS, gaps_lines, likelihood_caption, versions
from ppl_vae.report.tables import likelihood_table
from ppl_vae.report.walk import Walk
from ppl_vae.report.warnings import warnings_of
from ppl_vae.system.files import check, write_whole


@dataclass(frozen=True)
class Rerun:
    """How to run it again."""

    command: str
    versions: str
    fingerprint: str
    """Of the data."""


@dataclass(frozen=True)
class RunPart:
    """One run: its numbers, in Markdown, its figures and its latent space (or why there is none to show)."""

    name: str
    text: str
    figures: list[Figure]
    rerun: Rerun
    explorer: Plane | Walk | str | None
    latent_size: int


@dataclass(frozen=True)
class Section:
    """A folder: of an experiment its own text and figures, and its runs; or a single run."""

    name: str
    runs: list[RunPart]
    blocks: list[str | Figure] = field(default_factory=list)
    rerun: Rerun | None = None
    """Of an experiment."""
    panel: Panel | None = None
    """Its restored images."""


def write_page(
    folders: Sequence[Path], output: Path, *, data_dir: Path | None = None, say: Callable[[str], object] = print
) -> None:
    """Writes the page of one or several folders to `output`: of runs, or of an experiment with the runs below.

    `data_dir` is where datasets are looked for. Without a model's data, the page is without its explorer.
    Raises `FileNotFoundError` for a folder that holds nothing finished, and `ValueError` for damaged files.
    """
    dataset_of = cache(lambda name, **reading: load(name, data_dir, **reading))  # runs of an experiment share it
    folders = [found for folder in folders for found in _shown(folder)]
    page = _environment().get_template("page.html.jinja").render(
        sections=[_section(folder, dataset_of, say) for folder in folders],
        warnings=[warning for folder in folders for warning in warnings_of(folder)],
        comparison=_comparison(folders),
    )  # fmt: skip
    write_whole(output, page.encode())


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("ppl_vae.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["markdown"] = html_of
    return found


def _shown(folder: Path) -> list[Path]:
    """The folder of a run or an experiment, or the folders of the runs in it."""
    found = [folder] if (folder / "metrics.json").is_file() else runs_of(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: expected a finished run or experiment; got a folder without metrics.json")
    return found


def _section(folder: Path, dataset_of: Callable[..., Dataset], say: Callable[[str], object]) -> Section:
    runs = runs_of(folder)
    say(f"{folder}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}")
    parts = [_run(run, name_in(folder, run), dataset_of) for run in runs]
    if is_run(folder):
        return Section(name_of(folder), parts)
    metrics = checked_json(folder, "metrics.json")
    section = next(section for key, section in SECTIONS.items() if key in metrics)
    text = section(folder)
    without_heading = text.partition("\n")[2]
    blocks = list(_blocks(without_heading, folder.parent))
    return Section(name_of(folder), parts, blocks, _rerun(_experiment(metrics), metrics), panel(folder))


def _run(folder: Path, name: str, dataset_of: Callable[..., Dataset]) -> RunPart:
    check(folder, "config.json")
    (config, shape, _), metrics = read_config(folder / "config.json"), checked_json(folder, "metrics.json")
    things = "image" if len(shape) == 3 else "vector"
    which = f"best epoch, {metrics['best_epoch']['epoch']:.0f}" if "best_epoch" in metrics else "last epoch"
    text = [table([f"after the {which}", f"nats per {things}"], _after_training(kept_epoch(metrics)))]
    if (evaluation := best_evaluation(folder)) is not None:
        row = {"log_likelihood": {folder.name: evaluation}}
        text += [likelihood_table(row), likelihood_caption(row).replace("image", things)]
    if (folder / "gaps.json").is_file():
        text += ["\n".join("- " + line for line in gaps_lines(checked_json(folder, "gaps.json")))]
    return RunPart(
        name,
        "\n\n".join(text),
        [figure(path) for path in sorted((folder / "figures").glob("*.png"))],
        _rerun(command_of("ppl-vae train", config, TrainConfig(), whole=config.start_from is not None), metrics),
        explorer(folder, dataset_of),
        config.latent_size,
    )


def _after_training(row: dict[str, float]) -> list[list[str]]:
    """The ELBO and its parts; of an autoencoder, which has no latent, and so a KL of 0 exactly, the loss."""
    rows = []
    for name, value in row.items():
        part, _, quantity = name.partition("_")
        has_latent = row.get(f"{part}_kl") != 0
        if quantity and (has_latent or quantity == "elbo"):
            rows.append([f"{part} {quantity if has_latent else 'loss'}", number(value if has_latent else -value)])
    return rows


def _rerun(command: str, metrics: dict[str, Any]) -> Rerun:
    return Rerun(command, versions(metrics), str(metrics.get("dataset_fingerprint", "unknown")))


def _experiment(metrics: dict[str, Any]) -> str:
    """The command of an experiment, from the config in its `metrics.json`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in metrics["config"].items()}
    try:
        if "sweep" in metrics:
            command = "ppl-vae sweep"
            for cls in (Grid, SweepSizes):
                given = {option.name: values[option.name] for option in dataclasses.fields(cls)}
                command = command_of(command, cls(**given), cls())
            return command
        if "denoising" in metrics:
            return command_of("ppl-vae run study", StudyConfig(**values), StudyConfig())
        if "reference" in metrics:
            words = f"ppl-vae run reference --dataset {shlex.quote(metrics['data'])}"
            return command_of(words, ReferenceConfig(**values), ReferenceConfig())
        dataset = shlex.quote(metrics["dataset"])
        return command_of(f"ppl-vae run swaps --dataset {dataset}", SwapsConfig(**values), SwapsConfig())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"metrics.json: config: {error}") from None


def command_of(words: str, config: Any, default: Any, *, whole: bool = False) -> str:
    """The command that runs a config, a dataclass: what is not as in `default` is an option, or, for the `whole` of it,
    what is as in `default` too.

    >>> command_of("ppl-vae train", TrainConfig(model="dense-vae", hidden=(300, 300)), TrainConfig())
    'ppl-vae train --model dense-vae --hidden 300 300'
    """
    found = shlex.split(words)
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if not whole and (value is None or value == getattr(default, option.name)):
            continue
        flag = option.name.replace("_", "-")
        if isinstance(value, bool) and getattr(default, option.name) is not None:
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            found += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(found)


def _comparison(folders: Sequence[Path]) -> str:
    """Paired differences of the runs that are given by themselves, a table for each group that compares; "" for fewer
    than two."""
    runs = {name_of(f): f for f in folders if is_run(f) and best_evaluation(f) is not None}
    if len(runs) < 2:
        return ""
    found = compare_folders(runs)
    return "\n\n".join([*map(str, found.tables), *(f"{name}: {why}" for name, why in found.left_out.items())])


def _blocks(text: str, root: Path) -> Iterator[str | Figure]:
    """Markdown in parts. A line that is an image becomes a figure, of a file below `root`."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if found := re.fullmatch(r"!\[(.*)\]\((.*)\)", line):
            yield "\n".join(lines)
            lines = []
            path = (root / found[2]).resolve()
            if path.is_relative_to(root.resolve()) and path.is_file():
                yield figure(path, found[1])
        else:
            lines.append(line)
    yield "\n".join(lines)


def html_of(markdown: str) -> str:
    """Paragraphs, headings, lists, code and tables of a text in Markdown. The names and messages in it are text: they
    can be no elements, links or images."""
    html = _markdown().render(markdown)
    return html.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


@cache
def _markdown() -> MarkdownIt:
    return (
        MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink", "html_inline"])
    )
