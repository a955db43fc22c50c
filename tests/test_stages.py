"""What a system is made of, and single stages of the pipeline, where the whole experiment would not show a mistake."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import harmonic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import tiny

from experiments import memory, systems
from experiments.data import loaders
from experiments.progress import Progress
from experiments.stages import evaluate, pretrain, stabilize, statistics
from experiments.systems import base
from experiments.systems.base import Measure
from stablejax import integrators, losses, stability, stable, topology, units
from stablejax.guard import Guard
from stablejax.problem import Problem
from stablejax.types import Frame


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def system(config):
    return systems.build(config)


def test_energies_are_relative_to_the_training_set(system):
    energy = system.data.labeled(system.data.split.train).energy
    assert energy.dtype == np.float32
    assert float(jnp.abs(energy).max()) < 2.0  # of thousands of eV
    assert float(jnp.mean(energy)) == pytest.approx(0, abs=1e-4)


PLAIN = {
    "stability.range_margin_A": 0.0,
    "observable.in_fluctuations": False,
    "observable.violation_weight": 0.0,
    "observable.weight": 30.0,
    "observable.by_element": True,
    "observable.bond_weight": 3.0,
}


def changed(config, fields):
    one = config.copy_and_resolve_references()
    one.update_from_flattened_dict(fields)
    return one, systems.build(one)


def test_criteria_weights_and_references_are_those_of_the_config(config):
    config, system = changed(config, PLAIN)
    stretched = system.data.dataset.position[0].copy()
    stretched[0] += 100.0
    settings = config.stability
    difference = system.problem.criterion(Frame(stretched)) - system.evaluation.criterion(Frame(stretched))
    assert float(difference) == pytest.approx(settings.evaluate_threshold_A - settings.train_threshold_A, abs=1e-3)
    assert system.freeze_above == pytest.approx(settings.learn_threshold_A - settings.train_threshold_A)
    _, reference, weight = system.problem.observables
    kinds = set(reference) - {"bond_variance"}
    assert kinds == {"1-1", "1-6", "1-8", "6-6", "6-8", "8-8"}
    width = config.observable.width_A
    assert [weight[kind] for kind in kinds] == pytest.approx([config.observable.weight * width / 6] * 6)
    assert all(float(reference[kind].sum() * width) == pytest.approx(1, abs=0.02) for kind in kinds)
    np.testing.assert_allclose(reference["bond_variance"], 1.0, rtol=1e-3)
    assert weight["bond_variance"] == pytest.approx(3.0 / len(reference["bond_variance"]))


def test_observables_in_fluctuations_count_in_standard_deviations_of_the_reference(config):
    config, system = changed(config, {"observable.weight": 1.0, "observable.by_element": True})
    reference, weight = system.problem.observables.reference, system.problem.observables.weight
    assert set(reference) == {"1-1", "1-6", "1-8", "6-6", "6-8", "8-8", "violation"}
    fn = system.problem.observables.fn
    values = jax.jit(lambda x: jax.lax.map(lambda x: fn(Frame(x)), x, batch_size=100))(system.data.reference_position)
    expected = {"6-8": config.observable.weight / 6, "violation": config.observable.violation_weight}
    for kind, relative in expected.items():
        variance = np.var(values[kind], axis=0)
        widest = np.argmax(variance)
        found = np.ravel(weight[kind])[widest] * np.ravel(variance)[widest] * variance.size
        assert float(found) == pytest.approx(relative / 1.01, rel=0.01), kind
    assert 0 < float(reference["violation"]) < 0.05


def test_frames_beyond_the_distances_of_the_reference_fail_in_training_and_not_at_evaluation(config, system):
    frames = system.data.dataset.position[system.data.split.test]
    value = np.array([system.problem.criterion(Frame(x)) for x in frames])
    assert (value < 0).all()
    _, plain = changed(config, PLAIN)
    near = frames[0].copy()
    near[13] = near[20] + np.array([1.0, 0, 0])  # two hydrogens that are not bonded to each other
    ranges = topology.distance_ranges(system.data.reference_position, *facts_of(system))
    excess = float(stability.distance_excess(ranges)(Frame(near)).max())
    assert excess > config.stability.range_margin_A
    found = float(system.problem.criterion(Frame(near)))
    expected = max(float(plain.problem.criterion(Frame(near))), excess - config.stability.range_margin_A)
    assert found == pytest.approx(expected, abs=1e-5)


def facts_of(system):
    facts = base.find_topology(system.data)
    return facts.species, facts.bonds


def test_pretraining_keeps_the_best_parameters_not_the_last(config, system, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.pretrain.num_steps, config.pretrain.steps_per_validation = 60, 5
    config.pretrain.learning_rate, config.pretrain.average_decay = 0.1, 0.0

    def loss(param, frames):
        """Training pulls the parameter from 0 to 3, past 1, where the validation set would have it."""
        target = 1.0 if len(frames.energy) == config.data.num_validation else 3.0
        return (param - target) ** 2, losses.LabelErrors(jnp.float32(0), jnp.float32(0))

    one_number = replace(system.problem.potential, init=lambda key: jnp.float32(0))
    monkeypatch.setattr(Problem, "qm_loss", lambda problem: loss)
    trained = system._replace(problem=system.problem._replace(potential=one_number))
    progress = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    progress.stage("pretraining")
    best = pretrain.run_pretraining(pretrain.settings_of(config), trained, progress)
    assert float(best) == pytest.approx(1, abs=0.3)


def test_settings_of_the_library_are_those_of_the_config(config, system):
    changed = config.copy_and_resolve_references()
    changed.stable.observable_clip_norm, changed.stable.qm_weight, changed.stable.qm_batch_size = 5.0, 7.0, 3
    changed.stable.max_simulation_ps = 0.025  # two and a half times t
    changed.stable.max_force_error, changed.stable.max_rollbacks, changed.stable.rollback_rate_factor = 4.0, 6, 0.3
    settings = stabilize.settings_of(changed, system)
    optimization = settings.learning.optimization
    assert (optimization.observable_clip_norm, optimization.qm_weight, optimization.qm_batch_size) == (5.0, 7.0, 3)
    assert settings.simulation.max_searches == 3
    assert settings.learning.guard == Guard(max_force_error=4.0, max_rollbacks=6, rate_factor=0.3)
    assert settings.learning.freeze_above == system.freeze_above
    changed.stable.observable_clip_norm = 0.0
    assert stabilize.settings_of(changed, system).learning.optimization.observable_clip_norm == np.inf


def test_reference_is_of_frames_that_are_not_held_out(config, system):
    """Neither test frames nor others of their trajectories; all that are left, or as many as asked for."""
    data = system.data
    run = data.dataset.trajectory
    assert not set(run[data.reference]) & set(run[data.split.test])
    assert set(data.split.train) | set(data.split.validation) <= set(data.reference)
    assert len(data.reference) > 1000
    few = loaders.reference_frames(data.dataset, data.split, num=7, seed=0)
    assert len(set(few)) == 7 and set(few) <= set(data.reference)
    for num, message in ((10**6, "asks for 1000000 frames"),):
        with pytest.raises(ValueError, match=message):
            loaders.reference_frames(data.dataset, data.split, num=num, seed=0)
    alone = data.dataset._replace(trajectory=None)
    left = loaders.reference_frames(alone, data.split, num=0, seed=0)
    assert len(left) == len(alone.position) - len(data.split.test)


def test_frames_that_are_held_out_change_no_reference(config, system, tmp_path):
    """Test frames are moved far apart: criteria and what is trained on stay as they were."""
    data = system.data
    with np.load(config.data.path) as file:
        arrays = dict(file)
    held_out = np.setdiff1d(np.arange(len(arrays["R"])), data.reference)
    arrays["R"] = arrays["R"].copy()
    arrays["R"][held_out] *= 1.01
    np.savez(tmp_path / "moved.npz", **arrays)
    changed = config.copy_and_resolve_references()
    changed.data.path = str(tmp_path / "moved.npz")
    other = systems.build(changed)
    jax.tree.map(
        np.testing.assert_array_equal, other.problem.observables.reference, system.problem.observables.reference
    )
    frame = Frame(jnp.asarray(data.dataset.position[0]))
    assert float(other.problem.criterion(frame)) == float(system.problem.criterion(frame))
    reported = [one.evaluation.structure_reference["h_r"] for one in (other, system)]
    assert np.abs(reported[0] - reported[1]).max() > 0


def test_errors_and_starts_of_an_evaluation_are_those_of_test_frames(config, system):
    data, params = system.data, jax.jit(system.problem.potential.init)(jax.random.key(0))
    evaluator = evaluate.build(evaluate.schedule_of(config), system)
    start = np.asarray(evaluator.start(evaluator.prepare(params)).md.position)
    test = data.dataset.position[data.split.test]
    assert all((np.abs(test - x).max(axis=(1, 2)) == 0).any() for x in start)
    zero = jax.tree.map(jnp.zeros_like, params)
    errors = evaluate.label_errors(system, zero, data.split.test)
    expected = np.abs(data.dataset.force[data.split.test]).mean()
    assert float(errors.force_mae) == pytest.approx(float(expected), rel=1e-4)
    assert float(np.abs(data.dataset.force[data.split.train]).mean()) != pytest.approx(float(expected), rel=1e-3)


def test_what_is_reported_of_an_evaluation_is_of_test_frames_and_of_stable_ones(config, monkeypatch):
    """Two replicas, one of which fails at step 10, and 3 stable frames: sums and units by hand."""
    asked = []

    def label_errors(system, params, index):
        asked.append(index)
        return losses.LabelErrors(np.float32(0.25), np.float32(0.5))

    monkeypatch.setattr(evaluate, "label_errors", label_errors)
    split = loaders.Split(*np.arange(12).reshape(3, 4))
    measure = Measure("h_r_mae", "h_r", "", None, "", factor=10.0)
    evaluation = SimpleNamespace(measures=(measure,), structure_reference={"h_r": np.zeros(2)})
    system = SimpleNamespace(data=SimpleNamespace(split=split), evaluation=evaluation)
    evaluator = evaluate.Evaluator(system, evaluate.schedule_of(config), None, None, None, None)
    replicas = SimpleNamespace(
        step=np.array([10, 80]), is_unstable=np.array([True, False]), is_finite=np.array([True, True])
    )
    kT = units.thermal_energy(450.0)
    total = {"h_r": np.array([[1.0, 0.5], [5.0, 1.0]]), "temperature": np.array([0.8 * kT, 2.2 * kT])}
    motion = {"vacf": np.array([[1.0, 0.5], [1.0, 0.25]])}
    seen = statistics.ChunkStatistics(
        np.array([1.0, 2.0]), np.float64(0), total, np.array([0.0, 1.0]), motion, *2 * (np.zeros(0),)
    )
    none = statistics.Totals(
        np.array(0), np.zeros(2), dict.fromkeys(total, 0.0), np.zeros(2), {"vacf": np.zeros((2, 2))}
    )
    early = statistics.added(none, statistics.of_replicas(seen, np.array([True, False])))
    measured = evaluate.Measured(replicas, statistics.added(none, seen), early)
    run = evaluate._evaluation(evaluator, None, measured)
    (index,) = asked
    np.testing.assert_array_equal(index, split.test)
    assert (float(run.energy_mae), float(run.force_mae)) == (0.25, 0.5)
    np.testing.assert_allclose(run.first_passage_ps, np.array([10, 80]) * config.md.timestep_fs / 1000)
    np.testing.assert_allclose(run.averages.structure["h_r"], [2.0, 0.5])
    assert float(run.averages.temperature_K) == pytest.approx(450.0)
    # By the jackknife: without each of the replicas the figures are those of the other.
    assert float(run.averages.standard_error["internal_temperature_K"]) == pytest.approx(450.0 * (1.1 - 0.8) / 2)
    assert float(run.averages.standard_error["h_r_mae"]) == pytest.approx(10 * ((2.5 + 0.5) / 2 - (1.0 + 0.5) / 2) / 2)
    assert np.isnan(run.averages.motion["vacf"][0]).all() and run.averages.motion["vacf"][1].tolist() == [1.0, 0.25]
    # Of the first replica alone.
    np.testing.assert_allclose(run.early.structure["h_r"], [1.0, 0.5])
    assert float(run.early.num_frames) == 1 and float(run.early.temperature_K) == pytest.approx(450.0 * 0.8)
    assert np.isnan(run.early.motion["vacf"]).all() and np.isnan(run.early.standard_error["h_r_mae"])


def test_energies_are_relative_to_training_frames_and_references_of_frames_that_are_not_held_out(config, tmp_path):
    config = config.copy_and_resolve_references()
    harmonic.write_data(tmp_path / "springs.npz")
    config.data.path, config.data.energy_unit, config.data.length_unit = (
        str(tmp_path / "springs.npz"),
        "kcal/mol",
        "bohr",
    )
    data = base.load(config)
    with np.load(tmp_path / "springs.npz") as file:
        energy, trajectory = file["E"] * units.KCAL_PER_MOL, file["trajectory"]
    assert data.offset == pytest.approx(energy[data.split.train].mean(), abs=1e-6)
    assert abs(data.offset - energy.mean()) > 1e-3
    np.testing.assert_allclose(data.labeled(np.arange(240)).energy, energy - data.offset, atol=1e-5)
    kept = trajectory != 3
    np.testing.assert_array_equal(data.reference_position, data.dataset.position[kept])
    assert set(trajectory[data.split.test]) == {3}


def test_thermostats_are_those_of_the_config():
    given = dict(timestep_fs=0.5, damping_time_fs=40.0)
    for name, made, own in (
        ("langevin", integrators.langevin, {"friction": 1 / (40 * units.FEMTOSECOND)}),
        ("nose_hoover", integrators.nose_hoover, {"damping_time": 40 * units.FEMTOSECOND}),
    ):
        thermostat = base.thermostat(name, **given)
        assert thermostat.func is made
        assert thermostat.keywords == pytest.approx({"timestep": 0.5 * units.FEMTOSECOND} | own)
    with pytest.raises(ValueError, match="has to be one of langevin, nose_hoover, got 'andersen'"):
        base.thermostat("andersen", **given)


@pytest.mark.parametrize(
    ("failed_at", "ratio", "expected"),
    [
        ((1.0, 2.0, 3.0), 12.0, 24.0),
        ((1.0, 2.0, 3.0), 1.3, 3.0),  # up to whole chunks
        ((1.0, 2.0, 3.0), 0.1, 1.0),
        ((1.0, 2.0, 3.0), 0.0, 40.0),
        ((1.0, 20.0, 30.0), 12.0, 40.0),  # not beyond the horizon that it has
        ((1.0, None, None), 12.0, 40.0),
    ],
)
def test_the_horizon_follows_from_the_median_before(failed_at, ratio, expected):
    schedule = evaluate.Schedule(3, 20, 100, 40, 0.0005, 10.0, 0)
    evaluator = evaluate.Evaluator(None, schedule, None, None, None, None)
    time = np.array([40.0 if time is None else time for time in failed_at])
    before = SimpleNamespace(first_passage_ps=time, is_unstable=np.array([time is not None for time in failed_at]))
    following = evaluate.following(evaluator, before, ratio)
    assert following.schedule.horizon_ps == pytest.approx(expected)
    # A chunk of 1 ps counts for those that had not failed before it.
    early = [evaluate._is_early(following, number).tolist() for number in (0, 1, 3)]
    assert early[0] == [True] * 3 and early[1] == [failed_at[0] is None or failed_at[0] >= 1.0, True, True]
    assert early[2] == [time is None or time >= 3.0 for time in failed_at]
    assert evaluate._is_early(evaluator, 39).all()


def test_motion_counts_whole_windows_only():
    def seen(is_whole, value):
        vacf = np.full((2, 3), value)
        motion = np.array(is_whole, float), {"vacf": vacf}
        return statistics.ChunkStatistics(np.ones(2), np.float64(0), {}, *motion, *2 * (np.zeros(0),))

    none = statistics.Totals(np.array(0), np.zeros(2), {}, np.zeros(2), {"vacf": np.zeros((2, 3))})
    one = statistics.added(none, seen([True, True], 1.0))
    three = statistics.added(statistics.added(one, seen([True, False], 3.0)), seen([False, False], 9.0))
    np.testing.assert_allclose(statistics.mean_motion(three)["vacf"], [[2.0] * 3, [1.0] * 3])
    assert (int(three.num_chunks), three.num_frames.tolist(), three.num_windows.tolist()) == (3, [3, 3], [2, 1])
    assert np.isnan(statistics.mean_motion(statistics.added(none, seen([True, False], 1.0)))["vacf"][1]).all()


def test_standard_error_is_that_of_the_mean_for_replicas_of_equal_length():
    values = np.random.default_rng(0).normal(size=(9, 2))
    totals = statistics.Totals(np.array(1), np.full(9, 5.0), {"x": 5 * values}, np.zeros(9), {})
    expected = values[:, 0].std(ddof=1) / 3
    assert statistics.standard_error(totals, "x", lambda mean: mean[0]) == pytest.approx(expected)
    np.testing.assert_allclose(statistics.mean_observables(totals)["x"], values.mean(axis=0))
    # A replica that failed before its first frame says nothing.
    with_failed = totals._replace(num_frames=np.r_[totals.num_frames, 0], total={"x": np.r_[5 * values, [[0, 0]]]})
    assert statistics.standard_error(with_failed, "x", lambda mean: mean[0]) == pytest.approx(expected)
    alone = totals._replace(num_frames=np.array([5.0]), total={"x": 5 * values[:1]})
    assert np.isnan(statistics.standard_error(alone, "x", lambda mean: mean[0]))


def test_structure_of_an_evaluation_is_that_of_its_stable_frames(config, system, tmp_path):
    evaluator = evaluate.build(evaluate.schedule_of(config), system)
    params = jax.tree.map(jnp.zeros_like, jax.jit(system.problem.potential.init)(jax.random.key(0)))  # atoms fly freely
    progress = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    progress.stage("evaluation")
    run, _ = evaluate.run_evaluation(evaluator, params, progress)
    width = config.observable.width_A
    assert float(run.averages.structure["h_r"].sum() * width) == pytest.approx(
        1, abs=0.02
    )  # a density, whatever the frames
    lengths = system.evaluation.structure_reference["bond_length"]
    assert np.abs(run.averages.structure["bond_length"] - lengths).max() < config.stability.evaluate_threshold_A
    assert 1 < int(run.averages.num_frames) < 4 * 4


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ([1000], "a step of simulation needs .*: lower config.stable.num_replicas or use more devices"),
        ([1e12, 1000], "a step of learning needs .*: lower config.stable.estimator_chunk"),
    ],
)
def test_training_that_does_not_fit_is_refused(free, message, config, system, tmp_path, monkeypatch):
    free = iter(free)
    monkeypatch.setattr(memory, "available_bytes", lambda: next(free))
    params = jax.jit(system.problem.potential.init)(jax.random.key(0))
    settings = stabilize.settings_of(config, system)
    state = stabilize.start(settings, system, params, num_replicas=config.stable.num_replicas)
    with pytest.raises(ValueError, match=message):
        stabilize.run_stable(settings, system, state, [], lambda *_: None, Progress(tmp_path / "metrics.jsonl"))


def test_evaluation_that_does_not_fit_is_refused(config, system, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    evaluator = evaluate.build(evaluate.schedule_of(config), system)
    params = jax.jit(system.problem.potential.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="the evaluation needs .*: lower config.evaluate.num_replicas or chunk_ps"):
        evaluate.run_evaluation(evaluator, params, Progress(tmp_path / "metrics.jsonl"))


def test_simulation_without_instability_is_given_up(config, system, tmp_path):
    config = config.copy_and_resolve_references()
    config.stable.max_simulation_ps = 0.02  # two calls of 20 steps
    calm = system._replace(problem=system.problem._replace(criterion=lambda frame: jnp.float32(-1.0)))
    stream = io.StringIO()
    progress = Progress(tmp_path / "metrics.jsonl", stream)
    progress.stage("StABlE training")
    params = jax.jit(system.problem.potential.init)(jax.random.key(0))
    settings = stabilize.settings_of(config, calm)
    state = stabilize.start(settings, calm, params, num_replicas=config.stable.num_replicas)
    course: list[dict] = []
    state, _ = stabilize.run_stable(settings, calm, state, course, lambda *_: None, progress)
    params = jax.device_get(state.params)
    again, _ = stabilize.run_stable(settings, system, state, course, lambda *_: pytest.fail("it goes on"), progress)
    assert int(state.cycle) == 0
    jax.tree.map(np.testing.assert_array_equal, params, again.params)  # finished is part of the state
    assert [entry["phase"] for entry in course] == ["simulating"] * 2
    assert int(state.phase) == stable.FINISHED
    assert "no more instability: fewer than 50 % of the replicas failed within 0.02 ps" in stream.getvalue()


def test_a_loss_that_is_not_finite_is_said_to_be_unknown():
    known = {"phase": "learning", "observable_loss": 0.25}
    assert stabilize._status(known, 1) == "learning, epoch 2, observable loss 0.2500"
    assert stabilize._status(known | {"observable_loss": None}, 0) == "learning, epoch 1, observable loss unknown"
