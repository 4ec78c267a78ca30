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


EXACT = "log_likelihood-quadrature.json"  # by `ppl-vae evaluate --method quadrature`
RESULTS = ("log_likelihood*", "sandwich*", "gaps*", "denoising.*", "imputation.*", "samples.*")


def results_of(folder: Path) -> list[Path]:
    """The files that were computed of the run in a folder, on its own data and on others."""
    return [path for below in ("", "on-*/") for name in RESULTS for path in folder.glob(below + name) if path.is_file()]


def check_run(folder: Path) -> None:
    """Raises `FileNotFoundError` for a folder that holds no finished run."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of a run; got nothing there")
    for name in ("config.json", "weights.safetensors", "metrics.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected a finished run, with {name}; got a folder without it")


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


def with_exact(
    evaluations: Mapping[str, dict[str, Any]], folder_of: Callable[[str], Path]
) -> dict[str, dict[str, Any]]:
    """Evaluations of runs by name, exact ones in the place of those where a folder has one of the same data."""
    found = {}
    for name, row in evaluations.items():
        folder = folder_of(name)
        has_exact = (folder / EXACT).is_file()
        exact = checked_json(folder, EXACT) if has_exact else {}
        found[name] = exact if has_exact and exact.get("fingerprint") == row.get("fingerprint") else row
    return found
