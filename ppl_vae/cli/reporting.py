"""`ppl-vae compare` and `ppl-vae report`: finished runs, side by side and on a page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from ppl_vae.cli.options import CompareCommand, ReportCommand
from ppl_vae.cli.terminal import say
from ppl_vae.cli.training import folder_of
from ppl_vae.evaluation.comparison import Comparison
from ppl_vae.experiments.comparing import compare_folders, rows_of
from ppl_vae.experiments.folders import runs_of
from ppl_vae.plots import differences, figure, save
from ppl_vae.report.page import write_page
from ppl_vae.system.files import read_json, to_json, writable, write_whole


def compare_runs(options: CompareCommand) -> None:
    folders = {str(run): run for folder in options.runs for run in (runs_of(folder) or [folder])}
    found = compare_folders(
        folders,
        method=options.method,
        on=None if options.dataset is None else folder_of(options.dataset),
        unit="bits per dimension" if options.bits_per_dim else "nats",
        levels=options.levels,
    )
    if not found.tables:
        raise ValueError("; ".join(found.left_out.values()))
    say("\n\n".join(map(str, found.tables)))
    for name, why in found.left_out.items():
        say(f"{name} is left out: {why}")
    if len(found.tables) > 1:
        say("Each table is of runs that can be compared: with the same data, encoded alike, and the same measure")
    trained_on = {name: _num_trained_on(f) for name, f in folders.items() if name not in found.left_out}
    if len(set(trained_on.values())) > 1:
        counts = ", ".join(f"{name} {count:,}" for name, count in trained_on.items())
        say(f"warning: trained on different numbers of images: {counts}")
    if options.output is not None:
        writable(options.output.parent)
        write_whole(options.output, _content(options.output.suffix.lower(), found.tables))
        say(f"Written to {options.output}")
    if options.plot is not None:
        writable(options.plot.parent)
        _draw(found.tables, options.plot)
        say(f"Written to {options.plot}")


def _num_trained_on(folder: Path) -> int:
    num_images = read_json(folder / "metrics.json").get("train_images")
    if type(num_images) is not int:
        raise ValueError(f"{folder / 'metrics.json'}: expected train_images, a number; got {num_images!r}")
    return num_images


def _content(suffix: str, tables: tuple[Comparison, ...]) -> bytes:
    rows = rows_of(tables)
    if suffix == ".md":
        return ("\n\n".join(table.to_markdown() for table in tables) + "\n").encode()
    if suffix == ".json":
        return to_json({"rows": rows})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _draw(tables: tuple[Comparison, ...], path: Path) -> None:
    num_rows = sum(len(table.rows) + 2 for table in tables)
    fig, axes = figure(7, 0.4 * num_rows + 0.5, nrows=len(tables), squeeze=False)
    for ax, table in zip(axes[:, 0], tables, strict=True):
        means, errors = zip(*((row.difference.mean, row.difference.data_se_of_mean) for row in table.rows), strict=True)
        differences(ax, [row.name for row in table.rows], means, errors, unit=table.unit)
    save(fig, path, title="log p(x): paired differences to the best")


def report(options: ReportCommand) -> None:
    writable(options.output.parent)
    write_page(options.folders, options.output, data_dir=options.data_dir, say=say)
    say(str(options.output))
