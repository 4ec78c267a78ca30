"""log p(x) by importance sampling against exactly known answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_vae.evaluation.chunks import seed_of
from ppl_vae.evaluation.importance import LogWeights, log_likelihood, log_weights
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import evaluating, seeded


@pytest.mark.parametrize(("D", "L"), [(2, 1), (10, 3), (50, 5)])
@pytest.mark.parametrize("width", [1.0, 1.3])
def test_linear_gaussian_is_exact_within_its_own_error(ppca, D, L, width):
    """A guide whose diagonal covers the correlated posterior has weights of finite variance or nearly."""
    pair, x = ppca(D=D, L=L, N=40, width=width)
    result = log_likelihood(pair.model, pair.guide, x, num_samples=4000)
    exact = pair.exact.log_prob(x).double()
    good = result.khat < 0.5
    assert good.sum() >= 10
    error = (result.log_p - exact)[good]
    rounding = 2e-5  # of float32: with an exact guide all weights are equal, and there is no other error
    assert bool((error.abs() < 5 * result.mc_se[good] + rounding).all())
    assert abs(error.mean()) < 5 * result.mc_se[good].square().sum().sqrt() / len(error) + rounding


def test_error_bars_cover(ppca):
    """Each of 100 times the same datum has samples of its own."""
    pair, x = ppca(N=1, width=1.3)
    result = log_likelihood(pair.model, pair.guide, x.expand(100, -1), num_samples=500)
    assert (result.khat < 0.5).all()
    inside = ((result.log_p - pair.exact.log_prob(x)).abs() <= 2 * result.mc_se).sum()
    assert inside >= 95 - 4 * (100 * 0.95 * 0.05) ** 0.5


def test_an_over_confident_guide_is_flagged_and_biased_down(ppca):
    """Its weights have a heavy tail: the rare large ones are missed, and the k-hat says so."""
    pair, x = ppca(D=10, L=10, N=40, width=0.4)
    result = log_likelihood(pair.model, pair.guide, x, num_samples=1000)
    assert result.mean < pair.exact.log_prob(x).mean().item()
    assert result.num_unreliable > 30
    assert "log p(x) may be too low, also where k-hat is small" in str(result)


@pytest.mark.parametrize(("D", "L"), [(2, 2), (10, 5), (50, 10)])
def test_khat_tells_a_guide_that_fits_from_one_that_is_too_narrow(ppca, D, L):
    """One that is too wide costs samples, and no trust: its weights are bounded."""
    fits, wide, narrow = (
        log_likelihood(pair.model, pair.guide, x, num_samples=2000)
        for pair, x in (ppca(D=D, L=L, N=20, width=width, scale=2.0) for width in (1.0, 1.5, 0.4))
    )
    exact = ppca(D=D, L=L, N=20, scale=2.0)
    exact = exact[0].exact.log_prob(exact[1]).double()
    assert wide.ess.median() < fits.ess.median() / 1.3
    assert (narrow.khat > 0.5).sum() > 16
    for result in (fits, wide):
        assert (result.khat < 0.5).sum() >= 15
        assert abs((result.log_p - exact).mean()) < 5 * result.mc_se_of_mean + 2e-5
    assert (narrow.log_p - exact).mean() < -2 * narrow.mc_se_of_mean / narrow.widening or D == 2


def test_khat_diagnoses_and_never_smooths(ppca):
    """The estimate is the plain mean of the weights where k-hat is high too."""
    pair, x = ppca(D=10, L=10, N=5, width=0.4)
    result = log_likelihood(pair.model, pair.guide, x, num_samples=60)
    assert result.num_unreliable >= 4
    with evaluating(pair.model, pair.guide), seeded(0):
        torch.manual_seed(seed_of(seed_of(0, 0), 0))  # the only block's
        log_w = log_weights(pair.model, pair.guide, x, num_samples=60).double()
    torch.testing.assert_close(result.log_p, log_w.logsumexp(0) - math.log(60), atol=1e-5, rtol=0)


def test_an_unknown_khat_is_said(ppca):
    pair, x = ppca(N=5)
    few = log_likelihood(pair.model, pair.guide, x, num_samples=24)
    assert str(few).endswith("\nwarning: k-hat unknown for 5 of 5 data (K < 25): do not trust their error")
    assert "unknown" not in str(log_likelihood(pair.model, pair.guide, x, num_samples=25))


def test_weights_are_per_datum(ppca):
    """Each datum's weights are those that it has alone, and not the batch's jointly."""
    pair, x = ppca(N=20)
    with seeded(0):
        log_w = log_weights(pair.model, pair.guide, x, num_samples=500)
    assert log_w.shape == (500, 20)
    per_datum = log_w.logsumexp(0) - math.log(500)
    torch.testing.assert_close(per_datum, pair.exact.log_prob(x).double(), atol=0.3, rtol=0)
    ess = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    assert ess.min() > 50  # joint over the data it would be about 5


@pytest.mark.parametrize("K", [7, 100, 1050])
def test_exactly_k_samples_are_scored_for_each_datum(ppca, K):
    pair, x = ppca(N=70)

    def scored(num_samples):
        rows = []

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                rows.append(z[..., 0].numel())
                pyro.sample("x", dist.Normal(z @ pair.W.T, pair.scale).to_event(1), obs=x)

        result = log_likelihood(model, pair.guide, x, num_samples=num_samples, compiled=False)
        assert result.decoder_rows == 70 * num_samples
        assert result.num_samples.tolist() == [num_samples] * 70
        return sum(rows)

    # the checks before, on one datum, are the same for any K
    assert scored(K) - scored(1) == 70 * (K - 1)


@pytest.mark.parametrize("memory", [1, 3000, 10**9])
def test_chunks_do_not_change_the_result_under_one_seed(ppca, memory):
    """The normaliser, the mean over samples and that over data are of all, in pieces that divide neither."""
    pair, x = ppca(N=67 if memory > 1 else 7)  # a sample of a datum at a time takes its time
    a = log_likelihood(pair.model, pair.guide, x, num_samples=37)
    b = log_likelihood(pair.model, pair.guide, x, num_samples=37, memory=memory)
    torch.testing.assert_close(a.log_p, b.log_p, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.mc_se, b.mc_se, atol=1e-5, rtol=1e-4)


def test_the_seed_is_the_only_source_of_noise(ppca):
    pair, x = ppca()
    a, b, c = (log_likelihood(pair.model, pair.guide, x, num_samples=20, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.log_p, b.log_p)
    assert not torch.equal(a.log_p, c.log_p)


def test_scale_and_subsampling_do_not_leak_in(ppca):
    """Beta and warm-up are handlers, and log p(x) does not depend on them."""
    pair, x = ppca()

    def scaled(program):
        def run(x):
            with poutine.scale(scale=0.01):
                program(x)

        return run

    a = log_likelihood(pair.model, pair.guide, x, num_samples=50)
    b = log_likelihood(scaled(pair.model), scaled(pair.guide), x, num_samples=50)
    assert torch.equal(a.log_p, b.log_p)


def test_evaluation_mode_is_used_and_restored():
    """Dropout is off, and BatchNorm's buffers and `training` are as before."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            with seeded(0):
                self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
                self.decoder = nn.Linear(2, 3)

        def model(self, x):
            pyro.module("net", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("net", self)
            with pyro.plate("data", len(x)):
                loc, log_scale = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    net = Net()
    net.decoder.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    together = log_likelihood(net.model, net.guide, x, num_samples=3000)
    alone = log_likelihood(net.model, net.guide, x[:1], num_samples=3000)
    # with batch statistics or dropout a datum would depend on its neighbours or on the draw
    assert abs(together.log_p[0] - alone.log_p[0]) < 5 * (together.mc_se[0] ** 2 + alone.mc_se[0] ** 2).sqrt()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert net.encoder[2].training
    assert not net.decoder.training


def test_params_of_the_users_own_store_are_seen():
    x = torch.tensor([0.3, -1.0])

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 1, 1.0))

    with pyro.get_param_store().scope():
        pyro.param("loc", torch.tensor(2.0))
        result = log_likelihood(model, guide, x, num_samples=20_000)
    exact = dist.Normal(2.0, math.sqrt(2)).log_prob(x).double()
    assert bool(((result.log_p - exact).abs() < 5 * result.mc_se).all())


