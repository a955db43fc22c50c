"""Distances without singular gradients, pairs of atoms, and periodic images."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.types import Array, Float, Int, Position


class Pairs(NamedTuple):
    """Undirected pairs of atoms: each pair once, `first` and `second` exchangeable.

    Padding has the number of atoms for both, one past the last: it is read as the last atom and written nowhere.
    """

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


def pad_pairs(pairs: Pairs, num_pairs: int, *, num_atoms: int) -> Pairs:
    """The pairs, padded to `num_pairs`.

    Raises:
      ValueError: there are more pairs.
    """
    missing = num_pairs - len(pairs.first)
    if missing < 0:
        raise ValueError(
            f"`pad_pairs`: {len(pairs.first)} pairs do not fit into `num_pairs` = {num_pairs}: ask for as many."
        )
    return Pairs(*(jnp.pad(jnp.asarray(index), (0, missing), constant_values=num_atoms) for index in pairs))


def check_cell(cell: Float[np.ndarray, "3 3"], *, cutoff: float) -> Float[np.ndarray, "3 3"]:
    """The cell as an array, if the nearest image of every pair within the cutoff is unique.

    Args:
      cell: lattice vectors in rows, Å.
      cutoff: Å.

    Raises:
      ValueError: another shape; the cutoff is over half of a height of the cell.
    """
    cell = np.asarray(cell, float)
    if cell.shape != (3, 3):
        raise ValueError(f"`cell` needs the three lattice vectors in rows, [3, 3], got shape {cell.shape}.")
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    if cutoff > height / 2:
        raise ValueError(
            f"`cell`: its smallest height is {height:.3f} Å, which is less than twice the cutoff of {cutoff:g} Å: "
            "an atom would see two images of another. Use a larger cell."
        )
    return cell


def nearest_image(vector: Float[Array, "pair 3"], cell: Float[np.ndarray, "3 3"]) -> Float[Array, "pair 3"]:
    """Vectors to the nearest periodic image, where they are shorter than half the smallest height of the cell.

    Args:
      vector: Å.
      cell: lattice vectors in rows, Å.
    """
    inverse = jnp.asarray(np.linalg.inv(cell), vector.dtype)
    shift = lax.stop_gradient(jnp.round(vector @ inverse))
    return vector - shift @ jnp.asarray(cell, vector.dtype)


def pair_vectors(
    position: Position, pairs: Pairs, cell: Float[np.ndarray, "3 3"] | None = None
) -> Float[Array, "pair 3"]:
    """Vectors from the first to the second atom of each pair, Å; in open boundaries where there is no `cell`."""
    vector = position[pairs.second] - position[pairs.first]
    return vector if cell is None else nearest_image(vector, cell)


def pair_distances(
    position: Position, pairs: Pairs, cell: Float[np.ndarray, "3 3"] | None = None
) -> Float[Array, " pair"]:
    """Distances of the pairs, Å. Differentiable, also at 0."""
    return safe_norm(pair_vectors(position, pairs, cell))
