"""The history of a training, and the errors that end it early."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ppl_vae.system.files import write_whole


@dataclass
class History:
    """A row for each epoch: `epoch`, `loss`, `seconds`, and, per datum in nats and in evaluation mode,
    `train_elbo`, `train_reconstruction`, `train_kl`, and the same with `validation_` for held-out data; of a
    `TraceEnum_ELBO` the ELBO alone."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def __getitem__(self, column: str) -> list[float]:
        return [row[column] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, of the highest `validation_elbo`, the first of equal ones; without validation data, of the
        highest `train_elbo`. 0 where there are no epochs.

        >>> History([{"validation_elbo": elbo} for elbo in (-9.0, -7.0, math.nan, -7.0, -8.0)]).best_epoch
        2
        """
        elbos = [-math.inf if math.isnan(elbo := monitored(row)) else elbo for row in self.rows]
        return elbos.index(max(elbos)) + 1 if elbos else 0

    def to_csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]) if self.rows else ["epoch"])
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def save(self, path: Path) -> None:
        """Writes the rows as CSV."""
        write_whole(path, self.to_csv().encode())

    @classmethod
    def load(cls, path: Path) -> History:
        """Reads what `save` wrote. Raises `OSError`, and `ValueError` for a file of anything else."""
        try:
            names, *lines = path.read_text().splitlines()
            rows = [zip(names.split(","), map(float, line.split(",")), strict=True) for line in lines]
            return cls([dict(row) for row in rows])
        except ValueError as error:
            raise ValueError(f"{path}: expected columns of numbers, with their names; got {str(error)[:100]}") from None


def monitored(row: Mapping[str, float]) -> float:
    """The ELBO that decides of an epoch, of the validation data where there are some."""
    return row["validation_elbo"] if "validation_elbo" in row else row["train_elbo"]


class DivergedError(ArithmeticError):
    """The loss, a parameter or the ELBO is NaN or infinite. `history` holds the epochs before; the weights are those
    after the last of them, or, with early stopping, after the best."""

    def __init__(self, message: str, history: History):
        super().__init__(message)
        self.history = history


class Stopped(KeyboardInterrupt):
    """Training was told to stop by `reason`, what `stop()` returned. `history` holds the whole epochs before; the
    weights are those after the last step."""

    def __init__(self, message: str, reason: object, history: History):
        super().__init__(message)
        self.reason, self.history = reason, history
