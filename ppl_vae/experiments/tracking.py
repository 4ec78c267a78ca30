"""A run, as it is told to a tracker of experiments."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ppl_vae.components import kebab
from ppl_vae.experiments.folders import best_evaluation, checked_json, is_run, kept_epoch, name_of
from ppl_vae.experiments.runs import load_run
from ppl_vae.experiments.sampling import picture_of_samples
from ppl_vae.system.errors import one_line
from ppl_vae.system.files import read_json, write_json
from ppl_vae.training.trackers import Tracker

FILE = "trackers.json"  # what trackers call the run, by a fingerprint of their place, which may hold a password


@contextlib.contextmanager
def tracked(
    tracker: Tracker | None, folder: Path, config: Mapping[str, Any], *, goes_on: bool = False
) -> Iterator[dict[str, Any]]:
    """Inside, a tracker follows the run in a folder. Yields the `metrics` of `fit`, if there is a tracker. At the end
    it is told the numbers in the folder, `results_of`, and samples of images.

    A run that `goes_on` is the one that it knows. If a tracker fails after it has begun, that is warned of, and ends
    nothing. Raises `OSError` where it can't begin.
    """
    if tracker is None:
        yield {}
        return
    _begin(tracker, folder, config, goes_on)

    def metrics(row: dict[str, float]) -> None:
        with _forgiven(tracker):
            tracker(row)

    try:
        yield {"metrics": metrics}
    except BaseException:
        _end(tracker, folder, failed=True)
        raise
    _end(tracker, folder, failed=not is_run(folder))  # as one that diverged is none


def tell(tracker: Tracker, folder: Path | str) -> None:
    """Tells a tracker what has come of a finished run since, its evaluations: in the place where it was followed in
    training, if it was, else as a run of its own. Raises `OSError` where it can't begin, and `FileNotFoundError` for a
    folder that is no run."""
    folder = Path(folder)
    run = load_run(folder)
    with tracked(tracker, folder, vars(run.config), goes_on=True):
        pass


def results_of(folder: Path) -> dict[str, float]:
    """The numbers of a run: of its training, and as `test/...` those of its best evaluation, in nats per datum with
    their errors; as `on-.../...` those on other data."""
    metrics = checked_json(folder, "metrics.json")
    found: dict[str, Any] = {"kept_epoch": kept_epoch(metrics).get("epoch"), "parameters": metrics.get("parameters")}
    for below, name in ((folder, "test"), *((path, path.name) for path in sorted(folder.glob("on-*/")))):
        summary = best_evaluation(below) or {}
        found |= {f"{name}/{key}": value for key, value in summary.items()}
    return {key: value for key, value in found.items() if type(value) in (int, float) and math.isfinite(value)}


def _begin(tracker: Tracker, folder: Path, config: Mapping[str, Any], goes_on: bool) -> None:
    kind = kebab(type(tracker))
    place = hashlib.sha256(f"{kind} {tracker.place}".encode()).hexdigest()[:16]
    known = read_json(folder / FILE) if (folder / FILE).is_file() else {}
    try:
        found = tracker.begin(name_of(folder), config, known.get(place) if goes_on else None)
    except Exception as error:  # of a library, or of a user
        raise OSError(f"tracker: expected {kind}:{tracker.place} to begin; got {one_line(error)[:500]}") from error
    if found is not None and known.get(place) != found:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, {**known, place: found})


def _end(tracker: Tracker, folder: Path, *, failed: bool) -> None:
    with _forgiven(tracker):
        samples = None if failed else picture_of_samples(load_run(folder))
        pictures = {} if samples is None else {"samples": samples}
        tracker.end({} if failed else results_of(folder), pictures, failed=failed)


@contextlib.contextmanager
def _forgiven(tracker: Tracker) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the network's, say: it must not end a training of hours
        why = one_line(error)[:500]
        warnings.warn(f"{kebab(type(tracker))}: expected to be told; got {why}", RuntimeWarning, stacklevel=4)
