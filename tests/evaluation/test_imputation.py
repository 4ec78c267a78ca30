"""Missing dimensions against exactly known conditionals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from tiny import tiny_vae
from torch import nn
from torch.distributions import MultivariateNormal

from ppl_vae.evaluation import imputation, weighing
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.imputation import impute
from ppl_vae.evaluation.results import PerDatum
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.models import PPCA
from ppl_vae.programs import seeded

D, SCALE = 6, 0.5
FAST = {"num_starts": 1, "num_steps": 3, "num_modes": 1, "num_newton": 2, "climb": False}


@pytest.fixture
def pair():
    with seeded(0):
        ppca = PPCA((2, 3), 2)
        ppca.W.data.normal_()
        ppca.mean.data.normal_()
        ppca.log_scale.data.fill_(math.log(SCALE))
    return ppca


@pytest.fixture
def x(pair):
    with seeded(1):
        return pair.generate(12).sample().detach()


def masks(x, share=0.5):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < share


def conditional(ppca, x, seen):
    """Mean (D,), standard deviations (D,) and log-density of the missing given the seen, of one datum (D,)."""
    mean, C = ppca.mean.detach().double(), (ppca.W @ ppca.W.T + SCALE**2 * torch.eye(D)).detach().double()
    x, m = x.double(), ~seen
    A = C[m][:, seen] @ C[seen][:, seen].inverse()
    p = MultivariateNormal(mean[m] + A @ (x - mean)[seen], C[m][:, m] - A @ C[seen][:, m])
    log_p_seen = MultivariateNormal(mean[seen], C[seen][:, seen]).log_prob(x[seen]) if seen.any() else 0.0
    filled, sd = x.clone(), torch.zeros(D, dtype=torch.float64)
    filled[m], sd[m] = p.mean, p.stddev
    return filled, sd, p.log_prob(x[m]), log_p_seen


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_against_the_exact_conditional_gaussian(pair, x, share):
    seen = masks(x, share)
    result = impute(pair.model, pair.guide, x, seen=seen, num_samples=4000, num_draws=1000, num_starts=1, climb=False)
    assert result.samples.shape == (1000, *x.shape)
    partly = [n for n in range(len(x)) if 0 < seen[n].sum() < D]
    assert len(partly) >= 8
    assert result.ess[partly].min() > 400
    for n in partly:
        mean, sd, log_p_missing, log_p_seen = conditional(pair, x[n].flatten(), seen[n].flatten())
        m = ~seen[n].flatten()
        for p, exact in ((result.log_p_missing, log_p_missing), (result.log_p_seen, log_p_seen)):
            assert 0 < p.mc_se[n] < 0.1
            assert abs(p.values[n] - exact) < 5 * p.mc_se[n]
        # the mean is over E[x|z], which vary less than x; draws share the error of the weights
        assert bool(((result.mean[n].flatten() - mean).abs() <= 5 * sd / result.ess[n].sqrt() + 1e-5).all())
        draws = result.samples[:, n].flatten(1).double()
        error = sd * (1 / 1000 + 1 / result.ess[n]).sqrt()
        assert bool(((draws.mean(0) - mean).abs() <= 5 * error + 1e-5).all())
        assert bool(((draws.std(0) / sd)[m].log().abs() < 5 * (1 / 2000 + 1 / result.ess[n] / 2).sqrt()).all())
    # together, where a bias of each would add up
    missing = torch.stack([conditional(pair, x[n].flatten(), seen[n].flatten())[2] for n in partly])
    error = (result.log_p_missing.values[partly] - missing).mean()
    assert abs(error) < 5 * result.log_p_missing.mc_se[partly].square().sum().sqrt() / len(partly)


def test_all_seen_and_nothing_seen(pair, x):
    seen = torch.ones_like(x, dtype=torch.bool)
    seen[::2] = False
    result = impute(pair.model, pair.guide, x, seen=seen, num_samples=2000, num_draws=500, num_starts=1, climb=False)
    assert torch.equal(result.mean[1::2], x[1::2])
    assert torch.equal(result.samples[:, 1::2], x[1::2].expand(500, -1, -1, -1))
    assert result.log_p_missing.values[1::2].eq(0).all()
    assert result.log_p_missing.mc_se[1::2].eq(0).all()
    assert bool(((result.log_p_seen.values - pair.log_prob(x))[1::2].abs() < 5 * result.log_p_seen.mc_se[1::2]).all())
    assert result.log_p_seen.values[::2].eq(0).all()
    alone = log_likelihood(pair.model, pair.guide, x, num_samples=2000)
    assert torch.equal(result.log_p_missing.values[::2], alone.log_p[::2])
    sd = (pair.W.square().sum(1) + SCALE**2).sqrt().reshape(2, 3)
    error = (result.mean[::2] - pair.decode(torch.zeros(2))).abs()
    assert bool((error < 5 * sd / result.ess[::2, None, None].sqrt()).all())
    assert result.ess[::2].min() > 1000


def test_what_is_not_seen_has_no_part_in_it(pair, x):
    seen = masks(x)
    whole = impute(pair.model, pair.guide, x, seen=seen, num_samples=100, **FAST)
    for missing in (math.nan, 1e6):
        other = impute(pair.model, pair.guide, x.where(seen, missing), seen=seen, num_samples=100, **FAST)
        assert torch.equal(other.mean, whole.mean)
        assert torch.equal(other.samples, whole.samples)
        assert torch.equal(other.log_p_seen.values, whole.log_p_seen.values)
    fourth = (torch.arange(12) == 3)[:, None, None]
    one = impute(pair.model, pair.guide, x.where(~fourth, math.nan), seen=seen & ~fourth, num_samples=100, **FAST)
    assert one.log_p_missing.values.isnan().tolist() == [n == 3 for n in range(12)]
    assert "12 data imputed" in str(one)
    assert "over 11 data" in str(one)


def test_memory_and_blocks_do_not_change_the_result(pair, monkeypatch):
    with seeded(1):
        x = pair.generate(5).sample().detach()
    for module in (imputation, weighing):
        monkeypatch.setattr(module, "BLOCK_DATA", 3)
    options = {"seen": masks(x), "num_samples": 20, **FAST}
    results = [impute(pair.model, pair.guide, x, memory=memory, **options) for memory in (None, 1)]
    for result in results[1:]:
        torch.testing.assert_close(result.mean, results[0].mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result.samples, results[0].samples, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result.log_p_seen.values, results[0].log_p_seen.values, atol=1e-5, rtol=0)
    again = impute(pair.model, pair.guide, x, seed=1, **options)
    assert not torch.equal(again.mean, results[0].mean)


def test_rounds_and_a_fill_make_a_better_proposal_where_nothing_is_refined(pair, x, monkeypatch):
    monkeypatch.setattr(imputation, "why_not_refined", lambda *pair, **options: "no gradients")
    seen, ess = masks(x, 0.7), {}
    for name, fill, rounds in (("bad", 9.0, 0), ("improved", 9.0, 5), ("mean", None, 0)):
        fill = None if fill is None else torch.tensor(fill)
        monkeypatch.setattr(imputation, "ROUNDS", rounds)
        with pytest.warns(RuntimeWarning, match="not refined, samples are of the guide: no gradients"):
            result = impute(pair.model, pair.guide, x, seen=seen, num_samples=400, fill=fill, climb=False)
        ess[name] = result.ess.mean()
        assert (result.rung == 0).all()
        for n in (n for n in range(len(x)) if 0 < seen[n].sum() < D):
            log_p_seen = conditional(pair, x[n].flatten(), seen[n].flatten())[3]
            assert abs(result.log_p_seen.values[n] - log_p_seen) <= 5 * result.log_p_seen.mc_se[n]
    assert ess["improved"] > 2 * ess["bad"]
    assert ess["mean"] > ess["bad"]
    assert ess["improved"] > ess["mean"]


@pytest.mark.filterwarnings("ignore:not refined")
def test_a_discrete_code_a_further_argument_and_a_flattened_site():
    """z in {0, 1}, x = 3 z + shift + e in two dimensions: p(x_2 | x_1) is a mixture, whose weights x_1 gives."""
    x = torch.tensor([[[0.4], [2.8]], [[3.5], [3.4]], [[1.5], [0.2]]])  # (3, 2, 1)
    shift = torch.tensor([0.0, 1.0, 0.5])

    def model(x, shift):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            loc = (3 * z + shift)[..., None].expand(*z.shape, 2)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x.flatten(1))

    def guide(x, shift):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x.flatten(1).sum(1) - 2))

    seen = torch.tensor([[True], [False]])
    result = impute(model, guide, x, shift, seen=seen, num_samples=20_000, num_draws=4)
    p_z, loc = torch.tensor([0.7, 0.3]), shift[:, None] + torch.tensor([0.0, 3.0])
    joint = p_z.log() + dist.Normal(loc, 1.0).log_prob(x[:, 0])
    weights = joint.softmax(-1)
    exact = (weights.log() + dist.Normal(loc, 1.0).log_prob(x[:, 1])).logsumexp(-1)
    assert bool(((result.log_p_missing.values - exact).abs() < 5 * result.log_p_missing.mc_se).all())
    assert bool(((result.log_p_seen.values - joint.logsumexp(-1)).abs() < 5 * result.log_p_seen.mc_se).all())
    error = (result.mean[:, 1, 0] - (weights * loc).sum(-1)).abs()
    assert bool((error < 5 * 1.5 / result.ess.sqrt()).all())
    assert result.samples.shape == (4, 3, 2, 1)


def test_images_are_imputed_in_their_own_values():
    vae = build(TrainConfig(model="conv-vae", latent_size=3), (1, 8, 8))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    seen = torch.ones(8, 8, dtype=torch.bool)
    seen[4:] = False  # of all images
    result = impute(vae.model, vae.guide, x, seen=seen, num_samples=64, num_draws=3, **FAST)
    assert result.samples.unique().tolist() == [0, 1]
    assert torch.equal(result.samples[:, :, :, :4], x[:, :, :4].expand(3, -1, -1, -1, -1))
    assert bool(((result.mean > 0) & (result.mean < 1))[:, :, 4:].all())
    assert -40 < result.log_p_missing.mean < -10  # near 32 log 2 = 22 nats before training
    with pytest.raises(ValueError, match=r"x: expected values in boolean where it is seen; got 0\.3 to 0\.3"):
        impute(vae.model, vae.guide, torch.full_like(x, 0.3), seen=seen)
    grey = x.where(seen, 0.3)
    with pytest.raises(ValueError, match=r"expected values in \{0, 1\}; got 5 data outside"):  # log p(x) has none
        impute(vae.model, vae.guide, grey, seen=seen, num_samples=16)


def test_what_is_refused(pair, x):
    seen = masks(x)

    def model(x, joint=False, shifted=False, twice=False):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z.repeat_interleave(3, -1)
            if shifted:
                loc = loc + x.flatten(1)
            fn = dist.Normal(loc, 1.0).to_event(1)
            fn = dist.MultivariateNormal(loc, torch.eye(6)) if joint else fn
            pyro.sample("x", fn, obs=x.flatten(1))
            if twice:
                pyro.sample("again", dist.Normal(0.0, 1.0), obs=x[:, 0, 0])

    def expect(message, program=pair.model, x=x, **options):
        with pytest.raises(ValueError, match=message):
            impute(program, pair.guide, x, **({"seen": seen} | options))

    expect("site 'x': expected independent dimensions, .* got MultivariateNormal", lambda x: model(x, joint=True))
    expect("site 'x': expected a distribution that does not depend on x", lambda x: model(x, shifted=True))
    expect(r"expected one observed site, of x itself; got \['again', 'x'\]", lambda x: model(x, twice=True))
    expect("seen: expected booleans; got torch.float32", seen=seen.float())
    expect(r"seen: expected the shape of x, \(12, 2, 3\); got \(4,\)", seen=seen.new_ones(4))
    expect("fill: expected the shape of x", fill=torch.zeros(4))
    expect("x: expected numbers where it is seen; got NaN", x=x.where(~seen, math.nan))
    expect("num_samples: expected at least 16; got 8", num_samples=8)
    expect("num_draws: expected at least 1; got 0", num_draws=0)


def test_the_mean_does_not_hang_on_chunks_whose_weights_are_all_zero():
    """x ~ Poisson(3 max(z, 0)): a count of 1 has no probability for half of the codes, which fill whole chunks."""

    class Half(nn.Module):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Poisson(3 * z.relu().expand(*z.shape[:-1], 2)).to_event(1), obs=x)

    pair, x = Half(), torch.ones(2, 2)
    one, all_at_once = (
        impute(pair.model, pair.guide, x, seen=torch.tensor([True, False]), num_samples=25, memory=memory, **FAST)
        for memory in (1, None)
    )
    torch.testing.assert_close(one.mean, all_at_once.mean)


def test_khat_is_also_that_of_log_p_of_x(pair, x, monkeypatch):
    """A guide that is too narrow for x: refinement mends the weights given a dimension, and not those of log p(x)."""

    def narrow(x):
        with pyro.plate("data", len(x)):
            q = pair.encode(x)
            pyro.sample("z", dist.MultivariateNormal(q.mean, 0.1 * q.covariance_matrix))

    def by_ladder(model, guide, x, *, num_samples, seed, **options):
        return log_likelihood(model, pair.guide, x, num_samples=num_samples, seed=seed)

    seen, sizes = torch.arange(6).reshape(2, 3) == 0, {"num_samples": 2000, "seed": 3, "num_starts": 1}
    of_x = log_likelihood(pair.model, narrow, x, num_samples=2000, seed=3).khat
    of_seen = impute(pair.model, narrow, torch.where(seen, x, torch.nan), seen=seen, **sizes, climb=False).khat
    assert of_x.median() > 0.7 > of_seen.median()
    both = impute(pair.model, narrow, x, seen=seen, **sizes, climb=False)
    assert torch.equal(both.khat, torch.maximum(of_x, of_seen))
    assert both.num_unreliable > 6
    monkeypatch.setattr(imputation, "log_likelihood_within", by_ladder)
    monkeypatch.setattr(weighing, "ANNEALING_STEPS", ())
    assert impute(pair.model, narrow, x, seen=seen, **sizes).num_unreliable == 0


@pytest.mark.parametrize(("num_samples", "of_x"), [(20, 0.0), (100, math.nan)])
def test_a_khat_that_is_unknown_is_not_the_other_one(pair, x, monkeypatch, num_samples, of_x):
    """That of 20 samples is, of the seen, and here NaN is, of log p(x)."""
    khat, count = torch.full((12,), of_x), torch.full((12,), 100)
    monkeypatch.setattr(imputation, "_log_p", lambda *a, **o: (PerDatum(*torch.zeros(2, 12)), khat, count))
    result = impute(pair.model, pair.guide, x, seen=masks(x), num_samples=num_samples, **FAST)
    assert result.khat.isnan().all()


P, P_Z = torch.tensor([0.2, 0.7]), torch.tensor([0.4, 0.6])


def trials(x, n):
    """z in {0, 1}, and two counts of n_i trials each."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(P_Z))
        pyro.sample("x", dist.Binomial(n[:, None].float(), P[z][..., None].expand(*z.shape, 2)).to_event(1), obs=x)


