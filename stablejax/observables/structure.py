"""Static structure of a molecule: distances, bonds and angles. Functions of one frame."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from stablejax.geometry import Pairs, all_pairs, pair_distances, safe_norm
from stablejax.types import Array, Float, Int, ObservableFn


def bin_centres(stop: float, width: float) -> Float[np.ndarray, " bin"]:
    """Centres of bins of `width` from 0 to `stop`."""
    return (np.arange(round(stop / width)) + 0.5) * width


def interatomic_distances(pairs: Pairs, centre: Float[Array, " bin"], *, smearing: float) -> ObservableFn:
    """h(r), the distribution of interatomic distances (A.4), smeared by Gaussians: a density that integrates to 1.

    h(r) = 1/P Σ_pairs exp(−(r − r_ij)²/2σ²) / √(2π)σ, per Å, at each bin centre. With all P = N(N−1)/2 pairs of a
    molecule it is the paper's. One function for simulation and reference. Differentiable.

    Args:
      pairs: the pairs that count, each once; see `geometry.all_pairs` and `pairs_by_element`.
      centre: Å.
      smearing: σ, Å.
    """
    norm = 1.0 / (len(pairs.first) * np.sqrt(2 * np.pi) * smearing)

    def observable(position):
        distance = pair_distances(position, pairs)
        delta = (jnp.asarray(centre, position.dtype)[:, None] - distance) / smearing
        return norm * jnp.sum(jnp.exp(-0.5 * delta * delta), axis=1)

    return observable


def pairs_by_element(species: Int[np.ndarray, " atom"]) -> dict[tuple[int, int], Pairs]:
    """All pairs of a molecule by the atomic numbers of their two atoms, the smaller first."""
    pairs, species = all_pairs(len(species)), np.asarray(species)
    low = np.minimum(species[pairs.first], species[pairs.second])
    high = np.maximum(species[pairs.first], species[pairs.second])
    kinds = sorted(set(zip(low.tolist(), high.tolist(), strict=True)))
    is_kind = {kind: (low == kind[0]) & (high == kind[1]) for kind in kinds}
    return {kind: Pairs(pairs.first[chosen], pairs.second[chosen]) for kind, chosen in is_kind.items()}


def bond_lengths(bonds: Pairs) -> ObservableFn:
    """Length of each bond, Å."""
    return lambda position: pair_distances(position, bonds)


def bond_variances(bonds: Pairs, mean: Float[Array, " bond"], variance: Float[Array, " bond"]) -> ObservableFn:
    """Squared deviation of each bond from its reference mean, over its reference variance: 1 on average there.

    A bond that stretches far, and rarely, is lost in a distribution of distances; here it weighs as its square.

    Args:
      bonds: bonded pairs.
      mean: of the length of each in the reference, Å.
      variance: of the length of each in the reference, Å².
    """
    return lambda position: (pair_distances(position, bonds) - mean) ** 2 / variance


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
