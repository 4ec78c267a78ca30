"""Early stopping: from the history alone, so that a run that resumes has nothing to restore."""

from __future__ import annotations

from ppl_vae.training.history import History


def is_over(rows: list[dict[str, float]], patience: int | None, since: int = 0) -> bool:
    """Whether the ELBO that is monitored has not been better than its best for `patience` epochs, of those after the
    first `since`; never for None.

    >>> rows = [{"validation_elbo": elbo} for elbo in (-9.0, -7.0, -8.0, -7.0)]
    >>> [is_over(rows[:n], patience=2) for n in range(5)], is_over(rows, patience=2, since=3)
    ([False, False, False, False, True], False)
    """
    return patience is not None and len(rows) - max(History(rows).best_epoch, since) >= patience
