"""Algorithm 1 on systems where every step is known."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stablejax import dynamics, simulate, stable, units
from stablejax.integrators import langevin
from stablejax.learn import Learning, Optimization
from stablejax.losses import Labeled
from stablejax.parallel import Execution
from stablejax.problem import Observables, Problem
from stablejax.simulate import Simulation
from stablejax.space import OPEN

KT = units.thermal_energy(500.0)
STEPS = 20
IN_TURN = Execution(batch_size=1)  # one loop to compile, where replicas side by side have one for each width
NO_FRAMES = Labeled(jnp.zeros((1, 4, 3)), jnp.zeros(1), jnp.zeros((1, 4, 3)))
THERMOSTAT = partial(langevin, timestep=units.FEMTOSECOND, friction=1 / (50 * units.FEMTOSECOND))


def never_fails(frame):
    return jnp.max(jnp.abs(frame.position)) - 1e3


def stretch(spring, threshold):
    """A bond deviates from its length."""
    return lambda frame: jnp.max(jnp.abs(OPEN.distances(frame.position, spring.pairs) - spring.length)) - threshold


def mean_square(spring, exponent=2):
    return lambda frame: jnp.mean((OPEN.distances(frame.position, spring.pairs) - spring.length) ** exponent)


def problem_of(spring, criterion, **changes):
    """Nothing is learned unless asked for: both losses weigh nothing."""
    observables = Observables(mean_square(spring), reference=jnp.float32(0), weight=0.0)
    parts = dict(
        potential=spring.potential(), mass=spring.mass, kT=KT, criterion=criterion, observables=observables,
        frames=NO_FRAMES, energy_weight=0.0, force_weight=0.0,
    )  # fmt: skip
    return Problem(**(parts | changes))


def settings_of(*, simulation=None, learning=None, optimizer=None, num_cycles=3, **optimization):
    simulated = dict(thermostat=THERMOSTAT, steps_per_epoch=STEPS, max_unstable=0.5, table_intervals=0)
    learned = dict(
        optimization=Optimization(optimizer or optax.sgd(0.1), **optimization),
        steps_per_frame=10, max_epochs=3, plateau_factor=0.5, plateau_patience=2, min_rate_scale=0.1,
    )  # fmt: skip
    return stable.Settings(
        Simulation(**(simulated | (simulation or {}))), Learning(**(learned | (learning or {}))), num_cycles
    )


def training_of(problem, settings, execution=IN_TURN):
    return stable.compiled(stable.stable_training(problem, settings, execution=execution), donates=False)


def init(training, spring, num_replicas=16, stiffness=5.0, key=0):
    position = jnp.tile(spring.start, (num_replicas, 1, 1))
    return training.init(jax.random.key(key), jnp.float32(stiffness), position)


def simulate_until_learning(training, state):
    history = [state]
    while int(state.phase) == stable.SIMULATE:
        state, info = training.simulate(state)
        history.append(state)
    assert bool(info.starts_learning)
    return state, info, history


def assert_same_state(actual, expected):
    def check(a, b):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, actual, expected)


@pytest.fixture(scope="module")
def first_phase():
    """A training of replicas side by side, its start, and what its first simulation phase gave."""
    from conftest import Spring

    training = training_of(problem_of(Spring, stretch(Spring, 0.25)), settings_of(), Execution())
    start = init(training, Spring)
    return training, start, *simulate_until_learning(training, start)


def test_simulation_freezes_at_the_first_violation_and_switches_phase(first_phase):
    _, _, state, info, history = first_phase
    assert len(history) > 3  # the toy is not so unstable that one call ends it
    fractions = [float(jnp.mean(past.simulation.replicas.is_unstable)) for past in history]
    assert all(np.diff(fractions) >= 0)
    assert fractions[-2] < 0.5 <= fractions[-1] == float(info.fraction_unstable)
    before, after = history[-2].simulation.replicas, state.simulation.replicas
    frozen = np.asarray(before.is_frozen)
    assert frozen.any()
    np.testing.assert_array_equal(after.step[frozen], before.step[frozen])
    np.testing.assert_array_equal(after.step[~after.is_frozen], STEPS * (len(history) - 1))
    assert int(state.simulation.num_searches) == len(history) - 1


def test_rewinding_restores_the_exact_state_t_steps_before(first_phase, spring):
    _, start, state, _, _ = first_phase
    target = np.maximum(np.asarray(state.simulation.replicas.step) - STEPS, 0)
    np.testing.assert_array_equal(state.simulation.rewound.step, target)
    assert len(set(target.tolist())) > 3  # violations fell into different steps and chunks
    integrator = THERMOSTAT(spring.potential(), spring.mass, kT=KT)

    def straight(replica, until):
        return dynamics.advance(integrator, never_fails, start.params, replica, until)

    expected = jax.jit(jax.vmap(straight))(start.simulation.replicas, jnp.asarray(target))
    assert_same_state(state.simulation.rewound.md, expected.md)
    assert not np.array_equal(state.simulation.rewound.md.position, state.simulation.replicas.md.position)


def test_rewound_replicas_fail_again_where_they_failed(first_phase):
    training, _, state, info, _ = first_phase
    learning, learn_info = training.learn(state, NO_FRAMES)
    assert float(learn_info.fraction_unstable) == float(info.fraction_unstable)
    assert int(learn_info.num_samples) == 16 * 2
    assert int(learning.learning.epoch) == 1
    assert_same_state(learning.simulation.rewound, state.simulation.rewound)


def test_more_rounds_are_more_samples_from_the_same_start(first_phase):
    training, _, state, _, _ = first_phase
    _, one = training.learn(state, NO_FRAMES)
    learning, three = training.learn(state, NO_FRAMES, num_rounds=3)
    assert (int(one.num_rounds), int(three.num_rounds)) == (1, 3)
    assert int(three.num_samples) == 3 * int(one.num_samples)
    assert int(three.num_steps) == 3 * int(one.num_steps)
    assert_same_state(learning.simulation.rewound, state.simulation.rewound)


def test_after_several_rounds_the_next_cycle_rewinds_along_the_trajectory_that_failed(spring):
    """With the parameters of the epoch, not those that its update gave."""
    observables = Observables(mean_square(spring), reference=jnp.float32(0), weight=-1e6)
    problem = problem_of(spring, stretch(spring, 0.25), observables=observables)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(2.0))
    training = training_of(problem, settings_of(learning={"max_epochs": 1}, optimizer=optimizer))
    state, _, _ = simulate_until_learning(training, init(training, spring))
    following, info = training.learn(state, NO_FRAMES, num_rounds=3)
    assert bool(info.ends_cycle) and abs(float(following.params) - 5.0) > 1.0
    replicas, checkpoint = following.simulation.replicas, following.simulation.checkpoint
    integrator, rewound = THERMOSTAT(spring.potential(), spring.mass, kT=KT), state.simulation.rewound

    def straight(criterion, replica, until):
        return dynamics.advance(integrator, criterion, state.params, replica, until)

    failed = jax.jit(jax.vmap(partial(straight, stretch(spring, 0.25))))(rewound, replicas.step)
    late = np.asarray(failed.is_unstable & (failed.step - rewound.step > STEPS))
    assert late.any()
    np.testing.assert_array_equal(failed.is_unstable, replicas.is_unstable)
    np.testing.assert_array_equal(checkpoint.step[late], failed.step[late] - STEPS)
    expected = jax.jit(jax.vmap(partial(straight, never_fails)))(rewound, checkpoint.step)
    np.testing.assert_array_equal(checkpoint.md.position[late], expected.md.position[late])


def test_learning_ends_after_max_epochs_and_the_next_cycle_goes_on_from_the_endpoints(first_phase):
    training, _, state, _, _ = first_phase
    rewound = state.simulation.rewound
    for epoch in range(3):
        assert int(state.phase) == stable.LEARN
        state, info = training.learn(state, NO_FRAMES)
        assert bool(info.ends_cycle) == (epoch == 2)
    assert (int(state.phase), int(state.cycle), int(state.learning.epoch)) == (stable.SIMULATE, 1, 0)
    assert int(state.simulation.num_searches) == 0
    replicas, checkpoint = state.simulation.replicas, state.simulation.checkpoint
    np.testing.assert_array_equal(replicas.step, rewound.step + STEPS)
    is_unstable = np.asarray(replicas.is_unstable)
    np.testing.assert_array_equal(replicas.is_frozen, is_unstable)
    assert is_unstable.any() and not is_unstable.all()
    np.testing.assert_array_equal(checkpoint.step[is_unstable], rewound.step[is_unstable])
    np.testing.assert_array_equal(checkpoint.step[~is_unstable], replicas.step[~is_unstable])
    following, _ = training.simulate(state)
    earlier = following.simulation.earlier_checkpoint
    np.testing.assert_array_equal(earlier.step[is_unstable], rewound.step[is_unstable])


def test_learning_ends_at_once_where_all_are_stable(spring):
    settings = settings_of(learning={"min_unstable": 0.49})
    training = training_of(problem_of(spring, stretch(spring, 0.25)), settings)
    start = init(training, spring)
    state, _, _ = simulate_until_learning(training, start)
    stiff = state.learning.updates._replace(params=jnp.float32(60.0))
    state = state._replace(
        learning=state.learning._replace(updates=stiff),
        simulation=state.simulation._replace(rewound=start.simulation.replicas),
    )
    _, info = training.learn(state, NO_FRAMES)
    assert float(info.fraction_unstable) <= 0.49
    assert bool(info.ends_cycle)


def test_learning_ends_when_the_rate_has_fallen_to_the_bound_and_not_before(spring):
    """0.2² in float32 is a little over 0.04: the paper's bound, reached all the same."""
    learning = dict(max_epochs=100, plateau_factor=0.2, plateau_patience=1, min_rate_scale=0.04)
    training = training_of(problem_of(spring, stretch(spring, 0.25)), settings_of(learning=learning))
    state, _, _ = simulate_until_learning(training, init(training, spring))
    scales = []
    while int(state.phase) == stable.LEARN:
        state, info = training.learn(state, NO_FRAMES)  # nothing is learned, so the loss stalls
        scales.append(float(info.rate_scale))
    assert scales[0] == 1.0
    assert scales[-1] == pytest.approx(0.2)
    assert float(state.learning.plateau.scale) == 1.0  # the next phase starts afresh


