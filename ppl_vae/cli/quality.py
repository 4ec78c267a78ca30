"""`ppl-vae quality`: how good the samples of runs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppl_vae.cli.options import QualityCommand
from ppl_vae.cli.terminal import say
from ppl_vae.experiments.folders import runs_of
from ppl_vae.experiments.quality import quality_runs
from ppl_vae.experiments.runs import Run, load_run
from ppl_vae.report.tables import quality_table


def assess(options: QualityCommand) -> None:
    def load(folder: Path) -> Run:
        return load_run(folder, data_dir=options.data_dir, dataset=options.dataset, device=options.device)

    found = quality_runs(
        [run for folder in options.runs for run in (runs_of(folder) or [folder])],
        load,
        options.features,
        draws=options.draws,
        num_samples=options.num_samples,
        num_neighbours=options.num_neighbours,
        seed=options.seed,
        overwrite=options.overwrite,
        say=say,
        show_progress=True,
    )
    kinds: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for folder, quality in found.items():
        kind = quality["features"]["fingerprint"], quality["dataset_fingerprint"]
        kinds.setdefault(kind, {})[str(folder)] = quality
    for rows in kinds.values():
        first = next(iter(rows.values()))
        say(
            f"{first['num_data']} samples and as many test data of {first['dataset']}, on features of "
            f"{first['features']['name']}; they compare with no others"
        )
        say(quality_table(rows))
