"""One contract of a Pyro pair: `check_model` collects what every estimator raises."""

import re
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import NanMaskedNormal
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn

from ppl_vae.contract import measure_of
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.annealing import annealed_log_likelihood
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.export import to_arviz
from ppl_vae.evaluation.gaps import gap_decomposition
from ppl_vae.evaluation.importance import log_likelihood, log_weights
from ppl_vae.evaluation.imputation import impute
from ppl_vae.evaluation.information import active_units, aggregate_posterior
from ppl_vae.evaluation.quadrature import log_p_by_quadrature
from ppl_vae.evaluation.sandwich import simulate
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit


def autoencoder_guide(x): ...


def no_latent_in_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("other", dist.Normal(0.0, 1.0))


def test_a_pair_without_a_data_plate_is_named():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(
        ValueError, match=r"^site 'z': expected one data plate, at dim -1; got none\. Put it `with pyro\.plate"
    ):
        log_likelihood(model, guide, torch.zeros(5), num_samples=3)


def test_what_is_deterministic_needs_no_plate(ppca):
    pair, x = ppca()

    def model(x):
        pyro.deterministic("of_all_data", torch.tensor(1.5))
        pair.model(x)

    def guide(x):
        pyro.deterministic("by_dim", torch.ones(3))
        pair.guide(x)

    expected = log_likelihood(pair.model, pair.guide, x, num_samples=10)
    assert torch.equal(log_likelihood(model, guide, x, num_samples=10).log_p, expected.log_p)
    assert check_model(model, guide, x).ok


def test_programs_of_another_kind_are_refused_by_the_name_of_the_site():
    x = torch.zeros(4, 3)

    def global_latent(x, observe=True):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        if observe:
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def two_plates(x, observe=True):
        with pyro.plate("columns", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if observe:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(3)).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"site 'z': .* one data plate"):
        log_likelihood(global_latent, lambda x: global_latent(x, observe=False), x)
    with pytest.raises(
        ValueError, match=r"site 'z': expected one data plate, at dim -1; got .*'columns' with 3 of 3 at dim -2"
    ):
        log_likelihood(two_plates, lambda x: two_plates(x, observe=False), x)
    with pytest.raises(ValueError, match=r"site 'z': .* got a point \(Delta\)"):
        log_likelihood(model, point, x)


def test_a_bernoulli_on_grey_pixels_is_no_likelihood():
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), (1, 4, 4))
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"site 'x': expected values in \{0, 1\}; got 5 data outside.*binarise"):
        log_likelihood(vae.model, vae.guide, x, num_samples=2)


def test_every_datum_of_a_transformed_x_is_checked():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            likelihood = dist.Bernoulli(logits=z[..., None].expand(*z.shape, 4), validate_args=False)
            pyro.sample("x", likelihood.to_event(1), obs=x.flatten(1))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.ones(300, 2, 2)
    log_likelihood(model, guide, x, num_samples=2)
    x[270, 1, 1] = 0.5
    with pytest.raises(ValueError, match="got 1 data outside"):
        log_likelihood(model, guide, x, num_samples=2)


def test_what_has_no_estimate_is_named(ppca):
    pair, x = ppca(N=4)
    with pytest.raises(ValueError, match="the guide: expected a latent site; got none"):
        log_likelihood(pair.model, autoencoder_guide, x)
    with pytest.raises(ValueError, match="site 'other': expected it in both model and guide; got it in the guide"):
        log_likelihood(pair.model, no_latent_in_guide, x)


# One text for one fault


def normal(size=2):
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)


def program(latent=lambda: pyro.sample("z", normal()), observe=None, plate=lambda x: pyro.plate("data", len(x))):
    """A model, or without `observe` a guide."""

    def run(x):
        with plate(x):
            z = latent()
            if observe is not None:
                observe(z, x)

    return run


def of_normal(z, x):
    pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand([*z.shape[:-1], 3]).to_event(1), obs=x)


def masked(z, x):
    with poutine.mask(mask=x[:, 0] > 0):
        of_normal(z, x)


