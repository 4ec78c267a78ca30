import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.components import choices, create
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE
from ppl_vae.posteriors import DiagonalNormal, Posterior
from ppl_vae.priors import (
    AggregatePosterior,
    ExemplarPrior,
    Exemplars,
    GaussianMixture,
    Prior,
    StudentT,
    VampPrior,
)
from ppl_vae.programs import seeded

SPECS = {
    "gaussian-mixture": "gaussian-mixture:num_components=4",
    "normalizing-flow": "normalizing-flow:hidden_size=16",
    "vamp-prior": "vamp-prior:num_components=6",
    "exemplar-prior": "exemplar-prior:num_exemplars=6",
}
FAMILIES = {"gaussian-mixture", "normalizing-flow", "learned-normal", "vamp-prior"}  # that begin near N(0, I)


def build(name, latent_size=2, *, noise=0.0, seed=0, dtype=torch.float64):
    """A prior in evaluation mode, with noise added to all its parameters, that has the encoder of data in R^3 at hand
    if it asks."""
    with seeded(seed):
        posterior = DiagonalNormal(latent_size)
        encoder = nn.Linear(3, posterior.num_params)
        given = {"encoder": encoder, "posterior": posterior, "event_shape": (3,)}
        prior = create(Prior, SPECS.get(name, name), latent_size=latent_size, **given)
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter += noise * torch.randn_like(parameter)
        if name == "exemplar-prior":
            prior.initialise(torch.randn(9, 3))
    nn.ModuleList([prior, posterior, encoder]).to(dtype).eval()
    return prior


def plane():
    """Points (n, 2) of R^2, and the areas (n,) that make a sum over them an integral: dense near 0, and far-reaching
    for the sake of heavy tails."""
    t = torch.linspace(-6, 6, 401, dtype=torch.float64)
    area = t.cosh() * 12 / 400
    return torch.cartesian_prod(t.sinh(), t.sinh()), torch.cartesian_prod(area, area).prod(-1)


@pytest.mark.parametrize("latent_size", [1, 3])
@pytest.mark.parametrize("name", choices(Prior))
def test_shapes_and_independent_draws_in_a_plate(name, latent_size):
    prior = build(name, latent_size)
    p = prior()
    assert (p.batch_shape, p.event_shape) == ((), (latent_size,))
    with seeded(0), pyro.plate("particles", 4, dim=-2), pyro.plate("data", 5, dim=-1):
        z = pyro.sample("z", p)
        assert p.sample((2, 3)).shape == (2, 3, latent_size)
    assert z.shape == (4, 5, latent_size)
    assert len(z.flatten().unique()) == z.numel()
    torch.testing.assert_close(p.expand((4, 5)).log_prob(z), torch.stack([p.log_prob(row) for row in z]))
    assert p.expand((4, 5)).log_prob(z[0, 0]).shape == (4, 5)


