import pytest
import torch

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.networks import Network
from ppl_vae.programs import seeded


def test_two_layers_are_between_x_and_the_prior(dataset):
    hvae = build(TrainConfig(model="conv-hvae", prior="vamp-prior:num_components=3", latent_size=4), (1, 12, 12))
    assert hvae.prior.pseudo_inputs.shape == (3, 1, 12, 12)
    assert hvae.decoder2(torch.zeros(2, 4)).shape == (2, 8)
    assert hvae.decoder1(torch.zeros(2, 8)).shape == (2, 1, 12, 12, 1)


@pytest.mark.parametrize("model", ["dense-vae", "gated-dense-vae", "gated-dense-hvae"])
def test_models_of_counts_begin_near_their_priors(model):
    """exp(N(0, 7)), the scale under which an output of unit gain puts z for counts of 1,000, is 14 at one s.d."""
    config = TrainConfig(model=model, likelihood="poisson", encoding="identity", latent_size=4)
    x = 10 ** (3 * torch.rand(200, 5, generator=torch.Generator().manual_seed(0)))
    vae = build(config, (5,))
    with seeded(0), torch.no_grad():
        q = vae.encode(x.round())
        rates = vae.generate(500).mean
    assert q.mean.abs().max() < 3
    assert q.stddev.max() < 3
    assert rates.log().abs().max() < 3


def test_a_network_of_ones_own_makes_models_of_every_kind():
    class TwiceLinear(Network):
        def __init__(self, bias: bool = True):
            self.bias = bias

        def encoder(self, event_shape, num_outputs):
            return torch.nn.Sequential(torch.nn.Flatten(-3), torch.nn.Linear(16, num_outputs, self.bias))

        def decoder(self, num_inputs, event_shape, params_per_dim):
            return torch.nn.Sequential(torch.nn.Linear(num_inputs, 16), torch.nn.Unflatten(-1, (1, 4, 4, 1)))

    vae = build(TrainConfig(model="twice-linear-vae:bias=false", latent_size=2), (1, 4, 4))
    assert vae.encoder[1].bias is None
    hvae = build(TrainConfig(model="twice-linear-hvae", latent_size=2), (1, 4, 4))
    assert hvae.reconstruct(torch.zeros(3, 1, 4, 4)).shape == (3, 1, 4, 4)
