"""The benchmarks at their smallest size: what they compare is the same, and what they print is there."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks import estimator, records, unrolled


def by_metric(rows, name, **where):
    return [row["value"] for row in rows if row["metric"] == name and all(row.get(key) == where[key] for key in where)]


def test_estimator_and_its_rivals_give_the_same_gradient():
    rows = estimator.run([8], chunk_size=4, repeats=1)
    differences = by_metric(rows, "relative_difference")
    assert len(differences) == 3
    assert max(differences) < 1e-4
    assert len(by_metric(rows, "time_s")) == len(by_metric(rows, "peak_memory_bytes")) == 5


def test_backpropagation_needs_memory_for_every_step_and_the_estimator_does_not():
    rows = unrolled.run([20, 200], num_replicas=8, num_estimates=100, repeats=1)
    memory = {name: by_metric(rows, "peak_memory_bytes", method=name) for name in ("boltzmann", "direct")}
    assert memory["direct"][1] > 3 * memory["direct"][0]
    assert memory["boltzmann"][1] < 0.3 * memory["direct"][1]
    bias, error = (
        by_metric(rows, name, method="boltzmann") for name in ("gradient_bias", "gradient_bias_standard_error")
    )
    assert bias == pytest.approx([0.0, 0.0], abs=4 * max(error))
    short = by_metric(rows, "gradient_bias", method="direct", num_steps=20)[0]
    exact = by_metric(rows, "exact_gradient")[0]
    assert short == pytest.approx(-exact, rel=0.2)  # too short for the ensemble to follow the potential


def test_what_is_not_finite_is_null_in_the_record(tmp_path):
    rows = [{"metric": "a", "value": 1.0}, {"metric": "b", "value": float("nan")}]
    records.write(tmp_path / "record.json", "name", {}, rows)
    written = json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [row["value"] for row in written["rows"]] == [1.0, None]
