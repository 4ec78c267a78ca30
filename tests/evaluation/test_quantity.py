"""What is scored given what, by a linear-Gaussian pair whose decoder, prior and sites depend on y in several ways."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation.comparison import compare
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.system.hashing import fingerprint

X, Y = torch.tensor([0.3, -1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, 1.0, 3.0])


def guide(x, y=None):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def pair(*, given=False, observed=False, noisy=False):
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y if given else 0.0, 1.0))
            pyro.sample("obs", dist.Normal(z, 1.0), obs=x)
            if observed:
                pyro.sample("label", dist.Normal(2 * z, 1.0), obs=y)

    return model, (lambda x, y: guide(y)) if noisy else guide


def scored(model, guide, *data):
    result = log_likelihood(model, guide, *data, num_samples=30)
    assert str(result).startswith(f"{result.quantity} = ")
    return result


def test_what_is_scored_and_what_is_given_are_named_by_the_arguments():
    for of, quantity, given in (
        ({}, "log p(x)", ""),
        ({"noisy": True}, "log p(x)", ""),
        ({"given": True}, "log p(x | y)", f"y: {fingerprint(Y)}"),
        ({"observed": True}, "log p(x, y)", f"y: {fingerprint(Y)}"),
    ):
        result = scored(*pair(**of), X, Y)
        assert (result.quantity, result.given) == (quantity, given)
    assert scored(*pair(), X).quantity == "log p(x)"


def test_a_condition_that_is_the_same_for_all_data_is_one():
    for y in (torch.zeros(4), torch.ones(4)):
        assert scored(*pair(given=True), X, y).quantity == "log p(x | y)"


def test_different_things_do_not_compare():
    results = {
        "x": scored(*pair(), X, Y),
        "x given y": scored(*pair(given=True), X, Y),
        "x given wrong y": scored(*pair(given=True), X, Y.flip(0)),
        "x and y": scored(*pair(observed=True), X, Y),
    }
    for name, message in (
        ("x given y", r"expected the same quantity; got 'log p\(x\)' and 'log p\(x \| y\)'"),
        ("x and y", r"got 'log p\(x\)' and 'log p\(x, y\)'"),
    ):
        with pytest.raises(ValueError, match=message):
            compare({k: results[k] for k in ("x", name)})
    with pytest.raises(ValueError, match=f"expected the same given; got 'y: {fingerprint(Y)}' and 'y: "):
        compare({k: results[k] for k in ("x given y", "x given wrong y")})
    same = compare({"a": results["x given y"], "b": scored(*pair(given=True), X, Y)})
    assert "log p(x | y)" in str(same)


@pytest.mark.parametrize(
    ("labels", "quantity"),
    [([0, 1, 1], "log p(x, y)"), ([0, -1, 1], "log p(x, y of 2 of 3 data)"), ([-1, -1, -1], "log p(x)")],
)
def test_m2_with_labels_scores_them_too(labels, quantity):
    config = TrainConfig(model="dense-m2:hidden=8", latent_size=2, likelihood="bernoulli")
    m2 = build(config, (1, 2, 2), num_classes=3)
    x = torch.tensor([0.0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0]).reshape(3, 1, 2, 2)
    result = scored(m2.model, m2.guide, x, torch.tensor(labels))
    assert result.quantity == quantity


def test_log_p_of_x_and_y_is_that_of_both():
    """(x, y) of z ~ N(0, 1) are normal with covariance [[2, 2], [2, 5]]."""
    model, guide = pair(observed=True)
    result = log_likelihood(model, guide, X, Y, num_samples=20_000)
    covariance = torch.tensor([[2.0, 2.0], [2.0, 5.0]])
    exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(torch.stack([X, Y], 1)).double()
    assert bool(((result.log_p - exact).abs() < 5 * result.mc_se).all())
    assert math.isfinite(result.mean)
