import math

import pytest
import torch

from ppl_vae.evaluation.results import LogMeanExp


def weights(K=1000, N=7):
    return 3 * torch.randn(K, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 400


def streamed(log_w, chunk, data_chunk):
    statistics = LogMeanExp(log_w.shape[1], log_w.shape[0])
    for start in range(0, log_w.shape[1], data_chunk):
        for part in log_w[:, start : start + data_chunk].split(chunk):
            statistics.add(part, start)
    return statistics


@pytest.mark.parametrize(("chunk", "data_chunk"), [(1000, 7), (300, 7), (1, 2), (999, 1)])
def test_any_cut_gives_the_formulas_written_out(chunk, data_chunk):
    """Neither the normaliser nor the mean may depend on how samples are cut."""
    log_w = weights()
    K = len(log_w)
    s = streamed(log_w, chunk, data_chunk)
    w = (log_w + 400).exp()
    torch.testing.assert_close(s.log_mean(), w.mean(0).log() - 400)
    torch.testing.assert_close(s.ess(), w.sum(0) ** 2 / w.square().sum(0))
    torch.testing.assert_close(s.standard_error(), w.std(0) / w.mean(0) / math.sqrt(K))
    torch.testing.assert_close(s.tail, log_w.topk(len(s.tail), dim=0).values)


def test_the_standard_error_is_that_of_many_seeds():
    generator = torch.Generator().manual_seed(1)
    runs, K = 2000, 400
    log_w = 0.5 * torch.randn(runs, K, generator=generator, dtype=torch.float64)
    estimates, errors = [], []
    for row in log_w:
        s = streamed(row[:, None], K, 1)
        estimates.append(s.log_mean())
        errors.append(s.standard_error())
    spread = torch.cat(estimates).std().item()
    # an sd over 2,000 runs has a relative standard error of 1 / sqrt(2 * 2,000)
    assert torch.cat(errors).mean().item() == pytest.approx(spread, rel=4 / math.sqrt(2 * runs))


def test_one_sample_has_no_error_and_impossible_data_have_no_weight():
    s = streamed(weights(K=1), 1, 7)
    assert bool(s.standard_error().isnan().all())
    assert bool(s.khat().isnan().all())
    s = streamed(torch.full((50, 1), -math.inf, dtype=torch.float64), 50, 1)
    assert s.log_mean().item() == -math.inf
    assert s.ess().item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_a_number_is_named(bad):
    log_w = weights(K=10)
    log_w[3, 5] = bad
    with pytest.raises(ValueError, match="got NaN or infinity at datum 12"):
        LogMeanExp(14, 10).add(log_w, 7)
