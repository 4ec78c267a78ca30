"""Every network x likelihood as a Pyro pair."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from safetensors.torch import load_file, save_file
from torch.distributions import kl_divergence

from ppl_vae.components import choices
from ppl_vae.experiments.architectures import model_names
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.likelihoods import Bernoulli, Gaussian, Likelihood
from ppl_vae.models import VAE, Autoencoder
from ppl_vae.networks import DenseDecoder, DenseEncoder
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import StandardNormal
from ppl_vae.programs import seeded
from ppl_vae.training.monitoring import elbo_parts
from ppl_vae.training.optimizers import adam

SHAPE = (1, 9, 7)
MODELS = [name for name in model_names() if name.endswith(("-ae", "-vae"))]
PAIRS = [
    (model, likelihood)
    for model in MODELS
    for likelihood in choices(Likelihood)
    if likelihood == "bernoulli" or model.startswith(("dense", "conv"))
]


def make(model, likelihood, seed=0):
    hidden = None if "residual" in model or model == "conv-ae" else (16,)
    return build(TrainConfig(model=model, likelihood=likelihood, latent_size=3, hidden=hidden, seed=seed), SHAPE)


@pytest.fixture
def x():
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)).round()


@pytest.mark.parametrize(("model", "likelihood"), PAIRS)
def test_every_parameter_gets_a_gradient_under_svi_and_moves(model, likelihood, x):
    vae = make(model, likelihood)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    with seeded(0), pyro.get_param_store().scope():
        svi = SVI(vae.model, vae.guide, adam(1e-3), loss=Trace_ELBO())
        for _ in range(5):
            assert math.isfinite(svi.step(x))
    still = [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert not still


@pytest.mark.parametrize(("model", "likelihood"), PAIRS)
def test_weights_save_and_load_bit_for_bit(model, likelihood, x, tmp_path):
    first, second = make(model, likelihood, seed=1), make(model, likelihood, seed=2)
    assert not torch.equal(first.reconstruct(x), second.reconstruct(x))
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "weights.safetensors")
    second.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(first.reconstruct(x), second.reconstruct(x))


@pytest.mark.parametrize(("model", "likelihood"), [p for p in PAIRS if p[0].endswith("vae")])
def test_particles_are_the_same_program_many_times(model, likelihood, x):
    """A particle plate at dim -2 gives each (sample, datum) the log-prob that it has on its own."""
    vae = make(model, likelihood).eval()  # in training a Gaussian of optimal variance sees the whole batch
    z = torch.randn(5, len(x), 3, generator=torch.Generator().manual_seed(1))

    def log_joint(program, z):
        with pyro.get_param_store().scope():
            trace = poutine.trace(poutine.condition(program, {"z": z})).get_trace(x)
            trace.compute_log_prob()
        return trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]

    def in_particles(x):
        with pyro.plate("particles", 5, dim=-2):
            vae.model(x)

    together = log_joint(in_particles, z)
    one_by_one = torch.stack([log_joint(vae.model, z[k]) for k in range(5)])
    assert together.shape == (5, 4)
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-3)


def test_the_loss_of_an_autoencoder_is_its_reconstruction_loss_written_out(x):
    ae = make("dense-ae", f"gaussian:scale={math.sqrt(0.5)}")
    with pyro.get_param_store().scope():
        loss = Trace_ELBO().loss(ae.model, ae.guide, x)
    squared_error = (x - ae.reconstruct(x)).square().sum().item()
    assert loss == pytest.approx(squared_error + 0.5 * math.log(math.pi) * x.numel(), rel=1e-5)
    ae = make("conv-ae", "bernoulli")
    with pyro.get_param_store().scope():
        loss = Trace_ELBO().loss(ae.model, ae.guide, x)
    cross_entropy = torch.nn.functional.binary_cross_entropy(ae.reconstruct(x), x, reduction="sum").item()
    assert loss == pytest.approx(cross_entropy, rel=1e-4)


@pytest.mark.parametrize("name", ["dense-ae", "dense-vae"])
def test_the_model_scores_x_and_the_network_sees_what_is_given(name, x):
    model = make(name, "gaussian")
    given = 1 - x
    with seeded(0), pyro.get_param_store().scope():
        guide_trace = poutine.trace(model.guide).get_trace(x, given)
        trace = poutine.trace(poutine.replay(model.model, guide_trace)).get_trace(x, given)
    assert trace.nodes["x"]["value"] is x
    if name == "dense-ae":
        torch.testing.assert_close(trace.nodes["x"]["fn"].base_dist.loc, model.reconstruct(given))
    else:
        expected = model.encode(given).base_dist.loc
        torch.testing.assert_close(guide_trace.nodes["z"]["fn"].base_dist.loc, expected)
        assert not torch.equal(expected, model.encode(x).base_dist.loc)


def test_the_kl_is_the_closed_form_and_the_elbo_is_reconstruction_minus_kl(x):
    vae = make("dense-vae", "bernoulli")
    parts = elbo_parts(vae.model, vae.guide, x, num_samples=3)
    with torch.no_grad():
        mean, log_variance = vae.encoder(x).chunk(2, -1)
    closed = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    torch.testing.assert_close(parts.kl, closed)
    torch.testing.assert_close(parts.elbo, parts.reconstruction - parts.kl)
    # Trace_ELBO's own estimate, on the same data, agrees within its Monte Carlo error
    with seeded(0), pyro.get_param_store().scope(), torch.no_grad():
        losses = torch.tensor([Trace_ELBO().loss(vae.model, vae.guide, x) for _ in range(400)])
    parts = elbo_parts(vae.model, vae.guide, x, num_samples=400, seed=1)
    error = losses.std() / 20
    assert abs(-losses.mean() - parts.elbo.sum()) < 5 * error


def test_posterior_and_prior_are_what_they_say():
    params = torch.tensor([0.5, -1.0, math.log(4.0), 0.0])
    q = DiagonalNormal(2)(params)
    assert (q.batch_shape, q.event_shape) == ((), (2,))
    torch.testing.assert_close(q.base_dist.loc, torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(q.base_dist.scale, torch.tensor([2.0, 1.0]))
    p = StandardNormal(2)()
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    expected = dist.Normal(0.0, 1.0).log_prob(torch.ones(2)).sum()
    torch.testing.assert_close(p.log_prob(torch.ones(2)), expected)
    assert kl_divergence(StandardNormal(2)(), p).item() == 0
    with pytest.raises(ValueError, match="latent_size >= 1"):
        StandardNormal(0)


def test_plain_vectors_need_no_image():
    with seeded(0):
        vae = VAE(
            DenseEncoder((6,), 4, (8,)),
            DenseDecoder(2, (6,), 1, (8,)),
            prior=StandardNormal(2),
            likelihood=Gaussian(1.0),
            posterior=DiagonalNormal(2),
        )
        x = torch.randn(5, 6)
    assert elbo_parts(vae.model, vae.guide, x).elbo.shape == (5,)
    assert vae.reconstruct(x).shape == (5, 6)
    with seeded(0):
        assert vae.generate(7).sample().shape == (7, 6)
        assert len(vae.generate(7).mean.unique(dim=0)) == 7  # a latent for each
    assert "Gaussian(scale=1.0)" in repr(vae)
    assert isinstance(make("dense-ae", "bernoulli"), Autoencoder)
    assert isinstance(make("conv-vae", "bernoulli").likelihood, Bernoulli)
