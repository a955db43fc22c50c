"""Distances without singular gradients, pairs of atoms, and periodic images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.types import Array, Bool, Float, Int, Position


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

    def combined(coefficient, rows):
        # Not a matrix product: three columns make a slow one on a CPU, and accelerators round its factors.
        return sum(coefficient[:, row, None] * jnp.asarray(rows[row], vector.dtype) for row in range(3))

    shift = lax.stop_gradient(jnp.round(combined(vector, np.linalg.inv(cell))))
    return vector - combined(shift, cell)


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


class NeighborList(NamedTuple):
    """Pairs that may come within the cutoff while no atom moves by more than half the skin."""

    pairs: Pairs  # padded
    position: Position  # where it was made, Å
    is_overfull: Bool[Array, ""]  # there were more pairs than places: some are missing


class NeighborLists(NamedTuple):
    """`find(position) -> list`, `update(list, position, is_active, is_wanted) -> list`, `covers(list, position)`.

    `update` makes a list where atoms have moved, or where it `is_wanted`, and not for what is not active.
    """

    find: Callable[[Position], NeighborList]
    update: Callable[[NeighborList, Position, Bool[Array, ""], Bool[Array, ""]], NeighborList]
    covers: Callable[[NeighborList, Position], Bool[Array, ""]]


def neighbor_lists(
    num_atoms: int,
    *,
    cutoff: float,
    skin: float,
    num_pairs: int,
    cell: Float[np.ndarray, "3 3"] | None = None,
) -> NeighborLists:
    """Lists of the pairs within `cutoff + skin`, made again when an atom has moved by a quarter of the skin.

    Replicas side by side under `vmap` make theirs together, when the first of those that are active needs it: a branch
    of its own for each would turn into a selection, in which every list is made at every step. All distances are
    computed to make a list, so it is for up to some thousand atoms.

    Args:
      num_atoms: of the system.
      cutoff: Å.
      skin: Å. Wide: more pairs at every step; narrow: lists are made more often.
      num_pairs: places for pairs; see `most_pairs`. A list that is overfull says so.
      cell: lattice vectors in rows, Å, positions wrapped or not. None: open boundaries.

    Raises:
      ValueError: no place for any pair; the skin is not positive; the cell is too small for the cutoff.
    """
    if num_pairs < 1 or skin <= 0:
        raise ValueError(
            f"`neighbor_lists`: `num_pairs` must be at least 1 and `skin` positive, got {num_pairs} and {skin:g}."
        )
    cell = None if cell is None else check_cell(cell, cutoff=cutoff)
    every_pair = all_pairs(num_atoms)

    def find(position):
        is_near = pair_distances(position, every_pair, cell) < cutoff + skin
        (index,) = jnp.nonzero(is_near, size=num_pairs, fill_value=len(is_near))
        take = lambda atom: jnp.asarray(atom).at[index].get(mode="fill", fill_value=num_atoms)  # noqa: E731
        return NeighborList(Pairs(*map(take, every_pair)), position, jnp.sum(is_near) > num_pairs)

    def furthest(listed, position):
        return jnp.max(safe_norm(position - listed.position))

    def update(listed, position, is_active, is_wanted):
        # Half of the skin is what the list covers; the other quarter is for the coming step.
        is_due = is_active & (is_wanted | (furthest(listed, position) > 0.25 * skin))
        return lax.cond(_any_side_by_side(is_due), lambda: find(position), lambda: listed)

    return NeighborLists(find, update, covers=lambda listed, position: furthest(listed, position) <= 0.5 * skin)


def most_pairs(
    position: Float[np.ndarray, "frame atom 3"],
    *,
    cutoff: float,
    skin: float,
    cell: Float[np.ndarray, "3 3"] | None = None,
    margin: float = 1.15,
) -> int:
    """Places that a neighbor list needs: the largest number of pairs in any of the frames, times `margin`.

    Args:
      position: frames, Å.
      cutoff: Å.
      skin: Å.
      cell: lattice vectors in rows, Å.
      margin: at most all pairs.
    """
    pairs = all_pairs(position.shape[1])
    count = jax.jit(lambda x: jnp.sum(pair_distances(x, pairs, cell) < cutoff + skin))
    largest = max(int(count(x)) for x in np.asarray(position))
    return min(int(np.ceil(margin * max(largest, 1))), len(pairs.first))


@jax.custom_batching.custom_vmap
def _any_side_by_side(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """The flag; under `vmap` whether it is set anywhere, not batched, so that `lax.cond` stays a branch."""
    return flag


@_any_side_by_side.def_vmap
def _any_of_all(axis_size, in_batched, flag):
    del axis_size, in_batched
    return _any_side_by_side(jnp.any(flag)), False