def test_a_parameter_that_is_a_networks_input():
    """As a VampPrior's pseudo-inputs are: torch's counter of operations fails there without gradients."""
    vae = build(
        TrainConfig(model="dense-vae", latent_size=2, hidden=(8,), prior="vamp-prior:num_components=5"), (1, 4, 4)
    )
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    results = [log_likelihood(vae.model, vae.guide, x, num_samples=4, compiled=compiled) for compiled in (None, False)]
    assert torch.equal(results[0].log_p, results[1].log_p)


def test_a_number_that_a_program_changes_is_no_constant_of_a_graph(graphs):
    """log w = log N(0; t, 1) at the t-th run of the model, whose guide is its prior."""
    counted = nn.Module()
    counted.t = 0

    def model(x):
        counted.t += 1
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(counted.t, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.zeros(1)
    with evaluating(model, guide), seeded(0):
        weights = LogWeights(model, guide, x)
        weights.compile()
        with pytest.warns(RuntimeWarning, match=r"'counted.t' changed from 1 to 2, of which a trace makes a constant"):
            log_w = [weights(x, num_samples=2)[0].item() for _ in range(4)]
    assert log_w == pytest.approx([-t * t / 2 - math.log(2 * math.pi) / 2 for t in (2, 3, 4, 5)], rel=1e-6)


def test_a_discrete_mixture_summed_out_by_hand():
    """z in {0, 1}, a guide over it: log p(x) = log sum_z p(z) p(x|z)."""
    x = torch.tensor([-1.0, 0.5, 3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(4 * z - 1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x))

    result = log_likelihood(model, guide, x, num_samples=20_000)
    exact = torch.logsumexp(
        torch.stack([dist.Normal(m, 1.0).log_prob(x) + math.log(p) for m, p in ((3.0, 0.3), (-1.0, 0.7))]), 0
    ).double()
    assert bool(((result.log_p - exact).abs() < 5 * result.mc_se).all())


def test_a_nonlinear_decoder_against_quadrature():
    def decode(z):
        return torch.stack([z[..., 0] * z[..., 1], z[..., 0].sin(), z[..., 1] ** 2], -1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(5.0, torch.zeros(2), 1.0).expand([2]).to_event(1))

    x = torch.tensor([[0.5, 0.2, 1.0], [-1.0, 0.9, 0.3]])
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    exact = torch.stack(
        [(prior + dist.Normal(decode(z), 0.7).log_prob(row).sum(-1)).logsumexp((0, 1)) for row in x.double()]
    ) + 2 * math.log(16 / 1600)
    result = log_likelihood(model, guide, x, num_samples=50_000)
    assert bool(((result.log_p - exact).abs() < 5 * result.mc_se).all())


class Tutorial(nn.Module):
    """Pyro's own VAE tutorial, with no base class of ours: softplus, sites `latent` and `obs`."""

    def __init__(self, D=784, hidden=400, latent=50):
        super().__init__()
        with seeded(0):
            self.encoder = nn.ModuleList([nn.Linear(D, hidden), nn.Linear(hidden, latent), nn.Linear(hidden, latent)])
            self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, D), nn.Sigmoid())
        self.latent = latent

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = torch.zeros(x.shape[0], self.latent, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z), validate_args=False).to_event(1), obs=x.reshape(-1, 784))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            hidden = nn.functional.softplus(self.encoder[0](x.reshape(-1, 784)))
            loc, scale = self.encoder[1](hidden), self.encoder[2](hidden).exp()
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def test_pyros_tutorial_pair_evaluates_as_it_is():
    vae = Tutorial()
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()
    result = log_likelihood(vae.model, vae.guide, x, num_samples=64)
    assert (result.measure, result.space) == ("mass", "boolean^784")
    assert "mass on boolean^784" in str(result)
    assert -700 < result.mean < -400  # near 784 log 2 = 543 nats before training


