"""Losses on a potential whose parameters are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import losses
from stablejax.losses import Labeled


def frames(spring, stiffness, num=32):
    position = spring.start + 0.1 * jax.random.normal(jax.random.key(0), (num, 4, 3))
    energy = jax.vmap(spring.energy, (None, 0))(stiffness, position)
    force = -jax.vmap(jax.grad(spring.energy, 1), (None, 0))(stiffness, position)
    return Labeled(position, energy, force)


def wrong_by(spring, *, energy, force):
    """Frames whose labels are off by so much, in the energy and in each component of the force."""
    right = frames(spring, 3.0)
    return right._replace(energy=right.energy + energy, force=right.force + force)


def test_each_weight_is_that_of_its_error(spring):
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=0.2, force_weight=0.7)
    for energy, force in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.5, 0.3)):
        loss, errors = loss_fn(3.0, wrong_by(spring, energy=energy, force=force))
        assert float(loss) == pytest.approx(0.2 * energy**2 + 0.7 * force**2, abs=1e-6)
        assert (float(errors.energy_mae), float(errors.force_mae)) == pytest.approx((energy, force), abs=1e-5)


def test_loss_of_another_stiffness_is_that_of_the_labels(spring):
    data = frames(spring, 3.0)
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=0.2, force_weight=0.7)
    loss, errors = loss_fn(6.0, data)  # errors are then the labels themselves
    expected = 0.2 * np.mean(np.square(data.energy)) + 0.7 * np.mean(np.square(data.force))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(errors.energy_mae) == pytest.approx(np.mean(np.abs(data.energy)), rel=1e-5)
    assert float(errors.force_mae) == pytest.approx(np.mean(np.abs(data.force)), rel=1e-5)


def test_norm_of_equation_three_has_a_weight_of_3n_times_as_much(spring):
    """λ_U (ΔU)² + λ_F ‖ΔF‖² with λ_U = 2 and λ_F = 0.1 on the 4 atoms of a spring."""
    data = wrong_by(spring, energy=0.5, force=0.3)
    num_components = data.force[0].size
    loss_fn = losses.energy_and_force_loss(spring.energy, energy_weight=2.0, force_weight=0.1 * num_components)
    norm = np.sum(np.square(np.full((4, 3), 0.3)))
    assert float(loss_fn(3.0, data)[0]) == pytest.approx(2.0 * 0.5**2 + 0.1 * norm, rel=1e-4)


def test_observable_loss_sums_over_a_pytree():
    loss_fn = losses.observable_loss({"a": jnp.zeros(2), "b": jnp.float32(1.0)}, {"a": 0.5, "b": 2.0})
    assert float(loss_fn({"a": jnp.array([1.0, 3.0]), "b": jnp.float32(4.0)})) == pytest.approx(0.5 * 10 + 2 * 9)


def test_weights_of_components_measure_them_in_their_fluctuations():
    """One bin that the reference fluctuates in by 2, one that it hardly visits, and an observable that is constant."""
    variance = {"bins": np.array([4.0, 0.0]), "constant": np.zeros(3), "one": np.array(0.25)}
    weights = losses.fluctuation_weights(variance, least=0.5)
    np.testing.assert_allclose(weights["bins"], [1 / (2 * (4 + 1)), 1 / (2 * 1)])
    np.testing.assert_array_equal(weights["constant"], 0)
    assert float(weights["one"]) == pytest.approx(1 / (0.25 * 1.25))
    loss_fn = losses.observable_loss({"bins": jnp.zeros(2)}, {"bins": weights["bins"]})
    assert float(loss_fn({"bins": jnp.array([2.0, 1.0])})) == pytest.approx(4 / 10 + 1 / 2)
