"""One bad datum, in a late batch, is told before the first step."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training import checks
from ppl_vae.training.fitting import fit

N, BATCH, LATE = 40, 8, 33
LABELS = torch.arange(N) % 3
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


def spoilt(values, value):
    values = values.clone()
    values[(LATE, 2) if values.dim() > 1 else LATE] = value
    return values


def trained(likelihood, *data, model="dense-vae", **options):
    config = TrainConfig(model=f"{model}:hidden=4", likelihood=likelihood, latent_size=2)
    vae = build(config, (5,), 3)
    weights = {name: t.clone() for name, t in vae.state_dict().items()}
    try:
        return fit(vae.model, vae.guide, *data, epochs=1, batch_size=BATCH, show_progress=False, **options)
    except ValueError:
        assert all(torch.equal(t, weights[name]) for name, t in vae.state_dict().items())
        raise


BINARY, COUNTS = (X > 0).float(), (3 * X).abs().round()


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        ("gaussian-learned", spoilt(X, torch.nan), "expected real numbers; got 1 data outside, NaN"),
        ("gaussian-learned", spoilt(X, torch.inf), r"expected real numbers; got 1 data outside, values in \[.*, inf\]"),
        ("bernoulli", spoilt(BINARY, 0.5), r"expected values in \{0, 1\}; got 1 data outside, values in \[0, 1\]"),
        ("poisson", spoilt(COUNTS, 1.5), "expected counts .*; got 1 data outside"),
        ("poisson", spoilt(COUNTS, -1), "expected counts .*; got 1 data outside"),
    ],
)
def test_values_outside_of_their_support(likelihood, x, message):
    with pytest.raises(ValueError, match=f"site 'x': {message}"):
        trained(likelihood, x)
    with pytest.raises(ValueError, match=f"site 'x': {message}"):
        trained(likelihood, X.abs().round().clamp(max=1), validation=x)


@pytest.mark.parametrize("model", ["dense-cvae", "dense-m2"])
@pytest.mark.parametrize("in_validation", [False, True])
def test_labels_that_there_are_none_of(model, in_validation):
    bad = X, spoilt(LABELS, 3)
    data, options = ((X, LABELS), {"validation": bad}) if in_validation else (bad, {})
    with pytest.raises(ValueError, match=r"y: expected labels 0 to 2; got \d to 3\Z"):
        trained("gaussian-learned", *data, model=model, **options)


def test_a_support_of_each_datums_own():
    """A late number of successes above its number of trials."""
    with seeded(0):
        slope = torch.nn.Linear(1, 1)
    trials = torch.arange(N) % 4 + 2

    def model(x, n):
        pyro.module("slope", slope)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Binomial(n, logits=slope(z[..., None])[..., 0]), obs=x)

    def guide(x, n):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    good = (trials - 1).float()
    with seeded(0):
        assert len(fit(model, guide, good, trials, epochs=1, batch_size=BATCH, show_progress=False).rows) == 1
    with seeded(0), pytest.raises(ValueError, match=r"site 'x': expected values in .*; got 1 data outside"):
        fit(model, guide, spoilt(good, 9.0), trials, epochs=1, batch_size=BATCH, show_progress=False)


def test_good_data_are_run_but_once(monkeypatch):
    runs, trace = [], checks.plain_trace
    monkeypatch.setattr(checks, "plain_trace", lambda *args, **of: runs.append(len(args[1])) or trace(*args, **of))

    trained("bernoulli", BINARY)
    assert runs == [BATCH, BATCH]  # of the guide and the model
