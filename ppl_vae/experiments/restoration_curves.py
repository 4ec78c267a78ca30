"""How restoration by inference depends on what is spent, and how well it tells a scale of noise that nobody gave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from ppl_vae.components import create
from ppl_vae.data.noise import GaussianNoise, Noise
from ppl_vae.evaluation.denoising import quality_summary
from ppl_vae.evaluation.scales import estimate_scale
from ppl_vae.experiments.folders import CURVES, made_of
from ppl_vae.experiments.restoring import restore_run
from ppl_vae.experiments.runs import Run, versions
from ppl_vae.system.files import write_json

NUM_STEPS = (5, 10, 20, 40, 80, 160)  # of Adam, from each start
TRUE_SCALES = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
GRID = tuple(round(0.05 * 2 ** (i / 2), 4) for i in range(11))  # 0.05 to 1.6


def restoration_curves(
    folder: Path,
    run: Run,
    noise: str,
    *,
    num_images: int = 100,
    num_scaled: int = 20,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """`CURVES` in a folder, unless it is of this run and noise already:

    - "steps": quality and CPU time by inference against the number of Adam's steps, of the first test images;
    - "scales": for Gaussian noise of each true scale, the estimate by `estimate_scale` from `num_scaled` images, with
      its standard error, for test images and for images that the model itself made.
    """
    path = folder / CURVES
    asked = {"noise": noise, "num_images": num_images, "num_scaled": num_scaled, "seed": seed}
    asked["weights"] = run.weights
    if (known := made_of(path, asked)) is not None:
        return known
    say(f"{folder.name}: restoration against the steps spent, and scales of noise")
    test = run.dataset.test[: max(num_images, num_scaled)] / 255
    of_scales = {"test images": test[:num_scaled], "simulated": run.sample(num_scaled, seed=seed)}
    curves = {
        **asked,
        "steps": steps_curve(run, create(Noise, noise), test[:num_images], seed=seed),
        "scales": {name: scales_curve(run, clean, seed=seed) for name, clean in of_scales.items()},
        "versions": versions(),
    }
    write_json(path, curves)
    return curves


def steps_curve(run: Run, corruption: Noise, clean: Tensor, *, seed: int) -> list[dict[str, Any]]:
    """Quality and CPU seconds an image for each of `NUM_STEPS`."""
    y, rows = corruption(clean, Generator().manual_seed(seed)), []
    for num_steps in NUM_STEPS:
        start = time.process_time()
        result = restore_run(run, y, corruption, seed=seed, num_steps=num_steps, compiled=False)
        seconds = (time.process_time() - start) / len(y)
        rows.append({"num_steps": num_steps, "cpu_seconds_per_image": seconds, **quality_summary(result.mean, clean)})
    return rows


def scales_curve(run: Run, clean: Tensor, *, seed: int) -> list[dict[str, Any]]:
    """What `estimate_scale` says of each of `TRUE_SCALES`, on `GRID`: one scale for all images."""
    rows = []
    for true in TRUE_SCALES:
        y = GaussianNoise(true)(clean, Generator().manual_seed(seed))
        estimate, se = estimate_scale(
            *run.programs, y, scales=GRID, corruption=GaussianNoise, encoding=run.observe.encoding, seed=seed
        ).of_all
        rows.append({"scale": true, "estimate": estimate, "se": se if math.isfinite(se) else None})
    return rows