def test_plateau_follows_the_loss_of_the_observable(spring):
    """L_obs stalls at 0 while L_QM falls."""
    frames = Labeled(spring.start[None], jnp.array([1.0]), jnp.zeros((1, 4, 3)))
    position = 1.1 * spring.start
    problem = problem_of(
        spring, stretch(spring, 0.25), frames=frames._replace(position=position[None]), energy_weight=1.0
    )
    settings = settings_of(learning=dict(max_epochs=100, plateau_patience=1), optimizer=optax.sgd(0.3))
    training = training_of(problem, settings)
    state, _, _ = simulate_until_learning(training, init(training, spring))
    losses = []
    for _ in range(4):
        state, info = training.learn(state, problem.frames)
        losses.append(float(info.updates.qm_loss))
    assert all(np.diff(losses) < -0.01 * losses[0])  # by more than the plateau takes for nothing
    assert float(info.rate_scale) < 1


def test_gradient_of_an_epoch_is_equation_six_of_its_own_frames(spring):
    """Frames taken again by hand, the covariance written out, at the temperature of the problem."""
    reference, weight = 0.004, 3e3
    observables = Observables(mean_square(spring), jnp.float32(reference), weight)
    problem = problem_of(spring, stretch(spring, 0.25), observables=observables)
    settings = settings_of(learning={"freeze_above": 0.0})
    training = training_of(problem, settings)
    state, _, _ = simulate_until_learning(training, init(training, spring))
    _, info = training.learn(state, NO_FRAMES)
    engine = simulate.make_engine(problem, settings.simulation, IN_TURN)
    sample = partial(engine.sample, num_frames=2, steps_per_frame=10, freeze_above=0.0)
    _, trajectory = jax.jit(sample)(state.params, state.simulation.rewound)
    position = np.asarray(trajectory.frame.position)[np.asarray(trajectory.is_valid)]
    assert int(info.num_samples) == len(position) < 32
    squares = np.array([(OPEN.distances(x, spring.pairs) - spring.length) ** 2 for x in position], float)
    g, slope = squares.mean(axis=1), 0.5 * squares.sum(axis=1)
    expected = 2 * weight * (g.mean() - reference) * -np.cov(g, slope)[0, 1] / KT
    assert float(info.updates.observable_gradient_norm) == pytest.approx(abs(expected), rel=1e-3)
    assert float(info.updates.observable_loss) == pytest.approx(weight * (g.mean() - reference) ** 2, rel=1e-3)


