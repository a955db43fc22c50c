"""What the benchmark of single steps measures; its run is not a test."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.benchmarks import steps
from experiments.benchmarks.steps import Half


def test_halves_have_their_share_of_failures_and_mark_their_samples():
    is_unstable = np.array([True, False, True, True, False, False])
    position = np.arange(6.0)[:, None, None, None] * np.ones((6, 2, 1, 3))
    value = np.where(is_unstable[:, None], [[-0.1, 0.1]], -0.1)
    is_valid = np.array([[True, True]] * 3 + [[True, False]] + [[True, True]] * 2)
    first, second = steps.halves(position, is_valid, value, is_unstable)
    assert first.position[:, 0, 0].tolist() == [0, 0, 1, 1, 3, 3, 5, 5]
    assert second.position[:, 0, 0].tolist() == [2, 2, 4, 4]
    assert first.is_stable.tolist() == [False, False, True, True, False, False, True, True]
    assert first.is_failing.tolist() == [False, True] + 6 * [False]  # the other violates where it does not count
    assert second.is_failing.tolist() == [False, True, False, False]


def test_rise_is_over_the_mean_of_stable_samples_and_spread_is_theirs():
    half = Half(
        np.zeros((6, 1, 3)), np.ones(6, bool), np.array([1, 1, 0, 0, 0, 1], bool), np.array([0, 0, 1, 1, 1, 0], bool)
    )
    change = np.array([1.0, 2.0, 5.0, 6.0, 100.0, 3.0])
    rows = steps.rows_of("ours", half, half, (change, 2 * change))
    values = {(row["metric"], row["replicas"]): row["value"] for row in rows}
    assert values["rise", "seen"] == pytest.approx(6.0 - 2.0)
    assert values["rise", "unseen"] == pytest.approx(12.0 - 4.0)
    assert values["spread", "seen"] == pytest.approx(np.std([1.0, 2.0, 3.0]))
    assert {row["frames"] for row in rows} == {3}
    assert {row["rule"] for row in rows} == {"ours"}
