"""`ppl-vae train`: a run folder."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

from ppl_vae.cli.options import TrainCommand
from ppl_vae.cli.terminal import say
from ppl_vae.components import UsageError
from ppl_vae.experiments.preparation import assemble
from ppl_vae.experiments.runs import finished, unfinished
from ppl_vae.experiments.training import extend, train
from ppl_vae.report.gallery import draw_run
from ppl_vae.system.files import locked, writable
from ppl_vae.training.parallel import Ranks, launched
from ppl_vae.training.trackers import tracker_of


def train_model(options: TrainCommand) -> None:
    config = options.config
    try:
        assemble(config, of_images=config.encoding != "identity")
    except ValueError as error:
        raise UsageError(str(error)) from None
    output = options.output or Path("runs") / f"{config.model}-{folder_of(config.dataset)}".replace(":", "-")
    more: dict[str, Any] = {
        "data_dir": options.data_dir,
        "resume": options.resume,
        "checkpoint_epochs": options.checkpoint_epochs,
        "checkpoint_minutes": options.checkpoint_minutes,
        "tracker": options.tracker and tracker_of(options.tracker)(),
    }
    with contextlib.ExitStack() as lock, launched(options.device) as (group, device):
        ranks = Ranks(group)
        more |= {"device": device, "process_group": group}
        if not ranks.is_first:
            warnings.simplefilter("ignore")  # the first has the same
        ranks.first(lambda: _begin(options, output, lock))
        if options.extend is None:
            run = train(config, output, overwrite=options.overwrite, **more)
        else:
            run = extend(output, options.extend, **more)
        if ranks.is_first:
            draw_run(run, output, seed=run.config.seed)
            say(f"Run folder: {output}")


def _begin(options: TrainCommand, output: Path, lock: contextlib.ExitStack) -> None:
    """Raises `UsageError` for a run in the folder that is neither to be resumed nor replaced."""
    lock.enter_context(locked(output))
    _check(options, output)
    writable(output)


def _check(options: TrainCommand, output: Path) -> None:
    if options.resume or options.overwrite:
        return
    if unfinished(output):
        raise UsageError(
            f"--output: expected a new folder; got {output}, an unfinished run (--resume resumes it, "
            "--overwrite starts again)"
        )
    if options.extend is None and (output / "metrics.json").exists():
        same = "with this config" if finished(output, options.config) else "with another config"
        raise UsageError(f"--output: expected a new folder; got {output}, a finished run {same} (see --overwrite)")


def folder_of(dataset: str) -> str:
    """The name of a folder for what is made of a dataset, given by name or path: one below, wherever the data are.

    >>> folder_of("mnist"), folder_of("faces/../mine.npz"), folder_of("/data/..")
    ('mnist', 'mine', 'root')
    """
    return Path(dataset).resolve().stem or "root"
