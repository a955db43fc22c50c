"""Neighbor lists under `jit`: the pairs that may come within a cutoff, rebuilt when atoms have moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.space import OPEN, Pairs, Space, all_pairs, safe_norm
from stablejax.types import Array, Bool, Float, Position


class NeighborList(NamedTuple):
    """Pairs that may come within the cutoff while no atom moves by more than half the skin."""

    pairs: Pairs  # padded
    position: Position  # at which it was built, Å
    did_overflow: Bool[Array, ""]  # there were more pairs than its capacity: some are missing


class NeighborLists(NamedTuple):
    """`init(position) -> list`, `step(list, position, is_active, is_wanted) -> list`, `covers(list, position)`.

    `step` rebuilds the list where atoms have moved or `is_wanted` is set, but not for a replica that is not active.
    """

    init: Callable[[Position], NeighborList]
    step: Callable[[NeighborList, Position, Bool[Array, ""], Bool[Array, ""]], NeighborList]
    covers: Callable[[NeighborList, Position], Bool[Array, ""]]
    num_pairs: int
    """Capacity."""


def neighbor_lists(num_atoms: int, *, cutoff: float, skin: float, num_pairs: int, space: Space = OPEN) -> NeighborLists:
    """Lists of the pairs within `cutoff + skin`, rebuilt when an atom has moved by a quarter of the skin.

    Replicas under one `vmap` rebuild theirs together, when the first active one needs it: a branch for each would turn
    into a selection, in which every list is rebuilt at every step. All distances are computed to build a list, so it
    is for up to some thousand atoms.

    Args:
      num_atoms: of the system.
      cutoff: Å.
      skin: Å. Wide: more pairs at every step; narrow: lists are rebuilt more often.
      num_pairs: capacity for pairs; see `most_pairs`. An overflow is flagged.
      space: positions may be wrapped or not.

    Raises:
      ValueError: the capacity is 0; the skin is not positive; the cell is too small for cutoff and skin.
    """
    if num_pairs < 1 or skin <= 0:
        raise ValueError(
            f"`neighbor_lists`: `num_pairs` must be at least 1 and `skin` positive, got {num_pairs} and {skin:g}: use "
            "`most_pairs` for the first and about 0.5 Å for the second."
        )
    space.check_reach("neighbor_lists", cutoff + skin)
    every_pair = all_pairs(num_atoms)

    def init(position):
        is_near = space.distances(position, every_pair) < cutoff + skin
        (index,) = jnp.nonzero(is_near, size=num_pairs, fill_value=len(is_near))
        take = lambda atom: jnp.asarray(atom).at[index].get(mode="fill", fill_value=num_atoms)  # noqa: E731
        return NeighborList(Pairs(*map(take, every_pair)), position, jnp.sum(is_near) > num_pairs)

    def furthest(listed, position):
        return jnp.max(safe_norm(position - listed.position))

    def step(listed, position, is_active, is_wanted):
        # The list covers half of the skin; the remaining quarter is for the next step.
        is_due = is_active & (is_wanted | (furthest(listed, position) > 0.25 * skin))
        return lax.cond(any_side_by_side(is_due), lambda: init(position), lambda: listed)

    covers = lambda listed, position: furthest(listed, position) <= 0.5 * skin  # noqa: E731
    return NeighborLists(init, step, covers, num_pairs)


def most_pairs(
    position: Float[Array, "frame atom 3"],
    *,
    cutoff: float,
    skin: float,
    space: Space = OPEN,
    margin: float = 1.15,
) -> int:
    """Capacity that a neighbor list needs: the largest number of pairs in any of the frames, times `margin`.

    Args:
      position: frames, Å.
      cutoff: Å.
      skin: Å.
      space: boundaries of the frames.
      margin: factor; the result is at most the number of all pairs.

    Raises:
      ValueError: the cell is too small for cutoff and skin.
    """
    space.check_reach("most_pairs", cutoff + skin)
    pairs = all_pairs(position.shape[1])
    count = jax.jit(lambda x: jnp.sum(space.distances(x, pairs) < cutoff + skin))
    largest = max(int(count(x)) for x in np.asarray(position))
    return min(int(np.ceil(margin * max(largest, 1))), len(pairs.first))


@jax.custom_batching.custom_vmap
def any_side_by_side(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """The flag; under `vmap` whether it is set anywhere, not batched, so that `lax.cond` stays a branch."""
    return flag


@any_side_by_side.def_vmap
def _any_of_all(axis_size, in_batched, flag):
    del axis_size, in_batched
    return any_side_by_side(jnp.any(flag)), False
