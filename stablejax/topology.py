"""Constant properties of a system's structure: bonds, molecules, angles, dihedrals, and pairs by kind.

Everything here runs once, on the host, in NumPy and SciPy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from stablejax.space import OPEN, Pairs, Space, all_pairs
from stablejax.types import Float, Int, Integer

FRAME_BATCH = 100
"""Frames of a data set that are looked at together, which bounds memory."""


class Topology(NamedTuple):
    """What observables and criteria are made from."""

    species: Integer[np.ndarray, " atom"]  # atomic numbers
    mass: Float[np.ndarray, " atom"]  # amu
    space: Space
    bonds: Pairs
    bond_length: Float[np.ndarray, " bond"]  # means over the reference, Å
    molecule: Integer[np.ndarray, " atom"]  # number of the molecule of each atom

    @property
    def num_molecules(self) -> int:
        """Molecules, ions and single atoms."""
        return int(self.molecule.max()) + 1


def find_topology(
    position: Float[np.ndarray, "frame atom 3"],
    species: Integer[np.ndarray, " atom"],
    *,
    mass: Float[np.ndarray, " atom"],
    covalent_radius: Float[np.ndarray, " atom"],
    space: Space = OPEN,
) -> Topology:
    """Bonds and molecules of a reference simulation.

    Args:
      position: frames of the reference, Å.
      species: atomic numbers.
      mass: amu.
      covalent_radius: Å.
      space: boundaries of the frames.

    Raises:
      ValueError: no bond was found.
    """
    bonds, length = find_bonds(position, covalent_radius, space=space)
    return Topology(species, mass, space, bonds, length, find_molecules(bonds, len(species)))


def find_bonds(
    position: Float[np.ndarray, "frame atom 3"],
    covalent_radius: Float[np.ndarray, " atom"],
    *,
    tolerance: float = 1.25,
    space: Space = OPEN,
) -> tuple[Pairs, Float[np.ndarray, " bond"]]:
    """Bonds of a reference simulation and their mean lengths.

    A bond is a pair whose mean distance is below `tolerance` times the sum of the covalent radii.

    Args:
      position: frames of the reference, Å.
      covalent_radius: Å.
      tolerance: factor.
      space: boundaries of the frames.

    Returns:
      The bonds, and their mean lengths, Å.

    Raises:
      ValueError: no bond was found; the cell does not reach as far as the longest bond.
    """
    space.check_reach("find_bonds", tolerance * 2 * float(np.max(covalent_radius)))
    first, second = pairs = all_pairs(position.shape[1])
    distances = jax.jit(lambda x: space.distances(x, pairs))
    length = np.mean([distances(x) for x in np.asarray(position)], axis=0, dtype=float)
    is_bond = length < tolerance * (covalent_radius[first] + covalent_radius[second])
    if not is_bond.any():
        raise ValueError(
            f"`find_bonds`: no pair closer than {tolerance} times its covalent radii (nearest mean distance "
            f"{length.min():.2f} Å): check that positions are in Å and in the order of the atoms."
        )
    bonds = Pairs(first[is_bond], second[is_bond])
    return bonds, length[is_bond].astype(np.float32)


def find_molecules(bonds: Pairs, num_atoms: int) -> Int[np.ndarray, " atom"]:
    """Number of the molecule that each atom belongs to, from 0, in the order of their first atoms.

    Args:
      bonds: of the system.
      num_atoms: in it; an atom without bonds is a molecule of its own.
    """
    return sparse.csgraph.connected_components(bond_graph(bonds, num_atoms), directed=False)[1].astype(np.int32)


def bond_graph(bonds: Pairs, num_atoms: int) -> sparse.csr_array:
    """[atom, atom], 1 from the first to the second atom of each bond: for `scipy.sparse.csgraph`.

    Args:
      bonds: of the system.
      num_atoms: in it.
    """
    # Not every method of `scipy.sparse.csgraph` takes coordinates: that for two atoms does not.
    ones, atoms = np.ones(len(bonds.first)), (bonds.first, bonds.second)
    return sparse.coo_array((ones, atoms), shape=(num_atoms, num_atoms)).tocsr()


def bonded_atoms(bonds: Pairs, num_atoms: int) -> list[list[int]]:
    """The atoms that each atom is bonded to, ascending.

    Args:
      bonds: of the system.
      num_atoms: in it.
    """
    bonded: list[set[int]] = [set() for _ in range(num_atoms)]
    for first, second in zip(np.asarray(bonds.first).tolist(), np.asarray(bonds.second).tolist(), strict=True):
        bonded[first].add(second)
        bonded[second].add(first)
    return [sorted(atoms) for atoms in bonded]


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


def backbone_dihedrals(
    species: Integer[np.ndarray, " atom"], bonds: Pairs
) -> tuple[Int[np.ndarray, "residue 4"], Int[np.ndarray, "residue 4"]]:
    """The atoms of φ (C–N–Cα–C) and ψ (N–Cα–C–N) of every residue between two peptide bonds; none in other molecules.

    Args:
      species: atomic numbers.
      bonds: of the molecule.
    """
    species = np.asarray(species)
    bonded = bonded_atoms(bonds, len(species))

    def of(atom, element):
        return [other for other in bonded[atom] if species[other] == element]

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


def torsions(bonds: Pairs, num_atoms: int) -> Int[np.ndarray, "torsion 4"]:
    """One (i, j, k, l) about every bond j–k that is not in a ring and whose atoms both have others bonded to them.

    Args:
      bonds: of the system.
      num_atoms: in it.
    """
    pairs = list(zip(np.asarray(bonds.first).tolist(), np.asarray(bonds.second).tolist(), strict=True))
    bonded, quads = bonded_atoms(bonds, num_atoms), []
    for number, (j, k) in enumerate(pairs):
        before, after = ([atom for atom in bonded[one] if atom != other] for one, other in ((j, k), (k, j)))
        if not before or not after:
            continue
        without = pairs[:number] + pairs[number + 1 :]
        graph = bond_graph(Pairs(*np.array(without, np.int32).T), num_atoms)
        molecule = sparse.csgraph.connected_components(graph, directed=False)[1]
        if molecule[j] != molecule[k]:
            quads.append((before[0], j, k, after[0]))
    return np.array(quads, np.int32).reshape(-1, 4)


def pairs_by_element(species: Integer[np.ndarray, " atom"]) -> dict[tuple[int, int], Pairs]:
    """All pairs of a molecule by the atomic numbers of their two atoms, the smaller first."""
    pairs, species = all_pairs(len(species)), np.asarray(species)
    low = np.minimum(species[pairs.first], species[pairs.second])
    high = np.maximum(species[pairs.first], species[pairs.second])
    kinds = sorted(set(zip(low.tolist(), high.tolist(), strict=True)))
    is_kind = {kind: (low == kind[0]) & (high == kind[1]) for kind in kinds}
    return {kind: Pairs(pairs.first[chosen], pairs.second[chosen]) for kind, chosen in is_kind.items()}


def pairs_by_separation(pairs: Pairs, bonds: Pairs, num_atoms: int) -> dict[int, Pairs]:
    """The pairs by the number of bonds on the shortest path between their atoms: 1, 2, and 3 for three or more.

    Bonded atoms, ends of an angle and all others: an end of an angle at a bonded distance is not hidden among bonds.

    Args:
      pairs: to be separated.
      bonds: of the system.
      num_atoms: in it.
    """
    steps = sparse.csgraph.shortest_path(bond_graph(bonds, num_atoms), directed=False, unweighted=True)
    separation = np.minimum(steps[pairs.first, pairs.second], 3).astype(int)
    return {
        number: Pairs(pairs.first[separation == number], pairs.second[separation == number])
        for number in np.unique(separation).tolist()
    }


class Ranges(NamedTuple):
    """Distances that occur in a reference."""

    pairs: Pairs
    shortest: Float[np.ndarray, " pair"]  # Å
    longest: Float[np.ndarray, " pair"]  # Å; infinite where the reference sets no bound


def distance_ranges(
    position: Float[np.ndarray, "frame atom 3"],
    species: Integer[np.ndarray, " atom"],
    bonds: Pairs,
    *,
    space: Space = OPEN,
) -> Ranges:
    """Ranges of the distances of bonds and of ends of angles, and smallest ones of atoms further apart, by elements.

    What is rare in the reference is pooled: one pair of two hydrogens may come as near as another does.

    Args:
      position: frames of the reference, Å.
      species: atomic numbers.
      bonds: of the system.
      space: boundaries of the frames.
    """
    pairs, num_atoms = all_pairs(len(species)), len(species)
    steps = sparse.csgraph.shortest_path(bond_graph(bonds, num_atoms), directed=False, unweighted=True)
    is_far = steps[pairs.first, pairs.second] > 2

    @jax.jit
    def extremes(position):
        distances = jax.lax.map(lambda x: space.distances(x, pairs), position, batch_size=FRAME_BATCH)
        return jnp.min(distances, axis=0), jnp.max(distances, axis=0)

    shortest, longest = (np.array(extreme) for extreme in extremes(position))
    kind = np.sort(np.stack([np.asarray(species)[pairs.first], np.asarray(species)[pairs.second]]), axis=0)
    for one in np.unique(kind[:, is_far], axis=1).T:
        is_one = is_far & (kind == one[:, None]).all(axis=0)
        shortest[is_one] = shortest[is_one].min()
    longest[is_far] = np.inf
    return Ranges(pairs, shortest, longest)


def intermolecular_pairs(
    species: Integer[np.ndarray, " atom"], molecule: Integer[np.ndarray, " atom"]
) -> dict[tuple[int, int], Pairs]:
    """Pairs of atoms of different molecules by their atomic numbers, the smaller first.

    Args:
      species: atomic numbers.
      molecule: number of the molecule of each atom; see `find_molecules`.
    """
    by_element = pairs_by_element(species)
    is_between = {kind: molecule[pairs.first] != molecule[pairs.second] for kind, pairs in by_element.items()}
    between = {kind: Pairs(p.first[is_between[kind]], p.second[is_between[kind]]) for kind, p in by_element.items()}
    return {kind: pairs for kind, pairs in between.items() if len(pairs.first)}


def make_whole(
    position: Float[np.ndarray, "frame atom 3"], bonds: Pairs, space: Space
) -> Float[np.ndarray, "frame atom 3"]:
    """Positions with every atom next to those that it is bonded to: molecules that wrapping has split are made whole.

    Args:
      position: frames, wrapped, Å.
      bonds: of the system.
      space: whose cell they were wrapped into.
    """
    if space.reduced is None:
        return position
    whole, num_atoms = position.astype(float), position.shape[1]
    inverse, graph = np.linalg.inv(space.reduced), bond_graph(bonds, num_atoms)
    is_placed = np.zeros(num_atoms, bool)
    for root in range(num_atoms):
        if is_placed[root]:
            continue
        order, parent = sparse.csgraph.breadth_first_order(graph, root, directed=False)
        is_placed[order] = True
        for atom in order[1:]:
            vector = whole[:, atom] - whole[:, parent[atom]]
            whole[:, atom] -= np.round(vector @ inverse) @ space.reduced
    return whole.astype(position.dtype)


class Links(NamedTuple):
    """A tree of nearest fragments: molecules, ions and atoms between others. Groups that part break a link."""

    pairs: Pairs  # of all atoms of the two fragments of each link
    link: Int[np.ndarray, " pair"]  # number of the link of each pair, ascending
    shortest: Float[np.ndarray, " link"]  # smallest distance of two fragments in any frame, Å
    longest: Float[np.ndarray, " link"]  # the largest


def find_links(
    position: Float[np.ndarray, "frame atom 3"], molecule: Int[np.ndarray, " atom"], *, space: Space = OPEN
) -> Links | None:
    """The links of a reference simulation; None where all atoms are bonded to each other.

    Args:
      position: frames of the reference, Å.
      molecule: number of the molecule of each atom; see `find_molecules`.
      space: boundaries of the frames.
    """
    num = int(molecule.max()) + 1
    if num == 1:
        return None
    atoms = [np.flatnonzero(molecule == one) for one in range(num)]
    between = all_pairs(num)
    grids = [np.meshgrid(atoms[a], atoms[b], indexing="ij") for a, b in zip(*between, strict=True)]
    first, second = (np.concatenate([grid[side].ravel() for grid in grids]) for side in (0, 1))
    start = np.cumsum([0, *(grid[0].size for grid in grids)])
    distances = jax.jit(lambda x: space.distances(x, Pairs(first, second)))
    nearest = np.array([np.minimum.reduceat(np.asarray(distances(x)), start[:-1]) for x in np.asarray(position)])
    mean = sparse.coo_array((nearest.mean(axis=0), between), shape=(num, num))
    tree = sparse.csgraph.minimum_spanning_tree(mean).tocoo()
    chosen = np.flatnonzero(np.isin(between[0] * num + between[1], tree.row * num + tree.col))
    member = np.concatenate([np.arange(start[one], start[one + 1]) for one in chosen])
    link = np.repeat(np.arange(len(chosen), dtype=np.int32), np.diff(start)[chosen])
    low, high = nearest[:, chosen].min(axis=0), nearest[:, chosen].max(axis=0)
    return Links(Pairs(first[member], second[member]), link, low, high)


def unwatched_atoms(topology: Topology) -> Int[np.ndarray, " atom"]:
    """Atoms whose loss no criterion of bond lengths would detect: those without any bond.

    Molecules that drift apart are not detected either; see `Topology.num_molecules` and
    `stability.intermolecular_distance`.
    """
    bonded = np.union1d(np.asarray(topology.bonds.first), np.asarray(topology.bonds.second))
    return np.setdiff1d(np.arange(len(topology.species)), bonded)
