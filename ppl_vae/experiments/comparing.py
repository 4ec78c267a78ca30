"""Compare evaluated runs: those that can be compared side by side, with seeds of one config averaged."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppl_vae.evaluation.comparison import Comparison, Row, Unit, compare
from ppl_vae.evaluation.results import LogLikelihood
from ppl_vae.experiments.config import read_config, read_shape
from ppl_vae.experiments.evaluating import evaluation_files, load_evaluation
from ppl_vae.experiments.folders import checked_json
from ppl_vae.experiments.runs import history_of
from ppl_vae.system.files import check


@dataclass(frozen=True, eq=False)
class Comparisons:
    """A table for each group of results that can be compared, and why some are in none, by name."""

    tables: tuple[Comparison, ...]
    left_out: dict[str, str]


def compare_all(
    results: Mapping[str, LogLikelihood],
    *,
    num_dims: Mapping[str, int],
    unit: Unit = "nats",
    levels: bool = False,
) -> Comparisons:
    """Each result in the first group that `compare` takes it into; `num_dims` are the dimensions of a datum."""
    groups: list[dict[str, LogLikelihood]] = []
    left_out: dict[str, str] = {}
    options: dict[str, Any] = {"unit": unit, "levels": levels}

    def table(group: Mapping[str, LogLikelihood]) -> Comparison:
        return compare(group, num_dims=num_dims[next(iter(group))], **options)

    for name, result in results.items():
        try:
            table({name: result})
        except ValueError as error:
            left_out[name] = str(error)
            continue
        for group in groups:
            try:
                table({**group, name: result})
            except ValueError:
                continue
            group[name] = result
            break
        else:
            groups.append({name: result})
    return Comparisons(tuple(map(table, groups)), left_out)


def compare_folders(
    folders: Mapping[str, Path], *, method: str | None = None, on: str | None = None, **options: Any
) -> Comparisons:
    """The evaluations in run folders by name, by one method, by default the ladder where all that were
    evaluated have it, and else importance sampling, on their own data or on another dataset. Runs that differ
    in their seed alone are one row, the mean over the seeds. Runs that were not evaluated are left out.

    Raises `ValueError` for damaged files.
    """
    of_config: dict[Any, list[tuple[str, LogLikelihood]]] = {}
    seeds: Counter[Any] = Counter()
    num_dims: dict[str, int] = {}
    left_out: dict[str, str] = {}
    places = {name: folder if on is None else folder / f"on-{on}" for name, folder in folders.items()}
    if method is None:
        by_ladder, sampled = (
            {name for name, place in places.items() if (place / evaluation_files(m)[0]).is_file()}
            for m in ("ladder", "importance")
        )
        method = "ladder" if by_ladder >= sampled else "importance"
    for name, folder in folders.items():
        try:
            result = load_evaluation(places[name], method)
        except FileNotFoundError as error:
            left_out[name] = str(error)
            continue
        check(folder, "config.json", "metrics.json")
        config = read_config(folder / "config.json")[0]
        num_dims[name] = math.prod(read_shape(folder / "config.json"))
        same = (dataclasses.replace(config, seed=0), num_dims[name], result.fingerprint, result.source, len(result))
        times = seeds[same, config.seed]  # the same run again is a row of its own
        seeds[same, config.seed] += 1
        of_config.setdefault((same, times), []).append((name, result))
    results: dict[str, LogLikelihood] = {}
    for runs in of_config.values():
        (name, result), *others = runs
        if others:
            name, result = f"{name} (mean of {len(runs)} seeds)", mean_over_seeds([r for _, r in runs])
            num_dims[name] = num_dims[runs[0][0]]
        results[name] = result
    found = compare_all(results, num_dims=num_dims, **options)
    return dataclasses.replace(found, left_out=left_out | found.left_out)


def mean_over_seeds(results: Sequence[LogLikelihood]) -> LogLikelihood:
    """The mean of log p(x) over seeds of training, for each datum."""
    return dataclasses.replace(
        results[0],
        log_p=torch.stack([r.log_p for r in results]).mean(0),
        mc_se=torch.stack([r.mc_se for r in results]).square().sum(0).sqrt() / len(results),
        khat=torch.stack([r.khat for r in results]).amax(0),
        complete=all(r.complete for r in results),
    )


def rows_over_seeds(
    comparison: Comparison, runs: Mapping[str, Sequence[Path]], titles: Mapping[str, str], num_dims: int
) -> list[dict[str, Any]]:
    """The rows of a comparison of means over seeds, for JSON, in its unit, with the spread between the seeds, whose run
    folders are given by name."""
    factor = 1.0 if comparison.unit == "nats" else -1 / (num_dims * math.log(2))
    rows = []
    for row in comparison.rows:
        folders = runs[row.name]
        summaries = [checked_json(folder, evaluation_files("ladder")[0]) for folder in folders]
        to_mass = num_dims * math.log(256) if summaries[0]["measure"] != row.result.measure else 0.0
        elbos = [history_of(folder)["validation_elbo"] for folder in folders]
        of_seeds = factor * (torch.tensor([s["log_p"] for s in summaries], dtype=torch.float64) - to_mass)
        rows.append(
            {
                "name": row.name,
                "component": titles[row.name],
                "value": row.value.mean,
                "data_se": row.value.data_se_of_mean,
                "mc_se": row.value.mc_se_of_mean,
                "difference": row.difference.mean,
                "difference_se": row.difference.data_se_of_mean,
                "of_seeds": of_seeds.tolist(),
                "num_seeds": len(of_seeds),
                "sd_of_seeds": of_seeds.std().item() if len(of_seeds) > 1 else None,
                "elbo": (sum(s["elbo"] for s in summaries) / len(summaries) - to_mass) * factor,
                "overfitting": sum(max(by_epoch) - by_epoch[-1] for by_epoch in elbos) / len(elbos),  # in nats
                "measure": summaries[0]["measure"],
                "khat_over_limit": row.result.num_unreliable,
                "num_images": len(row.result),
            }
        )
    return rows


def rows_of(tables: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The rows of all tables, for CSV or JSON: numbers in the unit of their table, the best first, whose difference to
    itself is left out."""

    def difference(row: Row, table: Comparison) -> dict[str, float | None]:
        d = None if row is table.rows[0] else row.difference
        values = (None, None, None) if d is None else (d.mean, d.data_se_of_mean, d.mc_se_of_mean)
        return dict(zip(("difference", "difference_data_se", "difference_mc_se"), values, strict=True))

    return [
        {
            "table": i,
            "name": row.name,
            "log_p": row.value.mean,
            "data_se": row.value.data_se_of_mean,
            "mc_se": row.value.mc_se_of_mean,
            **difference(row, table),
            "unit": table.unit,
            "measure": row.result.measure,
            "num_data": len(row.result),
            "num_samples": int(row.result.num_samples.max()),
        }
        for i, table in enumerate(tables, 1)
        for row in table.rows
    ]
