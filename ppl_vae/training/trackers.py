"""Where the numbers of training go, an epoch at a time: `fit(..., metrics=tracker)`.

A tracker is any function of a row of the history. For another one than TensorBoard it takes some lines; here it is a
list, where it could be `mlflow.log_metrics(row, step)` or `wandb.log(row, step)`:

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

The history that `fit` returns has all rows whether there is a tracker or not, and `history.save` writes them as CSV.
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

    Several may write to folders below one, to be compared. A run that goes on from a checkpoint goes on in its folder.
    Raises `ImportError`, in one line, unless tensorboard is installed, and `OSError` where no folder can be made.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        there = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise OSError(f"TensorBoard: expected a folder that can be written to; got {there}")
        self._writer_of = _summary_writer()

    @functools.cached_property
    def writer(self) -> Any:
        """torch's `SummaryWriter`, made with the first row: a training that is refused leaves no folder."""
        return self._writer_of(str(self.folder))

    def __call__(self, row: dict[str, float]) -> None:
        step = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(tag(name), value, step)
        self.writer.flush()  # seen at once, and there if the process is killed


def tag(column: str) -> str:
    """The name of a column of the history in TensorBoard, which draws what begins alike together.

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
