"""Folders of runs, and of experiments with runs below. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppl_vae.system.files import check, read_json


def name_of(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])


def name_in(folder: Path, run: Path) -> str:
    """The name of a run of an experiment, or of a folder that is a run itself."""
    return name_of(folder) if run == folder else run.relative_to(folder).as_posix()


PROTOCOL = "log_likelihood.json"  # importance sampling from the guide, as papers have it
BETTER = ("log_likelihood-quadrature.json", "log_likelihood-ladder.json")  # by `ppl-vae evaluate --method`, best first
CURVES, PANEL = "restoration-curves.json", "restoration-panel.npz"
SAMPLES = "samples.npz"
QUALITY = ("quality.json", "quality-draws.json")  # of E[x|z], and of x ~ p(x|z)
RESULTS = ("log_likelihood*", "sandwich*", "gaps*", "denoising.*", "imputation.*", "samples.*", "quality*")


def results_of(folder: Path) -> list[Path]:
    """The files that were computed of the run in a folder, on its own data and on others."""
    return [path for below in ("", "on-*/") for name in RESULTS for path in folder.glob(below + name) if path.is_file()]


def check_run(folder: Path) -> None:
    """Raises `FileNotFoundError` for a folder that holds no finished run."""
    if not folder.is_dir():
        got = "nothing there"
        if folder.is_file():
            unzip = f" (to unpack it: python -m zipfile -e {folder} FOLDER)" * (folder.suffix.lower() == ".zip")
            got = f"a file{unzip}"
        raise FileNotFoundError(f"{folder}: expected the folder of a run; got {got}")
    for name in ("config.json", "weights.safetensors", "metrics.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected a finished run, with {name}; got a folder without it")


def kept_epoch(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The row of the history that the weights of a run are of, from its `metrics.json`: the best, where that was
    kept, or the last."""
    return metrics.get("best_epoch", metrics.get("last_epoch", {}))


def made_of(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a JSON file has, if it is there and of just what is asked."""
    stored = read_json(path) if path.is_file() else None
    return stored if stored and all(stored.get(name) == value for name, value in asked.items()) else None


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "metrics.json").is_file()


def runs_of(folder: Path) -> list[Path]:
    """The folders of finished runs: this one, or those below it, one or two levels down."""
    if is_run(folder):
        return [folder]
    return [f for pattern in ("*", "*/seed-*") for f in sorted(folder.glob(pattern)) if f.is_dir() and is_run(f)]


def checked_json(folder: Path, name: str) -> dict[str, Any]:
    """What a run or an experiment wrote. Raises `ValueError` where it is damaged or was changed since."""
    check(folder, name)
    return read_json(folder / name)


def best_evaluation(folder: Path, known: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The summary of the best evaluation in a run folder, exact before the ladder's before importance sampling, of the
    same data as a `known` one, if there is one, which is the last choice; None for no evaluation.

    Of another method, its "guide" is the summary of importance sampling on the same data, if that is there.
    """
    guide = known or (checked_json(folder, PROTOCOL) if (folder / PROTOCOL).is_file() else None)
    for name in BETTER:
        if (folder / name).is_file():
            found = checked_json(folder, name)
            same = guide is not None and found.get("fingerprint") == guide.get("fingerprint")
            if same or known is None:
                return found | ({"guide": guide} if same else {})
    return None if guide is None else dict(guide)


def best_evaluations(
    evaluations: Mapping[str, Mapping[str, Any]], folder_of: Callable[[str], Path]
) -> dict[str, dict[str, Any]]:
    """`best_evaluation` of runs by name, of which importance sampling is known."""
    return {name: best_evaluation(folder_of(name), row) or dict(row) for name, row in evaluations.items()}
