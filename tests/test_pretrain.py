"""Losses and supervised training on a potential whose parameters are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stablejax import losses, units
from stablejax.losses import Labeled
from stablejax.pretrain import pretraining


def frames(spring, stiffness, num=32):
    position = spring.start + 0.1 * jax.random.normal(jax.random.key(0), (num, 4, 3))
    energy = jax.vmap(spring.energy, (None, 0))(stiffness, position)
    force = -jax.vmap(jax.grad(spring.energy, 1), (None, 0))(stiffness, position)
    return Labeled(position, energy, force)


def test_loss_is_equation_three(spring):
    data = frames(spring, 3.0)
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=0.2, force_weight=0.7)
    assert float(loss_fn(3.0, data)[0]) == pytest.approx(0, abs=1e-10)
    loss, errors = loss_fn(6.0, data)  # errors are then the labels themselves
    expected = 0.2 * np.mean(np.square(data.energy)) + 0.7 * np.mean(np.square(data.force))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(errors.energy_mae) == pytest.approx(np.mean(np.abs(data.energy)), rel=1e-5)
    assert float(errors.force_mae) == pytest.approx(np.mean(np.abs(data.force)), rel=1e-5)


def test_observable_loss_sums_over_a_pytree():
    loss_fn = losses.observable_loss({"a": jnp.zeros(2), "b": jnp.float32(1.0)}, {"a": 0.5, "b": 2.0})
    assert float(loss_fn({"a": jnp.array([1.0, 3.0]), "b": jnp.float32(4.0)})) == pytest.approx(0.5 * 10 + 2 * 9)


def test_training_finds_the_stiffness_and_averages(spring):
    data = frames(spring, 3.0)
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=0.05, force_weight=0.95)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=20)
    init, step = pretraining(loss_fn, optax.chain(optax.adam(0.05), plateau), average_decay=0.9)
    state = init(jnp.float32(1.0))
    state, info = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, data), s, length=400))(state)
    assert float(state.params) == pytest.approx(3.0, abs=0.03)
    assert float(state.average_params) == pytest.approx(3.0, abs=0.03)
    assert int(state.step) == 400
    assert float(info.loss[-1]) < 1e-3 * float(info.loss[0])


def test_average_follows_the_parameters_at_its_decay(spring):
    data = frames(spring, 3.0)
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=0.05, force_weight=0.95)
    init, step = pretraining(loss_fn, optax.sgd(0.01), average_decay=0.15)
    state, expected = init(jnp.float32(1.0)), 1.0
    for index in range(4):
        state, _ = step(state, data)
        decay = min(0.15, (index + 1) / (index + 10))
        expected = decay * expected + (1 - decay) * float(state.params)
        assert float(state.average_params) == pytest.approx(expected, rel=1e-6)
    assert float(state.average_params) != float(state.params)


def test_sharing_a_batch_changes_nothing(spring):
    data = frames(spring, 3.0)
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=0.05, force_weight=0.95)
    init, whole = pretraining(loss_fn, optax.sgd(0.01), average_decay=0.5)
    _, shared = pretraining(loss_fn, optax.sgd(0.01), average_decay=0.5, axis_name="device")
    state = init(jnp.float32(1.0))
    expected, expected_info = whole(state, data)
    parts = jax.tree.map(lambda leaf: leaf.reshape(4, 8, *leaf.shape[1:]), data)
    got, info = jax.vmap(shared, (None, 0), axis_name="device")(state, parts)
    np.testing.assert_allclose(got.params, float(expected.params), rtol=1e-6)
    np.testing.assert_allclose(info.loss, float(expected_info.loss), rtol=1e-6)
    assert float(expected.params) != 1.0


def test_units_are_those_of_physics():
    from ase import units as ase_units

    assert pytest.approx(ase_units.kB, rel=1e-6) == units.BOLTZMANN_EV_PER_K
    assert pytest.approx(ase_units.kcal / ase_units.mol, rel=1e-6) == units.KCAL_PER_MOL
    assert pytest.approx(ase_units.Hartree, rel=1e-6) == units.HARTREE
    assert pytest.approx(ase_units.Bohr, rel=1e-6) == units.BOHR
    assert pytest.approx(ase_units.fs, rel=1e-6) == units.FEMTOSECOND  # ASE has the same unit of time
    assert units.PICOSECOND == 1000 * units.FEMTOSECOND
    assert units.thermal_energy(500.0) == pytest.approx(0.0430867, rel=1e-5)
    with pytest.raises(ValueError, match="`temperature_K` must be positive, got 0"):
        units.thermal_energy(0.0)


def test_noise_on_positions_is_of_its_size_and_leaves_the_labels(spring):
    """The loss of a model without parameters is that of the noisy positions."""
    data = Labeled(jnp.zeros((2000, 4, 3)), jnp.arange(2000.0), jnp.ones((2000, 4, 3)))

    def loss_fn(params, frames):
        labels = jnp.sum(jnp.abs(frames.energy - data.energy)) + jnp.sum(jnp.abs(frames.force - 1))
        return jnp.mean(frames.position**2) + params * labels, losses.LabelErrors(jnp.float32(0), jnp.float32(0))

    init, step = pretraining(loss_fn, optax.sgd(0.0), average_decay=0.0, position_noise=0.2)
    state, first = step(init(jnp.float32(1.0)), data)
    _, second = step(state, data)
    assert float(first.loss) == pytest.approx(0.04, rel=0.05)
    assert float(first.loss) != float(second.loss), "every step draws anew"
    _, same = pretraining(loss_fn, optax.sgd(0.0), average_decay=0.0)[1](state, data)
    assert float(same.loss) == 0
