"""Sums over the neighbors of an atom."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stablejax.space import Pairs
from stablejax.types import Array, Float, Int

NeighborSum = Callable[[Float[Array, "pair feature"], Float[Array, "atom feature"]], Float[Array, "atom feature"]]


class Neighbors(NamedTuple):
    """Neighbors of every atom, where all have the same number, and the pair that each belongs to."""

    atom: Int[np.ndarray, "atom neighbor"]
    pair: Int[np.ndarray, "atom neighbor"]


def find_neighbors(pairs: Pairs, num_atoms: int) -> Neighbors | None:
    """The neighbors; None where pairs are padded or not known at trace time, or atoms differ in their number.

    Args:
      pairs: undirected.
      num_atoms: of the system.
    """
    if not (isinstance(pairs.first, np.ndarray) and isinstance(pairs.second, np.ndarray)):
        return None
    target = np.concatenate([pairs.first, pairs.second])
    source = np.concatenate([pairs.second, pairs.first])
    degree = np.bincount(target, minlength=num_atoms)
    if len(degree) > num_atoms or np.ptp(degree):
        return None
    edge = np.argsort(target, kind="stable").reshape(num_atoms, -1)
    return Neighbors(source[edge], edge % len(pairs.first))


def neighbor_sum(pairs: Pairs, num_atoms: int) -> NeighborSum:
    """`(weight, x) -> Σ_j w_ij x_j` of each atom i, over its neighbors j. Differentiable any number of times.

    Where pairs are known at trace time and each atom has the same number, as in a molecule with all its pairs, the sum
    and its gradient gather; scattering takes twice as long on a CPU.

    Args:
      pairs: undirected.
      num_atoms: of the system.
    """
    neighbors = find_neighbors(pairs, num_atoms)
    mode = "promise_in_bounds" if neighbors else "drop"

    def scattered(weight, x):
        received, returned = weight * x[pairs.second], weight * x[pairs.first]
        sums = jnp.zeros_like(received, shape=x.shape)
        return sums.at[pairs.first].add(received, mode=mode).at[pairs.second].add(returned, mode=mode)

    if neighbors is None:
        return scattered

    # Neighbors are constants of the functions, not arguments, so that XLA sees that both gather the same weights.
    @jax.custom_jvp
    def gathered(weight, x):
        return jnp.sum(weight[neighbors.pair] * x[neighbors.atom], axis=1)

    @gathered.defjvp
    def gathered_jvp(primals, tangents):
        weight, x = primals
        weight_tangent, x_tangent = tangents
        # Scatters, so that their transposes, which are all that reverse mode runs, gather.
        sent = weight[neighbors.pair] * x_tangent[:, None]
        of_x = jnp.zeros_like(sent, shape=x.shape).at[neighbors.atom].add(sent, mode=mode)
        return gathered(weight, x), of_x + scattered(weight_tangent, x)

    return gathered
