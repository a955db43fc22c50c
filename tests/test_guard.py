"""Learning that goes wrong, on atoms that stand still in a well: the static data alone pull its stiffness k to 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_learn import START, standing
from test_stable import assert_same_state

from stablejax import failures, from_energy, guard, stable
from stablejax.failures import Cause
from stablejax.guard import Guard
from stablejax.learn import Learning, Optimization
from stablejax.losses import Labeled
from stablejax.problem import Observables, Problem
from stablejax.simulate import Simulation

NUM_ATOMS = START.shape[1]
POSITION = jax.random.normal(jax.random.key(3), (5, NUM_ATOMS, 3))
FRAMES = Labeled(POSITION, 0.5 * jnp.sum(POSITION**2, axis=(1, 2)), -POSITION)
K = 1.3
SLOPE = 2 * 0.95 * float(jnp.mean(POSITION**2))  # of L_QM in k, over k - 1


def energy(k, x):
    return 0.5 * k * jnp.sum(x**2)


def failed_but_counting(frame):
    """Value 1; 3, beyond which no frame counts, where the potential has no minimum."""
    return jnp.where(frame.energy > 0, 1.0, 3.0)


def only_first_replica(frame):
    return jnp.where(jnp.abs(frame.position[0, 0] - START[0, 0, 0]) < 1e-6, 1.0, 3.0)


def run(rate, *, criterion=failed_but_counting, state=None, max_epochs=20, bounds=None, optimizer=optax.sgd):
    """The state at the end, the infos of learning, and every state."""
    problem = Problem(
        potential=from_energy(energy, num_atoms=NUM_ATOMS),
        mass=jnp.ones(NUM_ATOMS),
        kT=0.7,
        criterion=criterion,
        observables=Observables(lambda frame: jnp.mean(frame.position**2), jnp.float32(0), 0.0),
        frames=FRAMES,
        energy_weight=0.0,
    )
    learning = Learning(
        Optimization(optimizer(rate), qm_weight=1.0),
        steps_per_frame=1,
        max_epochs=max_epochs,
        freeze_above=2.0,
        guard=bounds or Guard(),
    )
    settings = stable.Settings(Simulation(standing, steps_per_epoch=1, table_intervals=0), learning, num_cycles=1)
    if state is None:
        state = stable.init(problem, settings, jax.random.key(0), jnp.float32(K), START)
    states, infos = [], []

    def note(state, info):
        states.append(state)
        if hasattr(info, "fault"):
            infos.append(info)

    return stable.run(problem, settings, state, on_step=note), infos, states


def faults(infos):
    return [int(info.fault) for info in infos]


def test_where_nothing_goes_wrong_the_last_parameters_are_returned():
    """Those of plain gradient descent, of which the best by any measure of an epoch are not the last."""
    end, infos, _ = run(0.1, max_epochs=4)
    assert faults(infos) == [0] * 4
    assert float(end.params) == pytest.approx(1 + 0.3 * (1 - 0.1 * SLOPE) ** 4, rel=1e-5)
    assert (int(infos[-1].num_rollbacks), int(end.phase)) == (0, stable.FINISHED)


def test_a_rate_that_is_too_large_is_taken_back_and_learning_succeeds():
    end, infos, states = run(10.0, optimizer=optax.adam)
    assert guard.FORCE_ERROR in faults(infos)
    at = faults(infos).index(guard.FORCE_ERROR)
    assert float(infos[at].updates.qm_errors.force_mae) > 3 * float(infos[0].updates.qm_errors.force_mae)
    after = states[1 + at]
    assert_same_state(after.learning.updates, states[at - 1].learning.updates)  # the optimizer's moments too
    assert float(infos[at + 1].rate_scale) == pytest.approx(0.1)
    assert float(infos[-1].updates.qm_errors.force_mae) <= 3 * float(infos[0].updates.qm_errors.force_mae)
    assert abs(float(end.params) - 1) <= 3 * 0.3
    assert not bool(infos[-1].gives_up)


def test_going_back_has_a_bound_and_training_ends_with_parameters_within_it():
    end, infos, _ = run(1e6, bounds=Guard(max_rollbacks=2))
    assert faults(infos) == [0, 1, 0, 1, 0, 1]
    assert [int(info.num_rollbacks) for info in infos] == [0, 1, 1, 2, 2, 2]
    assert [bool(info.gives_up) for info in infos] == [False] * 5 + [True]
    assert [float(info.rate_scale) for info in infos[::2]] == pytest.approx([1, 0.1, 0.01])
    assert (int(end.phase), int(end.cycle)) == (stable.FINISHED, 0)
    assert float(end.params) == pytest.approx(K)


def test_a_rate_that_is_not_a_number_ends_training_with_the_parameters_as_they_were():
    end, infos, _ = run(jnp.nan)
    assert faults(infos) == [guard.NOT_FINITE] * 4
    assert bool(infos[-1].gives_up) and int(end.phase) == stable.FINISHED
    assert float(end.params) == pytest.approx(K)


def test_the_update_that_ends_a_phase_is_measured_too():
    end, infos, _ = run(1e3, max_epochs=1)
    assert faults(infos) == [guard.FORCE_ERROR]
    assert float(end.params) == pytest.approx(K)
    assert (int(end.cycle), float(end.learning.guard.rate_scale)) == (1, pytest.approx(0.1))


def test_samples_that_are_lost_by_an_update_take_it_back():
    end, infos, _ = run(4.0, bounds=Guard(max_force_error=np.inf), max_epochs=4)
    assert faults(infos) == [0, guard.NO_SAMPLES, 0, 0]
    assert [int(info.num_samples) for info in infos] == [4, 0, 4, 4]
    assert float(end.params) > 0


@pytest.mark.parametrize(("criterion", "num_samples"), [(lambda _: jnp.float32(3), 0), (only_first_replica, 1)])
def test_with_fewer_than_two_samples_the_static_data_are_learned_alone(criterion, num_samples):
    end, infos, _ = run(0.1, criterion=criterion, max_epochs=2)
    assert [int(info.num_samples) for info in infos] == [num_samples] * 2
    assert not any(bool(info.updates.used_observable) for info in infos)
    assert faults(infos) == [0, 0]
    assert float(end.params) == pytest.approx(1 + 0.3 * (1 - 0.1 * SLOPE) ** 2, rel=1e-5)


def test_parameters_that_no_longer_change_end_training():
    end, infos, _ = run(1e-30)
    assert faults(infos) == [0, guard.STILL]
    assert bool(infos[-1].gives_up) and int(end.phase) == stable.FINISHED


def test_a_run_resumed_after_a_return_ends_with_the_same_bits():
    end, infos, states = run(100.0, optimizer=optax.adam)
    assert int(infos[-1].num_rollbacks) >= 2
    for state in states[1 : 2 + faults(infos).index(guard.FORCE_ERROR)]:
        assert_same_state(run(100.0, optimizer=optax.adam, state=state)[0], end)


def test_best_parameters_are_those_of_the_most_stable_epoch_then_of_the_lowest_loss():
    state = None
    for fraction, loss, k in ((0.5, 2.0, 1.0), (0.5, 1.0, 2.0), (0.75, 0.1, 3.0), (0.5, jnp.nan, 4.0)):
        before = guard.UpdateState(jnp.float32(k), ())
        state = state or guard.init(before)
        zero = jnp.float32(0.1)
        info = guard.UpdateInfo(
            jnp.float32(loss), zero, guard_errors(), zero, zero, zero, jnp.int32(1), True, zero, zero, zero
        )
        after = guard.UpdateState(jnp.float32(k + 1), ())
        epoch = guard.Epoch(before, after, FRAMES, jnp.float32(fraction), jnp.int32(4), info)
        state, fault = guard.note(Guard(), state, epoch)
        assert int(fault) == guard.NOTHING
    assert (float(state.best.params), float(state.good.params)) == (2.0, 4.0)


def guard_errors():
    from stablejax.losses import LabelErrors

    return LabelErrors(jnp.float32(0.1), jnp.float32(0.1))


@pytest.mark.parametrize("changes", [{"max_force_error": 0.5}, {"max_rollbacks": -1}, {"rate_factor": 1.0}])
def test_bounds_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="`Guard`: expected"):
        guard.check(Guard(**changes))


def test_each_failure_has_its_own_cause():
    found = [
        failures.cause(num_replicas=4, num_violating=violating, num_lost=lost, most_steps=most)
        for violating, lost, most in ((4, 0, 1), (3, 4, 1), (0, 3, 5), (0, 0, 500))
    ]
    assert found == [Cause.STARTS, Cause.LOST, Cause.EARLY, Cause.POOR]
