"""A ladder: its evaluation, what each layer adds, free bits by layer, and its settings. Linear ones are exact in
`test_linear_networks`."""

import math

import pyro
import pytest
import torch
from linear_models import ROUNDING, ladder
from small_runs import quiet_train
from tiny import tiny_images

from ppl_vae.components import UsageError
from ppl_vae.data.dataset import Dataset
from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.refinement import refine
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import assemble, build
from ppl_vae.experiments.runs import load_run
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import LadderVAE
from ppl_vae.objectives import AnalyticKL, FreeBits
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit

SPEC = "dense-ladder:layers=4+3+2,hidden=8"


def test_all_layers_are_refined_together():
    case = ladder(width=4.0)
    case.data, case.exact = (case.data[0][:2],), case.exact[:2]
    refined = refine(*case.pair, *case.data, num_steps=40, num_draws=4)
    assert (refined.num_kept, refined.loc.shape[-1]) == (0, 4)  # of z3, z2 and z1
    result = log_likelihood(case.pair[0], refined, *case.data, num_samples=500)
    assert result.khat.max() < 0.5
    assert result.mc_se.max() < 0.05 < log_likelihood(*case.pair, *case.data, num_samples=500).mc_se.max() / 2
    assert bool(((result.log_p - case.exact).abs() < 5 * result.mc_se + ROUNDING).all())


def test_a_ladder_of_one_layer_is_a_vae():
    one, vae = (
        build(TrainConfig(model=f"dense-{kind}", latent_size=3), (1, 4, 4)) for kind in ("ladder:layers=3", "vae")
    )
    assert [name for name, _ in one.named_parameters() if name.startswith(("ups", "layers"))] == []
    assert one.decoder.net[0].in_features == vae.decoder.net[0].in_features == 3
    case = ladder(sizes=(2,))
    result = log_likelihood(*case.pair, *case.data, num_samples=50)
    torch.testing.assert_close(result.log_p.float(), case.exact, atol=ROUNDING, rtol=0)


def test_what_each_layer_adds():
    """Under a layer that is inferred are those of p(z_l|h_l), by their means. x is linear in all of them."""
    case = ladder()
    vae, (x,) = case.module, case.data
    with torch.no_grad(), seeded(0):
        torch.testing.assert_close(vae.reconstruct(x, 3), vae.reconstruct(x))
        torch.testing.assert_close(vae.reconstruct(x, 1), vae.decode(vae.encode(x).mean))
        errors = [(vae.reconstruct(x, k) - vae.reconstruct(x)).square().mean() for k in (1, 2, 3)]
        assert errors[0] > errors[1] > errors[2] == 0
        n = 4000
        draws = vae.reconstruct(x.expand(n, *x.shape).flatten(0, 1), 1, sample=True).unflatten(0, (n, len(x)))
        spread = 5 * draws.std(0) / math.sqrt(n)
        assert bool(((draws.mean(0) - vae.reconstruct(x, 1)).abs() < spread + 1e-4).all())
        assert draws.std(0).min() > 0.01
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"num_layers: expected 1 to 3; got {k}"):
            vae.reconstruct(x, k)


def test_free_bits_are_granted_to_each_layer():
    """KLs of normals of unit variance are half the squared means: 2 and 0.5 nats in the layers, of which the second is
    below the floor. By dimension they are 2, 0.5 and 0."""
    vae = build(TrainConfig(model="dense-ladder:layers=2+1,hidden=8"), (1, 4, 4))
    x = torch.ones(6, 1, 4, 4)
    heads = [vae.head.net[-1], vae.layers[0].head.net[-1]]
    with torch.no_grad():
        for net, mean in zip([*heads, vae.layers[0].conditional.net[-1]], (2.0, 1.0, 0.0), strict=True):
            net.weight.zero_()
            net.bias[0] = mean

    def loss(objective):
        with seeded(0), pyro.get_param_store().scope():
            value = objective.differentiable_loss(vae.model, vae.guide, x)
            return value.item(), torch.autograd.grad(value, [head.bias for head in heads])

    (plain, kept), (granted, floored) = loss(AnalyticKL()), loss(FreeBits(1.0, per="layer"))
    assert granted - plain == pytest.approx(len(x) * 0.5, rel=1e-3)
    assert loss(FreeBits(1.0))[0] - plain == pytest.approx(len(x) * 1.5, rel=1e-3)
    torch.testing.assert_close(floored[0], kept[0])
    torch.testing.assert_close(kept[1][0] - floored[1][0], torch.tensor(len(x) * 1.0))  # d KL / d mean = mean
    with pytest.raises(ValueError, match="free bits: expected per dimension or layer; got 'site'"):
        FreeBits(per="site")


