"""Which model is better, and by how much: estimates of log p(x) side by side, paired by datum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ppl_vae.evaluation.results import LogLikelihood, PerDatum

Unit = Literal["nats", "bits per dimension"]


@dataclass(frozen=True, eq=False)
class Row:
    """A result in a comparison: `value` and its paired `difference` to the best, in the comparison's unit."""

    name: str
    result: LogLikelihood
    value: PerDatum
    difference: PerDatum


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results on the same data, the best first. `str()` is a table of text, `to_markdown()` one of Markdown."""

    rows: tuple[Row, ...]
    unit: Unit

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        line = "  ".join(f"{{:{'>' if i else '<'}{width}}}" for i, width in enumerate(widths))
        lines = (line.format(*row) for row in cells)
        return "\n".join([*lines, *self._notes()])

    def to_markdown(self) -> str:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self._cells()]
        header, *rows = (f"| {' | '.join(row)} |" for row in cells)
        rule = f"|---|{'---:|' * (len(cells[0]) - 1)}"
        return "\n".join([header, rule, *rows, "", *(f"- {note}" for note in self._notes())])

    def _cells(self) -> list[list[str]]:
        of = self.rows[0].result.quantity
        quantity, digits = (of, 3) if self.unit == "nats" else (f"-{of}", 4)
        errors = ["data s.e.", "MC s.e."]
        cells = [["result", quantity, *errors, "k-hat over limit", "to the best", *errors]]
        for i, row in enumerate(self.rows):
            value, difference = (
                [f"{x:.{digits}f}" for x in (of.mean, of.data_se_of_mean, of.mc_se_of_mean)]
                for of in (row.value, row.difference)
            )
            over = row.result.num_unreliable
            khat = "unknown" if over is None else f"{over}/{len(row.result)}"
            cells.append([row.name, *value, khat, *(difference if i else ["-"] * 3)])
        return cells

    def _notes(self) -> Iterator[str]:
        best = self.rows[0].result
        encodings = " | ".join(dict.fromkeys(row.result.encoding or "as given" for row in self.rows))
        unit = f"{self.unit} per datum" if self.unit == "nats" else self.unit
        yield f"{unit} ({best.measure}); {len(best)} data {encodings}; differences are paired by datum"
        for bound in dict.fromkeys(row.result.bound for row in self.rows):
            yield f"{', '.join(row.name for row in self.rows if row.result.bound == bound)}: {bound}"
        for row in self.rows:
            for warning in row.result.warnings:
                yield warning.replace("warning: ", f"warning: {row.name}: ", 1)


def compare(
    results: Mapping[str, LogLikelihood], *, unit: Unit = "nats", num_dims: int | None = None, levels: bool = False
) -> Comparison:
    """A table of log p(x) by several models of the same data, best first, with paired differences to the best.

    With d_i = log p_a(x_i) - log p_best(x_i), the difference is mean d, its s.e. over the data sd(d) / sqrt(N): most
    of what varies between data is common to both models and cancels. Its Monte Carlo s.e. is kept apart,
    sqrt(sum_i mc_se_a,i^2 + mc_se_best,i^2) / N, as of independent noise: under one seed it may be too large or
    too small. (The s.e. over the data has that noise in it already.)

    Arguments:
        unit: "nats" per datum, of log p(x), or "bits per dimension", of -log p(x) / (D ln 2), where less is better.
        num_dims: D, dimensions of a datum, for bits and `levels`.
        levels: turn densities of dequantised images into `density_to_mass_bound` first.

    Raises `ValueError` for results that differ in number of data, in what is scored given what (log p(x), log p(x | y),
    log p(x, y), and the values of y), in measure, encoding or fingerprint, and for those of
    reconstruction losses (encoding Scale) or interrupted work. Masses of the 256 levels of the same images, by
    `source`, compare however they were come by, bounds among them: the table says so.
    """
    if not results:
        raise ValueError("results: expected at least one; got none")
    if unit not in ("nats", "bits per dimension"):
        raise ValueError(f"unit: expected 'nats' or 'bits per dimension'; got {unit!r}")
    factor = 1.0 if unit == "nats" else -1 / (_dims(num_dims) * math.log(2))
    if levels:
        convert = {k: density_to_mass_bound(r, num_dims) for k, r in results.items() if r.measure == "density"}
        results = {**results, **convert}
    _check_comparable(results)
    names = sorted(results, key=lambda name: results[name].mean, reverse=True)
    best = PerDatum.of(results[names[0]])
    values = {name: PerDatum.of(results[name]) for name in names}
    rows = (Row(name, results[name], values[name] * factor, (values[name] - best) * factor) for name in names)
    return Comparison(tuple(rows), unit)


def _check_comparable(results: Mapping[str, LogLikelihood]) -> None:
    require_likelihoods(results)
    (name, first), *others = results.items()
    for other, result in others:
        pair = {name: first, other: result}
        require_same(pair, "number of data", "quantity", "given", "measure")
        of_levels = all(r.values == "levels" and r.measure == "mass" for r in pair.values())
        if not (of_levels and first.source == result.source != ""):
            require_same(pair, "encoding", "fingerprint")


def require_likelihoods(results: Mapping[str, LogLikelihood]) -> None:
    """Raises `ValueError` for a result on images scaled to [0, 1], or one that was interrupted."""
    for name, result in results.items():
        if not result.complete:
            got = f"interrupted with {int(result.done.sum())} of {len(result)} data done"
            raise ValueError(f"result {name!r}: expected all its samples; got work that was {got}")
        if result.values == "scaled":
            raise ValueError(f"result {name!r}: expected a likelihood; got a reconstruction loss ({result.encoding})")


def require_same(pair: Mapping[str, LogLikelihood], *fields: str) -> None:
    """Raises `ValueError`, which says which two results and what differs."""
    remedies = {
        "measure": " (`levels` makes a bound on a mass of a density of dequantised images)",
        "quantity": " (they are of different things)",
        "given": " (fingerprints of the arguments beside x, which log p depends on)",
        "encoding": " (results encoded differently compare as masses of the levels of one non-empty `source`)",
    }
    for field in fields:
        a, b = (len(r) if field == "number of data" else getattr(r, field) for r in pair.values())
        if a != b:
            who = " and ".join(map(repr, pair))
            raise ValueError(f"results {who}: expected the same {field}; got {a!r} and {b!r}{remedies.get(field, '')}")


def bits_per_dim(log_p: LogLikelihood | Tensor, num_dims: int) -> Tensor:
    """-log p(x) / (D ln 2), in bits per dimension, shape (data,), from nats per datum.

    Of a mass on 256 levels it lies in 0..8 for a model that beats the uniform one. Of a density on (0, 1)^D it is
    8 less than that of its mass bound, and mostly negative. Raises `ValueError` unless num_dims >= 1.
    """
    return (log_p.log_p if isinstance(log_p, LogLikelihood) else log_p) / (-_dims(num_dims) * math.log(2))


def _dims(num_dims: int | None) -> int:
    if num_dims is None or num_dims < 1:
        raise ValueError(f"num_dims: expected at least 1, the dimensions of a datum; got {num_dims}")
    return num_dims


def density_to_mass_bound(result: LogLikelihood, num_dims: int | None) -> LogLikelihood:
    """From the density of x = (level + u) / 256, u ~ U[0, 1)^D, to a bound on the log-mass of the levels, in nats:

        log P(level) = log E_u p(x) - D ln 256 >= E_u log p(x) - D ln 256    (4,347 nats for 784 pixels),

    tight where the density is constant within each level. It holds in expectation over u; each datum has one draw,
    whose noise is part of the s.e. over the data and not of the Monte Carlo s.e.

    Lucas Theis, Aaron van den Oord, Matthias Bethge: A note on the evaluation of generative models, 2015,
    arXiv:1511.01844. Raises `ValueError` unless the result is a density, its encoding `Dequantize`, num_dims >= 1.
    """
    offset = _dims(num_dims) * math.log(256)
    if result.measure != "density" or result.values != "dequantized levels":
        raise ValueError(
            f"result: expected a density of images encoded by Dequantize; got a {result.measure} with encoding "
            f"{result.encoding!r}"
        )
    return replace(
        result,
        log_p=result.log_p - offset,
        measure="mass",
        encoding=f"Levels, bounded by {result.encoding}",
        bound=f"lower bound on the mass of levels by uniform dequantisation, in expectation, of: {result.bound}",
    )