def of_bernoulli(z, x):
    pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 3)).to_event(1), obs=x)


def elsewhere(x):
    return pyro.plate("data", len(x), dim=-2)


MODEL, GUIDE = program(observe=of_normal), program()
FAULTS = {
    "plates": (program(observe=of_normal, plate=elsewhere), program(plate=elsewhere)),
    "mask": (program(observe=masked), GUIDE),
    "latents": (MODEL, program(lambda: pyro.sample("y", normal()))),
    "points": (MODEL, program(lambda: pyro.sample("z", dist.Delta(torch.zeros(2)).to_event(1)))),
    "observed": (program(), GUIDE),
    "support": (program(observe=of_bernoulli), GUIDE),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_estimators_raise_the_first_finding_of_check_model(fault):
    model, guide = FAULTS[fault]
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    first = check_model(model, guide, x).findings[0]
    text = re.escape(first.message) + ".*" + re.escape(first.remedy)
    # of one datum, where estimators look at the structure of a pair
    text = text.replace("4\\ of\\ 4", "1\\ of\\ 1")
    estimators = [log_likelihood, partial(log_likelihood_within, tolerance=0.1), annealed_log_likelihood, to_arviz]
    if fault != "support":
        estimators.append(partial(impute, seen=torch.ones(3, dtype=torch.bool)))
    for estimate in estimators:
        with pytest.raises(ValueError, match=text) as error:
            estimate(model, guide, x)
        assert first.site in str(error.value)
        assert "\n" not in str(error.value)
    if fault != "support":
        with pytest.raises(ValueError, match=text.replace("1\\ of\\ 1", "4\\ of\\ 4")):
            log_weights(model, guide, x, num_samples=2)


def test_a_plate_whose_batch_is_the_data_is_scaled_and_evaluates():
    """Evaluation ignores the scale, N over the size of the batch."""
    x = torch.zeros(4, 3)

    def subsampled(x):
        return pyro.plate("data", 100, subsample_size=len(x))

    model, guide = program(observe=of_normal, plate=subsampled), program(plate=subsampled)
    report = check_model(model, guide, x)
    assert [(f.check, f.site, f.severity) for f in report.findings] == [
        ("scale", "z", "warning"),
        ("scale", "x", "warning"),
    ]
    plain = log_likelihood(MODEL, GUIDE, x, num_samples=500)
    scaled = log_likelihood(model, guide, x, num_samples=500)
    error = (plain.log_p - scaled.log_p).abs()
    assert bool((error < 5 * (plain.mc_se.square() + scaled.mc_se.square()).sqrt()).all())


def test_what_a_pair_measures():
    x = torch.ones(4, 3)

    def both(z, x):
        of_normal(z, x)
        pyro.sample("y", dist.Bernoulli(logits=z[..., 0]), obs=x[:, 0])

    with seeded(0):
        assert measure_of(program(observe=of_bernoulli), GUIDE, x) == ("mass", "boolean^3")
        assert measure_of(MODEL, GUIDE, x) == ("density", "real^3")
        assert measure_of(program(observe=both), GUIDE, x) == ("mixed (mass and density)", "real^3 x boolean^1")


# Each datum has a support of its own


@pytest.mark.parametrize(
    ("likelihood", "sound", "faulty"),
    [
        (lambda z, x, n: dist.Binomial(n, logits=z), [1.0, 9.0], [1.0, 13.0]),
        (lambda z, x, n: dist.Uniform(0 * z, n), [0.5, 9.5], [5.5, 9.5]),
    ],
)
def test_the_support_of_a_datum_is_its_own(likelihood, sound, faulty):
    """The first datum is one of 5 trials, or in (0, 5), and the other of 12."""

    def model(x, n):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", dist.Normal(0.0, 1.0)), x, n), obs=x)

    def guide(x, n):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    n = torch.tensor([5.0, 12.0])
    assert log_likelihood(model, guide, torch.tensor(sound), n, num_samples=5).log_p.isfinite().all()
    assert check_model(model, guide, torch.tensor(sound), n).ok
    with pytest.raises(ValueError, match="got 1 data outside"):
        log_likelihood(model, guide, torch.tensor(faulty), n, num_samples=5)
    assert [f.check for f in check_model(model, guide, torch.tensor(faulty), n).findings] == ["support"]


def test_counts_of_another_total_in_a_later_chunk_are_sound():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Multinomial(int(x.sum(-1).max()), logits=z), obs=x)

    x = torch.cat([torch.eye(3).repeat(100, 1), torch.tensor([[2.0, 3.0, 4.0]])])
    assert log_likelihood(model, program(lambda: pyro.sample("z", normal(3))), x, num_samples=2).log_p.isfinite().all()


