"""The benchmarks at their smallest size: what they compare is the same, and what they print is there."""

from __future__ import annotations

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import estimator, models, records, training, unrolled
from experiments.configs import aspirin_paper


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


def test_operations_of_matrix_products_are_counted_in_loops_too():
    def fn(x):
        return jax.lax.scan(lambda y, _: (jax.checkpoint(jnp.matmul)(y, x), None), x[:2], None, length=3)[0]

    assert models.num_operations(jax.make_jaxpr(fn)(jnp.ones((5, 5))).jaxpr) == 3 * 2 * (2 * 5 * 5)


def test_models_are_timed_for_every_number_of_frames_and_for_a_known_list():
    rows = models.run(argparse.Namespace(systems=["aspirin"], models=["schnet"], frames=[1, 2], repeats=1))
    assert [(row["frames"], row["is_known"]) for row in rows if row["metric"] == "time_ms"] == [
        (1, False),
        (2, False),
        (1, True),
    ]
    rate, time = by_metric(rows, "gflop_per_s"), by_metric(rows, "time_ms")
    operations = np.multiply(rate, time)
    np.testing.assert_allclose(operations, operations[0] * np.array([1, 2, 1]), rtol=1e-6)


def test_water_of_the_benchmark_is_water():
    case = models.water(2)
    molecule = case.position.reshape(2, 64, 3, 3)
    np.testing.assert_allclose(np.linalg.norm(molecule[:, :, 1:] - molecule[:, :, :1], axis=-1), 0.96, atol=0.01)
    pairs = models.near_pairs(case, 5.0)
    expected = 192 / 2 * (192 / 12.42**3) * 4 / 3 * np.pi * 5.0**3
    assert (pairs.first < 192).sum(axis=1) == pytest.approx(expected, rel=0.1)


def test_names_that_a_benchmark_does_not_know_are_refused():
    assert records.names(("a", "b"))("b,a") == ["b", "a"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"knows a, b, got c\."):
        records.names(("a", "b"))("a,c")


@pytest.mark.slow
@pytest.mark.parametrize("name", training.SETTINGS)
def test_every_model_learns_in_the_training_benchmark(name):
    config = aspirin_paper.get_config()
    config.data.path, config.data.energy_unit = str(models.DATA / "aspirin_gfn2.npz"), "eV"
    config.data.num_train, config.data.num_validation, config.data.num_test = 100, 20, 1
    errors = [row["value"] for row in training.train(name, config, minutes=0.3)]
    assert len(errors) > 1
    assert errors[-1] < errors[0]
