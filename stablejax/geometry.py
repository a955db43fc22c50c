"""Distances without singular gradients, and the pairs of a small molecule."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from stablejax.types import Array, Float, Int, Position


class Pairs(NamedTuple):
    """Undirected pairs of atoms: each pair once, `first` and `second` exchangeable."""

    first: Int[Array, " pair"]
    second: Int[Array, " pair"]


def safe_norm(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis, with gradient 0 (not NaN) where the vector is 0."""
    squared = jnp.sum(vector * vector, axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def all_pairs(num_atoms: int) -> Pairs:
    """All pairs i < j of a molecule in open boundaries.

    Raises:
      ValueError: fewer than 2 atoms.
    """
    if num_atoms < 2:
        raise ValueError(f"`all_pairs`: `num_atoms` must be at least 2, got {num_atoms}: a pair needs two atoms.")
    first, second = np.triu_indices(num_atoms, k=1)
    return Pairs(first.astype(np.int32), second.astype(np.int32))


def pair_vectors(position: Position, pairs: Pairs) -> Float[Array, "pair 3"]:
    """Vectors from the first to the second atom of each pair, Å, open boundaries."""
    return position[pairs.second] - position[pairs.first]


def pair_distances(position: Position, pairs: Pairs) -> Float[Array, " pair"]:
    """Distances of the pairs, Å. Differentiable, also at 0."""
    return safe_norm(pair_vectors(position, pairs))
