import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation import chunks, importance
from ppl_vae.evaluation.export import to_arviz
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.system.hashing import fingerprint


@pytest.fixture(params=[13, 60])
def small_chunks(monkeypatch, request):
    """Blocks that cut the samples and the data of a test, unevenly, and chunks that cut the one or the other."""
    monkeypatch.setattr(chunks, "BLOCK_DATA", 7)
    monkeypatch.setattr(chunks, "BLOCK_ROWS", 21)
    monkeypatch.setattr(importance, "rows_per_chunk", lambda *args, **kwargs: request.param)


def of(data, group, name):
    """The one chain of a variable, as a tensor."""
    return torch.from_numpy(data[group][name].values[0])


@pytest.mark.usefixtures("small_chunks")
def test_log_p_and_its_diagnosis_are_those_of_the_evaluation(ppca):
    pair, x = ppca(N=20, width=1.3)
    data = to_arviz(pair.model, pair.guide, x, num_samples=60, seed=3)
    result = log_likelihood(pair.model, pair.guide, x, num_samples=60, seed=3)
    for name in ("log_p", "mc_se", "ess", "khat"):
        ours, theirs = torch.from_numpy(data["sample_stats"][name].values), getattr(result, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    other = log_likelihood(pair.model, pair.guide, x, num_samples=60, seed=4)
    assert not torch.allclose(torch.from_numpy(data["sample_stats"]["log_p"].values), other.log_p)
    error = (result.log_p - pair.exact.log_prob(x)).abs() / result.mc_se
    assert error[result.khat < 0.7].max() < 4


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.usefixtures("small_chunks")
def test_every_draw_stands_beside_its_own_log_likelihood_weight_and_prediction(ppca, resample):
    pair, x = ppca(N=20, width=1.3)
    data = to_arviz(pair.model, pair.guide, x, num_samples=31, num_predictive=29, resample=resample)
    z = of(data, "posterior", "z")
    assert z.shape == (31, 20, 3)
    p_x = dist.Normal(z @ pair.W.T, pair.scale).to_event(1)
    torch.testing.assert_close(of(data, "log_likelihood", "x"), p_x.log_prob(x).double(), rtol=1e-5, atol=1e-4)
    if not resample:
        log_p = p_x.log_prob(x) + dist.Normal(0.0, 1.0).expand([3]).to_event(1).log_prob(z)
        sd = pair.width * pair.covariance.diag().sqrt()
        q = dist.Normal(x @ pair.W @ pair.covariance / pair.scale**2, sd).to_event(1)
        torch.testing.assert_close(
            of(data, "sample_stats", "log_weight"), (log_p - q.log_prob(z)).double(), rtol=1e-5, atol=1e-4
        )
    prior = of(data, "prior", "z")
    for codes, draws in ((z[:29], "posterior_predictive"), (prior, "prior_predictive")):
        noise = (of(data, draws, "x") - codes @ pair.W.T) / pair.scale
        assert noise.shape == (29, 20, 10)
        # standard normal noise: the mean within 4 errors, and the mean square, whose variance is 2
        assert noise.mean().abs() < 4 / noise.numel() ** 0.5
        assert (noise.square().mean() - 1).abs() < 4 * (2 / noise.numel()) ** 0.5
        per_datum = noise.square().mean((0, 2))
        assert (per_datum - 1).abs().max() < 5 * (2 / noise[:, 0].numel()) ** 0.5
    assert prior.mean().abs() < 4 / prior.numel() ** 0.5
    assert (prior.square().mean() - 1).abs() < 4 * (2 / prior.numel()) ** 0.5
    assert torch.equal(torch.from_numpy(data["observed_data"]["x"].values), x)


def test_resampled_draws_are_of_the_exact_posterior(ppca):
    """The guide's sd is 1.3 times too wide in each of three dimensions; it lacks the posterior's correlations."""
    pair, x = ppca(N=30, width=1.3)
    ours = {}
    for resample in (False, True):
        data = to_arviz(pair.model, pair.guide, x, num_samples=4000, num_predictive=1, resample=resample)
        z = of(data, "posterior", "z") - x @ pair.W @ pair.covariance / pair.scale**2
        ours[resample] = torch.einsum("knl,knm->lm", z, z) / z.shape[:2].numel()
        ess = data["sample_stats"]["ess"].values
        assert data["posterior"].attrs["sampled_from"] == data.attrs["sampled_from"]
    assert data.attrs["sampled_from"] == "importance resampling"
    variance = pair.covariance.diag()
    scale = torch.outer(variance, variance).sqrt()
    # in units of the variances a (co)variance of n draws has an error of at most sqrt(2 / n); to draw anew adds 1/K
    bound = 4 * (2 / (1 / (1 / ess + 1 / 4000)).sum()) ** 0.5
    assert ((ours[True] - pair.covariance) / scale).abs().max() < bound
    assert ((ours[False] - pair.covariance) / scale).abs().max() > 5 * bound


def test_images_of_a_vae_and_the_attributes_that_say_what_it_is(tmp_path):
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), (1, 4, 6))
    x = torch.bernoulli(torch.full((5, 1, 4, 6), 0.5), generator=torch.Generator().manual_seed(0))
    data = to_arviz(vae.model, vae.guide, x, num_samples=8, encoding="binarize", attributes={"run": "a"})
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "channel", "height", "width")
    assert data["posterior_predictive"]["x"].shape == (1, 8, 5, 1, 4, 6)
    assert set(data["prior_predictive"]["x"].values.flat) == {0.0, 1.0}
    assert torch.equal(torch.from_numpy(data["observed_data"]["x"].values), x)
    expected = {
        "model": "VAE.model",
        "guide": "VAE.guide",
        "prior": "StandardNormal: z ~ Normal^2",
        "likelihood": "Bernoulli: x ~ Bernoulli^24",
        "posterior": "DiagonalNormal: z ~ Normal^2",
        "measure": "mass on boolean^24",
        "encoding": "binarize",
        "fingerprint": fingerprint(x),
        "K": 8,
        "seed": 0,
        "run": "a",
        "torch_version": torch.__version__.split("+")[0],
        "pyro-ppl_version": pyro.__version__,
    }
    assert expected.items() <= dict(data.attrs).items()
    data.to_netcdf(tmp_path / "vae.nc")