@pytest.mark.parametrize("name", choices(Prior))
def test_gradients_reach_the_parameters_and_the_value(name):
    prior = build(name)
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    prior().log_prob(z).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in prior.parameters())
    assert bool((z.grad != 0).all())


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("name", choices(Prior))
def test_the_density_integrates_to_one_and_is_that_of_the_samples(name, noise):
    """Their characteristic function E exp(i t.z) by quadrature and by sampling."""
    p = build(name, noise=noise)()
    points, area = plane()
    with torch.no_grad(), seeded(0):
        mass = p.log_prob(points).exp() * area
        z = p.sample((20_000,))
        t = torch.randn(2, 8, dtype=torch.float64)
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    for wave in (torch.cos, torch.sin):
        exact, drawn = mass @ wave(points @ t), wave(z @ t)
        assert bool(((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / len(z) ** 0.5 + 1e-3).all())


@pytest.mark.parametrize("name", sorted(FAMILIES - {"gaussian-mixture", "vamp-prior"}))
def test_what_is_learned_begins_at_the_standard_normal(name):
    z = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p = dist.Normal(z.new_zeros(3), 1.0).to_event(1).log_prob(z)
    torch.testing.assert_close(build(name, 3)().log_prob(z), log_p, atol=0.1, rtol=0)


def test_a_flow_is_scored_in_one_pass(monkeypatch):
    def inverse(self, y):
        raise AssertionError("it was inverted")

    prior = build("normalizing-flow", noise=0.2)
    monkeypatch.setattr("zuko.transforms.AutoregressiveTransform._inverse", inverse)
    assert bool(prior().log_prob(torch.ones(5, 2, dtype=torch.float64)).isfinite().all())
    with seeded(0), pytest.raises(AssertionError, match="inverted"):
        prior().sample()


def test_a_gaussian_mixture_begins_with_unit_variance():
    with seeded(0):
        p = GaussianMixture(1000, num_components=10)()
    # of 1,000 dimensions, each with 10 means from N(0, 1/4): the variance has mean 0.975 and s.d. sqrt(2 / 9) / 4
    assert p.variance.mean().item() == pytest.approx(0.975, abs=5 * math.sqrt(2 / 9) / 4 / math.sqrt(1000))


class Scored(nn.Module):
    """log p(z) as a module: a flow calls its networks when it is scored, and not before."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, z):
        return self.prior().expand(z.shape[:-1]).log_prob(z)


@pytest.mark.parametrize("name", choices(Prior))
def test_it_can_be_traced(name):
    prior = build(name, dtype=torch.float32)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scored = Scored(prior)
    parameters = dict(scored.named_parameters())

    def run(parameters, z):
        log_p = torch.func.functional_call(scored, parameters, (z,)).sum()
        return log_p, *torch.autograd.grad(log_p, [z, *parameters.values()])

    with pyro.validation_enabled(False):
        traced = make_fx(run)(parameters, z)
        other = {k: (v + 0.1).detach().requires_grad_() for k, v in parameters.items()}
        for a, b in zip(traced(other, z), run(other, z), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", choices(Prior))
def test_it_is_saved_whole_and_named_without_noise(name):
    prior, other = build(name, noise=0.3), build(name, noise=0.3, seed=1)
    if name == "vamp-prior":
        other._shared[0].load_state_dict(prior._shared[0].state_dict())  # the VAE's, and saved with it
    other.load_state_dict(prior.state_dict())
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(prior().log_prob(z), other().log_prob(z))
    assert "latent_size=2" in repr(prior)  # zuko's own repr draws from the global generator


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_degrees_of_freedom_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="prior student-t: expected degrees_of_freedom > 0; got"):
        StudentT(2, value)


@pytest.mark.parametrize("spec", ["gaussian-mixture:num_components=0", "normalizing-flow:num_bins=0"])
def test_a_size_out_of_range_is_refused(spec):
    with pytest.raises(ValueError, match=r"prior [a-z-]+: expected num_\w+ >= 1; got 0"):
        create(Prior, spec, latent_size=2)


def vae(posterior="diagonal-normal", num_components=4, latent_size=2):
    with seeded(0):
        posterior = create(Posterior, posterior, latent_size=latent_size)
        encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, posterior.num_params))
        decoder = nn.Sequential(nn.Linear(latent_size, 3), nn.Unflatten(-1, (3, 1)))
        prior = VampPrior(latent_size, encoder, posterior, (3,), num_components)
        return VAE(encoder, decoder, prior=prior, likelihood=Gaussian(), posterior=posterior)


def test_a_vamp_prior_is_the_mean_of_the_posteriors():
    """The log of the mean over components, and not of the sum."""
    model = vae().eval()
    with torch.no_grad():
        model.prior.pseudo_inputs[:] = model.prior.pseudo_inputs[0]
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    q = model.encode(model.prior.pseudo_inputs[:1]).expand((5,))
    torch.testing.assert_close(model.prior().log_prob(z), q.log_prob(z))


@pytest.mark.parametrize("name", choices(Posterior))
def test_a_vamp_prior_of_any_posterior(name):
    model = vae(name).double().eval()
    z = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = torch.stack([model.encode(u[None]).expand((2, 5)).log_prob(z) for u in model.prior.pseudo_inputs])
    torch.testing.assert_close(model.prior().log_prob(z), each.logsumexp(0) - math.log(4))
    with seeded(0):
        assert model.prior().expand((2, 5)).sample().shape == (2, 5, 2)


def test_batch_statistics_are_those_of_the_data():
    """Pseudo-inputs neither use nor change them, and `training` is as it was."""
    model = vae()
    model.encoder[3].eval()
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    in_training = model.prior().log_prob(z)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.encoder] == [True, True, True, False]
    assert torch.equal(in_training, model.eval().prior().log_prob(z))


def test_pseudo_inputs_begin_as_training_data():
    model = vae()
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.prior.initialise(x)
    assert torch.equal(model.prior.pseudo_inputs, x[[0, 2, 5, 7]])
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])] == ["prior.pseudo_inputs"]
    assert model.prior.pseudo_inputs.requires_grad
    with pytest.raises(ValueError, match="at least num_components = 4 training data; got 3"):
        model.prior.initialise(x[:3])


def test_other_priors_take_nothing_from_the_data():
    prior = build("learned-normal")
    prior.initialise(torch.ones(5, 3))
    assert not any(p.any() for p in prior.parameters())


def test_the_encoder_is_the_vaes_own():
    """Neither saved nor counted twice, and shared within a copy and after a move."""
    model = vae()
    assert list(model.prior.state_dict()) == ["pseudo_inputs"]
    assert not any(k.startswith(("prior.encoder", "prior.posterior")) for k in model.state_dict())
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        twin.encoder[3].bias += 1
    u = twin.prior.pseudo_inputs[0].detach()
    assert u.dtype == torch.float64
    torch.testing.assert_close(twin.prior().components.mean[0], twin.encode(u[None]).mean[0])
    assert not torch.allclose(model.eval().prior().components.mean[0].double(), twin.prior().components.mean[0])


def test_matrix_products_lose_no_digits_where_posteriors_are_narrow():
    with seeded(0):
        mean, log_variance, e = 3 * torch.randn(20, 40), torch.full((20, 40), 2 * math.log(1e-3)), torch.randn(20, 40)
    p = AggregatePosterior(DiagonalNormal(40), torch.cat([mean, log_variance], -1))
    z = mean + 1e-3 * e
    each = dist.Normal(mean.double(), 1e-3).to_event(1).log_prob(z.double()[:, None])
    # expanded in float32, (mean / scale)^2 = 10^7 times its precision would be 1 nat a dimension
    torch.testing.assert_close(p.log_prob(z).double(), each.logsumexp(-1) - math.log(20), atol=1e-3, rtol=0)


def test_a_vamp_prior_draws_each_of_its_components_as_often():
    """Six of them, far apart."""
    mean = 10 * torch.arange(6.0)[:, None].expand(6, 2)
    p = AggregatePosterior(DiagonalNormal(2), torch.cat([mean, torch.zeros(6, 2)], -1))
    with seeded(0):
        component = (p.sample((6000,)) / 10).round()
    assert torch.equal(component[:, 0], component[:, 1])
    counts = component[:, 0].int().bincount(minlength=6)
    assert len(counts) == 6
    assert bool(((counts - 1000).abs() < 5 * math.sqrt(6000 * 5 / 36)).all())


def exemplar_vae(num_exemplars=3):
    """It has seen six data, (6, 3), of which each second is an exemplar."""
    with seeded(0):
        posterior = DiagonalNormal(2)
        encoder, decoder = nn.Linear(3, 4), nn.Sequential(nn.Linear(2, 3), nn.Unflatten(-1, (3, 1)))
        prior = ExemplarPrior(2, encoder, posterior, num_exemplars)
        vae = VAE(encoder, decoder, prior=prior, likelihood=Gaussian(), posterior=posterior)
        x = torch.randn(6, 3)
    prior.initialise(x)
    return vae, x


@pytest.mark.parametrize("left_out", [False, True])
def test_exemplars_are_a_mixture_of_normals_of_one_scale(monkeypatch, left_out):
    """Value and gradients, of any chunk, with a datum's own exemplar left out or not; a datum may have none."""
    K, D, own = 25, 3, torch.tensor([4, -1, 24, 0])
    with seeded(0):
        means, z = torch.randn(K, D, dtype=torch.float64), torch.randn(2, 4, D, dtype=torch.float64)
    leaves = [z.requires_grad_(), torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)]
    weights = torch.ones(4, K, dtype=torch.float64)
    if left_out:
        weights[[0, 2, 3], own[[0, 2, 3]]] = 0
    components = dist.Normal(means.expand(4, K, D), leaves[1].exp()).to_event(1)
    exact = dist.MixtureSameFamily(dist.Categorical(weights), components).log_prob(z)
    for chunk in (2, 7, 25, 100):
        monkeypatch.setattr(Exemplars, "CHUNK", chunk)
        p = Exemplars(means, leaves[1].exp(), own if left_out else None)
        assert p.batch_shape == ((4,) if left_out else ())
        found = p.log_prob(z)
        torch.testing.assert_close(found, exact)
        with torch.no_grad():
            assert torch.equal(p.log_prob(z), found)
        for a, b in zip(*(torch.autograd.grad((t * z[..., 0].detach()).sum(), leaves, retain_graph=True)
                          for t in (found, exact)), strict=True):  # fmt: skip
            torch.testing.assert_close(a, b)


