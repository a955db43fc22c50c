"""What a replica that fails leaves behind: its frames around the violation, once each, at most a number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.io import read

from experiments import failures
from experiments.data.loaders import Dataset
from experiments.failures import FailureFile
from stablejax import dynamics, integrators, parallel, stability, units
from stablejax.energy_functions import from_energy
from stablejax.space import OPEN, Pairs

TIMESTEP_FS, SPEED = 2.0, 0.01  # Å/fs
PAIR = Pairs(np.array([0]), np.array([1]))


def flying_apart():
    """Three atoms without forces, of which the second leaves the first; a bond of 1 Å breaks at 1.5 Å."""
    potential = from_energy(lambda params, x: 0.0 * jnp.sum(x), num_atoms=3)
    criterion = stability.bond_length_deviation(PAIR, np.ones(1), threshold=0.5)
    dataset = Dataset(np.array([6, 1, 8]), *[np.zeros(0)] * 3, None, None, None)
    system: Any = SimpleNamespace(
        timestep_fs=TIMESTEP_FS,
        execution=parallel.ONE_DEVICE,
        evaluation=SimpleNamespace(criterion=criterion, criterion_name="a bond is broken"),
        data=SimpleNamespace(dataset=dataset, offset=-100.0),
    )
    times = dict(timestep=TIMESTEP_FS * units.FEMTOSECOND, friction=1e-12)
    return system, integrators.langevin(potential, jnp.ones(3), kT=1e-12, **times)


def replicas_at(integrator, lengths):
    """Atoms that fly apart at one speed, from lengths of their bond."""

    def one(length):
        position = jnp.array([[0.0, 0, 0], [0, 0, 0], [5.0, 0, 0]]).at[1, 0].set(length)
        replica = dynamics.init_replica(integrator, jax.random.key(0), position, None)
        velocity = jnp.zeros((3, 3)).at[1, 0].set(SPEED / units.FEMTOSECOND)
        return replica._replace(md=replica.md.set(momentum=velocity))

    return jax.vmap(one)(jnp.asarray(lengths, jnp.float32))


def simulated(lengths, num_steps):
    system, integrator = flying_apart()
    before = replicas_at(integrator, lengths)

    def one(_, replica):
        return dynamics.advance(integrator, system.evaluation.criterion, None, replica, num_steps)

    after = parallel.map_replicas(one)(None, before)
    replay = failures.replayer(system, integrator, system.evaluation.criterion, system.evaluation.criterion_name)
    return failures.find(system, replay, None, before, after), after


def test_frames_before_at_and_after_the_violation_are_those_of_the_replica():
    (frames,), after = simulated([1.009, 0.5], num_steps=40)
    np.testing.assert_array_equal(after.step, [25, 40])  # 1.009 + 25 * 0.02 > 1.5; the other reaches 1.3
    assert [frame.info["when"] for frame in frames] == ["before", "before", "at", "after"]
    assert [frame.info["step"] for frame in frames] == [15, 20, 25, 30]
    lengths = [frame.get_distance(0, 1) for frame in frames]
    np.testing.assert_allclose(lengths, 1.009 + 0.02 * np.array([15, 20, 25, 30]), atol=1e-4)
    at = frames[2]
    assert (at.info["replica"], at.info["time_fs"], at.info["criterion"]) == (0, 50.0, "a bond is broken")
    assert at.info["model_energy_eV"] == -100.0
    np.testing.assert_array_equal(at.arrays["involved"], [True, True, False])
    np.testing.assert_array_equal(at.numbers, [6, 1, 8])


def test_a_replica_that_fails_at_once_has_no_frames_before_its_start():
    (frames,), after = simulated([1.469], num_steps=40)
    assert int(after.step[0]) == 2
    assert [(frame.info["when"], frame.info["step"]) for frame in frames] == [("at", 2), ("after", 7)]


def test_nothing_is_found_where_nothing_failed():
    assert simulated([0.5], num_steps=40)[0] == []


def test_the_file_keeps_each_failure_once_and_at_most_a_number(tmp_path):
    path = tmp_path / "failures.xyz"
    some, _ = simulated([1.009, 1.109, 0.709], num_steps=60)  # the bond breaks at the same length
    kept = FailureFile(path, max_failures=2)
    kept.add(some)
    assert kept.room == 1 and len(read(path, index=":")) == 4
    again, other = some[:2]
    for frame in again:
        frame.positions[2] += 2.0  # as where rounding differs
    for frame in other:
        frame.positions[2] += 1.0
    FailureFile(path, max_failures=2).add([again, other])  # an evaluation that is resumed
    frames = read(path, index=":")
    assert [frame.info["replica"] for frame in frames] == [0] * 4 + [1] * 4
    full = FailureFile(path, max_failures=2)
    for frame in some[2]:
        frame.positions[2] += 3.0
    full.add(some[2:])
    assert full.room == 0 and len(read(path, index=":")) == 8
    assert OPEN.cell is None and not frames[0].pbc.any()


def test_no_file_without_failures(tmp_path):
    FailureFile(tmp_path / "failures.xyz", max_failures=3).add([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("max_failures", [0, 1])
def test_frames_can_be_labeled_again_by_what_reads_extended_xyz(max_failures, tmp_path):
    found, _ = simulated([1.009], num_steps=40)
    path = tmp_path / "failures.xyz"
    FailureFile(path, max_failures=max_failures).add(found)
    assert path.exists() == bool(max_failures)
    if max_failures:
        frame = read(path, index=2)
        assert frame.calc is None  # the model's energy is not mistaken for a label
        np.testing.assert_allclose(frame.positions, found[0][2].positions, atol=1e-6)


def test_failures_of_training_are_those_of_its_criterion(tmp_path):
    """Of the last step of simulation, by the criterion of training, and none where no room is left."""
    system, integrator = flying_apart()
    strict = stability.bond_length_deviation(PAIR, np.ones(1), threshold=0.3)
    others = Pairs(np.array([0]), np.array([2]))
    system.evaluation.criterion = stability.bond_length_deviation(others, np.ones(1), threshold=0.5)
    before = replicas_at(integrator, [1.009, 0.5])

    def one(_, replica):
        return dynamics.advance(integrator, strict, None, replica, 20)

    after = parallel.map_replicas(one)(None, before)
    potential = SimpleNamespace(fast=lambda _: SimpleNamespace(prepare=lambda _: None))
    system.problem = SimpleNamespace(potential=potential, criterion=strict, mass=None, kT=None)
    system.thermostat, system.table_intervals = lambda *_, **__: integrator, 0
    system.train_criterion_name = "a bond is long"
    state: Any = SimpleNamespace(params=0.0, simulation=SimpleNamespace(checkpoint=before, replicas=after))
    kept = failures.TrainingFailures(FailureFile(tmp_path / "failures_training.xyz", max_failures=1))
    kept.add(system, state)
    frames: Any = read(tmp_path / "failures_training.xyz", index=":")
    assert [(frame.info["when"], frame.info["step"]) for frame in frames][-2:] == [("at", 15), ("after", 20)]
    assert {frame.info["criterion"] for frame in frames} == {"a bond is long"}
    assert {tuple(frame.arrays["involved"]) for frame in frames} == {(True, True, False)}
    state.simulation = None  # nothing is simulated again once there is no room
    kept.add(system, state)