def coin(x, n):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))


@pytest.mark.filterwarnings("ignore:not refined")
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_counts_of_each_datums_own_number_of_trials(dtype):
    x, n = torch.tensor([[3, 4], [9, 7], [0, 2]]).to(dtype), torch.tensor([5, 9, 12])
    result = impute(trials, coin, x, n, seen=torch.tensor([True, False]), num_samples=4000, num_draws=400)
    p_x = dist.Binomial(n[:, None].float(), P)
    joint = P_Z.log() + p_x.log_prob(x[:, :1].float())
    weights = joint.softmax(-1)
    log_p_missing = (weights.log() + p_x.log_prob(x[:, 1:].float())).logsumexp(-1)
    assert bool(((result.log_p_seen.values - joint.logsumexp(-1)).abs() < 5 * result.log_p_seen.mc_se).all())
    assert bool(((result.log_p_missing.values - log_p_missing).abs() < 5 * result.log_p_missing.mc_se).all())
    mean = (weights * n[:, None] * P).sum(-1)
    assert bool(((result.mean[:, 1] - mean).abs() < 5 * n * 0.5 / result.ess.sqrt()).all())
    assert result.samples.dtype == dtype
    assert result.mean.is_floating_point()
    assert bool((result.samples[..., 1] <= n).all())
    with pytest.raises(ValueError, match=r"x: expected values in integerinterval.* where it is seen; got 9 to 9"):
        impute(trials, coin, x, torch.tensor([5, 8, 12]), seen=torch.tensor([True, False]))


