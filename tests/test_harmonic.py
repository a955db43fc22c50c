"""A molecule of springs through the whole pipeline, against closed forms, and its gradient on any number of devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import harmonic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase.io import read
from harmonic import KT, LENGTH, STIFFNESS
from ml_collections import ConfigDict

from experiments import checkpoints, pipeline, systems
from experiments.configs import aspirin
from experiments.systems import base
from stablejax import Learning, Optimization, Simulation, langevin, named, stable, units

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config, record and folder of a run of the whole experiment."""
    folder = tmp_path_factory.mktemp("harmonic")
    harmonic.write_data(folder / "springs.npz")
    config = aspirin.get_config()
    with config.unlocked():
        config.model = ConfigDict({"name": "springs"})
    config.name, config.run_dir = "springs", str(folder / "run")
    config.data.path, config.data.energy_unit, config.data.length_unit = str(folder / "springs.npz"), "kcal/mol", "bohr"
    config.data.num_train, config.data.num_validation, config.data.num_test = 40, 40, 40
    config.pretrain.num_steps, config.pretrain.learning_rate = 300, 2e-2
    config.md.temperature_K, config.md.timestep_fs, config.md.damping_time_fs = harmonic.TEMPERATURE_K, 0.5, 20.0
    config.observable.width_A, config.observable.smearing_A = 0.1, 0.1
    config.stability.train_threshold_A = config.stability.learn_threshold_A = 5.0
    config.stability.evaluate_threshold_A = 5.0
    config.stable.num_replicas, config.stable.max_simulation_ps = 8, 1.0
    config.evaluate.num_replicas, config.evaluate.horizon_ps, config.evaluate.chunk_ps = 64, 4.0, 1.0
    config.evaluate.trajectory = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(named.MODELS, "springs", lambda data: harmonic.Springs())
        record = pipeline.run(config)
        system = systems.build(config)
    rows = {(row["metric"], row.get("phase")): row["value"] for row in record["rows"]}
    return config, system, record, rows


def test_units_and_offset_of_the_labels_are_those_of_the_springs(finished):
    config, system, record, rows = finished
    params = checkpoints.load(Path(config.run_dir) / "pretrained.npz", {"params": {"log_k": jnp.float32(0)}})
    assert float(jnp.exp(params["params"]["log_k"])) == pytest.approx(STIFFNESS, rel=5e-3)
    assert rows["force_mae_eV_per_A", "before"] < 5e-3
    train = system.data.dataset.position[system.data.split.train]
    mean = harmonic.OFFSET + float(jnp.mean(jax.vmap(harmonic.energy)(jnp.asarray(train))))
    assert record["energy_offset_eV"] == system.problem.potential.offset == pytest.approx(mean, abs=1e-3)
    whole = system.problem.potential.energy(params, jnp.asarray(train[0])) + system.problem.potential.offset
    # The network knows its own zero, the springs at rest; labels are relative to the mean.
    assert float(system.data.labeled(system.data.split.train).energy.mean()) == pytest.approx(0, abs=1e-4)
    assert np.isfinite(whole)


def test_simulations_have_the_temperature_and_the_spread_of_equipartition(finished):
    """3N thermal degrees of freedom, and ½ k ⟨(r − r₀)²⟩ = ½ kT for each of the three springs, to harmonic order."""
    config, _, _, rows = finished
    assert rows["internal_temperature_K", "before"] == pytest.approx(harmonic.TEMPERATURE_K, rel=0.02)
    with np.load(Path(config.run_dir) / "evaluation_before.npz") as file:
        h_r, lengths = (file[f"averages/structure/{name}"] for name in ("h_r", "bond_length"))
        first_passage = file["first_passage_ps"]
    center = (np.arange(100) + 0.5) * 0.1
    variance = np.average((center - np.average(center, weights=h_r)) ** 2, weights=h_r) - 0.1**2
    assert variance == pytest.approx(KT / STIFFNESS, rel=0.25)
    np.testing.assert_allclose(lengths, LENGTH, atol=0.01)
    np.testing.assert_array_equal(first_passage, 4.0)
    assert rows["fraction_unstable_at_horizon", "before"] == 0.0