def test_exemplars_lose_no_digits_where_they_are_narrow():
    with seeded(0):
        means, e = 3 * torch.randn(20, 40), torch.randn(20, 40)
    z = means + 1e-3 * e
    each = dist.Normal(means.double(), 1e-3).to_event(1).log_prob(z.double()[:, None])
    found = Exemplars(means, torch.tensor(1e-3)).log_prob(z)
    torch.testing.assert_close(found.double(), each.logsumexp(-1) - math.log(20), atol=1e-3, rtol=0)


def test_exemplars_are_drawn_as_often_and_never_a_datums_own():
    means = 10 * torch.arange(5.0)[:, None]
    with seeded(0):
        drawn = (Exemplars(means, torch.tensor(0.1), torch.tensor([3, -1])).sample((4000,)) / 10).round().int()
    for column, n, own in zip(drawn[..., 0].T, (4, 5), (3, None), strict=True):
        counts = column.bincount(minlength=5)
        assert own is None or counts[own] == 0
        p = 1 / n
        kept = counts[[k for k in range(5) if k != own]]
        assert bool(((kept - 4000 * p).abs() < 5 * math.sqrt(4000 * p * (1 - p))).all())


def test_in_training_each_datum_is_scored_without_its_own_exemplar():
    vae, x = exemplar_vae()
    index = torch.tensor([5, 2, 0])  # of which the last two are exemplars
    with torch.no_grad():
        encoded = vae.encode(x[::2]).mean
    torch.testing.assert_close(vae.prior.means, encoded)
    with pyro.get_param_store().scope(), seeded(0):
        guide = pyro.poutine.trace(vae.guide).get_trace(x[index], x[index], index)
        trace = pyro.poutine.trace(pyro.poutine.replay(vae.model, guide)).get_trace(x[index], x[index], index)
    z, fn = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
    scale = vae.prior.log_scale.exp()
    for i, others in enumerate(([0, 1, 2], [0, 2], [1, 2])):
        log_p = dist.Normal(encoded[others], scale).to_event(1).log_prob(z[i]).logsumexp(0) - math.log(len(others))
        torch.testing.assert_close(fn.log_prob(z)[i], log_p)
    with (
        pyro.get_param_store().scope(),
        pytest.raises(ValueError, match="expected in training the index of each datum"),
    ):
        pyro.poutine.replay(vae.model, guide)(x[index])


