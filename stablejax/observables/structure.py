"""Static structure: distances, bonds, angles and dihedrals. Functions of one frame."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from stablejax.geometry import Pairs, all_pairs, check_cell, pair_distances, safe_norm
from stablejax.types import Array, Float, Int, ObservableFn


def bin_centers(stop: float, width: float) -> Float[np.ndarray, " bin"]:
    """Centers of bins of `width` from 0 to `stop`."""
    return (np.arange(round(stop / width)) + 0.5) * width


def interatomic_distances(pairs: Pairs, center: Float[Array, " bin"], *, smearing: float) -> ObservableFn:
    """h(r), the distribution of interatomic distances (A.4), smeared by Gaussians: a density that integrates to 1.

    h(r) = 1/P Σ_pairs exp(−(r − r_ij)²/2σ²) / √(2π)σ, per Å, at each bin center. With all P = N(N−1)/2 pairs of a
    molecule it is the paper's. One function for simulation and reference. Differentiable.

    Args:
      pairs: the pairs that count, each once; see `geometry.all_pairs` and `pairs_by_element`.
      center: Å.
      smearing: σ, Å.
    """
    norm = 1.0 / (len(pairs.first) * np.sqrt(2 * np.pi) * smearing)

    def observable(position):
        distance = pair_distances(position, pairs)
        delta = (jnp.asarray(center, position.dtype)[:, None] - distance) / smearing
        return norm * jnp.sum(jnp.exp(-0.5 * delta * delta), axis=1)

    return observable


def density(values_fn: ObservableFn, center: Float[Array, " bin"], *, smearing: float) -> ObservableFn:
    """The distribution of each value of another observable, as the Gaussian about it at the bin centers.

    A rare value far from the others is lost in a mean; its bins are empty in the reference, so here it is not.

    Args:
      values_fn: observable [...], for example `molecule_distances`.
      center: in the unit of the values.
      smearing: σ of the Gaussians, in that unit.

    Returns:
      Observable [..., bin].
    """
    norm = 1.0 / (np.sqrt(2 * np.pi) * smearing)

    def observable(position):
        delta = (values_fn(position)[..., None] - jnp.asarray(center, position.dtype)) / smearing
        return norm * jnp.exp(-0.5 * delta * delta)

    return observable


def pairs_by_element(species: Int[np.ndarray, " atom"]) -> dict[tuple[int, int], Pairs]:
    """All pairs of a molecule by the atomic numbers of their two atoms, the smaller first."""
    pairs, species = all_pairs(len(species)), np.asarray(species)
    low = np.minimum(species[pairs.first], species[pairs.second])
    high = np.maximum(species[pairs.first], species[pairs.second])
    kinds = sorted(set(zip(low.tolist(), high.tolist(), strict=True)))
    is_kind = {kind: (low == kind[0]) & (high == kind[1]) for kind in kinds}
    return {kind: Pairs(pairs.first[chosen], pairs.second[chosen]) for kind, chosen in is_kind.items()}


def pairs_by_separation(pairs: Pairs, bonds: Pairs, num_atoms: int) -> dict[int, Pairs]:
    """The pairs by the number of bonds on the shortest way between their atoms: 1, 2, and 3 for three or more.

    Bonded atoms, ends of an angle and all others: an atom that leaves an angle for a bond is seen among its own kind.
    """
    steps = sparse.csgraph.shortest_path(bond_graph(bonds, num_atoms), directed=False, unweighted=True)
    separation = np.minimum(steps[pairs.first, pairs.second], 3).astype(int)
    return {
        number: Pairs(pairs.first[separation == number], pairs.second[separation == number])
        for number in np.unique(separation).tolist()
    }


def find_molecules(bonds: Pairs, num_atoms: int) -> Int[np.ndarray, " atom"]:
    """Number of the molecule that each atom belongs to, from 0, in the order of their first atoms."""
    return sparse.csgraph.connected_components(bond_graph(bonds, num_atoms), directed=False)[1].astype(np.int32)


def bond_graph(bonds: Pairs, num_atoms: int) -> sparse.coo_array:
    """[atom, atom], 1 from the first to the second atom of each bond: for `scipy.sparse.csgraph`."""
    return sparse.coo_array((np.ones(len(bonds.first)), (bonds.first, bonds.second)), shape=(num_atoms, num_atoms))


def intermolecular_pairs(
    species: Int[np.ndarray, " atom"], molecule: Int[np.ndarray, " atom"]
) -> dict[tuple[int, int], Pairs]:
    """Pairs of atoms of different molecules by their atomic numbers, the smaller first; see `find_molecules`."""
    by_element = pairs_by_element(species)
    is_between = {kind: molecule[pairs.first] != molecule[pairs.second] for kind, pairs in by_element.items()}
    between = {kind: Pairs(p.first[is_between[kind]], p.second[is_between[kind]]) for kind, p in by_element.items()}
    return {kind: pairs for kind, pairs in between.items() if len(pairs.first)}


def radial_distribution(pairs: Pairs, *, stop: float, width: float, cell: Float[np.ndarray, "3 3"]) -> ObservableFn:
    """Radial distribution function g(r) of the pairs (A.4) in bins of `width` from 0 to `stop`: 1 for an ideal gas.

    g(r) = V / (P · volume of the shell) × number of the P pairs in it. A histogram, so it is not differentiable, which
    the estimator does not ask for.

    Args:
      pairs: those that count, each once; see `intermolecular_pairs`.
      stop: Å, at most half of the smallest height of the cell.
      width: of the bins, Å.
      cell: lattice vectors in rows, Å; positions may be wrapped or not.

    Raises:
      ValueError: `stop` is over half of a height of the cell.
    """
    cell = check_cell(cell, cutoff=stop)
    num_bins = round(stop / width)
    edges = np.arange(num_bins + 1) * width
    shell = 4 / 3 * np.pi * np.diff(edges**3)
    norm = np.abs(np.linalg.det(cell)) / (len(pairs.first) * shell)

    def observable(position):
        index = (pair_distances(position, pairs, cell) / width).astype(jnp.int32)
        count = jnp.zeros(num_bins, position.dtype).at[index].add(1, mode="drop")
        return count * jnp.asarray(norm, position.dtype)

    return observable


def bond_lengths(bonds: Pairs) -> ObservableFn:
    """Length of each bond, Å."""
    return lambda position: pair_distances(position, bonds)


def molecule_bond_lengths(bonds: Pairs, molecule: Int[np.ndarray, " atom"]) -> ObservableFn:
    """Mean length of the bonds of each molecule, Å: [molecule], all of which have bonds."""
    of_bond = molecule[np.asarray(bonds.first)]
    num_bonds = np.bincount(of_bond)

    def observable(position):
        total = jnp.zeros(len(num_bonds), position.dtype).at[of_bond].add(pair_distances(position, bonds))
        return total / num_bonds

    return observable


def molecule_distances(
    pairs: Pairs, molecule: Int[np.ndarray, " atom"], *, cell: Float[np.ndarray, "3 3"] | None = None
) -> ObservableFn:
    """Smallest distance of an atom of each molecule to one of another, Å: [molecule]; see `intermolecular_pairs`."""
    num_molecules = int(molecule.max()) + 1

    def observable(position):
        distance = pair_distances(position, pairs, cell)
        nearest = jnp.full(num_molecules, jnp.inf, position.dtype)
        return nearest.at[molecule[pairs.first]].min(distance).at[molecule[pairs.second]].min(distance)

    return observable


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
    neighbors: dict[int, list[int]] = {}
    for first, second in zip(np.asarray(bonds.first).tolist(), np.asarray(bonds.second).tolist(), strict=True):
        neighbors.setdefault(first, []).append(second)
        neighbors.setdefault(second, []).append(first)
    triples = [
        (end, middle, other)
        for middle, ends in sorted(neighbors.items())
        for index, end in enumerate(ends)
        for other in ends[index + 1 :]
    ]
    return np.array(triples, np.int32).reshape(-1, 3)


def dihedral_angles(quads: Int[Array, "dihedral 4"]) -> ObservableFn:
    """Dihedral angle about the middle bond of each i–j–k–l, radians in (−π, π], 0 where i and l are cis (IUPAC).

    Differentiable, except where three neighbors are in line.
    """

    def observable(position):
        first, middle, last = (position[quads[:, i + 1]] - position[quads[:, i]] for i in range(3))
        before, after = jnp.cross(first, middle), jnp.cross(middle, last)
        sine = safe_norm(middle) * jnp.sum(first * after, axis=-1)
        return jnp.arctan2(sine, jnp.sum(before * after, axis=-1))

    return observable


def backbone_dihedrals(
    species: Int[np.ndarray, " atom"], bonds: Pairs
) -> tuple[Int[np.ndarray, "residue 4"], Int[np.ndarray, "residue 4"]]:
    """The atoms of φ (C–N–Cα–C) and ψ (N–Cα–C–N) of every residue between two peptide bonds; none in other molecules.

    Args:
      species: atomic numbers.
      bonds: of the molecule.
    """
    species = np.asarray(species)
    bonded: list[set[int]] = [set() for _ in species]
    for first, second in zip(np.asarray(bonds.first).tolist(), np.asarray(bonds.second).tolist(), strict=True):
        bonded[first].add(second)
        bonded[second].add(first)

    def of(atom, element):
        return [other for other in sorted(bonded[atom]) if species[other] == element]

    is_carbonyl = [s == 6 and len(bonded[a]) == 3 and bool(of(a, 8)) for a, s in enumerate(species)]
    phi, psi = [], []
    for alpha in np.flatnonzero(species == 6).tolist():
        ends = [
            (before, nitrogen, carbon, after)
            for nitrogen in of(alpha, 7)
            for before in of(nitrogen, 6)
            for carbon in of(alpha, 6)
            for after in of(carbon, 7)
            if len(bonded[alpha]) == 4 and before != alpha and is_carbonyl[before] and is_carbonyl[carbon]
        ]
        for before, nitrogen, carbon, after in ends[:1]:
            phi.append((before, nitrogen, alpha, carbon))
            psi.append((nitrogen, alpha, carbon, after))
    return np.array(phi, np.int32).reshape(-1, 4), np.array(psi, np.int32).reshape(-1, 4)


def ramachandran(phi: Int[Array, "residue 4"], psi: Int[Array, "residue 4"], *, num_bins: int) -> ObservableFn:
    """Fraction of the residues in each bin of φ and ψ, [φ bin, ψ bin] from −π to π. Not differentiable.

    Args:
      phi: atoms of φ; see `backbone_dihedrals`.
      psi: atoms of ψ.
      num_bins: of each angle.
    """

    def observable(position):
        bins = [
            jnp.floor((dihedral_angles(quads)(position) + jnp.pi) / (2 * jnp.pi) * num_bins).astype(jnp.int32)
            for quads in (phi, psi)
        ]
        index = tuple(jnp.clip(b, 0, num_bins - 1) for b in bins)
        return jnp.zeros((num_bins, num_bins), position.dtype).at[index].add(1 / len(phi))

    return observable
