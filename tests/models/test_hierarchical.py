"""A hierarchy of images under a prior of pseudo-inputs."""

import pyro
import torch
from pyro import poutine
from torch import nn

from ppl_vae.evaluation.checking import check_model
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.likelihoods import Bernoulli
from ppl_vae.models import HierarchicalVAE, JointEncoder
from ppl_vae.networks import ConvDecoder, ConvEncoder, DenseEncoder
from ppl_vae.posteriors import DiagonalNormal
from ppl_vae.priors import VampPrior
from ppl_vae.programs import seeded
from ppl_vae.training.fitting import fit


def image_hierarchy():
    with seeded(0):
        shape, q2, q1 = (1, 8, 8), DiagonalNormal(2), DiagonalNormal(3)
        encoder2 = ConvEncoder(shape, q2.num_params, (4,), (8,))
        return HierarchicalVAE(
            encoder2,
            JointEncoder(DenseEncoder(shape, 6, (8,)), nn.Sequential(nn.Linear(6 + 2, 8), nn.ReLU(), nn.Linear(8, 6))),
            nn.Linear(2, 6),
            ConvDecoder(3 + 2, shape, 1, (4,)),
            prior=VampPrior(2, encoder2, q2, shape, 5),
            likelihood=Bernoulli(),
            posterior2=q2,
            posterior1=q1,
        )


def test_a_hierarchy_of_images_under_a_vamp_prior(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **kwargs: graph)
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    vae, again = image_hierarchy(), image_hierarchy()
    vae.prior.initialise(x)
    again.prior.initialise(x)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    for model, compiled in ((vae, True), (again, False)):
        fit(model.model, model.guide, x, epochs=3, batch_size=6, compiled=compiled, show_progress=False)
    torch.testing.assert_close(vae.state_dict(), again.state_dict())
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert check_model(vae.model, vae.guide, x).ok
    assert log_likelihood(vae.model, vae.guide, x, num_samples=50).log_p.isfinite().all()
    with torch.no_grad(), seeded(0), pyro.get_param_store().scope():
        assert vae.reconstruct(x).shape == x.shape
        z2 = vae.encode(x).mean
        torch.testing.assert_close(vae.decode(z2), vae.decode(z2, vae.decoder2(z2)[:, :3]))
        assert vae.generate(7).sample().shape == (7, 1, 8, 8)
        # the guide sees what is given, the model scores x
        trace = poutine.trace(vae.guide).get_trace(x, 1 - x)
    assert torch.equal(trace.nodes["z2"]["fn"].base_dist.loc, vae.encode(1 - x).mean)
