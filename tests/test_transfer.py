"""A finished run at other temperatures: its reference reweighted, its record, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from experiments import locks, pipeline, temperatures, transfer
from experiments.configs import aspirin
from experiments.data import loaders
from experiments.stages import evaluate, pretrain, stabilize
from experiments.systems import base
from stablejax import units

STIFFNESS, KT, COLDER = 1.3, 0.7, 0.6


def oscillators():
    """Frames of one atom on a spring, and among them test frames that are far away."""
    position = np.zeros((20_000, 1, 3), np.float32)
    position[:, 0, 0] = np.random.default_rng(0).normal(scale=np.sqrt(KT / STIFFNESS), size=len(position))
    energy = 0.5 * STIFFNESS * position[:, 0, 0].astype(float) ** 2
    test = np.arange(0, len(position), 5)
    position[test, 0, 0], energy[test] = 100.0, -3.0
    dataset = loaders.Dataset(np.array([1]), position, energy, np.zeros_like(position), None, None, None)
    nothing = np.array([], int)
    reference = np.setdiff1d(np.arange(len(position)), test)
    data = base.Data(dataset, loaders.Split(nothing, nothing, test), reference, offset=0.0)
    system: Any = SimpleNamespace(
        data=data,
        problem=SimpleNamespace(kT=KT),
        evaluation=SimpleNamespace(structure_fn=lambda frame: {"square": frame.position[0, :1] ** 2}),
    )
    return system


def test_the_reference_is_of_the_reference_frames_at_the_other_temperature():
    system = oscillators()
    reference, effective_frames = temperatures.reweighted_reference(system, COLDER)
    frames = system.data.reference
    x = system.data.dataset.position[frames, 0, 0].astype(float)
    weight = np.exp(-0.5 * STIFFNESS * x**2 * (1 / COLDER - 1 / KT))
    assert reference["square"] == pytest.approx((weight * x**2).sum() / weight.sum(), rel=1e-4)
    assert reference["square"] == pytest.approx(COLDER / STIFFNESS, rel=0.04)  # 3 standard errors of <x²>
    assert abs(KT - COLDER) / KT > 0.1
    assert effective_frames == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-4)
    assert effective_frames < len(frames)


def test_at_its_own_temperature_every_reference_frame_counts_the_same():
    system = oscillators()
    reference, effective_frames = temperatures.reweighted_reference(system, KT)
    assert effective_frames == pytest.approx(len(system.data.reference), rel=1e-5)
    assert reference["square"] == pytest.approx((system.data.reference_position[:, 0, 0] ** 2).mean(), rel=1e-5)


def untrained(settings, system, progress, **_):
    """Instead of pretraining: parameters as they are drawn."""
    return jax.jit(system.problem.potential.init)(jax.random.key(0))


def refined(settings, system, state, course, save, progress, **_):
    """Instead of StABlE training: other parameters."""
    updates = state.learning.updates._replace(params=jax.tree.map(lambda leaf: 1.1 * leaf, state.params))
    state = state._replace(learning=state.learning._replace(updates=updates))
    learned = {"num_rollbacks": 0, "gives_up": False, "qm_force_mae_eV_per_A": 0.1}
    course.append({"phase": "learning", "simulated_ps": 0.01, "fraction_unstable": 0.5} | learned)
    save(state, course, system)
    return state, system


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without its training, whose thermostat needs no longer than the evaluation; and its record."""
    config = tiny.get_config()
    config.run_dir = str(tmp_path_factory.mktemp("run"))
    config.md.damping_time_fs = 5.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "run_pretraining", untrained)
        patch.setattr(stabilize, "run_stable", refined)
        return Path(config.run_dir), pipeline.run(config)


@pytest.fixture(scope="module")
def transferred(finished):
    """The record at the run's own temperature and another, what was printed, and the starts of all evaluations."""
    run_dir, _ = finished
    real, starts = evaluate.run_evaluation, []

    def seen(evaluator, params, progress, **given):
        replicas = evaluator.start(evaluator.prepare(params))
        starts.append((evaluator, params, np.asarray(replicas.md.position)))
        return real(evaluator, params, progress, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "run_evaluation", seen)
        record = temperatures.run(transfer.config_of(run_dir), [500.0, 200.0])
    return record, starts


def refused(arguments, capsys):
    """What is said of a command line that is refused."""
    with pytest.raises(SystemExit) as stop:
        transfer.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def rows_at(record, temperature_K):
    rows = [row for row in record["rows"] if row["temperature_K"] == temperature_K]
    return {(row["metric"], row.get("phase")): row for row in rows}


