import pytest
import torch

from ppl_vae.evaluation.chunks import (
    BLOCK_DATA,
    CACHE_BYTES,
    blocks_of,
    chunks_of,
    chunks_of_data,
    rows_per_chunk,
    seed_of,
)
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import build
from ppl_vae.programs import evaluating, seeded


def test_a_memory_budget_is_kept(ppca):
    """Rows at once follow from the budget, measured on the model itself."""
    vae = build(TrainConfig(model="dense-vae", latent_size=2, hidden=(8,)), (1, 28, 28))
    x = torch.ones(1, 1, 28, 28)
    with evaluating(vae.model, vae.guide), seeded(0):
        few = rows_per_chunk(vae.model, vae.guide, x, memory=1 << 20)
        many = rows_per_chunk(vae.model, vae.guide, x, memory=None)
    assert few == (1 << 20) // (4 * 4 * 784)
    assert many == CACHE_BYTES // (4 * 784)


@pytest.mark.parametrize(("num_data", "num_samples"), [(1, 1), (BLOCK_DATA, 64), (130, 100), (3, 5000)])
@pytest.mark.parametrize("cut", [lambda K, N: blocks_of(N, K), lambda K, N: chunks_of(K, N, 77)])
def test_every_sample_of_every_datum_is_in_one_piece(num_data, num_samples, cut):
    count = torch.zeros(num_samples, num_data)
    for samples, part in cut(num_samples, num_data):
        assert count[samples, part].numel() > 0
        count[samples, part] += 1
    assert bool((count == 1).all())


def test_seeds_of_blocks_do_not_meet():
    assert len({seed_of(seed, number) for seed in range(50) for number in range(50)}) == 2500


def test_data_come_in_rows_of_all_arguments():
    parts = [*chunks_of_data(3, torch.arange(7), torch.arange(7) + 10)]
    assert [len(x) for x, _ in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in parts]), torch.arange(7) + 10)
