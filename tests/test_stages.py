"""What a system is made of, and single stages of the pipeline, where the whole experiment would not show a mistake."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import tiny

from experiments import evaluation, memory, systems, training
from experiments.aspirin import build
from experiments.progress import Progress
from stablejax import losses


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def system(config):
    return build(config)


def test_energies_are_relative_to_the_training_set(system):
    energy = systems.labeled(system, system.split.train).energy
    assert energy.dtype == np.float32
    assert float(jnp.abs(energy).max()) < 2.0  # of thousands of eV
    assert float(jnp.mean(energy)) == pytest.approx(0, abs=1e-4)


def test_criteria_weights_and_references_are_those_of_the_config(config, system):
    frames = system.dataset.position[:50]
    stretched = frames[0].copy()
    stretched[0] += 100.0
    settings = config.stability
    difference = system.train_criterion(stretched) - system.evaluate_criterion(stretched)
    assert float(difference) == pytest.approx(settings.evaluate_threshold_A - settings.train_threshold_A, abs=1e-3)
    assert system.freeze_above == pytest.approx(settings.learn_threshold_A - settings.train_threshold_A)
    kinds = set(system.reference) - {"bond_variance"}
    assert kinds == {"1-1", "1-6", "1-8", "6-6", "6-8", "8-8"}
    width = config.observable.width_A
    assert [system.observable_weight[kind] for kind in kinds] == pytest.approx(
        [config.observable.weight * width / 6] * 6
    )
    assert all(float(system.reference[kind].sum() * width) == pytest.approx(1, abs=0.02) for kind in kinds)
    np.testing.assert_allclose(system.reference["bond_variance"], 1.0, rtol=1e-3)
    assert system.observable_weight["bond_variance"] == pytest.approx(3.0 / len(system.reference["bond_variance"]))


def test_pretraining_keeps_the_best_parameters_not_the_last(config, system, tmp_path):
    config = config.copy_and_resolve_references()
    config.pretrain.num_steps, config.pretrain.steps_per_validation = 60, 5
    config.pretrain.learning_rate, config.pretrain.average_decay = 0.1, 0.0

    def loss(param, frames):
        """Training pulls the parameter from 0 to 3, past 1, where the validation set would have it."""
        target = 1.0 if len(frames.energy) == config.data.num_validation else 3.0
        return (param - target) ** 2, losses.LabelErrors(jnp.float32(0), jnp.float32(0))

    one_number = system.potential._replace(init=lambda key: jnp.float32(0))
    progress = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    progress.stage("pretraining")
    best = training.run_pretraining(config, system._replace(potential=one_number, qm_loss=loss), progress)
    assert float(best) == pytest.approx(1, abs=0.3)


def test_the_gradient_of_the_observable_is_clipped_where_asked(config):
    settings = config.stable.copy_and_resolve_references()
    for norm, expected in ((5.0, [5.0 + 10.0 * 1.0]), (0.0, [50.0 + 10.0 * 1.0])):
        settings.observable_clip_norm, settings.qm_weight = norm, 10.0
        np.testing.assert_allclose(training._combination(settings)(jnp.array([50.0]), jnp.array([1.0])), expected)


def test_motion_counts_whole_windows_only():
    def seen(is_whole, value):
        vacf = np.full((2, 3), value)
        return evaluation.Seen(np.float64(1), np.float64(0), {}, np.array(is_whole, float), {"vacf": vacf})

    chunks = [seen([True, True], 1.0), seen([True, False], 3.0), seen([False, False], 9.0)]
    mean = evaluation._mean_motion(chunks)["vacf"]
    np.testing.assert_allclose(mean, [[2.0] * 3, [1.0] * 3])
    assert np.isnan(evaluation._mean_motion([seen([True, False], 1.0)])["vacf"][1]).all()


def test_structure_of_an_evaluation_is_that_of_its_stable_frames(config, system, tmp_path):
    looks = evaluation.build_evaluation(config, system)
    params = jax.tree.map(jnp.zeros_like, jax.jit(system.potential.init)(jax.random.key(0)))  # atoms fly freely
    progress = Progress(tmp_path / "metrics.jsonl", io.StringIO())
    progress.stage("evaluation")
    run = evaluation.run_evaluation(config, system, looks, params, progress)
    width = config.observable.width_A
    assert float(run.structure["h_r"].sum() * width) == pytest.approx(1, abs=0.02)  # a density, whatever the frames
    lengths = system.structure_reference["bond_length"]
    assert np.abs(run.structure["bond_length"] - lengths).max() < config.stability.evaluate_threshold_A
    assert 1 < int(run.num_frames) < 4 * 4


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
    state = training.init_stable(config, system, jax.jit(system.potential.init)(jax.random.key(0)))
    with pytest.raises(ValueError, match=message):
        training.run_stable(config, system, state, [], lambda *_: None, Progress(tmp_path / "metrics.jsonl"))


def test_evaluation_that_does_not_fit_is_refused(config, system, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    looks = evaluation.build_evaluation(config, system)
    params = jax.jit(system.potential.init)(jax.random.key(0))
    with pytest.raises(ValueError, match="the evaluation needs .*: lower config.evaluate.num_replicas or chunk_ps"):
        evaluation.run_evaluation(config, system, looks, params, Progress(tmp_path / "metrics.jsonl"))


def test_simulation_without_instability_is_given_up(config, system, tmp_path):
    config = config.copy_and_resolve_references()
    config.stable.max_simulation_ps = 0.02  # two calls of 20 steps
    calm = system._replace(train_criterion=lambda position: jnp.float32(-1.0))
    stream = io.StringIO()
    progress = Progress(tmp_path / "metrics.jsonl", stream)
    progress.stage("StABlE training")
    params = jax.jit(system.potential.init)(jax.random.key(0))
    state = training.init_stable(config, calm, params)
    tracker: list[dict] = []
    state = training.run_stable(config, calm, state, tracker, lambda *_: None, progress)
    assert int(state.cycle) == 0
    assert [entry["phase"] for entry in tracker] == ["simulating"] * 3
    assert "no more instability: under 50 % of the replicas failed within 0.02 ps" in stream.getvalue()
