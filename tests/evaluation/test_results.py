import math

import pytest
import torch

from ppl_vae.evaluation.results import LogLikelihood, LogMeanExp, PerDatum, most_by_chance, over_limit, widening


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


def narrow_or_wide(variance, size, K, N, seed):
    """log w of log p = 0, of a normal by one of another variance: a tail of exponent 1 - variance, or none above 1."""
    e = torch.randn(K, N, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 * math.log(variance) + (1 - variance) * e.square() / 2).sum(-1)


def result_of(log_w):
    fields = streamed(log_w, *log_w.shape).estimates()
    return LogLikelihood(**fields, measure="density", encoding="", fingerprint="", bound="lower")


@pytest.mark.parametrize("K", [16, 50, 200])
def test_quarters_miss_as_often_as_chance_has_it_where_errors_hold(K):
    """5 % of them: of weights whose log-mean is normal, with errors from few groups and from many, of unequal sizes."""
    log_w, runs = 0.3 * torch.randn(K, 4000, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 4000
    missed = streamed(log_w, K, runs).missed()
    assert missed.mean().item() / 4 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / (4 * runs)))


def test_the_intervals_of_quarters_written_out():
    log_w = narrow_or_wide(0.36, 3, 200, 50, seed=5)
    w = log_w.exp()
    missed = torch.zeros(50, dtype=torch.float64)
    for quarter in range(4):
        parts = [w[group::32] for group in range(quarter, 32, 4)]
        left_out = [torch.cat(parts[:i] + parts[i + 1 :]).mean(0).log() for i in range(8)]
        error = (7 * torch.stack(left_out).var(0, correction=0)).sqrt()
        part = torch.cat(parts)
        distance = (part.mean(0).log() - w.mean(0).log()).abs()
        # the 97.5 % point of Student's t with 7 degrees of freedom
        missed += distance > 2.3646242516 * error * math.sqrt(1 - len(part) / 200) + 1e-3
    assert 10 < missed.sum() < 150
    assert streamed(log_w, 70, 7).missed().equal(missed)


@pytest.mark.parametrize(
    ("variance", "size", "K"), [(1.1, 10, 16), (1.1, 10, 1000), (2.25, 10, 1000), (0.9, 2, 1000), (0.9, 50, 200)]
)
def test_errors_that_hold_are_not_refused(variance, size, K):
    """In one result of a thousand at most, where `mc_se` covers 94 % or more: here of some results, of 40 data each."""
    results = [result_of(narrow_or_wide(variance, size, K, 40, seed)) for seed in range(6)]
    covered = torch.cat([r.log_p.abs() < 1.96 * r.mc_se for r in results]).double().mean()
    assert covered > 0.9
    assert all(r.errors_hold for r in results)
    assert not any("errors are too small" in str(r) for r in results)


@pytest.mark.parametrize(
    ("variance", "size", "K"), [(0.36, 10, 1000), (0.5, 50, 1000), (0.36, 50, 16), (2.25, 50, 200)]
)
def test_errors_that_are_too_small_are_refused(variance, size, K):
    """Where they cover some 60 % or less, with 16 samples too, of which there is no k-hat."""
    result = result_of(narrow_or_wide(variance, size, K, 200, seed=0))
    assert (result.log_p.abs() < 1.96 * result.mc_se).double().mean() < 0.7
    assert result.errors_hold is False
    (line,) = [line for line in str(result).splitlines() if "errors are too small" in line]
    assert line.startswith(
        f"warning: Monte Carlo errors are too small: {result.missed.mean() / 4:.0%} of the 95 % inter"
    )


def test_the_bound_on_quarters_that_miss_is_that_of_chance():
    """One tenth of the quarters may miss; of data whose number of samples is too small nothing is known."""
    n = 400
    tail = [sum(math.comb(n, i) * 0.1**i * 0.9 ** (n - i) for i in range(k + 1, n + 1)) for k in range(n)]
    assert most_by_chance(n) == next(k for k in range(n) if tail[k] <= 1e-3)
    ones = torch.ones(100, dtype=torch.float64)
    for missed, holds in [(60, True), (61, False)]:
        of_each = torch.cat([ones[: missed % 40], 0 * ones[missed % 40 :]]) + (missed // 40) * torch.cat(
            [ones[:40], 0 * ones[40:]]
        )
        assert of_each.sum() == missed
        result = LogLikelihood(ones, ones, ones, 0 * ones, 100 * ones, "mass", "", "", "lower", missed=of_each)
        assert result.errors_hold is holds
    assert LogLikelihood(ones, ones, ones, 0 * ones, 100 * ones, "mass", "", "", "lower").errors_hold is None


def test_few_samples_tell_nothing_of_quarters_and_equal_weights_nothing_against_them():
    assert bool(streamed(weights(K=15), 15, 7).missed().isnan().all())
    assert result_of(weights(K=15)).errors_hold is None
    assert not streamed(torch.full((100, 3), -300.123, dtype=torch.float64), 100, 3).missed().any()
    assert not streamed(torch.full((100, 1), -math.inf, dtype=torch.float64), 100, 1).missed().any()


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
