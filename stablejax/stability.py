"""Stability criteria (paper A.5): functions of a frame that are positive where it is unstable."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from stablejax.geometry import Pairs, pair_distances
from stablejax.types import Array, Criterion, Float


def find_bonds(
    position: Float[np.ndarray, "frame atom 3"], covalent_radius: Float[np.ndarray, " atom"], *, tolerance: float = 1.25
) -> tuple[Pairs, Float[np.ndarray, " bond"]]:
    """Bonds of a reference simulation and their mean lengths.

    A bond is a pair whose mean distance is under `tolerance` times the sum of the covalent radii.

    Args:
      position: frames of the reference, Å.
      covalent_radius: Å.
      tolerance: factor.

    Returns:
      The bonds, and their mean lengths, Å.

    Raises:
      ValueError: no bond was found.
    """
    first, second = np.triu_indices(position.shape[1], k=1)
    length = np.linalg.norm(position[:, first] - position[:, second], axis=-1).mean(axis=0)
    is_bond = length < tolerance * (covalent_radius[first] + covalent_radius[second])
    if not is_bond.any():
        raise ValueError(
            f"`find_bonds`: no pair closer than {tolerance} times its covalent radii (nearest mean distance "
            f"{length.min():.2f} Å): check that positions are in Å and in the order of the atoms."
        )
    bonds = Pairs(first[is_bond].astype(np.int32), second[is_bond].astype(np.int32))
    return bonds, length[is_bond].astype(np.float32)


def bond_length_deviation(bonds: Pairs, length: Float[Array, " bond"], *, threshold: float) -> Criterion:
    """Max |r_ij − b_ij| − threshold over the bonds, Å (A.5, maximum bond length deviation).

    Args:
      bonds: bonded pairs.
      length: b_ij, their lengths in the reference, Å.
      threshold: Δ, Å: 0.25 in training and 0.5 at evaluation in the paper.
    """

    def criterion(position):
        return jnp.max(jnp.abs(pair_distances(position, bonds) - jnp.asarray(length, position.dtype))) - threshold

    return criterion


def any_of(*criteria: Criterion) -> Criterion:
    """Unstable where any of the criteria is: their maximum."""
    return lambda position: jnp.max(jnp.stack([criterion(position) for criterion in criteria]))
