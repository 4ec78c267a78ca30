"""Comparisons are paired, refuse what does not compare, and convert units exactly."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Generator, Tensor

from ppl_vae.data.encodings import Dequantize
from ppl_vae.evaluation.comparison import bits_per_dim, compare, density_to_mass_bound
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.results import LogLikelihood, PerDatum
from ppl_vae.system.hashing import fingerprint


def result(log_p: Any, mc_se: float = 0.0, *, khat: float = 0.1, **fields: Any) -> LogLikelihood:
    log_p = torch.as_tensor(log_p, dtype=torch.float64)
    same = torch.ones_like(log_p)
    defaults = {"measure": "mass", "encoding": "Binarize(), seed 0", "fingerprint": "f00d", "bound": "lower"}
    return LogLikelihood(log_p, mc_se * same, same, khat * same, same * 100, **(defaults | fields))


def normal(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_differences_are_paired_by_datum_with_both_errors_kept_apart():
    # what the data have in common has an sd of 50; the models differ by 2 with an sd of 0.3
    common, N = -100 + 50 * normal(400, 0), 400
    d = -2 + 0.3 * normal(N, 1)
    table = compare({"worse": result(common + d, 0.3), "best": result(common, 0.4)})
    assert [row.name for row in table.rows] == ["best", "worse"]
    best, worse = table.rows
    assert worse.value.mean == pytest.approx((common + d).mean().item())
    assert worse.value.data_se_of_mean == pytest.approx((common + d).std().item() / 20)
    assert worse.value.mc_se_of_mean == pytest.approx(0.3 / 20)
    assert worse.difference.mean == pytest.approx(d.mean().item())
    assert worse.difference.data_se_of_mean == pytest.approx(d.std().item() / 20)
    assert worse.difference.data_se_of_mean < 0.02 < worse.value.data_se_of_mean / 100
    assert worse.difference.mc_se_of_mean == pytest.approx(0.5 / 20)  # 3-4-5
    assert best.difference.mean == 0


def test_mc_error_of_the_mean_is_that_of_independent_errors_that_differ():
    assert PerDatum(torch.zeros(2), torch.tensor([3.0, 4.0])).mc_se_of_mean == pytest.approx(2.5)


def test_one_datum_has_no_error_over_the_data():
    (row,) = compare({"only": result([-3.0])}).rows
    assert math.isnan(row.value.data_se_of_mean)


def test_bits_per_dimension_of_known_values():
    # the uniform distribution on 256 levels costs 8 bits a dimension, on two levels 1
    assert bits_per_dim(torch.tensor([-784 * math.log(256)]), 784).item() == pytest.approx(8)
    torch.testing.assert_close(bits_per_dim(result([-3 * math.log(2), 0]), 3), torch.tensor([1.0, 0]).double())


def test_table_in_bits_has_less_as_better_and_the_same_order():
    results = {"a": result([-20.0, -30]), "b": result([-10.0, -12], 0.5)}
    nats, bits = compare(results), compare(results, unit="bits per dimension", num_dims=5)
    factor = 1 / (5 * math.log(2))
    assert [row.name for row in bits.rows] == ["b", "a"]
    for n, b in zip(nats.rows, bits.rows, strict=True):
        for of in ("value", "difference"):
            n_of, b_of = getattr(n, of), getattr(b, of)
            assert b_of.mean == pytest.approx(-factor * n_of.mean)
            assert b_of.data_se_of_mean == pytest.approx(factor * n_of.data_se_of_mean)
            torch.testing.assert_close(b_of.mc_se, factor * n_of.mc_se)
    assert bits.rows[1].difference.mean > 0


def test_text_and_markdown_say_the_same_and_name_the_bounds():
    results = {
        "a|b": result([-20.0, -30], 0.1, khat=0.9),
        "flow": result([-10.0, -12], bound="annealed"),
        "few": result([-90.0, -92], khat=math.nan),
    }
    table = compare(results)
    text, markdown = str(table).splitlines(), table.to_markdown().splitlines()
    assert [line.split()[0] for line in text[1:4]] == ["flow", "a|b", "few"]
    assert len({len(line) for line in text[:4]}) == 1
    # errors of 0.1 / sqrt(2), three times as wide where all k-hats are over their limit
    assert re.split("  +", text[2]) == ["a|b", "-25.000", "5.000", "0.212", "2/2", "-14.000", "4.000", "0.212"]
    assert markdown[3] == "| a\\|b | -25.000 | 5.000 | 0.212 | 2/2 | -14.000 | 4.000 | 0.212 |"
    assert {line.count("|") - line.count("\\|") for line in markdown[:5]} == {9}
    assert "unknown" in text[3]
    notes = [
        "nats per datum (mass); 2 data Binarize(), seed 0; differences are paired by datum",
        "flow: annealed",
        "a|b, few: lower",
        "warning: a|b: k-hat > 0.5 for 2 of 2 data: log p(x) may be too low, also where k-hat is small. Take "
        "log_likelihood_within, or improve the guide",
        "warning: few: k-hat unknown for 2 of 2 data (K < 25): do not trust their error",
    ]
    assert text[4:] == notes
    assert markdown[6:] == [f"- {note}" for note in notes]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result([-1.0, 2, 3]), "results 'a' and 'b': expected the same number of data; got 2 and 3"),
        (result([-1.0, 2], measure="density"), "results 'a' and 'b': expected the same measure; got 'mass' and 'dens"),
        (result([-1.0, 2], encoding="Levels()"), "results 'a' and 'b': expected the same encoding; got 'Binarize"),
        (result([-1.0, 2], fingerprint="beef"), "results 'a' and 'b': expected the same fingerprint; got 'f00d' and "),
        (result([-1.0, 2], encoding="Scale(), seed 0"), "result 'b': expected a likelihood; got a reconstruction loss"),
    ],
)
def test_refuses_results_that_do_not_compare(other: LogLikelihood, message: str):
    # a third that agrees does not hide the one that does not
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        compare({"a": result([0, 0]), "c": result([0, 0]), "b": other})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({}), "results: expected at least one; got none"),
        (lambda: compare({"a": result([0], encoding="Scale()")}), "got a reconstruction loss (Scale())"),
        (
            lambda: compare(
                {"a": dataclasses.replace(result([0, math.nan]), num_samples=torch.tensor([9, 0]), complete=False)}
            ),
            "result 'a': expected all its samples; got work that was interrupted with 1 of 2 data done",
        ),
        (lambda: compare({"a": result([0])}, unit="bits"), "unit: expected 'nats' or 'bits per dimension'; got 'bits'"),
        (lambda: compare({"a": result([0])}, unit="bits per dimension"), "num_dims: expected at least 1"),
        (lambda: bits_per_dim(torch.zeros(1), 0), "num_dims: expected at least 1, the dimensions of a datum; got 0"),
        (lambda: density_to_mass_bound(result([0], encoding="Dequantize()"), 4), "got a mass with encoding 'Deq"),
        (lambda: density_to_mass_bound(result([0], measure="density"), 4), "got a density with encoding 'Binarize"),
    ],
)
def test_refuses_what_has_no_meaning(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)


# Densities of dequantised images against masses of their levels


def test_offset_of_784_pixels_is_8_bits_each():
    density = result([0], measure="density", encoding="Dequantize(), seed 0")
    assert density_to_mass_bound(density, 784).log_p.item() == pytest.approx(
        -784 * 8 * 0.6931471805599453
    )  # 8 bits a pixel: 4,347.4 nats


class Histogram(dist.TorchDistribution):
    """A density on (0, 1), constant within each of 256 levels."""

    support = dist.constraints.unit_interval
    has_rsample = False

    def __init__(self, logits: Tensor):
        self.levels = dist.Categorical(logits=logits)
        super().__init__(self.levels.batch_shape, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.levels.log_prob((x * 256).floor()) + math.log(256)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Histogram:
        logits = self.levels.logits
        return Histogram(logits.expand(*batch_shape, logits.shape[-1]))


W = torch.randn(256, generator=Generator().manual_seed(0))


@pytest.fixture
def histogram_pair() -> Callable[[Callable[[Tensor], Any], Tensor], LogLikelihood]:
    """log p(x) of one-dimensional images whose distribution over levels, softmax(W z), depends on z."""

    def evaluate(likelihood: Callable[[Tensor], Any], x: Tensor, **names: str) -> LogLikelihood:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", likelihood(z * W), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(1), 1.1).to_event(1))

        return log_likelihood(model, guide, x, num_samples=20, **names)

    return evaluate


def test_bound_is_the_exact_mass_where_the_density_is_constant_within_levels(histogram_pair: Any):
    levels = torch.arange(0, 256, 5)
    source = fingerprint(levels)
    x = Dequantize()(levels, Generator().manual_seed(1))
    density = histogram_pair(Histogram, x, encoding="Dequantize(), seed 1")
    mass = histogram_pair(lambda logits: dist.Categorical(logits=logits), levels.float(), encoding="Levels(), seed 1")
    bound = density_to_mass_bound(density, 1)
    assert (density.measure, mass.measure, bound.measure) == ("density", "mass", "mass")
    torch.testing.assert_close(bound.log_p, mass.log_p, rtol=0, atol=1e-5)  # the seed is the same, and so is z
    assert "lower bound on the mass of levels by uniform dequantisation" in bound.bound
    assert torch.equal(bound.mc_se, density.mc_se)

    # without the fingerprint of the images nobody knows that they are the same
    with pytest.raises(ValueError, match="expected the same encoding; got 'Levels"):
        compare({"mass": mass, "bound": bound})
    with pytest.raises(ValueError, match=r"expected the same measure; .*\(`levels` makes"):
        compare({"mass": mass, "density": density})
    known = {k: dataclasses.replace(r, source=source) for k, r in {"mass": mass, "density": density}.items()}
    table = compare(known, num_dims=1, levels=True)
    assert [row.difference.mean for row in table.rows] == pytest.approx([0, 0], abs=1e-5)
    assert "density: lower bound on the mass of levels by uniform dequantisation" in str(table)
    assert "Levels, bounded by Dequantize(), seed 1" in str(table)
    with pytest.raises(ValueError, match="expected the same encoding"):
        compare({"mass": known["mass"], "other": dataclasses.replace(bound, source="other images")})


def test_bound_holds_in_expectation_and_is_strict_where_the_density_varies_within_a_level():
    # p(x) = 2x in each of D = 2 dimensions: P(level) = ((2 level + 1) / 256^2) in each
    level = torch.tensor([0.0, 3.0], dtype=torch.float64)
    u = torch.rand(20_000, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    log_density = (2 * (level + u) / 256).log().sum(-1)
    bound = density_to_mass_bound(result(log_density, measure="density", encoding="Dequantize()"), 2)
    exact = ((2 * level + 1) / 256**2).log().sum().item()
    # E_u log 2(l + u) - log(2l + 1), for l = 0 and 3, by hand: log 2 - 1 and 8 log 2 - 3 log 3 + log 2 - 1 - log 7
    loss = (math.log(2) - 1) + (4 * math.log(4) - 3 * math.log(3) - 1 + math.log(2) - math.log(7))
    assert bound.mean == pytest.approx(exact + loss, abs=4 * bound.data_se_of_mean)
    assert bound.mean + 4 * bound.data_se_of_mean < exact


def test_masses_of_other_encodings_stay_apart_though_the_images_are_the_same():
    a, b = (result([0, 0], encoding=f"Binarize(), seed {seed}", source="images") for seed in (0, 1))
    with pytest.raises(ValueError, match="expected the same encoding"):
        compare({"a": a, "b": b})