def test_a_nan_that_the_likelihood_scores_is_data_and_another_is_not():
    x = torch.tensor([[0.5, torch.nan], [1.0, 2.0]])

    def of(fn):
        return program(observe=lambda z, x: pyro.sample("x", fn(z, torch.ones(2)).to_event(1), obs=x))

    sound = log_likelihood(of(NanMaskedNormal), GUIDE, x, num_samples=5).log_p
    assert sound.isfinite().all()
    assert check_model(of(NanMaskedNormal), GUIDE, x).ok
    with pytest.raises(ValueError, match="expected real numbers; got 1 data outside, NaN"):
        log_likelihood(of(dist.Normal), GUIDE, x, num_samples=5)


def test_a_plate_without_a_size_is_sound_everywhere():
    """In it, distributions have the size of the data themselves."""

    def of(size=None):
        def model(x):
            with pyro.plate("data", size):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", size):
                pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

        return model, guide

    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    assert check_model(*of(), x).ok
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1)  # the guide is the posterior
    torch.testing.assert_close(log_likelihood(*of(), x, num_samples=3).log_p.float(), exact)


def test_autoguides_are_named_and_left_as_they_were():
    guide = AutoNormal(MODEL)
    x = torch.zeros(4, 3)
    for estimate in (log_likelihood, annealed_log_likelihood):
        with pytest.raises(ValueError, match=r"site 'z_unconstrained': .* got an auxiliary one, of an autoguide"):
            estimate(MODEL, guide, x)
    with pytest.raises(ValueError, match=r"got an auxiliary one, of an autoguide\. .* write a guide that encodes x"):
        fit(MODEL, guide, x, batch_size=4, epochs=1, show_progress=False)
    report = check_model(MODEL, guide, x)
    assert [(f.check, f.site) for f in report.findings] == [("latents", "z_unconstrained")]
    joint = check_model(MODEL, AutoDiagonalNormal(MODEL), x)
    assert {(f.check, f.remedy) for f in joint.findings} == {("plates", report.findings[0].remedy)}
    assert guide.prototype_trace is None
    assert not list(guide.parameters())
    with pyro.get_param_store().scope(), seeded(0):
        assert guide(x)["z"].shape == (4, 2)  # and not as set up for one datum


def test_an_enumerated_latent_is_named_and_what_is_advised_gives_log_p():
    """x ~ 1/2 N(0, 1) + 1/2 N(3, 1), beside a latent z that it doesn't depend on."""

    def enumerated(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal())
            y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(3.0 * y, 1.0), obs=x)

    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([0.0, 3.0]), 1.0))

    def summed(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal())
            pyro.sample("x", mixture.expand([len(x)]), obs=x)

    x = torch.tensor([0.5, 3.0])
    with pytest.raises(ValueError, match=r"site 'y': .* in the model alone.*sum it out \(MixtureSameFamily\)"):
        log_likelihood(enumerated, GUIDE, x)
    log_p = log_likelihood(summed, GUIDE, x, num_samples=2).log_p
    torch.testing.assert_close(log_p.float(), mixture.log_prob(x))


