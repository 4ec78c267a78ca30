"""What several tests of evaluation use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ppl_vae.evaluation.results import LogMeanExp


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From a call of it on, a Ctrl-C comes in place of the weights of the block after the first so many."""
    add = LogMeanExp.add

    def interrupt(num_blocks: int) -> None:
        left = [num_blocks]

        def counted(*args: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            add(*args)

        monkeypatch.setattr(LogMeanExp, "add", counted)

    return interrupt


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