def test_settings_are_the_layers_sizes():
    model = build(TrainConfig(model=SPEC, prior="vamp-prior:num_components=3"), (1, 4, 4))
    sizes = [model.posterior.latent_size, *(layer.posterior.latent_size for layer in model.layers)]
    assert sizes == [2, 3, 4]
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    params = model.head(model.features(x)[-1])
    torch.testing.assert_close(model.prior._shared[0](x), params)
    assert assemble(TrainConfig(model=SPEC)).config.latent_size == 2
    assert assemble(TrainConfig(model=SPEC, latent_size=2)).config.latent_size == 2
    for spec, message in {
        "layers=3+0": r"model dense-ladder: layers: expected sizes of at least 1; got \(3, 0\)",
        "layers=a": "model dense-ladder: layers: expected int; got 'a'",
        "layer=3": "got 'layer=3'",
    }.items():
        with pytest.raises(UsageError, match=message):
            assemble(TrainConfig(model=f"dense-ladder:{spec}"))
    with pytest.raises(UsageError, match=r"latent_size: expected none for dense-ladder:.*, which has `layers`; got 7"):
        assemble(TrainConfig(model=SPEC, latent_size=7))


@pytest.mark.parametrize("model", ["dense-ladder:layers=4+3+2+2,hidden=8", "conv-ladder:layers=3+2,hidden=8"])
def test_a_ladder_learns_with_gradients_everywhere(model):
    vae = build(TrainConfig(model=model), (1, 8, 8))
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    assert check_model(vae.model, vae.guide, x).ok
    history = fit(vae.model, vae.guide, x, epochs=3, batch_size=6, compiled=False, show_progress=False)
    assert history["loss"][-1] < history["loss"][0]
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]


def test_any_depth_begins_at_the_same_scale():
    """The state and the features keep theirs, of 1, within a factor of 3, in 2 layers and in 20."""
    for layers in ("2+2", "+".join(["2"] * 20)):
        vae = build(TrainConfig(model=f"dense-ladder:layers={layers},hidden=32", likelihood="gaussian"), (1, 8, 8))
        with seeded(0), torch.no_grad():
            d, x = vae.features(torch.randn(50, 1, 8, 8)), vae.generate(200).mean
        assert 1 / 3 < d[-1].std() / d[0].std() < 3
        assert x.std() < 10


def test_a_run_folder_holds_a_ladder(tmp_path):
    dataset = Dataset("toy", tiny_images(60), tiny_images(12))
    config = TrainConfig(model=SPEC, epochs=1, batch_size=16, objective="free-bits:nats=1,per=layer")
    run = quiet_train(config, tmp_path / "run", dataset)
    again = load_run(tmp_path / "run", dataset=dataset)
    assert isinstance(again.model, LadderVAE)
    x = dataset.test[:4]
    for k in (1, 2, 3):
        assert torch.equal(run.reconstruct(x, num_layers=k), again.reconstruct(x, num_layers=k))
    assert torch.equal(run.sample(3), again.sample(3))
    assert run.encode(x).shape == (4, 2)
    assert run.decode(run.encode(x)).shape == (4, 1, 6, 6)
    assert isinstance(build(TrainConfig(model=SPEC, likelihood="gaussian"), (5,)).likelihood, Gaussian)
