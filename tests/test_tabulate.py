"""Tables against the functions they stand for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax import tabulate


def waves(distance):
    return jnp.stack([jnp.sin(2 * distance), jnp.exp(-distance), jnp.cos(0.6 * jnp.pi * distance)], axis=1)


def test_value_and_slope_within_the_stated_bound(x64):
    cutoff, num_intervals = 5.0, 40
    table = tabulate.radial_table(waves, cutoff=cutoff, num_intervals=num_intervals)
    distance = jnp.linspace(0, cutoff, 1777, endpoint=False)
    value, slope = jax.jvp(lambda r: tabulate.evaluate(table, r), (distance,), (jnp.ones_like(distance),))
    exact_value, exact_slope = jax.jvp(waves, (distance,), (jnp.ones_like(distance),))
    spacing = cutoff / num_intervals
    bound = np.sqrt(3) * spacing**3 / 216 * 2.0**4  # |f⁗| of the first channel reaches 16
    assert 0.3 * bound < np.abs(slope - exact_slope).max() <= 1.05 * bound
    assert np.abs(value - exact_value).max() < bound * spacing


def test_constant_beyond_the_end_with_no_slope():
    table = tabulate.radial_table(waves, cutoff=2.0, num_intervals=64)
    np.testing.assert_allclose(tabulate.evaluate(table, jnp.array([2.5, 9.0])), waves(jnp.array([2.0, 2.0])), atol=1e-5)
    slope = jax.jacrev(lambda r: tabulate.evaluate(table, r[None])[0])(jnp.float32(2.5))
    np.testing.assert_array_equal(slope, 0)


def test_float32_does_not_lose_the_slope_as_intervals_shrink():
    distance = jnp.linspace(0.1, 4.9, 500)
    exact = jax.jvp(waves, (distance,), (jnp.ones_like(distance),))[1]
    for num_intervals in (512, 4096):
        table = tabulate.radial_table(waves, cutoff=5.0, num_intervals=num_intervals)
        slope = jax.jvp(lambda r, t=table: tabulate.evaluate(t, r), (distance,), (jnp.ones_like(distance),))[1]
        assert np.abs(slope - exact).max() < 1e-5


def test_no_intervals_are_refused():
    with pytest.raises(ValueError, match="`num_intervals` must be at least 1, got 0"):
        tabulate.radial_table(waves, cutoff=1.0, num_intervals=0)


def test_a_table_carries_the_derivative_of_what_it_was_made_from():
    """Weights of a radial network have the gradient of the exact one; alone, and together with the distance."""
    distance = jnp.linspace(0.2, 4.8, 40)

    def network(weights, r):
        return jnp.tanh(r[:, None] * weights["a"] + weights["b"]) * jnp.exp(-r)[:, None]

    def through_table(weights, r):
        table = tabulate.radial_table(lambda r: network(weights, r), cutoff=5.0, num_intervals=256)
        return jnp.sum(jnp.sin(tabulate.evaluate(table, r)))

    weights = {"a": jnp.array([0.5, 1.5, -1.0]), "b": jnp.array([0.1, -0.2, 0.3])}
    exact = jax.grad(lambda w, r: jnp.sum(jnp.sin(network(w, r))), argnums=(0, 1))(weights, distance)
    found = jax.grad(through_table, argnums=(0, 1))(weights, distance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found, exact)
    alone = jax.jit(jax.grad(through_table))(weights, distance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), alone, exact[0])
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact[0])) > 0.1