def test_x_of_one_number_a_datum():
    """z ~ N(0, 1), x ~ N(z, 1)."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x = torch.tensor([1.0, -2.0, 0.5])
    result = impute(model, guide, x, seen=torch.tensor([True, False, True]), num_samples=4000)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).double()
    assert bool(((result.log_p_seen.values - exact)[::2].abs() < 5 * result.log_p_seen.mc_se[::2]).all())
    assert abs(result.log_p_missing.values[1] - exact[1]) < 5 * result.log_p_missing.mc_se[1]
    assert result.log_p_missing.values[::2].eq(0).all()
    assert result.samples.shape == (10, 3)


def test_log_p_of_the_seen_pixels_is_that_of_quadrature():
    """Of a VAE whose z has two dimensions, with posteriors that are no normals, and a guide that is far from them."""
    vae = tiny_vae(noise=1.5)
    with seeded(3):
        x = vae.generate(4).sample()
    seen = torch.ones(1, 4, 4, dtype=torch.bool)
    seen[:, 2:] = False
    axis = torch.linspace(-7, 7, 401)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    with torch.no_grad():
        p = vae.decode(z).double().clamp(1e-7, 1 - 1e-7)
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1).double() + 2 * (axis[1] - axis[0]).log()
    each = torch.where(x[:, None] == 1, p.log(), (-p).log1p())  # (data, grid, 1, 4, 4)
    log_joint = log_prior + (each * seen).flatten(2).sum(-1)
    x = x.where(seen, math.nan)
    result = impute(vae.model, vae.guide, x, seen=seen, num_samples=4000, num_starts=2, num_steps=20)
    assert result.num_unreliable == 0
    assert ((result.log_p_seen.values - log_joint.logsumexp(1)).abs() <= 5 * result.log_p_seen.mc_se + 1e-3).all()
    assert result.log_p_seen.mc_se.max() < 0.1
    mean = torch.einsum("dg,gchw->dchw", log_joint.softmax(1), p)
    error = 5 * (mean * (1 - mean)).sqrt() / result.ess.min().sqrt()
    assert ((result.mean - mean).abs() <= error)[:, ~seen].all()
