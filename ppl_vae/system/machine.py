"""The machine that numbers come from, and its devices."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def num_launched() -> int:
    """How many processes `torchrun` launched together, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def device_of(name: str = "auto") -> torch.device:
    """The device of a name, such as cpu, cuda or cuda:1; "auto" is CUDA where there is one.

    Raises `ValueError` for one that is not here, and for those that have no float64 (Apple's mps), in which densities
    and log-weights are summed.

    >>> device_of("cpu")
    device(type='cpu')
    """
    import torch  # seconds, which --help does not take

    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *(["cuda"] if num_cuda else []), *(f"cuda:{i}" for i in range(num_cuda))]
    if name == "auto":
        return torch.device("cuda" if num_cuda else "cpu")
    if name not in here:
        why = ", which has no float64" * name.startswith("mps")
        raise ValueError(f"device: expected one that is here, auto, {', '.join(here)}; got {name}{why}")
    return torch.device(name)


def fits(num_bytes: int, device: torch.device) -> bool:
    """Whether so many bytes take at most half of the memory that is free on a device; main memory is not asked."""
    import torch

    return device.type != "cuda" or num_bytes == 0 or num_bytes <= torch.cuda.mem_get_info(device)[0] / 2
