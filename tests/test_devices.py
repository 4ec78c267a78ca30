"""No GPU is needed to see a tensor on the wrong device: fake tensors say that they are on one, and refuse to mix."""

import pyro
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from ppl_vae import PPCA, TrainConfig, build, fit, load_run, log_likelihood, train
from ppl_vae.components import choices, create
from ppl_vae.contract import tensors_of
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.encodings import Encoding, Identity
from ppl_vae.data.noise import GaussianNoise, Noise
from ppl_vae.data.operators import Blur, Missing, Then
from ppl_vae.evaluation.hamiltonian import Densities, latent_sites, log_joint
from ppl_vae.evaluation.importance import log_weights
from ppl_vae.experiments.architectures import model_names
from ppl_vae.likelihoods import Likelihood
from ppl_vae.objectives import Elbo, Objective
from ppl_vae.posteriors import Posterior
from ppl_vae.priors import Prior
from ppl_vae.programs import evaluating, own_param_store, seeded
from ppl_vae.system.machine import device_of
from ppl_vae.training.checkpoints import Checkpoints
from ppl_vae.training.history import Stopped

SHAPE = (1, 8, 8)
KINDS = {"likelihood": Likelihood, "prior": Prior, "posterior": Posterior}
PARTS = [(kind, name) for kind, base in KINDS.items() for name in choices(base)]
PARTS += [("model", name) for name in model_names() if not name.endswith(("cvae", "m2"))]


@pytest.fixture(autouse=True)
def without_values():
    """Checks of values need values."""
    with own_param_store(), pyro.validation_enabled(False):
        yield