def test_the_trajectory_of_a_replica_is_its_stable_frames(finished):
    config, _, _, _ = finished
    assert not (Path(config.run_dir) / "trajectory_before_1.xyz").exists()
    frames: Any = read(Path(config.run_dir) / "trajectory_before_0.xyz", index=":")
    times = [frame.info["time_fs"] for frame in frames]
    assert times == [10.0 * number for number in range(1, 401)]  # 4 ps
    lengths = np.array([frame.get_all_distances()[np.triu_indices(3, k=1)] for frame in frames])
    # A period is about 30 fs, the friction 1/20 fs: of 1,200 lengths some 400 are independent.
    assert lengths.var() == pytest.approx(KT / STIFFNESS, rel=0.25)
    assert np.abs(lengths.mean() - LENGTH) < 0.01


def test_nothing_is_learned_where_nothing_fails_and_the_ratio_is_unknown(finished):
    config, _, record, rows = finished
    course = checkpoints.about(Path(config.run_dir) / "refined.npz")["course"]
    assert [entry["phase"] for entry in course] == ["simulating"]  # 1 ps is one time t of 2,000 steps
    assert rows["ratio_median_first_passage", None] is None
    assert rows["force_mae_eV_per_A", "before"] == rows["force_mae_eV_per_A", "after"]
    assert "unknown" in (Path(config.run_dir) / "report.html").read_text()


def test_splits_keep_trajectories_apart(finished):
    _, system, _, _ = finished
    run, split = system.data.dataset.trajectory, system.data.split
    assert not set(run[split.test]) & set(run[np.concatenate([split.train, split.validation, system.data.reference])])


def test_regularization_enters_with_its_weight(finished):
    """With nothing to learn from the observable, a step of SGD is α λ ∂L_QM/∂log k, known in closed form."""
    _, system, _, _ = finished
    problem = system.problem
    observables = problem.observables._replace(weight=jax.tree.map(lambda w: 0.0, problem.observables.weight))
    thermostat = partial(langevin, timestep=units.FEMTOSECOND, friction=1.0)
    soft = {"params": {"log_k": jnp.log(jnp.float32(25.0))}}
    for qm_weight in (0.0, 7.0):
        settings = stable.Settings(
            Simulation(thermostat, steps_per_epoch=10, max_unstable=0.1, table_intervals=0),
            Learning(Optimization(optax.sgd(1e-3), qm_weight=qm_weight), steps_per_frame=5, max_epochs=1),
            num_cycles=1,
        )
        failing = problem._replace(observables=observables, criterion=lambda frame: jnp.float32(1.0))
        training = stable.stable_training(failing, settings)
        start = training.init(jax.random.key(0), soft, problem.frames.position[:2])
        state, _ = training.simulate(start)
        after, info = training.learn(state, problem.frames)
        moved = float(after.params["params"]["log_k"] - soft["params"]["log_k"])
        qm_loss, errors = problem.qm_loss()(soft, problem.frames)
        slope = float(jax.grad(lambda p: problem.qm_loss()(p, problem.frames)[0])(soft)["params"]["log_k"])
        assert moved == pytest.approx(-1e-3 * qm_weight * slope, rel=1e-3, abs=1e-9)
    # λ_U and λ_F: forces of softer springs are 25/30 of the true ones; energies differ by more than that.
    forces = float(jnp.mean(problem.frames.force**2)) / 36
    model = jax.vmap(problem.potential.energy, (None, 0))(soft, problem.frames.position)
    energies = float(jnp.mean((model - problem.frames.energy) ** 2))
    assert float(qm_loss) == pytest.approx(0.05 * energies + 0.95 * forces, rel=2e-3)
    assert energies != pytest.approx(forces, rel=0.5)


@pytest.mark.slow
def test_one_two_and_four_devices_give_the_same_gradient_subsample_included():
    """Of springs in a box, by the localized estimator from molecules that are chosen among those of all devices."""
    program = [sys.executable, str(ROOT / "tests" / "on_four_devices.py")]
    given = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run(program, env=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    one = found["1"]
    assert abs(one["gradient"]) > 1e-3
    assert 0 < one["num_chosen"] < one["num_molecules"]
    for seen in found.values():
        assert seen["num_chosen"] == one["num_chosen"]
        assert seen["gradient"] == pytest.approx(one["gradient"], rel=2e-5)
    assert found["2"]["gradient"] != 0 and len(found) == 3


def test_frames_of_the_reference_are_thermal(finished):
    """A check of the data: what the springs' lengths vary by in it is kT/k."""
    _, system, _, _ = finished
    lengths = base.mean_over_frames(
        lambda frame: (jnp.linalg.norm(frame.position[1] - frame.position[0]) - LENGTH) ** 2,
        system.data.dataset.position,
    )
    assert float(lengths) == pytest.approx(KT / STIFFNESS, rel=0.2)
