"""Static structure of a molecule: distances, bonds and angles. Functions of one frame."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from stablejax.geometry import Pairs, all_pairs, pair_distances, safe_norm
from stablejax.types import Array, Float, Int, ObservableFn


def bin_centres(stop: float, width: float) -> Float[np.ndarray, " bin"]:
    """Centres of bins of `width` from 0 to `stop`."""
    return (np.arange(round(stop / width)) + 0.5) * width


def interatomic_distances(num_atoms: int, centre: Float[Array, " bin"], *, smearing: float) -> ObservableFn:
    """h(r), the distribution of interatomic distances (A.4), smeared by Gaussians: a density that integrates to 1.

    h(r) = 2/(N(N−1)) Σ_{i<j} exp(−(r − r_ij)²/2σ²) / √(2π)σ, per Å, at each bin centre. One function for simulation
    and reference. Differentiable.

    Args:
      num_atoms: N.
      centre: Å.
      smearing: σ, Å.
    """
    pairs = all_pairs(num_atoms)
    norm = 1.0 / (len(pairs.first) * np.sqrt(2 * np.pi) * smearing)

    def observable(position):
        distance = pair_distances(position, pairs)
        delta = (jnp.asarray(centre, position.dtype)[:, None] - distance) / smearing
        return norm * jnp.sum(jnp.exp(-0.5 * delta * delta), axis=1)

    return observable


def bond_lengths(bonds: Pairs) -> ObservableFn:
    """Length of each bond, Å."""
    return lambda position: pair_distances(position, bonds)


def bond_angles(triples: Int[Array, "angle 3"]) -> ObservableFn:
    """Angle i–j–k at the middle atom of each triple, radians in [0, π]. Differentiable except where it is 0 or π."""

    def observable(position):
        to_first = position[triples[:, 0]] - position[triples[:, 1]]
        to_last = position[triples[:, 2]] - position[triples[:, 1]]
        return jnp.arctan2(safe_norm(jnp.cross(to_first, to_last)), jnp.sum(to_first * to_last, axis=-1))

    return observable


def angle_triples(bonds: Pairs) -> Int[np.ndarray, "angle 3"]:
    """Every pair of bonds that meet at an atom, as (end, middle, end)."""
    neighbours: dict[int, list[int]] = {}
    for first, second in zip(np.asarray(bonds.first).tolist(), np.asarray(bonds.second).tolist(), strict=True):
        neighbours.setdefault(first, []).append(second)
        neighbours.setdefault(second, []).append(first)
    triples = [
        (end, middle, other)
        for middle, ends in sorted(neighbours.items())
        for index, end in enumerate(ends)
        for other in ends[index + 1 :]
    ]
    return np.array(triples, np.int32).reshape(-1, 3)
