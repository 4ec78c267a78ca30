"""How fast this package is, beside its peers and the floor:

    pip install -e '.[bench]' && python tests/benchmarks --output results/benchmarks

Each contender has a process of its own, and they take turns of less than a second, round after round: what the machine
does meanwhile falls on all of them. What counts are ratios within a round. On a machine that does nothing else, half an
hour; `--quick` is a look.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import importance
import torch
import training
from cases import Case

from ppl_vae.system.machine import processor

TRAINING = [
    "ours",
    "ours_eager",
    "ours_two_ranks",
    "svi_compiled",
    "pyro_tutorial",
    "pyro_svi",
    "by_hand",
    "by_hand_compiled",
    "numpyro_jit",
    "pythae",
    "bare_products",
]
IMPORTANCE = [
    "ours",
    "ours_eager",
    "pyro_naive",
    "pyro_vectorized",
    "by_hand",
    "by_hand_compiled",
    "numpyro_jit",
    "pythae",
    "bare_products",
]
CASES = [
    *(Case(name, batch_size=size) for name in ("dense 400-20", "gated 300-300-40") for size in (128, 512)),
    Case("conv", batch_size=128),
    *(Case("dense 400-20", num_samples=K) for K in (1000, 10_000)),
]
CHUNKS = (256, 512, 1024, 2048, 4096)  # rows
CHUNKED = [Case(name, num_samples=1000) for name in ("dense 400-20", "gated 300-300-40")]
TURN_SECONDS = 0.5
WARM_UP = 4  # calls, of which the first compile


def worker(name: str, case: Case) -> None:
    """Says "ready", then for each number n of calls that it is sent the seconds per step, or per decoder row."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    out, sys.stdout = sys.stdout, sys.stderr  # what peers print is not ours to read
    if case.batch_size:
        call, units = getattr(training, name)(case), 1
        units = getattr(call, "steps", 1)
    else:
        call, units = getattr(importance, name)(case)
    wait = getattr(call, "wait", lambda: None)
    for _ in range(WARM_UP):
        start = time.perf_counter()
        call()
        wait()
        if time.perf_counter() - start > 20:  # nothing to warm up in what takes so long
            break
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        calls = int(line)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        print((time.perf_counter() - start) / (calls * units), file=out, flush=True)


class Contender:
    def __init__(self, name: str, number: int):
        self.name = name
        command = [sys.executable, __file__, "--worker", name, "--case", str(number)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.calls = 1

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, errors = self.process.communicate()
            raise RuntimeError(f"{self.name}: {errors.strip().splitlines()[-1] if errors.strip() else 'ended'}")
        return line.strip()

    def turn(self) -> float:
        """Seconds per step, or per row, in one turn."""
        assert self.process.stdin is not None
        start = time.perf_counter()
        print(self.calls, file=self.process.stdin, flush=True)
        seconds = float(self.answer())
        per_call = (time.perf_counter() - start) / self.calls
        self.calls = max(1, round(TURN_SECONDS / per_call))
        return seconds

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(number: int, names: list[str], rounds: int) -> dict[str, Any]:
    """Seconds per step, or per decoder row, of every contender in every round."""
    contenders = []
    absent: dict[str, str] = {}
    for name in names:
        contender = Contender(name, number)
        try:
            contender.answer()  # one after another, so that they warm up alone
            contender.turn()  # how many calls make a turn
            contender.turn()
            contenders.append(contender)
        except RuntimeError as error:
            absent[name] = str(error)
            print(f"  left out: {error}", flush=True)
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for turn in range(rounds):
        shift = turn % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            seconds[contender.name].append(contender.turn())
    for contender in contenders:
        contender.close()
    return {"seconds": seconds, "absent": absent}


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "fused kernels: likelihood, KL, Adam, and their calls": ("## Call CompiledFxGraph",),
    "drawing noise, for pixels and codes": ("aten::uniform_", "aten::normal_"),
    "the batch: rows by index, compared with the noise": ("aten::index", "aten::lt", "aten::mul_", "aten::copy_"),
}


def profile(case: Case, steps: int = 200) -> dict[str, float]:
    """Where a step of this package spends its time, in seconds, by torch's profiler; it slows the step by a little."""
    torch.manual_seed(0)
    step = training.ours(case)
    for _ in range(20):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
    spent = {event.key: event.self_cpu_time_total / 1e6 / steps for event in profiled.key_averages()}
    parts = {name: sum(t for key, t in spent.items() if key.startswith(keys)) for name, keys in PARTS.items()}
    return {**parts, "all else": sum(spent.values()) - sum(parts.values())}


def chunks(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds per decoder row of compiled importance sampling, by case and by how many rows are decoded at a time:
    the medians of turns. What `pairs.CACHE_BYTES` was chosen by."""
    found: dict[str, dict[str, float]] = {}
    for case in CHUNKED:
        torch.manual_seed(0)
        runs = {rows: importance.ours_in_chunks(case, rows) for rows in CHUNKS}
        seconds: dict[int, list[float]] = {rows: [] for rows in runs}
        for turn in range(rounds + 2):  # the first two trace and compile
            for rows, (run, num_rows) in runs.items():
                start = time.perf_counter()
                run()
                if turn > 1:
                    seconds[rows].append((time.perf_counter() - start) / num_rows)
        found[str(case)] = {str(rows): torch.tensor(s).median().item() for rows, s in seconds.items()}
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("ppl-vae", "torch", "pyro-ppl", "numpyro", "jax", "pythae", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for benchmarks.json; none is written if left out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--profile", action="store_true", help="only where a step's time goes, to profile.json")
    parser.add_argument("--chunks", action="store_true", help="only the time per row by chunk size, to chunks.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, CASES[args.case])
        return
    about = {
        "rounds": 3 if args.quick else args.rounds,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions(),
    }
    if args.profile:
        parts = profile(CASES[0])
        for name, seconds in parts.items():
            print(f"{seconds * 1e3:6.2f} ms  {name}")
        _write(args.output, "profile.json", {**about, "case": str(CASES[0]), "seconds": parts})
        return
    if args.chunks:
        found = chunks(args.rounds)
        for name, seconds in found.items():
            print(name, *(f"{rows} rows: {s * 1e6:.2f} us" for rows, s in seconds.items()), sep="  ")
        _write(args.output, "chunks.json", {**about, "seconds": found})
        return
    results: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        if args.only not in str(case):
            continue
        print(case, flush=True)
        names = (
            TRAINING if case.batch_size else [n for n in IMPORTANCE if case.num_samples <= 1000 or n != "pyro_naive"]
        )
        result = run(number, names, 3 if args.quick else args.rounds)
        unit, factor = ("ms/step", 1e3) if case.batch_size else ("us/row", 1e6)
        reference = torch.tensor(result["seconds"]["ours"])
        for name, seconds in result["seconds"].items():
            low, middle, high = (torch.tensor(seconds) / reference).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
            median = torch.tensor(seconds).median().item() * factor
            print(f"  {name:18} {median:9.3f} {unit}   {middle:7.2f} x ours [{low:.2f}, {high:.2f}]", flush=True)
        results.append({"case": str(case), "unit": "step" if case.batch_size else "decoder row", **result})
        _write(args.output, "benchmarks.json", {**about, "cases": results})


def _write(folder: Path | None, name: str, values: dict[str, Any]) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
