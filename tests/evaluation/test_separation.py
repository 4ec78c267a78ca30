import math

import pytest
import torch

from ppl_vae.evaluation.separation import auroc
from ppl_vae.programs import seeded


def test_every_pair_counts_and_ties_count_half():
    a, b = torch.tensor([1.0, 1.0, 4.0, 2.0]), torch.tensor([1.0, 3.0, 0.0])
    by_hand = sum((x > y).double() + 0.5 * (x == y) for x in a for y in b) / 12
    assert auroc(a, b)[0] == pytest.approx(by_hand.item())
    assert auroc(a, b)[0] + auroc(b, a)[0] == pytest.approx(1)
    assert auroc(a, b)[1] == pytest.approx(auroc(b, a)[1])


def test_of_two_normals_it_is_known_and_its_error_is_its_spread():
    """P(a > b) = Phi(shift / sqrt(2)) for unit variances; the stated error is what changes from sample to sample."""
    exact, runs = 0.5 * (1 + math.erf(1 / 2)), []
    with seeded(0):
        for _ in range(300):
            runs.append(auroc(1 + torch.randn(60), torch.randn(90)))
    values, errors = torch.tensor(runs).T
    assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(300)
    assert values.std().item() == pytest.approx(errors.mean().item(), rel=4 / math.sqrt(2 * 300))


def test_sets_of_one_and_of_none():
    assert math.isnan(auroc(torch.zeros(1), torch.zeros(3))[1])
    with pytest.raises(ValueError, match="expected some of each set; got 0 and 2"):
        auroc(torch.zeros(0), torch.zeros(2))