def test_pairs_of_other_shapes():
    def flat(x, y):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(y, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2[..., None].expand(*z2.shape, 3), 1.0).to_event(1))
            pyro.sample(
                "pixels", dist.Normal(z1.sum(-1)[..., None], 1.0).expand([*z2.shape, 4]).to_event(1), obs=x.flatten(1)
            )

    def guide(x, y):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            pyro.sample("z1", dist.Normal(torch.zeros(*z2.shape, 3), 1.0).to_event(1))

    with seeded(0):
        x, y = torch.randn(5, 1, 2, 2), 100.0 * torch.arange(5.0)
    data = to_arviz(flat, guide, x, y, num_samples=6)
    assert data["posterior"]["z1"].dims[3:] == ("z1_latent",)
    assert data["posterior"]["z2"].shape == (1, 6, 5)
    assert data["observed_data"]["pixels"].dims == ("datum", "channel", "height", "width")
    assert torch.equal(torch.from_numpy(data["observed_data"]["pixels"].values), x)
    # further arguments reach the prior, datum by datum
    assert (of(data, "prior", "z2") - y).abs().max() < 6
    assert "z2 ~ Normal^1, z1 ~ Normal^3" in data.attrs["prior"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples: expected at least 1; got 0"),
        ({"num_predictive": 0}, "num_predictive: expected at least 1; got 0"),
        ({"datum": [1]}, "datum: expected a coordinate for each of 50 data"),
    ],
)
def test_what_cannot_be_exported_is_refused(ppca, arguments, message):
    pair, x = ppca()
    with pytest.raises(ValueError, match=message):
        to_arviz(pair.model, pair.guide, x, **arguments)
    with pytest.raises(ValueError, match="expected a latent site"):
        to_arviz(pair.model, lambda x: None, x)
