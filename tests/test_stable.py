"""Algorithm 1 on systems where every step is known."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stablejax import boltzmann, dynamics, losses, parallel, refine, stable, units
from stablejax.losses import Labeled, LabelErrors

KT = units.thermal_energy(500.0)
STEPS = 20


def never_fails(position):
    return jnp.max(jnp.abs(position)) - 1e3


def no_qm(params, frames):
    return 0.0 * jnp.sum(params), LabelErrors(jnp.float32(0), jnp.float32(0))


def no_gradient(params, positions, mask, weight):
    return jnp.sum(mask, dtype=jnp.float32), jnp.zeros_like(params)


def weighted(value_and_grad):
    """What the loop calls: how samples count, by position."""
    return lambda params, positions, mask, weight: value_and_grad(params, positions, mask=mask, weight=weight)


def training(spring, criterion, **changes):
    integrator = dynamics.langevin(
        spring.energy, spring.mass, kT=KT, timestep=units.FEMTOSECOND, friction=1 / (50 * units.FEMTOSECOND)
    )
    learning = dict(
        observable_grad=no_gradient, qm_loss=no_qm, combine=refine.weighted_sum(1.0), optimizer=optax.sgd(0.1)
    )
    learning |= {name: changes.pop(name) for name in list(changes) if name in (*learning, "reuse")}
    settings = dict(
        refinement=refine.refinement(**learning),
        prepare=lambda params: params,
        integrator=integrator,
        criterion=criterion,
        plateau=optax.contrib.reduce_on_plateau(factor=0.5, patience=2),
        rate_schedule=optax.constant_schedule(1.0),
        min_rate_scale=0.1,
        max_epochs=3,
        steps_per_epoch=STEPS,
        steps_per_frame=10,
        max_unstable=0.5,
        min_unstable=0.0,
        freeze_above=np.inf,
        map_replicas=partial(parallel.map_replicas, batch_size=None),
    )
    built = stable.stable_training(**(settings | changes))
    return integrator, stable.StableTraining(
        jax.jit(built.init), jax.jit(built.simulate), jax.jit(built.learn, static_argnames="num_rounds")
    )


def stretch_criterion(spring, threshold):
    from stablejax import stability

    return stability.bond_length_deviation(spring.pairs, jnp.full(6, spring.length), threshold=threshold)


def init(built, spring, num_replicas=16, stiffness=5.0, key=0):
    position = jnp.tile(spring.start, (num_replicas, 1, 1))
    return built.init(jax.random.key(key), jnp.float32(stiffness), position)


NO_FRAMES = Labeled(jnp.zeros((1, 4, 3)), jnp.zeros(1), jnp.zeros((1, 4, 3)))


def simulate_until_learning(built, state):
    history = [state]
    while int(state.phase) == stable.SIMULATE:
        state, info = built.simulate(state)
        history.append(state)
    assert bool(info.starts_learning)
    return state, info, history


def assert_same_state(actual, expected):
    def check(a, b):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(check, actual, expected)


def test_simulation_freezes_at_the_first_violation_and_switches_phase(spring):
    _, built = training(spring, stretch_criterion(spring, 0.25))
    state, info, history = simulate_until_learning(built, init(built, spring))
    assert len(history) > 3  # the toy is not so unstable that one call ends it
    fractions = [float(jnp.mean(past.replicas.is_unstable)) for past in history]
    assert all(np.diff(fractions) >= 0)
    assert fractions[-2] < 0.5 <= fractions[-1] == float(info.fraction_unstable)
    frozen = np.asarray(history[-2].replicas.is_frozen)
    assert frozen.any()
    np.testing.assert_array_equal(state.replicas.step[frozen], history[-2].replicas.step[frozen])
    np.testing.assert_array_equal(state.replicas.step[~state.replicas.is_frozen], STEPS * (len(history) - 1))


def test_rewinding_restores_the_exact_state_t_steps_before(spring):
    integrator, built = training(spring, stretch_criterion(spring, 0.25))
    start = init(built, spring)
    state, _, _ = simulate_until_learning(built, start)
    target = np.maximum(np.asarray(state.replicas.step) - STEPS, 0)
    np.testing.assert_array_equal(state.rewound.step, target)
    assert len(set(target.tolist())) > 3  # violations fell into different steps and chunks

    def straight(replica, until):
        return dynamics.advance(integrator, never_fails, start.params, replica, until)

    expected = jax.jit(jax.vmap(straight))(start.replicas, jnp.asarray(target))
    assert_same_state(state.rewound.md, expected.md)
    assert not np.array_equal(state.rewound.md.position, state.replicas.md.position)


def test_rewound_replicas_fail_again_where_they_failed(spring):
    _, built = training(spring, stretch_criterion(spring, 0.25))
    state, info, _ = simulate_until_learning(built, init(built, spring))
    learning, learn_info = built.learn(state, NO_FRAMES)
    assert float(learn_info.fraction_unstable) == float(info.fraction_unstable)
    assert int(learn_info.num_samples) == 16 * 2
    assert int(learning.epoch) == 1
    assert_same_state(learning.rewound, state.rewound)


def test_more_rounds_are_more_samples_from_the_same_start(spring):
    _, built = training(spring, stretch_criterion(spring, 0.25))
    state, _, _ = simulate_until_learning(built, init(built, spring))
    _, one = built.learn(state, NO_FRAMES)
    learning, three = built.learn(state, NO_FRAMES, num_rounds=3)
    assert (int(one.num_rounds), int(three.num_rounds)) == (1, 3)
    assert int(three.num_samples) == 3 * int(one.num_samples)
    assert int(three.num_steps) == 3 * int(one.num_steps)
    assert_same_state(learning.rewound, state.rewound)


def test_learning_ends_after_max_epochs_and_the_next_cycle_goes_on_from_the_endpoints(spring):
    _, built = training(spring, stretch_criterion(spring, 0.25))
    state, _, _ = simulate_until_learning(built, init(built, spring))
    rewound = state.rewound
    for epoch in range(3):
        assert int(state.phase) == stable.LEARN
        state, info = built.learn(state, NO_FRAMES)
        assert bool(info.ends_cycle) == (epoch == 2)
    assert (int(state.phase), int(state.cycle), int(state.epoch)) == (stable.SIMULATE, 1, 0)
    np.testing.assert_array_equal(state.replicas.step, rewound.step + STEPS)
    is_unstable = np.asarray(state.replicas.is_unstable)
    np.testing.assert_array_equal(state.replicas.is_frozen, is_unstable)
    assert is_unstable.any() and not is_unstable.all()
    np.testing.assert_array_equal(state.checkpoint.step[is_unstable], rewound.step[is_unstable])
    np.testing.assert_array_equal(state.checkpoint.step[~is_unstable], state.replicas.step[~is_unstable])


def test_learning_ends_at_once_where_all_are_stable(spring):
    _, built = training(spring, stretch_criterion(spring, 0.25), min_unstable=0.49)
    start = init(built, spring)
    state, _, _ = simulate_until_learning(built, start)
    stiff = state._replace(params=jnp.float32(60.0), rewound=start.replicas)
    _, info = built.learn(stiff, NO_FRAMES)
    assert float(info.fraction_unstable) <= 0.49
    assert bool(info.ends_cycle)


def test_learning_ends_when_the_rate_has_decayed(spring):
    _, built = training(
        spring,
        stretch_criterion(spring, 0.25),
        max_epochs=100,
        plateau=optax.contrib.reduce_on_plateau(factor=0.5, patience=1),
        min_rate_scale=0.2,
    )
    state, _, _ = simulate_until_learning(built, init(built, spring))
    scales = []
    while int(state.phase) == stable.LEARN:
        state, info = built.learn(state, NO_FRAMES)  # nothing is learned, so the loss stalls
        scales.append(float(info.rate_scale))
    assert scales[0] == 1.0
    assert 0.2 < scales[-1] < 1.0
    assert len(scales) < 20
    assert float(state.plateau_state.scale) == 1.0  # the next phase starts afresh


def test_update_is_the_gradient_step_of_equation_seven(spring):
    def qm(params, frames):
        return params**2, LabelErrors(jnp.float32(0), jnp.float32(0))

    _, built = training(
        spring,
        stretch_criterion(spring, 0.25),
        observable_grad=lambda params, positions, mask, weight: (jnp.float32(1), jnp.float32(3)),
        qm_loss=qm,
        combine=refine.weighted_sum(10.0),
        optimizer=optax.sgd(1e-3),
    )
    state, _, _ = simulate_until_learning(built, init(built, spring))
    after, _ = built.learn(state, NO_FRAMES)
    assert float(after.params) == pytest.approx(5.0 - 1e-3 * (3 + 10 * 2 * 5.0))


def test_schedule_scales_the_step_by_the_epoch(spring):
    _, built = training(
        spring,
        stretch_criterion(spring, 0.25),
        observable_grad=lambda params, positions, mask, weight: (jnp.float32(1), jnp.float32(1)),
        rate_schedule=optax.linear_schedule(1.0, 0.0, 2),
        optimizer=optax.sgd(1e-2),
    )
    state, _, _ = simulate_until_learning(built, init(built, spring))
    steps = []
    for _ in range(2):
        before = float(state.params)
        state, _ = built.learn(state, NO_FRAMES)
        steps.append(before - float(state.params))
    np.testing.assert_allclose(steps, [1e-2, 0.5e-2], rtol=1e-3)


def test_non_finite_gradient_leaves_the_parameters(spring):
    _, built = training(
        spring,
        stretch_criterion(spring, 0.25),
        observable_grad=lambda params, positions, mask, weight: (jnp.float32(jnp.nan), jnp.float32(jnp.nan)),
    )
    state, _, _ = simulate_until_learning(built, init(built, spring))
    after, info = built.learn(state, NO_FRAMES)
    assert int(info.refinement.num_updates) == 0
    assert float(after.params) == 5.0


def test_the_loop_finds_the_stiffness_that_gives_the_reference(spring):
    """Too soft a molecule, taught by nothing but the mean squared stretch of a stiffer one."""
    reference_stiffness = 12.0
    from stablejax.geometry import pair_distances

    def observable(position):
        return jnp.mean((pair_distances(position, spring.pairs) - spring.length) ** 2)

    # Equipartition over 6 vibrations: ½ k Σ (r − r₀)² = 3 kT.
    reference = jnp.float32(KT / reference_stiffness)
    log_energy = lambda log_k, x: spring.energy(jnp.exp(log_k), x)  # noqa: E731
    integrator = dynamics.langevin(
        log_energy, spring.mass, kT=KT, timestep=units.FEMTOSECOND, friction=1 / (20 * units.FEMTOSECOND)
    )
    _, built = training(
        spring,
        stretch_criterion(spring, 0.3),
        integrator=integrator,
        observable_grad=weighted(
            boltzmann.boltzmann_value_and_grad(
                losses.observable_loss(reference, 1.0 / reference**2), log_energy, observable, kT=KT
            )
        ),
        optimizer=optax.adam(0.15),
        max_epochs=60,
        steps_per_epoch=400,
        steps_per_frame=40,
        min_rate_scale=0.01,
        plateau=optax.contrib.reduce_on_plateau(factor=0.7, patience=3),
    )
    state = built.init(jax.random.key(1), jnp.log(jnp.float32(4.0)), jnp.tile(spring.start, (128, 1, 1)))
    first, info, _ = simulate_until_learning(built, state)
    before = float(info.fraction_unstable)
    state = first
    while int(state.cycle) == 0:
        state, info = built.learn(state, NO_FRAMES)
    assert float(jnp.exp(state.params)) == pytest.approx(reference_stiffness, rel=0.12)
    assert before > 0.5
    assert float(info.fraction_unstable) < 0.2 * before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_per_frame": 7}, "has to divide `steps_per_epoch`, got 7 and 20"),
        ({"min_unstable": 0.6}, "0 <= min_unstable < max_unstable <= 1, got 0.6 and 0.5"),
        ({"max_unstable": 1.5}, "got 0.0 and 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message, spring):
    with pytest.raises(ValueError, match=message):
        training(spring, never_fails, **changes)
