"""Logging callbacks, called after each epoch: `fit(..., metrics=TensorBoard(folder))`.

Any function of a row of the history is one. This one appends to a list, where it could call
`mlflow.log_metrics(row, step)` or `wandb.log(row, step)`:

>>> import torch
>>> from ppl_vae.models import PPCA
>>> from ppl_vae.programs import seeded
>>> from ppl_vae.training.fitting import fit
>>> log = []
>>> def metrics(row):
...     step = int(row.pop("epoch"))
...     log.append((step, sorted(row)))
>>> with seeded(0):
...     ppca, x = PPCA((4,), latent_size=2), torch.randn(20, 4)
>>> history = fit(ppca.model, ppca.guide, x, epochs=2, metrics=metrics, show_progress=False)
>>> log[1]
(2, ['loss', 'seconds', 'train_elbo', 'train_kl', 'train_reconstruction'])

The history that `fit` returns has all rows in any case, and `history.save` writes them as CSV.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes scalars for TensorBoard to `folder`, by epoch: `elbo/train` beside `elbo/validation`, in nats per datum,
    and so on; `tensorboard --logdir folder` shows them.

        fit(model, guide, x, metrics=TensorBoard(Path("runs/a")))

    Runs whose folders have one parent are compared by `tensorboard --logdir parent`. A run that resumes appends to its
    folder. Raises `ImportError` unless tensorboard is installed, and `OSError` where no folder can be made.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise OSError(f"TensorBoard: expected a folder that can be written to; got {there}")
        self._writer_of = _summary_writer()

    @functools.cached_property
    def writer(self) -> Any:
        """torch's `SummaryWriter`, made with the first row, so that a training that fails before leaves no folder."""
        return self._writer_of(str(self.folder))

    def __call__(self, row: dict[str, float]) -> None:
        step = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(tag(name), value, step)
        self.writer.flush()  # seen at once, and there if the process is killed


def tag(column: str) -> str:
    """The name of a column of the history in TensorBoard, which groups plots by what precedes the slash.

    >>> tag("validation_elbo"), tag("seconds")
    ('elbo/validation', 'seconds')
    """
    part, _, quantity = column.partition("_")
    return f"{quantity}/{part}" if part in ("train", "validation") else column


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ImportError("TensorBoard: expected tensorboard; got none (pip install 'ppl-vae[tensorboard]')") from None
    return SummaryWriter