def test_schedule_scales_the_step_by_the_epoch(spring):
    frames = Labeled(1.1 * spring.start[None], jnp.array([100.0]), jnp.zeros((1, 4, 3)))
    problem = problem_of(spring, stretch(spring, 0.25), frames=frames, energy_weight=1e-3)
    settings = settings_of(learning={"rate_schedule": optax.linear_schedule(1.0, 0.0, 2)}, optimizer=optax.sgd(1e-3))
    training = training_of(problem, settings)
    state, _, _ = simulate_until_learning(training, init(training, spring))
    steps = []
    for _ in range(2):
        before = float(state.params)
        state, _ = training.learn(state, frames)
        steps.append(float(state.params) - before)
    assert steps[0] > 0
    assert steps[1] / steps[0] == pytest.approx(0.5, rel=1e-2)


def test_search_for_instability_ends_at_its_budget_and_training_stays_finished(spring):
    problem = problem_of(spring, never_fails)
    settings = settings_of(simulation={"max_searches": 3})
    seen = []
    training = training_of(problem, settings)
    state = init(training, spring, num_replicas=4)
    state = stable.run(problem, settings, state, training=training, on_step=lambda state, info: seen.append(info))
    assert len(seen) == 3 == int(state.num_calls)
    assert [bool(info.gives_up) for info in seen] == [False, False, True]
    assert int(state.phase) == stable.FINISHED
    again = stable.run(problem, settings, state, training=training, on_step=lambda state, info: seen.append(info))
    assert len(seen) == 3
    assert_same_state(again, state)


