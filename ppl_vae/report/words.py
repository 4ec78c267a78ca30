"""Results in plain words. Nothing here imports torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from ppl_vae.report.markdown import is_exact, number

# From the support of a likelihood to what its values are, of images and of vectors.
_VALUES = (
    ("boolean", "binary pixels", "binary numbers"),
    ("integerinterval", "pixels of 256 levels", "whole numbers"),
    ("integergreaterthan", "counts", "counts"),
    ("nonnegative", "counts", "counts"),
    ("interval", "pixels in [0, 1]", "numbers in [0, 1]"),
    ("unit", "pixels in [0, 1]", "numbers in [0, 1]"),
    ("real", "real-valued pixels", "real numbers"),
)


def space_in_words(space: str, *, of_images: bool) -> str:
    """The space of an evaluation, the support of its likelihood with the number of dimensions, in words.

    >>> space_in_words("boolean^784", of_images=True)
    '784 binary pixels'
    >>> space_in_words("integergreaterthan(lower_bound=0)^5", of_images=False)
    '5 counts'
    >>> space_in_words("real^2 x boolean^1", of_images=False)
    'real^2 x boolean^1'
    """
    found = re.fullmatch(r"(\w+)[^^]*\^(\d+)", space)
    words = [names for names in _VALUES if found and found[1].lower().startswith(names[0])]
    return f"{int(found[2]):,} {words[0][1 if of_images else 2]}" if found and words else space


def evaluation_lines(summary: dict[str, Any], *, of: str, median_ess: float | None = None) -> Iterator[str]:
    """An evaluation's summary, the most important first: log p(x), its errors and what it is. `of` says of what, as in
    "images of mnist".

    After a warning it says what to do next.
    """
    things = of.partition(" ")[0]
    kind = "log-density" if summary["measure"] == "density" else "log-probability"
    space = space_in_words(summary["space"], of_images=things == "images")
    monte_carlo = "" if is_exact(summary) else f"± {number(summary['mc_se'])} (Monte Carlo) "
    yield (
        f"log p(x) = {number(summary['log_p'])} {monte_carlo}"
        f"± {number(summary['data_se'])} (choice of {things}) nats per {things[:-1]}, "
        f"the mean {kind} of {summary['num_images']:,} test {of}" + (f", {space} each" if space else "")
    )
    details = [summary["bound"]]
    if not is_exact(summary):
        most, least = summary["num_samples"], summary.get("least_samples", math.inf)
        details += [f"K = {f'{least:,} to ' if least < most else ''}{most:,} samples for each"]
        details += [] if median_ess is None else [f"median effective sample size {median_ess:.1f}"]
    details += [f"encoding {summary['encoding']}"] if summary["encoding"] else []
    yield "; ".join(details)
    active, of_elbo = summary.get("active_units"), summary.get("elbo_mc_se")
    error = "" if of_elbo is None else f" ± {number(of_elbo)}"
    yield (
        f"ELBO {number(summary['elbo'])}{error} = reconstruction {number(summary['reconstruction'])} "
        f"- KL {number(summary['kl'])}" + ("" if active is None else f"; {active} latent dimensions are active")
    )
    if (gap := summary.get("gap")) is not None:
        yield (
            f"on {summary['gap_num_data']} data simulated from the model this evaluation misses at most "
            f"{number(gap)} ± {number(summary['gap_se'])} nats"
        )
    elif "no_gap" in summary:
        yield f"no bound from above: {summary['no_gap']}"
    if (accuracy := summary.get("accuracy")) is not None:
        yield f"accuracy of the class: {accuracy:.2%} of the test labels"
    over, num_images = summary["khat_over_limit"], summary["num_images"]
    if over is None:
        yield (
            "warning: too few samples for a Pareto k-hat, so the Monte Carlo error may be too small. Next: "
            "--num-samples 1000"
        )
    elif over and "rungs" in summary:
        yield (
            f"Pareto k-hat is over its limit for {over:,} of {num_images:,} {things}, which widens the Monte Carlo "
            "error. Next, where that is many: --num-samples 4000"
        )
    elif over:
        yield (
            f"warning: Pareto k-hat is over its limit for {over:,} of {num_images:,} {things}: log p(x) is a loose "
            "lower bound and its Monte Carlo error too small. Next: ppl-vae evaluate RUN --method ladder"
        )
    if not summary.get("complete", True):
        yield "warning: interrupted before all samples were drawn. Next: the same command again"
