"""Error measures and intervals against values known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stablejax import metrics, units


def test_measures_of_curves():
    reference = np.array([0.0, 0.0, 0.0, 0.2, 3.0, 0.0])
    found = np.array([0.0, 0.4, 0.1, 0.9, 5.0, 0.3])
    assert metrics.spurious_peak(found, reference) == 0.4
    assert metrics.spurious_peak(found, reference + 1) == 0.0
    assert metrics.mean_absolute_error(found, reference) == pytest.approx(3.5 / 6)


def test_total_variation_is_the_fraction_that_has_to_move():
    here, there = np.array([[0.5, 0.5], [0.0, 0.0]]), np.array([[0.5, 0.0], [0.25, 0.25]])
    assert metrics.total_variation_distance(here, here) == 0
    assert metrics.total_variation_distance(here, there) == pytest.approx(0.5)
    assert metrics.total_variation_distance(np.array([1.0, 0]), np.array([0, 1.0])) == 1


def test_errors_leave_out_replicas_without_a_window():
    curves = np.array([[1.0, 0.5], [np.nan, np.nan], [1.0, 0.1]])
    np.testing.assert_allclose(metrics.errors_of_replicas(curves, np.array([1.0, 0.3])), [0.1, 0.1])


def test_interval_of_three_is_students():
    """t(0.975, 2) = 4.3027; of 1, 2 and 3 the standard error is 1/√3."""
    found = metrics.mean_interval(np.array([1.0, 2.0, np.nan, 3.0]))
    assert (found.value, found.num) == (2.0, 3)
    assert found.high - found.value == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert metrics.mean_interval(np.array([1.0, np.nan])) is None


def test_units_of_a_diffusivity():
    """1 Å²/ps is 10 × 1e-9 m²/s; an internal unit of time is 10.18 fs."""
    assert units.SQUARE_ANGSTROM_PER_PICOSECOND == pytest.approx(1e-20 / 1e-12 / 1e-9)
    time_s = 1e-15 / units.FEMTOSECOND
    assert units.SQUARE_ANGSTROM_PER_TIME == pytest.approx(1e-20 / time_s / 1e-9)


def test_mean_ratio_is_one_for_equal_arrays():
    assert metrics.mean_ratio(np.array([2.0, 3.0]), np.array([2.0, 3.0])) == 1
    assert metrics.mean_ratio(np.array([1.0, 6.0]), np.array([2.0, 3.0])) == pytest.approx(1.25)
