"""How work is cut: blocks, whose noise has a seed each, and chunks of them, as large as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.programs import Program, guide_trace_of, model_trace_of
from ppl_vae.system.rows import chunks_of_data as chunks_of_data

# The largest intermediate tensor of a chunk should fit a last-level cache: 4,000 rows of 784 logits.
CACHE_BYTES = 13 << 20

# Noise is sampled for a block of so many (sample, datum) rows from a seed of its own, whatever the chunks in which the
# block is then decoded: so the result under a seed does not depend on the memory at hand.
BLOCK_ROWS, BLOCK_DATA = 4096, 64


class _OutputBytes(TorchDispatchMode):
    """Records the size in bytes of what each operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            self.sizes.append(t.numel() * t.element_size() if isinstance(t, Tensor) else 0)
        return result


def rows_per_chunk(model: Program, guide: Program, *datum: Tensor, memory: int | None, gradients: bool = False) -> int:
    """How many rows (samples x data) to decode at once, from what a row takes: measured on one datum. A row whose
    gradient is wanted keeps what all operations return, until the way back."""
    sizes = []
    for num_samples in (2, 4):
        guide_trace = guide_trace_of(guide, *datum, num_samples=num_samples)
        with _OutputBytes() as outputs:
            model_trace_of(model, guide_trace, *datum, num_samples=num_samples)
        sizes.append(outputs.sizes)
    # The difference of the two runs is what grows with the rows: weights and constants cancel.
    per_row = [max((b - a) // 2, 0) for a, b in zip(*sizes, strict=False)]
    largest = max(1, *per_row)
    if memory is None:
        return max(1, CACHE_BYTES // largest)
    # an operation's input, its output, and what log-prob adds to them
    return max(1, memory // (4 * largest + (sum(per_row) if gradients else 0)))


def chunks_of(num_samples: int, num_data: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """(samples, data) of chunks of about `rows` rows each, all samples of some data after one another."""
    data_step = min(rows, num_data)
    sample_step = max(rows // data_step, 1)
    for d in range(0, num_data, data_step):
        for k in range(0, num_samples, sample_step):
            yield slice(k, min(k + sample_step, num_samples)), slice(d, min(d + data_step, num_data))


def seed_of(seed: int, *numbers: int) -> int:
    """A seed for each block of the work: far apart, where seed + number would meet the next seed's."""
    for number in numbers:
        seed = (seed * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03 + 0x2545F491) % (1 << 63)
    return seed


def blocks_of(num_data: int, num_samples: int) -> Iterator[tuple[slice, slice]]:
    """(samples, data) of blocks that cover every datum `num_samples` times, one datum's after another's."""
    for start in range(0, num_data, BLOCK_DATA):
        part = slice(start, min(start + BLOCK_DATA, num_data))
        per_block = max(BLOCK_ROWS // (part.stop - start), 1)
        for done in range(0, num_samples, per_block):
            yield slice(done, min(done + per_block, num_samples)), part
