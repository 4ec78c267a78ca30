import math

import pytest
import torch

from ppl_vae.evaluation.results import LogLikelihood, LogMeanExp, PerDatum, over_limit, widening


def weights(K=1000, N=7):
    return 3 * torch.randn(K, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 400


def streamed(log_w, chunk, data_chunk):
    statistics = LogMeanExp(log_w.shape[1], log_w.shape[0])
    for start in range(0, log_w.shape[1], data_chunk):
        for part in log_w[:, start : start + data_chunk].split(chunk):
            statistics.add(part, start)
    return statistics


def jackknife(w, groups=32):
    """Written out, with the 97.5 % point of Student's t with 31 degrees of freedom."""
    left_out = torch.stack([w[torch.arange(len(w)) % groups != g].mean(0).log() for g in range(groups)])
    return ((groups - 1) * left_out.var(0, correction=0)).sqrt() * 2.0395134464 / 1.96


@pytest.mark.parametrize(("chunk", "data_chunk"), [(1000, 7), (300, 7), (1, 2), (999, 1)])
def test_any_cut_gives_the_formulas_written_out(chunk, data_chunk):
    """Neither the normaliser nor the mean may depend on how samples are cut."""
    log_w = weights()
    s = streamed(log_w, chunk, data_chunk)
    w = (log_w + 400).exp()
    torch.testing.assert_close(s.log_mean(), w.mean(0).log() - 400)
    torch.testing.assert_close(s.ess(), w.sum(0) ** 2 / w.square().sum(0))
    torch.testing.assert_close(s.standard_error(), jackknife(w))
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
    errors = torch.cat(errors).square().mean().sqrt().item() / (2.0395134464 / 1.96)
    assert errors == pytest.approx(spread, rel=4 / math.sqrt(2 * runs))


@pytest.mark.parametrize("K", [2, 4, 16, 200])
def test_intervals_cover_for_few_samples_too(K):
    """Of weights with little spread, whose log-mean is normal: by Student's t, where two samples tell hardly anything
    of their spread."""
    runs = 4000
    log_w = 0.01 * torch.randn(K, runs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    s = streamed(log_w, K, runs)
    covered = ((s.log_mean() - 0.5e-4).abs() < 1.96 * s.standard_error()).double().mean().item()
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / runs))


def test_a_sample_that_has_all_the_weight_has_no_error():
    log_w = torch.full((100, 2), -math.inf, dtype=torch.float64)
    log_w[7] = 0.0
    log_w[8, 1] = 0.0
    error = streamed(log_w, 100, 2).standard_error()
    assert error[0] == math.inf
    assert 0.5 < error[1] < 2


def test_the_share_of_khats_over_their_limit_widens_the_error_of_the_whole():
    khat, K = torch.tensor([0.1, 0.55, 0.6, 0.68]), torch.tensor([100, 1000, 1000, 1000])
    assert over_limit(khat, K).tolist() == [False, False, False, True]  # of limits 0.5 and 0.667
    assert over_limit(khat, torch.full((4,), 100)).tolist() == [False, True, True, True]
    assert widening(khat, K) == pytest.approx(5 / 4)
    assert widening(torch.full((4,), math.nan), K) == 1
    ones = torch.ones(4, dtype=torch.float64)
    result = LogLikelihood(ones, 0.3 * ones, ones, khat, K, "mass", "", "f00d", "lower")
    assert result.mc_se_of_mean == pytest.approx(5 / 4 * 0.3 / 2)
    assert PerDatum.of(result).mc_se_of_mean == pytest.approx(result.mc_se_of_mean)
    assert "warning: k-hat > 0.5 to 0.67 for 1 of 4 data: log p(x) may be too low, also where k-hat is small" in str(
        result
    )


@pytest.mark.parametrize(("size", "variance"), [(1, 0.3), (5, 0.4)])
def test_means_of_guides_that_are_too_narrow_are_covered(size, variance):
    """log p = 0 of a normal by one of smaller variance s^2, whose weights have a tail of exponent 1 - s^2: between 1/3
    and 0.7, the error of the mean over 50 data is too small before it is widened."""
    covered = narrow = 0
    for seed in range(12):
        e = torch.randn(1000, 50, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        log_w = (0.5 * math.log(variance) + (1 - variance) * e.square() / 2).sum(-1)
        s = streamed(log_w, 1000, 50)
        fields = s.estimates()
        result = LogLikelihood(**fields, measure="density", encoding="", fingerprint="", bound="lower")
        covered += abs(result.mean) < 1.96 * result.mc_se_of_mean
        narrow += abs(result.mean) < 1.96 * result.mc_se_of_mean / result.widening
    assert covered >= 9  # of 12 * 0.95 = 11.4, whose sd is 0.75
    assert covered >= narrow


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
