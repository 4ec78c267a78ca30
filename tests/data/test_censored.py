import math

import pytest
import torch

from ppl_vae.data.censored import CensoredNormal, Counted, Replaced, Rounded, log_ndtr


def test_log_ndtr_is_that_of_torch():
    t = torch.linspace(-40, 8, 5001, dtype=torch.float64)
    exact = torch.special.log_ndtr(t)
    assert (log_ndtr(t) / exact - 1)[t < 0].abs().max() < 5e-7
    assert (log_ndtr(t) - exact)[t >= 0].abs().max() < 2e-7
    t = torch.tensor([-1e4, -5.0, 0.0, 5.0, 1e4], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_ndtr(t).sum(), t)
    expected = (-0.5 * t.double().square() - torch.special.log_ndtr(t.double())).exp() / math.sqrt(2 * math.pi)
    torch.testing.assert_close(gradient, expected.float().detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.5), (-0.4, 0.2), (1.2, 0.3), (0.5, 0.05)])
def test_a_censored_normal_has_the_moments_that_it_had_before(loc, scale):
    """By the laws of total expectation and variance."""
    p = CensoredNormal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    inside = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    y = torch.cat([torch.tensor([0.0, 1.0], dtype=torch.float64), inside])
    weights = p.log_prob(y).exp()
    weights[2:] *= 1 / 20_000
    mean, variance = p.uncensored(y)
    assert weights.sum().item() == pytest.approx(1, abs=2e-4)
    assert (weights * mean).sum().item() == pytest.approx(loc, abs=2e-4)
    total = (weights * (variance + (mean - loc) ** 2)).sum()
    assert total.item() == pytest.approx(scale**2, abs=2e-4)


def test_masses_add_up_to_one_and_expand():
    loc = torch.tensor([-0.3, 0.1, 0.6, 1.4], dtype=torch.float64)
    levels = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    for scale in (0.01, 0.2):
        p = Rounded(loc, torch.tensor(scale, dtype=torch.float64), 5).expand((1, 4))
        torch.testing.assert_close(p.log_prob(levels).exp().sum(0), torch.ones(4, dtype=torch.float64))
    counts = (torch.arange(31, dtype=torch.float64) / 30)[:, None]
    p = Counted(torch.tensor([0.5, 5.0, 30.0, 200.0], dtype=torch.float64), 30).expand((1, 4))
    torch.testing.assert_close(p.log_prob(counts).exp().sum(0), torch.ones(4, dtype=torch.float64))
    base = CensoredNormal(loc, torch.tensor(0.2, dtype=torch.float64))
    p = Replaced(base, 0.1, 0.2)
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(
        p.log_prob(ends).exp(), 0.7 * base.log_prob(ends).exp() + torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    )
