"""Static structure: distances, bonds, angles and dihedrals. Functions of one frame."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from stablejax.space import OPEN, Pairs, Space, safe_norm
from stablejax.types import Array, Float, Frame, Int, ObservableFn


def bin_centers(stop: float, width: float) -> Float[np.ndarray, " bin"]:
    """Centers of the whole bins of `width` from 0 to at most `stop`.

    Args:
      stop: end of the last bin, or up to a bin beyond it.
      width: of a bin, in the same unit.
    """
    return (np.arange(_num_bins(stop, width)) + 0.5) * width


def interatomic_distances(
    pairs: Pairs, center: Float[Array, " bin"], *, smearing: float, space: Space = OPEN
) -> ObservableFn:
    """h(r), the distribution of interatomic distances (A.4), smeared by Gaussians: a density that integrates to 1.

    h(r) = 1/P Σ_pairs exp(−(r − r_ij)²/2σ²) / √(2π)σ, per Å, at each bin center. With all P = N(N−1)/2 pairs of a
    molecule it is the paper's. One function for simulation and reference. Differentiable.

    Args:
      pairs: the pairs that count, each once; see `space.all_pairs` and `topology.pairs_by_element`.
      center: Å.
      smearing: σ, Å.
      space: in which distances are computed.

    Raises:
      ValueError: the last bin is beyond the reach of the cell.
    """
    space.check_reach("interatomic_distances", float(np.max(center)))
    norm = 1.0 / (len(pairs.first) * np.sqrt(2 * np.pi) * smearing)

    def observable(frame: Frame):
        distance = space.distances(frame.position, pairs)
        delta = (jnp.asarray(center, distance.dtype)[:, None] - distance) / smearing
        return norm * jnp.sum(jnp.exp(-0.5 * delta * delta), axis=1)

    return observable


def density(values_fn: ObservableFn, center: Float[Array, " bin"], *, smearing: float) -> ObservableFn:
    """The distribution of each value of another observable, as the Gaussian about it at the bin centers.

    A rare outlier is lost in a mean, but not here, where its bins are empty in the reference.

    Args:
      values_fn: observable [...], for example `molecule_distances`.
      center: in the unit of the values.
      smearing: σ of the Gaussians, in that unit.

    Returns:
      Observable [..., bin].
    """
    norm = 1.0 / (np.sqrt(2 * np.pi) * smearing)

    def observable(frame: Frame):
        values = values_fn(frame)
        delta = (values[..., None] - jnp.asarray(center, values.dtype)) / smearing
        return norm * jnp.exp(-0.5 * delta * delta)

    return observable


def radial_distribution(pairs: Pairs, *, stop: float, width: float, space: Space) -> ObservableFn:
    """Radial distribution function g(r) of the pairs (A.4) in bins of `width` from 0 to `stop`: 1 for an ideal gas.

    g(r) = V / (P · volume of the shell) × number of the P pairs in it. A histogram, so it is not differentiable, which
    the estimator does not require.

    Args:
      pairs: those that count, each once; see `topology.intermolecular_pairs`.
      stop: Å; the last whole bin ends there or before.
      width: of the bins, Å.
      space: periodic, and reaching as far as the last bin.

    Raises:
      ValueError: open boundaries; the last bin ends beyond the reach of the cell.
    """
    if not space.is_periodic:
        raise ValueError(
            "`radial_distribution`: expected a periodic space, got open boundaries, where there is no density: use "
            "`interatomic_distances`."
        )
    num_bins = _num_bins(stop, width)
    space.check_reach("radial_distribution", num_bins * width)
    edges = np.arange(num_bins + 1) * width
    shell = 4 / 3 * np.pi * np.diff(edges**3)
    norm = space.volume / (len(pairs.first) * shell)

    def observable(frame: Frame):
        index = (space.distances(frame.position, pairs) / width).astype(jnp.int32)
        count = jnp.zeros(num_bins, frame.position.dtype).at[index].add(1, mode="drop")
        return count * jnp.asarray(norm, frame.position.dtype)

    return observable


def bond_lengths(bonds: Pairs, *, space: Space = OPEN) -> ObservableFn:
    """Length of each bond, Å. Differentiable.

    Args:
      bonds: bonded pairs.
      space: in which distances are computed.
    """
    return lambda frame: space.distances(frame.position, bonds)


def molecule_bond_lengths(bonds: Pairs, molecule: Int[np.ndarray, " atom"], *, space: Space = OPEN) -> ObservableFn:
    """Mean length of the bonds of each molecule, Å: [molecule], all of which have bonds. Differentiable.

    Args:
      bonds: bonded pairs.
      molecule: number of the molecule of each atom; see `topology.find_molecules`.
      space: in which distances are computed.

    Raises:
      ValueError: a molecule has no bond.
    """
    of_bond = molecule[np.asarray(bonds.first)]
    num_bonds = np.bincount(of_bond, minlength=int(molecule.max()) + 1)
    if not num_bonds.all():
        raise ValueError(
            f"`molecule_bond_lengths`: expected a bond in every molecule, got none in {np.argmin(num_bonds)}: leave "
            "ions and single atoms out, or use another observable."
        )

    def observable(frame: Frame):
        length = space.distances(frame.position, bonds)
        return jnp.zeros(len(num_bonds), length.dtype).at[of_bond].add(length) / num_bonds

    return observable


def molecule_distances(pairs: Pairs, molecule: Int[np.ndarray, " atom"], *, space: Space = OPEN) -> ObservableFn:
    """Smallest distance from an atom of each molecule to one of another molecule, Å: [molecule]. Differentiable.

    Args:
      pairs: of atoms of different molecules; see `topology.intermolecular_pairs`.
      molecule: number of the molecule of each atom; see `topology.find_molecules`.
      space: in which distances are computed.
    """
    num_molecules = int(molecule.max()) + 1

    def observable(frame: Frame):
        distance = space.distances(frame.position, pairs)
        nearest = jnp.full(num_molecules, jnp.inf, distance.dtype)
        return nearest.at[molecule[pairs.first]].min(distance).at[molecule[pairs.second]].min(distance)

    return observable


def largest_by_molecule(values_fn: ObservableFn, pairs: Pairs, molecule: Int[np.ndarray, " atom"]) -> ObservableFn:
    """Largest value of the pairs that an atom of each molecule takes part in: [molecule]. Differentiable.

    Args:
      values_fn: a value for each pair.
      pairs: of atoms, at least one for each molecule.
      molecule: number of the molecule of each atom; see `topology.find_molecules`.
    """
    num_molecules = int(molecule.max()) + 1

    def observable(frame: Frame):
        value = values_fn(frame)
        largest = jnp.full(num_molecules, -jnp.inf, value.dtype)
        return largest.at[molecule[pairs.first]].max(value).at[molecule[pairs.second]].max(value)

    return observable


def bond_variances(
    bonds: Pairs, mean: Float[Array, " bond"], variance: Float[Array, " bond"], *, space: Space = OPEN
) -> ObservableFn:
    """Squared deviation of each bond from its reference mean, over its reference variance: 1 on average there.

    A bond that stretches far, but rarely, is lost in a distribution of distances; here it enters quadratically.

    Args:
      bonds: bonded pairs.
      mean: of the length of each in the reference, Å.
      variance: of the length of each in the reference, Å².
      space: in which distances are computed.
    """
    return lambda frame: (space.distances(frame.position, bonds) - mean) ** 2 / variance


def bond_angles(triples: Int[Array, "angle 3"], *, space: Space = OPEN) -> ObservableFn:
    """Angle i–j–k at the middle atom of each triple, radians in [0, π]. Differentiable except where it is 0 or π.

    Args:
      triples: atoms i, j, k; see `topology.angle_triples`.
      space: in which vectors are computed.
    """

    def observable(frame: Frame):
        to_first = space.vectors(frame.position, Pairs(triples[:, 1], triples[:, 0]))
        to_last = space.vectors(frame.position, Pairs(triples[:, 1], triples[:, 2]))
        return jnp.arctan2(safe_norm(jnp.cross(to_first, to_last)), jnp.sum(to_first * to_last, axis=-1))

    return observable


def dihedral_angles(quads: Int[Array, "dihedral 4"], *, space: Space = OPEN) -> ObservableFn:
    """Dihedral angle about the middle bond of each i–j–k–l, radians in (−π, π], 0 where i and l are cis (IUPAC).

    Differentiable, except where three consecutive atoms are collinear.

    Args:
      quads: atoms i, j, k, l; see `topology.backbone_dihedrals`.
      space: in which vectors are computed.
    """

    def observable(frame: Frame):
        first, middle, last = (space.vectors(frame.position, Pairs(quads[:, i], quads[:, i + 1])) for i in range(3))
        before, after = jnp.cross(first, middle), jnp.cross(middle, last)
        sine = safe_norm(middle) * jnp.sum(first * after, axis=-1)
        return jnp.arctan2(sine, jnp.sum(before * after, axis=-1))

    return observable


def ramachandran(
    phi: Int[Array, "residue 4"], psi: Int[Array, "residue 4"], *, num_bins: int, space: Space = OPEN
) -> ObservableFn:
    """Fraction of the residues in each bin of φ and ψ, [φ bin, ψ bin] from −π to π. Not differentiable.

    Args:
      phi: atoms of φ; see `topology.backbone_dihedrals`.
      psi: atoms of ψ.
      num_bins: of each angle.
      space: in which vectors are computed.
    """

    def observable(frame: Frame):
        bins = [
            jnp.floor((dihedral_angles(quads, space=space)(frame) + jnp.pi) / (2 * jnp.pi) * num_bins)
            for quads in (phi, psi)
        ]
        index = tuple(jnp.clip(b.astype(jnp.int32), 0, num_bins - 1) for b in bins)
        return jnp.zeros((num_bins, num_bins), frame.position.dtype).at[index].add(1 / len(phi))

    return observable


def _num_bins(stop: float, width: float) -> int:
    """Whole bins up to `stop`, including one that exceeds it only by rounding."""
    return int(np.floor(stop / width + 1e-6))
