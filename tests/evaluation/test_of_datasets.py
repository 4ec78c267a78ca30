"""What evaluates takes torch's datasets in the place of tensors: the same numbers, read by chunks."""

import pytest
import torch
from linear_images import Linear, images
from tiny import Items, Scaled, Stream

from ppl_vae.data.noise import GaussianNoise
from ppl_vae.evaluation.adaptive import log_likelihood_within
from ppl_vae.evaluation.importance import log_likelihood
from ppl_vae.evaluation.refinement import refine
from ppl_vae.evaluation.restoration import restore
from ppl_vae.system.rows import Rows

X = torch.randn(50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("source", [Items, Stream])
def test_items_are_evaluated_by_chunks(source, monkeypatch):
    """The same numbers, without reading all at once."""
    pair, largest = Scaled(log_scale=-0.5), [0]
    whole = Rows.rows

    def counted(self, index):
        read = whole(self, index)
        largest[0] = max(largest[0], len(read))
        return read

    x = torch.cat([X] * 12)  # 600
    options = {"num_samples": 30, "compiled": False}
    expected = log_likelihood(pair.model, pair.guide, x, **options)
    monkeypatch.setattr(Rows, "rows", counted)
    monkeypatch.setattr("ppl_vae.system.hashing.CHUNK_BYTES", 400)
    result = log_likelihood(pair.model, pair.guide, source(x), **options)
    assert torch.equal(result.log_p, expected.log_p)
    assert result.fingerprint == expected.fingerprint
    assert 0 < largest[0] <= 256


@pytest.mark.parametrize("source", [Items, Stream])
def test_items_are_refined_and_climb(source, monkeypatch):
    monkeypatch.setattr("ppl_vae.evaluation.adaptive.ANNEALING_STEPS", ())
    monkeypatch.setattr("ppl_vae.evaluation.refinement.UPHILL_STEPS", 1)
    pair, x, options = Scaled(log_scale=1.0), X[:4], {"compiled": False}
    refined, expected = (refine(pair.model, pair.guide, data, num_steps=2, **options) for data in (source(x), x))
    assert torch.equal(refined.loc, expected.loc)
    options |= {"num_samples": 30, "max_samples": 30, "tolerance": 1.0}
    results = [log_likelihood_within(pair.model, refined, data, **options) for data in (source(x), x)]
    assert torch.equal(results[0].log_p, results[1].log_p)


def test_images_of_a_dataset_are_restored():
    pair, y = Linear(), images(Linear())
    options = {"num_samples": 32, "num_starts": 1, "num_steps": 2, "num_modes": 1, "climb": False, "compiled": False}
    options["corruption"] = GaussianNoise(0.03)
    of_items, expected = (restore(pair.model, pair.guide, data, **options) for data in (Items(y), y))
    assert torch.equal(of_items.mean, expected.mean)
    with pytest.raises(ValueError, match=r"y: expected values in \[0, 1\]; got .* to 2"):
        restore(pair.model, pair.guide, Stream(torch.cat([y, 0 * y + 2])), **options)