def test_means_are_over_data_and_not_over_batches(ppca):
    """67 data, of which the last three, in a block of their own, are of another kind."""
    pair, x = ppca(N=67)
    x[64:] += 10
    result = log_likelihood(pair.model, pair.guide, x, num_samples=10)
    assert result.mean == pytest.approx(float(result.log_p.sum() / 67), rel=1e-12)
    assert result.mean == pytest.approx(pair.exact.log_prob(x).mean().item(), rel=0.01)


def test_the_result_says_what_it_is(ppca):
    pair, x = ppca()
    result = log_likelihood(pair.model, pair.guide, x, num_samples=100, encoding="as simulated")
    assert result.measure == "density"
    text = str(result)
    for part in ("nats per datum", "density", "Monte Carlo s.e.", "50 data", "K = 100", "as simulated", "lower"):
        assert part in text
    assert result.mc_se_of_mean == pytest.approx(result.widening * float((result.mc_se**2).sum() ** 0.5 / 50))
    assert result.data_se_of_mean == pytest.approx(float(result.log_p.std() / 50**0.5))


def test_bad_arguments_are_refused(ppca):
    pair, x = ppca(N=4)
    with pytest.raises(ValueError, match="num_samples: expected at least 1; got 0"):
        log_likelihood(pair.model, pair.guide, x, num_samples=0)
    with pytest.raises(ValueError, match="expected 4 rows; got 3"):
        log_likelihood(pair.model, pair.guide, x, x[:3])
    with pytest.raises(ValueError, match="memory"):
        log_likelihood(pair.model, pair.guide, x, memory=0)
    x[2, 1] = math.nan
    with pytest.raises(ValueError, match="1 data outside"):
        log_likelihood(pair.model, pair.guide, x, num_samples=10)


def test_an_unknown_khat_is_not_counted_as_a_good_one(ppca):
    pair, x = ppca(N=3, width=1.0)
    assert log_likelihood(pair.model, pair.guide, x, num_samples=10).num_unreliable is None


def test_an_interrupt_returns_what_is_done(ppca, interrupt_after):
    pair, x = ppca(N=150)
    whole = log_likelihood(pair.model, pair.guide, x, num_samples=10)
    interrupt_after(2)
    result = log_likelihood(pair.model, pair.guide, x, num_samples=10)
    assert result.done.sum() == 128
    assert whole.complete
    assert not result.complete
    assert torch.equal(result.log_p[:128], whole.log_p[:128])
    assert bool(result.log_p[128:].isnan().all())
    assert result.mean == pytest.approx(whole.log_p[:128].mean().item())
    assert "interrupted with 128 of 150 data done" in str(result)
    interrupt_after(0)
    assert "interrupted before any" in str(log_likelihood(pair.model, pair.guide, x, num_samples=10))
