import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from ppl_vae.experiments import TrainConfig, build
from ppl_vae.optimizers import OneOptimizer, adam
from ppl_vae.programs import seeded


def losses(optim, steps=20):
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), (1, 4, 4))
    with seeded(0), pyro.get_param_store().scope():
        x = torch.rand(16, 1, 4, 4).round()
        svi = SVI(vae.model, vae.guide, optim, loss=Trace_ELBO())
        return torch.tensor([svi.step(x) for _ in range(steps)])


def test_one_optimiser_does_what_one_for_each_tensor_does():
    ours, pyros = losses(adam(1e-2)), losses(pyro.optim.Adam({"lr": 1e-2}))
    torch.testing.assert_close(ours, pyros, rtol=1e-4, atol=1e-3)
    assert ours[-1] < ours[0]


def test_one_torch_optimiser_holds_all_parameters_and_those_that_come_later():
    optim = OneOptimizer(torch.optim.SGD, lr=0.1)
    late = [False]

    def model():
        pyro.sample("x", dist.Normal(pyro.param("a", torch.tensor(0.0)), 1.0), obs=torch.tensor(1.0))
        if late[0]:
            pyro.sample("y", dist.Normal(pyro.param("b", torch.tensor(0.0)), 1.0), obs=torch.tensor(2.0))

    with pyro.get_param_store().scope():
        svi = SVI(model, lambda: None, optim, loss=Trace_ELBO())
        svi.step()
        assert optim.optimizer is not None
        assert len(optim.optimizer.param_groups) == 1
        late[0] = True
        svi.step()
        assert [len(group["params"]) for group in optim.optimizer.param_groups] == [1, 1]
        # one gradient step each: 0 + 0.1 (1 - 0), then a second for a
        assert pyro.param("a").item() == pytest.approx(0.19)
        assert pyro.param("b").item() == pytest.approx(0.2)