def moved(module, device):
    """Its parameters and buffers are on the device: `Module.to` would keep the tensors and change their data."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(p.detach().to(device), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = b.to(device)
    return module


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_part_stays_on_the_device_of_the_parameters(kind, name):
    options = {"model": "dense-vae:hidden=8", "latent_size": 4, kind: name}
    if name.endswith("ladder"):
        options = {"model": f"{name}:layers=3+2"}
    with seeded(0):
        vae = build(TrainConfig(**options), SHAPE)
    with FakeTensorMode(allow_non_fake_inputs=True), seeded(0):
        moved(vae, "cuda")
        x = torch.zeros(3, *SHAPE, device="cuda")
        own = (x, torch.arange(3, device="cuda")) if name == "exemplar-prior" else ()  # which of them each datum is
        loss = Elbo().differentiable_loss(vae.model, vae.guide, x, *own)
        assert loss.device.type == "cuda"
        if vae.has_log_p:
            assert log_weights(vae.model, vae.guide, x, num_samples=2).device.type == "cuda"


def test_a_part_on_the_wrong_device_is_seen():
    with seeded(0):
        vae = build(TrainConfig(model="dense-vae:hidden=8", latent_size=4), SHAPE)
    with FakeTensorMode(allow_non_fake_inputs=True), seeded(0):
        moved(vae, "cuda")
        vae.prior.zeros = torch.zeros(4).to("cpu")
        with pytest.raises(RuntimeError, match="device"):
            Elbo().differentiable_loss(vae.model, vae.guide, torch.zeros(3, *SHAPE, device="cuda"))


@pytest.mark.parametrize("name", choices(Objective))
def test_gradients_of_every_objective_stay_there_too(name):
    with seeded(0):
        vae = moved(build(TrainConfig(model="dense-vae:hidden=8", latent_size=4), SHAPE), "meta")
        loss = create(Objective, name).differentiable_loss(vae.model, vae.guide, torch.zeros(3, *SHAPE, device="meta"))
        loss.backward()
    assert all(p.grad.device.type == "meta" for p in vae.parameters())


def test_gradients_in_the_latents_stay_there_too():
    with seeded(0):
        vae = build(TrainConfig(model="dense-vae:hidden=8", latent_size=4), SHAPE)
    x = torch.zeros(3, *SHAPE)
    with evaluating(vae.model, vae.guide), seeded(0):
        sites = latent_sites(vae.model, vae.guide, x[:1])
        moved(vae, "meta")
        log_p, gradient = Densities(log_joint(vae.model), sites, 100)(torch.zeros(2, 3, 4).to("meta"), x.to("meta"))
    assert (log_p.device.type, gradient.device.type) == ("meta", "meta")


NOISES = [create(Noise, name) for name in choices(Noise)]
NOISES = [noise for noise in NOISES if type(noise).__call__ is not Noise.__call__]  # which draws a seed, a value
NOISES += [Then(Blur(), GaussianNoise())]
NOISES += [Then(Missing(part), GaussianNoise()) for part in ("random", "bottom", "right")]


@pytest.mark.parametrize("how", [*(create(Encoding, name) for name in choices(Encoding)), *NOISES], ids=repr)
def test_images_are_encoded_and_corrupted_where_they_are(how):
    with FakeTensorMode(), seeded(0):
        images = torch.zeros(3, *SHAPE, device="cuda")
        if isinstance(how, Encoding) and not isinstance(how, Identity):
            images = images.to(torch.uint8)
        assert how(images).device.type == "cuda"


def test_data_go_to_the_parameters():
    with seeded(0):
        ppca = PPCA((4,), latent_size=2)
    x, y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    assert [t.device.type for t in tensors_of(ppca.model, ppca.guide, x, y)] == ["cpu", "cpu"]
    moved(ppca, "meta")
    assert [t.device.type for t in tensors_of(ppca.model, ppca.guide, x, y)] == ["meta", "meta"]
    ppca.mean = nn.Parameter(torch.zeros(4))  # in two places: then data stay
    assert tensors_of(ppca.model, ppca.guide, x)[0].device.type == "cpu"


def test_a_device_that_is_not_here_is_refused():
    for name, why in (("cuda:99", ""), ("tpu", ""), ("mps", ", which has no float64")):
        with pytest.raises(ValueError, match=f"device: expected one that is here, auto, cpu.*; got {name}{why}"):
            device_of(name)
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
def test_log_p_on_cuda_is_exact():
    with seeded(0):
        ppca, x = PPCA((6,), latent_size=2), torch.randn(50, 6)
    exact = ppca.log_prob(x)
    result = log_likelihood(*ppca.to("cuda").programs, x, num_samples=200)  # from the exact posterior
    torch.testing.assert_close(result.log_p, exact, rtol=1e-4, atol=1e-3)


@cuda
def test_a_run_on_cuda_is_resumed_there_and_loaded_anywhere(tmp_path):
    images = torch.randint(0, 256, (300, *SHAPE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = Dataset("noise", images, images[:50])
    config = TrainConfig(model="dense-vae:hidden=8", latent_size=2, epochs=3, batch_size=50, dataset="noise")
    run = train(config, tmp_path, dataset=data, device="cuda", show_progress=False)
    assert run.device.type == "cuda"
    z = [load_run(tmp_path, dataset=data, device=device).encode(images[:5]) for device in ("cuda", "cpu")]
    torch.testing.assert_close(z[0], z[1], rtol=1e-4, atol=1e-4)


@cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_training_on_cuda_resumes_bit_for_bit(tmp_path, compiled):
    def trained(folder, **options):
        with seeded(0):
            ppca, x = PPCA((6,), latent_size=2).to("cuda"), torch.randn(100, 6)
        options = {"epochs": 4, "batch_size": 20, "compiled": compiled, "show_progress": False, **options}
        fit(*ppca.programs, x, checkpoints=Checkpoints(folder), **options)
        return ppca.W.detach().cpu()

    calls = iter(range(100))
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", stop=lambda: next(calls) == 7)
    assert torch.equal(trained(tmp_path / "stopped", resume=True), trained(tmp_path / "whole"))