def test_exemplars_are_where_the_encoder_last_saw_them():
    """In training; evaluation changes nothing, and has all exemplars for data that are none."""
    vae, x = exemplar_vae()
    before = vae.prior.means.clone()
    with torch.no_grad():
        vae.encoder.bias += torch.tensor([1.0, -1.0, 0.0, 0.0])
        now = vae.encode(x[::2]).mean
    index = torch.tensor([4, 1, 3, 5])
    with pyro.get_param_store().scope(), seeded(0):
        vae.eval().guide(x[index], x[index], index)
        assert torch.equal(vae.prior.means, before)
        vae.train().guide(x[index], None, index)
    torch.testing.assert_close(vae.prior.means, torch.stack([before[0], before[1], now[2]]))
    z = torch.zeros(3, 2)
    of_none = vae.prior(torch.tensor([1, 3, 5])).log_prob(z)
    torch.testing.assert_close(of_none, vae.eval().prior().log_prob(z))


def test_exemplars_want_as_many_training_data_and_two():
    vae, x = exemplar_vae(6)
    assert vae.prior.exemplars.tolist() == [*range(6)]
    with pytest.raises(ValueError, match="at least num_exemplars = 6 training data; got 5"):
        vae.prior.initialise(x[:5])
    with pytest.raises(ValueError, match="expected num_exemplars >= 2; got 1"):
        exemplar_vae(1)
    assert [*vae.prior.state_dict()] == ["log_scale", "means", "exemplars"]