def test_a_mask_of_the_distribution_is_what_is_advised_for_a_mask():
    """x ~ N(0, 2) by dim, of which the first is seen."""
    x, seen = torch.ones(4, 2), torch.tensor([True, False])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal())
            pyro.sample("x", dist.Normal(z, 1.0).mask(seen).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x * seen, torch.where(seen, 0.5**0.5, 1.0)).to_event(1))

    report = check_model(program(observe=masked), GUIDE, torch.ones(4, 3))
    assert "fn.mask(seen).to_event(1)" in report.findings[0].remedy
    assert check_model(model, guide, x).ok
    exact = dist.Normal(0.0, 2**0.5).log_prob(x[:, 0])
    torch.testing.assert_close(log_likelihood(model, guide, x, num_samples=3).log_p.float(), exact)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)
        nn.init.eye_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def model(self, x):
        pyro.module("dense", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("dense", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x) / 2, 0.8).to_event(1))


ROWS = [[0.5, -1.0], [2.0, 0.25], [0.0, 1.5]]  # which float32 holds exactly


def estimates(pair, x):
    log_p = log_likelihood(pair.model, pair.guide, x, num_samples=20)
    gaps = gap_decomposition(pair.model, pair.guide, x, log_p=log_p, num_steps=2, num_samples=2)
    return [
        log_p.mean,
        gaps.total.mean,
        active_units(pair.guide, x).ratios.tolist(),
        aggregate_posterior(pair.model, pair.guide, x).kl.mean,
        simulate(pair.model, x, num_data=2)[0].tolist(),
        log_p_by_quadrature(pair.model, x, tolerance=0.1).tolist(),
        str(check_model(pair.model, pair.guide, x)),
        annealed_log_likelihood(pair.model, pair.guide, x, num_chains=2, num_steps=2).mean,
        impute(pair.model, pair.guide, x, seen=[True, False], num_samples=16, climb=False).log_p_seen.mean,
    ]