def test_the_record_has_every_figure_of_each_temperature(finished, transferred):
    record, _ = transferred
    text = (finished[0] / "transfer.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == record
    assert {"command", "commit", "versions", "machine"} <= set(record)
    assert record["config"]["md"]["temperature_K"] == 500.0 and "run_dir" not in record["config"]
    assert (record["name"], record["wall_s"] > 0) == ("aspirin_seed0_transfer", True)
    for temperature_K in (500.0, 200.0):
        rows = rows_at(record, temperature_K)
        for phase in ("before", "after"):
            for metric in ("median_first_passage_ps", "fraction_unstable_at_horizon", "h_r_mae"):
                assert np.isfinite(rows[metric, phase]["value"]), metric
            assert rows["internal_temperature_K", phase]["value"] == pytest.approx(temperature_K, rel=0.3)
            assert rows["median_first_passage_ps", phase]["horizon_ps"] == 0.04
        assert rows["ratio_median_first_passage", None]["kind"] in ("between", "at least", "at most", "unknown")
        assert 0 <= rows["logrank_p", None]["value"] <= 1
        assert rows["reference_effective_frames", None]["frames"] == 7500
        assert not [metric for metric, _ in rows if metric.startswith(("vacf", "energy_mae", "force_mae"))]


def test_at_its_own_temperature_stability_is_that_of_the_run(finished, transferred):
    _, of_run = finished
    rows = rows_at(transferred[0], 500.0)
    for row in of_run["rows"]:
        if row["metric"] in ("median_first_passage_ps", "fraction_unstable_at_horizon", "internal_temperature_K"):
            assert rows[row["metric"], row["phase"]] == row | {"temperature_K": 500.0}


def test_both_sets_of_parameters_start_from_the_same_held_out_frames(transferred):
    _, starts = transferred
    assert len(starts) == 4
    data = starts[0][0].system.data
    for _, _, position in starts:
        np.testing.assert_array_equal(position, data.dataset.position[data.split.test[:4]])
    for temperature_K, (before, after) in ((500.0, starts[:2]), (200.0, starts[2:])):
        assert before[0].system.problem.kT == after[0].system.problem.kT == units.thermal_energy(temperature_K)
        leaves = zip(*map(jax.tree.leaves, (before[1], after[1])), strict=True)
        assert any((one != other).any() for one, other in leaves)


def test_errors_against_a_reference_of_few_frames_are_marked(transferred):
    record, _ = transferred
    for temperature_K, is_too_small in ((500.0, False), (200.0, True)):
        rows = rows_at(record, temperature_K)
        size = rows["reference_effective_frames", None]
        assert (size["value"] < 100, size["is_reference_too_small"]) == (is_too_small, is_too_small)
        marked = {metric for (metric, _), row in rows.items() if row.get("is_reference_too_small") is is_too_small}
        compared = {"h_r_mae", "bond_length_mae_A", "bond_variance_ratio", "bond_angle_mae_degree"}
        assert marked == compared | {"reference_effective_frames"}


def test_a_temperature_that_is_done_is_kept_said_in_a_line_and_not_done_again(finished, tmp_path, monkeypatch, capsys):
    run_dir, _ = finished
    for name in transfer.NEEDED:
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    real, asked = evaluate.run_evaluation, []

    def next_evaluation(evaluator, *arguments, **given):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(evaluator.system.problem.kT)
        return real(evaluator, *arguments, **given)

    monkeypatch.setattr(evaluate, "run_evaluation", next_evaluation)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            temperatures.run(transfer.config_of(tmp_path), [150.0, 600.0])
    assert asked == [units.thermal_energy(150.0)] * 2
    record = json.loads((tmp_path / "transfer.json").read_text())
    assert {row["temperature_K"] for row in record["rows"]} == {150.0}
    line, again = (line for line in capsys.readouterr().out.splitlines() if "median stable time" in line)
    assert line.partition("]")[2] == again.partition("]")[2]
    size = rows_at(record, 150.0)["reference_effective_frames", None]["value"]
    assert "150 K: median stable time: " in line
    assert f"(a reference worth {size:.0f} of 7500 frames, too few to rely on); kinetic temperature: " in line


def test_a_run_in_use_and_other_data_are_refused(finished, tmp_path):
    run_dir, _ = finished
    config = transfer.config_of(run_dir)
    with locks.exclusive(run_dir), pytest.raises(ValueError, match="is in use by another run"):
        temperatures.run(config, [350.0])
    config.data.path = str(tmp_path / "mine.npz")
    with np.load(aspirin.DATA) as file:
        np.savez(config.data.path, **{name: array + 0.5 if name == "E" else array for name, array in file.items()})
    with pytest.raises(ValueError, match="pretrained.npz: expected the data of the run, but the contents of .*mine"):
        temperatures.run(config, [350.0])


@pytest.mark.parametrize("text", ["", "350,", "350,hot", "350,-7", "0", "nan", "inf"])
def test_temperatures_are_positive_numbers(text, tmp_path, capsys):
    assert refused([f"--run={tmp_path}", f"--temperatures={text}"], capsys).startswith(
        "error: --temperatures has to be positive numbers, K, got "
    )
    assert transfer.positive_numbers("350,712.5") == [350.0, 712.5]


def test_a_run_that_is_not_finished_is_refused(tmp_path, capsys):
    for name in transfer.NEEDED:
        said = refused([f"--run={tmp_path}"], capsys)
        assert re.match(f"error: --run has to be .* finished run, got .*, which has no {name}:", said)
        (tmp_path / name).touch()


def test_a_run_of_a_version_with_other_fields_is_refused(finished, tmp_path, capsys):
    run_dir, _ = finished
    for name in transfer.NEEDED:
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
    about = json.loads((tmp_path / "config.json").read_text())
    del about["config"]["stability"], about["config"]["md"]["timestep_fs"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    said = refused([f"--run={tmp_path}"], capsys)
    assert "expected the config of a run of this version, got one without md.timestep_fs, " in said
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged, expected JSON" in refused([f"--run={tmp_path}"], capsys)


def test_a_liquid_is_refused(finished):
    config = transfer.config_of(finished[0])
    config.system = "liquid"
    with pytest.raises(ValueError, match="expected the run of a molecule, got of a liquid: its criterion compares"):
        temperatures.run(config, [350.0])
