import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import seeded
from ppl_vae.training.optimizers import OneOptimizer, adam, pyro_optimizer
from ppl_vae.training.schedules import Cosine


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


def test_a_schedule_is_of_the_first_learning_rate_also_when_others_come_later():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    optim = OneOptimizer(torch.optim.SGD, lr=1.0, schedule=lambda step: 0.5**step)
    for params in ([a], [a], [a, b]):
        for p in params:
            p.grad = -torch.ones(1)
        optim(params)
    assert a.item() == 1 + 0.5 + 0.25
    assert b.item() == 0.25


def test_a_parameter_that_is_frozen_or_of_another_step_stays_where_it_is():
    """As under Pyro's own wrapper: the momentum of its last gradients would move it, and weight decay."""
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    optim = adam(0.1, weight_decay=0.1)
    for params in ([a, b], [a, b], [a], [a]):
        for p in (a, b):
            p.grad = torch.ones(2)
        before = b.detach().clone()
        optim(params)
    torch.testing.assert_close(b.detach(), before, rtol=0, atol=0)
    assert a[0] < b[0] < 0
    assert b.grad is not None


def test_the_order_of_a_set_is_not_the_optimisers():
    with pyro.get_param_store().scope():
        params = [pyro.param(name, torch.zeros(n)).unconstrained() for n, name in enumerate("abcdef", 1)]
        for order in (params, params[::-1], params[3:] + params[:3]):
            optim = adam()
            optim.join([*order, *order])
            assert [p.numel() for p in optim.optimizer.param_groups[0]["params"]] == [1, 2, 3, 4, 5, 6]


def test_a_schedule_sets_the_learning_rate_of_each_step_and_clipping_is_torchs():
    """SGD of the gradients 3 and 4, of norm 5, scaled to 1: steps of lr (3, 4) / 5."""
    p = torch.zeros(2, requires_grad=True)
    optim = OneOptimizer(torch.optim.SGD, lr=0.5, schedule=Cosine().warmed(2).by_step(4), clip_norm=1.0)
    rates = []
    for _ in range(5):
        before, p.grad = p.detach().clone(), torch.tensor([3.0, 4.0])
        optim([p])
        rates.append((before - p.detach()) / torch.tensor([0.6, 0.8]))
    expected = 0.5 * torch.tensor([0.5, 1.0, 1.0, 0.5, 0.0])
    torch.testing.assert_close(torch.stack(rates), expected[:, None].expand(5, 2))


def test_a_clip_norm_out_of_range_is_refused():
    with pytest.raises(ValueError, match="clip_norm: expected a number above 0; got 0"):
        adam(clip_norm=0)


@pytest.mark.parametrize("optim", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_an_optimiser_that_a_step_of_svi_does_not_serve_is_refused(optim):
    with pytest.raises(ValueError, match=f"optim: expected an optimiser of SVI; got {optim.__name__}, which wants"):
        pyro_optimizer(optim, 1e-3)