@pytest.mark.parametrize("make", [list, np.array, lambda rows: torch.tensor(rows, dtype=torch.float64)])
def test_numbers_of_other_kinds_are_taken_where_nothing_is_lost(make):
    with seeded(0):
        pair = Dense()
    assert estimates(pair, make(ROWS)) == estimates(pair, torch.tensor(ROWS))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.tensor(ROWS).double() + 1e-12,
            "argument 0: expected torch.float32, .* got torch.float64 of numbers that it would round",
        ),
        (np.array(ROWS) / 3, "argument 0: expected torch.float32, .* Convert them: torch.as_tensor"),
        (
            torch.ones(3, 2).long(),
            "expected data of torch.float32, as the parameters; got torch.int64. Convert them: x.to",
        ),
        (torch.ones(3, 2).to(torch.uint8), "expected data of torch.float32, as the parameters; got torch.uint8"),
        ([["a", "b"]], "argument 0: expected numbers; got list of <U1"),
        (np.array([{}, 1], dtype=object), "argument 0: expected numbers; got ndarray of object"),
    ],
)
def test_what_does_not_fit_the_parameters_is_one_line(x, message):
    with seeded(0):
        pair = Dense()
    for call in (
        lambda: log_likelihood(pair.model, pair.guide, x),
        lambda: annealed_log_likelihood(pair.model, pair.guide, x),
        lambda: to_arviz(pair.model, pair.guide, x),
        lambda: impute(pair.model, pair.guide, x, seen=torch.tensor([True, False])),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_subsampled_plate_is_named():
    def program(x, observe=True):
        with pyro.plate("data", len(x), subsample_size=2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    for estimate in (log_likelihood, to_arviz):
        with pytest.raises(ValueError, match="expected a data plate without subsample_size; got one with"):
            estimate(program, program, torch.zeros(5))


def with_label(z, x, y):
    of_normal(z, x)
    pyro.sample("y", dist.Bernoulli(logits=z[..., 0]), obs=y)


def with_class(z, x, y):
    of_normal(z, x)
    pyro.sample("y", dist.Categorical(logits=z[..., :1] * torch.arange(3.0)), obs=y)


def of_x_and_y(latent, observe=None):
    """A program of x and y."""

    def run(x, y):
        with pyro.plate("data", len(x)):
            z = latent()
            if observe is not None:
                observe(z, x, y)

    return run


NO_CLASS = r"site 'y': expected values in integerinterval\(.*upper_bound=2\); got [14] data outside, .*\. Encode x"


@pytest.mark.parametrize(
    ("observe", "y", "message"),
    [
        (with_class, torch.tensor([-1, 0, 1, 2]), NO_CLASS),
        (with_class, torch.tensor([3, 3, 3, 3]), NO_CLASS),
        (with_class, torch.tensor([3.0, 0.0, 1.0, 2.0]), NO_CLASS),
        (
            with_label,
            torch.ones(4, 1),
            r"site 'y': expected observed values of shape \(data,\), .*; got \([14], 1\)\. Reshape them",
        ),
        (
            with_label,
            torch.ones(4).long(),
            r"site 'y': expected observed values of torch\.float32; got torch\.int64\. Convert them",
        ),
        (
            with_label,
            torch.ones(4).bool(),
            r"site 'y': expected observed values of torch\.float32; got torch\.bool\. Convert them",
        ),
    ],
)
def test_labels_that_a_likelihood_does_not_score_are_told_in_one_line_everywhere(observe, y, message):
    weight = nn.Parameter(torch.zeros(2))

    def latent():
        return pyro.sample("z", dist.Normal(pyro.param("weight", weight), 1.0).to_event(1))

    model, guide = of_x_and_y(partial(pyro.sample, "z", normal()), observe), of_x_and_y(latent)
    x = torch.zeros(4, 3)
    with pyro.get_param_store().scope():
        for run in (log_likelihood, partial(fit, show_progress=False)):
            with pytest.raises(ValueError, match=message):
                run(model, guide, x, y)
        (finding,) = check_model(model, guide, x, y).findings
        assert re.match(message, f"site {finding.site!r}: {finding.message}. {finding.remedy}")
        assert check_model(model, guide, x, torch.ones(4)).ok


def test_a_bool_x_is_told_in_one_line():
    model = program(observe=of_bernoulli)
    with pytest.raises(ValueError, match=r"site 'x': expected observed values of torch\.float32; got torch\.bool"):
        impute(model, GUIDE, torch.ones(4, 3) > 0, seen=torch.ones(3, dtype=torch.bool))


def test_an_image_whose_dims_are_not_all_the_event_is_told_in_one_line_everywhere():
    def of_image(z, x):
        pyro.sample("x", dist.Normal(torch.zeros(*z.shape[:-1], 1, 6, 6), 1.0).to_event(1), obs=x)

    x = torch.zeros(8, 1, 6, 6)
    for run in (log_likelihood, partial(fit, show_progress=False)):
        with pytest.raises(ValueError, match=r"site 'x': Shape mismatch .* \.to_event\(3\) for x"):
            run(program(observe=of_image), GUIDE, x)


def test_a_plate_of_a_part_of_the_data_is_told_in_one_line_everywhere():
    def half(x):
        return pyro.plate("data", len(x), subsample_size=len(x) // 2)

    model, guide = program(observe=of_normal, plate=half), program(plate=half)
    message = "expected .*data plate.*; got .*Leave subsample_size out"
    x = torch.zeros(8, 3)
    estimators = [log_likelihood, annealed_log_likelihood, to_arviz, partial(fit, show_progress=False)]
    for run in (*estimators, partial(impute, seen=torch.ones(3, dtype=torch.bool))):
        with pytest.raises(ValueError, match=message):
            run(model, guide, x)
    assert re.search(message, str(check_model(model, guide, x).findings[0]))


def test_an_autoguide_of_other_data_is_told_in_one_line():
    with pyro.get_param_store().scope(), seeded(0):
        guide = AutoNormal(MODEL)
        guide(torch.zeros(20, 3))
        for run in (log_likelihood, partial(fit, batch_size=8, show_progress=False)):
            with pytest.raises(ValueError, match=r"got an autoguide that is set up for others\. An autoguide has"):
                run(MODEL, guide, torch.zeros(20, 3))
