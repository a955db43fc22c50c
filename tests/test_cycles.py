"""Cycles until done: searches that begin again, a target, and the parameters that are returned."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_stable import (
    IN_TURN,
    KT,
    STEPS,
    init,
    mean_square,
    never_fails,
    problem_of,
    settings_of,
    simulate_until_learning,
    stretch,
    training_of,
)

from stablejax import simulate, stable
from stablejax.losses import Labeled
from stablejax.problem import Observables


def taught(spring, reference, **changes):
    """Springs that learning makes stiffer or softer, until their mean squared stretch is the reference."""
    observables = Observables(mean_square(spring), jnp.float32(reference), 1.0 / reference**2)
    return problem_of(spring, stretch(spring, 0.3), observables=observables, **changes)


def run(problem, settings, spring, num_replicas=16, is_time_up=lambda seen: False):
    training, seen = training_of(problem, settings), []
    start = init(training, spring, num_replicas=num_replicas)
    end = stable.run(
        problem,
        settings,
        start,
        training=training,
        on_step=lambda *step: seen.append(step),
        is_time_up=lambda: is_time_up(seen),
    )
    return start, end, seen


def test_every_search_begins_at_the_first_positions_with_new_velocities(spring):
    settings = settings_of(simulation={"restarts": True}, learning={"max_epochs": 1})
    training = training_of(problem_of(spring, stretch(spring, 0.25)), settings)
    start = init(training, spring)
    state, _, _ = simulate_until_learning(training, start)
    state, _ = training.learn(state, problem_of(spring, never_fails).frames)
    assert (int(state.phase), int(state.cycle)) == (stable.SIMULATE, 1)
    first, again = start.simulation.replicas, state.simulation.replicas
    np.testing.assert_array_equal(again.md.position, first.md.position)
    assert not np.array_equal(again.md.velocity, first.md.velocity)
    assert not np.any(again.is_frozen) and not np.any(again.step)
    following, _ = training.simulate(state)
    assert np.max(following.simulation.replicas.step) == STEPS


def phase_of(spring, criterion, **simulation):
    problem, settings = problem_of(spring, criterion), settings_of(simulation=simulation)
    engine = simulate.make_engine(problem, settings.simulation, IN_TURN)
    phase = simulate.simulate_phase(engine, settings.simulation)
    state = phase.init(jax.random.key(0), jnp.float32(5.0), jnp.tile(spring.start, (16, 1, 1)))
    return jax.jit(phase.step), state


def test_a_target_is_reached_when_one_failure_more_would_not_change_it(spring):
    step, state = phase_of(spring, never_fails, target_ratio=10.0)
    state = state._replace(first_stable_steps=jnp.float32(40.0))
    reached = []
    for _ in range(3):
        state, info = step(state, jnp.float32(5.0))
        reached.append(bool(info.reaches_target))
        assert bool(info.gives_up) == reached[-1]
    assert reached == [False, True, True]  # 16 replicas of 20 steps each are 320 steps, below 10 times 40


def test_stable_steps_are_all_steps_over_the_failures(spring):
    step, state = phase_of(spring, stretch(spring, 0.25), target_ratio=10.0)
    while True:
        state, info = step(state, jnp.float32(5.0))
        if bool(info.starts_learning):
            break
        assert bool(jnp.isnan(state.first_stable_steps))
    expected = float(state.replicas.step.sum()) / float(state.replicas.is_unstable.sum())
    assert float(info.stable_steps) == pytest.approx(expected)
    assert float(state.first_stable_steps) == pytest.approx(expected)


def test_a_search_that_goes_on_counts_its_own_steps_only(spring):
    step, state = phase_of(spring, never_fails)
    state, _ = step(state, jnp.float32(5.0))
    state, info = step(state._replace(begun=state.replicas.step), jnp.float32(5.0))
    assert float(info.stable_steps) == 16 * STEPS


BEST = dict(simulation={"restarts": True, "max_searches": 30}, num_cycles=2, optimizer=optax.sgd(1.0))


@pytest.mark.parametrize(("reference", "rate", "is_better"), [(KT / 40, 1.0, True), (KT / 2, 5.0, False)])
def test_the_best_parameters_are_returned_after_another_search(reference, rate, is_better, spring):
    """Stiffer springs are stable for longer, softer ones for less time than those at the start."""
    settings = settings_of(**(BEST | {"optimizer": optax.sgd(rate)}))._replace(returns_best=True)
    start, end, seen = run(taught(spring, reference), settings, spring)
    searches = [(state, info) for state, info in seen if isinstance(info, simulate.SimulateInfo)]
    ended = [(state, info) for state, info in searches if bool(info.starts_learning | info.gives_up)]
    assert int(ended[-1][0].phase) == stable.FINISHED and seen[-1][1] is ended[-1][1]
    times = [float(info.stable_steps) for _, info in ended]
    assert [bool(info.is_best) for _, info in ended] == [
        time > max(times[:i], default=0) for i, time in enumerate(times)
    ]
    assert (float(end.params) > float(start.params)) == is_better
    if not is_better:
        assert len(ended) == 3 and float(end.params) == float(start.params)
        assert float(searches[-2][0].params if len(searches) > 1 else 0) != float(start.params)


@pytest.mark.parametrize(("share", "kept"), [(1.05, 1.0), (0.55, 0.5), (0.3, 0.25), (0.2, 0.0)])
def test_of_what_a_phase_learns_as_much_is_kept_as_keeps_the_bound_of_the_error(share, kept, spring):
    """Springs get stiffer, and those of the held-out frames are softer than at the start: the error only rises."""
    position = jnp.stack([1.1 * spring.start])
    held_out = Labeled(position, jnp.zeros(1), -0.9 * jax.vmap(jax.grad(partial(spring.energy, 5.0)))(position))
    problem = taught(spring, KT / 40, held_out=held_out)
    settings = settings_of(**(BEST | {"num_cycles": 1}))._replace(returns_best=True)

    def first_phase(settings):
        start, end, seen = run(problem, settings, spring)
        (phase,) = [(state, info) for state, info in seen if not isinstance(info, simulate.SimulateInfo)][-1:]
        return start, end, *phase

    start, _, free, info = first_phase(settings)
    learned = float(free.params) - 5.0
    assert float(start.params) == 5.0 and learned > 1 and float(info.kept_fraction) == 1
    bounded = settings._replace(max_held_out_error=(0.5 + share * learned) / 0.5)
    _, end, state, info = first_phase(bounded)
    assert float(state.best.first_error) == pytest.approx(
        0.1 / 0.9 * float(jnp.mean(jnp.abs(held_out.force))), rel=1e-3
    )
    assert float(info.kept_fraction) == kept
    assert float(state.params) == pytest.approx(5.0 + kept * learned, rel=1e-6)
    # Where nothing can be kept there is nothing more to search for.
    assert (int(state.phase) == stable.FINISHED) == (kept == 0)
    assert float(end.params) in (float(state.params), float(start.params))


@pytest.mark.parametrize("returns_best", [True, False])
@pytest.mark.parametrize("phase", [stable.SIMULATE, stable.LEARN])
def test_nothing_is_learned_once_the_time_is_up(phase, returns_best, spring):
    learning = {"max_epochs": 5, "min_unstable": 0.0}
    settings = settings_of(learning=learning, **(BEST | {"num_cycles": 4}))._replace(returns_best=returns_best)
    asked = 0

    def is_time_up(seen):
        nonlocal asked
        asked = len(seen)
        state, _ = seen[-1]
        return int(state.phase) == phase and (phase == stable.LEARN or int(state.cycle) == 1)

    _, end, seen = run(taught(spring, KT / 40), settings, spring, is_time_up=is_time_up)
    after = [isinstance(info, simulate.SimulateInfo) for _, info in seen[asked:]]
    assert all(after) and bool(after) == returns_best
    assert int(end.phase) == stable.FINISHED
    if returns_best:
        assert bool(seen[-1][1].starts_learning | seen[-1][1].gives_up)  # the last search is a whole one
        assert float(end.params) == float(end.best.params)
    else:
        assert float(end.params) == float(seen[-1][0].params)


def test_the_rate_falls_from_cycle_to_cycle(spring):
    settings = settings_of(learning={"cycle_factor": 0.5, "max_epochs": 1}, simulation={"max_searches": 30})
    _, _, seen = run(problem_of(spring, stretch(spring, 0.25)), settings, spring)
    rates = [float(info.rate_scale) for _, info in seen if not isinstance(info, simulate.SimulateInfo)]
    assert rates == [1.0, 0.5, 0.25]


def test_replicas_are_hotter_in_training(spring):
    def squares(ratio, steps=20):
        settings = settings_of(simulation={"temperature_ratio": ratio})
        training = training_of(problem_of(spring, never_fails), settings)
        state = init(training, spring, num_replicas=200)
        for _ in range(steps):
            state, _ = training.simulate(state)
        return float(jnp.mean(state.simulation.replicas.md.velocity**2))

    assert squares(2.0) / squares(1.0) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"simulation": {"temperature_ratio": 0.0}}, "expected temperature_ratio > 0, got 0.0"),
        ({"simulation": {"target_ratio": 1.0}}, "expected target_ratio > 1, got 1.0"),
        ({"learning": {"cycle_factor": 0.0}}, "expected 0 < cycle_factor <= 1, got 0.0"),
        ({"learning": {"cycle_factor": 1.5}}, "expected 0 < cycle_factor <= 1, got 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, spring):
    with pytest.raises(ValueError, match=message):
        stable.stable_training(problem_of(spring, never_fails), settings_of(**changes))


@pytest.mark.parametrize("returns_best", [True, False])
def test_a_bound_needs_frames_to_measure_it_on_and_parameters_to_go_back_to(returns_best, spring):
    settings = settings_of()._replace(max_held_out_error=1.1, returns_best=returns_best)
    problem = problem_of(spring, never_fails)
    with pytest.raises(ValueError, match="set `held_out` of the problem and `returns_best`"):
        stable.stable_training(problem if returns_best else problem._replace(held_out=problem.frames), settings)
