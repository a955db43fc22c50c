"""First-passage statistics against what is known of exponential survival."""

from __future__ import annotations

import numpy as np
import pytest

from stablejax import survival


def exponential(seed, mean, num, horizon):
    time = np.random.default_rng(seed).exponential(mean, num)
    return np.minimum(time, horizon), time < horizon


def test_survival_of_a_handful_by_hand():
    curve = survival.survival(np.array([1.0, 2.0, 2.0, 4.0]), np.array([True, True, False, False]))
    np.testing.assert_allclose(curve.time, [0, 1, 2, 4])
    np.testing.assert_allclose(curve.stable, [1, 0.75, 0.5, 0.5])


def test_median_and_interval_of_many():
    time, is_unstable = exponential(0, 3.0, 4000, 10.0)
    median = survival.median_first_passage(time, is_unstable)
    assert median.value == pytest.approx(3.0 * np.log(2), rel=0.05)
    assert median.low < 3.0 * np.log(2) < median.high
    assert not median.is_censored


def test_interval_covers_the_median_nineteen_times_in_twenty():
    covered = [survival.median_first_passage(*exponential(seed, 1.0, 40, 5.0))[1:3] for seed in range(300)]
    share = np.mean([low <= np.log(2) <= high for low, high in covered])
    assert 0.91 < share < 0.99


def test_median_that_was_not_reached_is_the_horizon():
    time, is_unstable = exponential(1, 50.0, 32, 10.0)
    median = survival.median_first_passage(time, is_unstable)
    assert median.is_censored
    assert median.value == median.high == 10.0
    stable = survival.median_first_passage(np.full(5, 10.0), np.zeros(5, bool))
    assert (stable.value, stable.low, stable.high, stable.is_censored) == (10.0, 10.0, 10.0, True)


def test_all_failed_at_once_has_a_median():
    assert survival.median_first_passage(np.full(4, 2.0), np.ones(4, bool)).value == 2.0


def test_logrank_finds_a_difference_and_not_where_there_is_none():
    before, after = exponential(2, 2.0, 32, 10.0), exponential(3, 8.0, 32, 10.0)
    assert survival.logrank_p(before, after) < 1e-3
    null = [
        survival.logrank_p(exponential(seed, 2.0, 32, 10.0), exponential(seed + 1000, 2.0, 32, 10.0))
        for seed in range(200)
    ]
    assert 0.01 < np.mean(np.array(null) < 0.05) < 0.1


def test_logrank_where_nothing_failed_is_one():
    stable = (np.full(4, 10.0), np.zeros(4, bool))
    assert survival.logrank_p(stable, stable) == 1.0


def test_ratio_of_medians():
    ratio = survival.ratio_of_medians(exponential(4, 1.0, 400, 50.0), exponential(5, 4.0, 400, 50.0), seed=0)
    assert ratio.low < 4.0 < ratio.high
    assert not ratio.is_lower_bound
    assert survival.ratio_of_medians(exponential(4, 1.0, 32, 5.0), exponential(5, 40.0, 32, 5.0), seed=0).is_lower_bound


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one-dimensional and of one length"):
        survival.survival(np.ones(3), np.ones(2, bool))
    with pytest.raises(ValueError, match="non-negative"):
        survival.survival(np.array([-1.0]), np.ones(1, bool))
    with pytest.raises(ValueError, match="same replicas before and after, got 3 and 4"):
        survival.ratio_of_medians((np.ones(3), np.ones(3, bool)), (np.ones(4), np.ones(4, bool)), seed=0)
    with pytest.raises(ValueError, match="for the same time, got from 1 to 2"):
        survival.ratio_of_medians((np.arange(1.0, 3.0), np.zeros(2, bool)), (np.ones(2), np.ones(2, bool)), seed=0)


def test_interval_of_the_ratio_is_that_of_medians_of_resampled_replicas():
    rng = np.random.default_rng(5)
    before, after = (np.minimum(rng.exponential(scale, 9), 8.0) for scale in (1.5, 6.0))
    sets = [(time, time < 8.0) for time in (before, after)]
    ratio = survival.ratio_of_medians(*sets, seed=3, num_resamples=200)
    resampled = np.random.default_rng(3).integers(0, 9, (200, 9))
    medians = [[survival.median_first_passage(time[i], failed[i]).value for i in resampled] for time, failed in sets]
    expected = np.quantile(np.divide(medians[1], medians[0]), [0.025, 0.975])
    assert (ratio.low, ratio.high) == pytest.approx(tuple(expected))