def test_a_run_that_is_resumed_from_any_step_ends_as_one_that_was_not(spring):
    problem = problem_of(
        spring, stretch(spring, 0.25), observables=Observables(mean_square(spring), jnp.float32(0.005), 1e4)
    )
    settings = settings_of(num_cycles=1, optimizer=optax.sgd(1.0), simulation={"max_searches": 20})
    training, states = training_of(problem, settings), []
    start = init(training, spring, num_replicas=8)
    end = stable.run(problem, settings, start, training=training, on_step=lambda state, info: states.append(state))
    assert float(end.params) != 5.0
    for state in states[:: max(1, len(states) // 3)]:
        assert_same_state(stable.run(problem, settings, state, training=training), end)


def test_the_loop_finds_the_stiffness_that_gives_the_reference(spring):
    """Too soft a molecule, taught by nothing but the mean squared stretch of a stiffer one."""
    from stablejax.energy_functions import from_energy

    reference_stiffness = 12.0
    # Equipartition over 6 vibrations: ½ k Σ (r − r₀)² = 3 kT.
    reference = jnp.float32(KT / reference_stiffness)
    problem = problem_of(
        spring,
        stretch(spring, 0.3),
        potential=from_energy(lambda log_k, x: spring.energy(jnp.exp(log_k), x), num_atoms=4),
        observables=Observables(mean_square(spring), reference, 1.0 / reference**2),
    )
    thermostat = partial(langevin, timestep=units.FEMTOSECOND, friction=1 / (20 * units.FEMTOSECOND))
    settings = settings_of(
        simulation=dict(thermostat=thermostat, steps_per_epoch=400),
        learning=dict(max_epochs=60, steps_per_frame=40, plateau_factor=0.7, plateau_patience=3, min_rate_scale=0.01),
        optimizer=optax.adam(0.15),
        num_cycles=1,
    )
    position, seen = jnp.tile(spring.start, (128, 1, 1)), []
    state = stable.init(problem, settings, jax.random.key(1), jnp.log(jnp.float32(4.0)), position, execution=IN_TURN)
    note = lambda _, info: seen.append(float(info.fraction_unstable))  # noqa: E731
    state = stable.run(problem, settings, state, execution=IN_TURN, on_step=note)
    assert float(jnp.exp(state.params)) == pytest.approx(reference_stiffness, rel=0.12)
    assert max(seen) > 0.5
    assert seen[-1] < 0.2 * max(seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning": {"steps_per_frame": 7}}, "has to divide `steps_per_epoch`, got 7 and 20"),
        ({"learning": {"min_unstable": 0.6}}, "expected min_unstable < max_unstable, got 0.6 and 0.5"),
        ({"simulation": {"max_unstable": 1.5}}, "0 < max_unstable <= 1"),
        ({"simulation": {"max_searches": 0}}, "max_searches >= 1"),
        ({"learning": {"max_epochs": 0}}, "max_epochs >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, spring):
    with pytest.raises(ValueError, match=message):
        stable.stable_training(problem_of(spring, never_fails), settings_of(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mass": jnp.ones(3)}, r"expected `mass` for the 4 atoms of the potential, \(4,\), got \(3,\)"),
        ({"frames": NO_FRAMES._replace(position=jnp.zeros((1, 5, 3)))}, "expected `frames.position`"),
        ({"kT": -1.0}, "positive `kT`, got -1.0"),
        ({"observables": Observables(lambda frame: frame.position, jnp.zeros((3, 3)), 1.0)}, "a reference like"),
        ({"observables": Observables(lambda frame: frame.position, jnp.zeros((4, 3)), [1.0])}, "one weight for each"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(changes, message, spring):
    with pytest.raises(ValueError, match=message):
        stable.stable_training(problem_of(spring, never_fails, **changes), settings_of())
