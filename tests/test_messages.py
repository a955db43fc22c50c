"""Sums over neighbors: gathered, scattered and written out are the same, with all their derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablejax.models import messages
from stablejax.space import Pairs, all_pairs, pad_pairs

NUM_ATOMS = 5


def arrays(num_pairs):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(num_pairs, 2))), jnp.asarray(rng.normal(size=(NUM_ATOMS, 2)))


def written_out(pairs):
    def fn(weight, x):
        rows = [jnp.zeros(2)] * NUM_ATOMS
        for pair, (i, j) in enumerate(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)):
            rows[i] = rows[i] + weight[pair] * x[j]
            rows[j] = rows[j] + weight[pair] * x[i]
        return jnp.stack(rows)

    return fn


def traced(pairs):
    return lambda weight, x: messages.neighbor_sum(jax.tree.map(jnp.asarray, pairs), NUM_ATOMS)(weight, x)


COMPLETE = all_pairs(NUM_ATOMS)
RING = Pairs(np.array([0, 2, 3, 3, 0]), np.array([1, 1, 2, 4, 4]))
STAR = Pairs(np.array([0, 0, 0, 0]), np.array([1, 2, 3, 4]))


@pytest.mark.parametrize("pairs", [COMPLETE, RING, STAR], ids=["complete", "ring", "star"])
@pytest.mark.parametrize("make", [lambda p: messages.neighbor_sum(p, NUM_ATOMS), traced], ids=["known", "traced"])
def test_sum_and_its_derivatives_are_those_of_the_sum_written_out(pairs, make, x64):
    arguments = arrays(len(pairs.first))
    direction = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), arguments)
    sums, expected = make(pairs), written_out(pairs)

    def energy(fn):
        return lambda arguments: jnp.sum(jnp.sin(fn(*arguments)) ** 2)

    np.testing.assert_allclose(sums(*arguments), expected(*arguments), atol=1e-14)
    for derivative in (
        lambda fn: jax.jvp(fn, arguments, direction)[1],
        lambda fn: jax.grad(energy(fn))(arguments),
        lambda fn: jax.jvp(jax.grad(energy(fn)), (arguments,), (direction,))[1],
        lambda fn: jax.grad(lambda a: squared_norm(jax.grad(energy(fn))(a)))(arguments),
    ):
        found, wanted = jax.tree.leaves(derivative(sums)), jax.tree.leaves(derivative(expected))
        assert max(float(jnp.abs(leaf).max()) for leaf in wanted) > 0.1
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


def squared_norm(tree):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))


def test_gradient_of_known_pairs_has_no_scatter():
    """What makes it fast. The positive control is a list that is not known when the program is made."""
    weight, x = arrays(len(COMPLETE.first))

    def program(fn):
        gradient = jax.grad(lambda w, x: jnp.sum(fn(w, x) ** 2), argnums=(0, 1))
        return str(jax.make_jaxpr(gradient)(weight, x))

    assert "scatter" not in program(messages.neighbor_sum(COMPLETE, NUM_ATOMS))
    assert "scatter" in program(traced(COMPLETE))


def test_lists_that_cannot_be_gathered_are_not():
    assert messages.find_neighbors(COMPLETE, NUM_ATOMS) is not None
    assert messages.find_neighbors(RING, NUM_ATOMS) is not None
    assert messages.find_neighbors(STAR, NUM_ATOMS) is None
    padded = jax.tree.map(np.asarray, pad_pairs(COMPLETE, 12, num_atoms=NUM_ATOMS))
    assert messages.find_neighbors(padded, NUM_ATOMS) is None
    weight, x = arrays(12)
    np.testing.assert_allclose(
        messages.neighbor_sum(padded, NUM_ATOMS)(weight, x),
        messages.neighbor_sum(COMPLETE, NUM_ATOMS)(weight[:10], x),
        atol=1e-6,
    )
