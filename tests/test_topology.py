"""Bonds, molecules, angles and dihedrals of known molecules."""

from __future__ import annotations

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.models import DATA
from stablejax import topology
from stablejax.observables import structure
from stablejax.space import OPEN, Pairs, all_pairs, periodic
from stablejax.types import Frame

TRIANGLE = np.array([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])


def test_pairs_by_element_are_all_pairs_in_parts():
    parts = topology.pairs_by_element(np.array([8, 1, 6, 1]))
    named = {kind: set(zip(p.first.tolist(), p.second.tolist(), strict=True)) for kind, p in parts.items()}
    assert named == {(1, 1): {(1, 3)}, (1, 6): {(1, 2), (2, 3)}, (1, 8): {(0, 1), (0, 3)}, (6, 8): {(0, 2)}}


def test_no_bonds_are_refused():
    with pytest.raises(ValueError, match="no pair closer than 1.25 times its covalent radii"):
        topology.find_bonds(np.asarray(TRIANGLE)[None], np.full(3, 0.3))


def peptide():
    from ase.data import covalent_radii
    from ase.io import read

    atoms = read(DATA / "ac_ala3_nhme.xyz", format="extxyz")
    return atoms, topology.find_bonds(atoms.positions[None], covalent_radii[atoms.numbers])[0]


def test_backbone_dihedrals_of_the_peptide_are_those_of_ase():
    atoms, bonds = peptide()
    phi, psi = topology.backbone_dihedrals(atoms.numbers, bonds)
    assert phi.shape == psi.shape == (3, 4)
    symbols = np.array(atoms.get_chemical_symbols())
    assert ["".join(row) for row in symbols[phi]] == ["CNCC"] * 3
    assert ["".join(row) for row in symbols[psi]] == ["NCCN"] * 3
    np.testing.assert_array_equal(phi[:, 1:], psi[:, :3])
    for quads in (phi, psi):
        expected = [(atoms.get_dihedral(*row) + 180) % 360 - 180 for row in quads.tolist()]
        angles = structure.dihedral_angles(quads)(Frame(jnp.asarray(atoms.positions, jnp.float32)))
        np.testing.assert_allclose(np.degrees(angles), expected, atol=1e-2)


def test_molecules_without_peptide_bonds_have_no_backbone():
    phi, psi = topology.backbone_dihedrals(np.array([6, 8, 7, 1]), Pairs(np.array([0, 0]), np.array([1, 2])))
    assert phi.shape == psi.shape == (0, 4)


def test_molecules_are_what_bonds_connect():
    bonds = Pairs(np.array([0, 0, 3, 3]), np.array([1, 2, 5, 4]))
    np.testing.assert_array_equal(topology.find_molecules(bonds, 7), [0, 0, 0, 1, 1, 1, 2])


def test_pairs_by_separation_are_bonds_angles_and_the_rest():
    """A chain of five atoms, in disorder."""
    chain = [3, 0, 4, 1, 2]
    bonds = Pairs(np.array(chain[:-1]), np.array(chain[1:]))
    found = topology.pairs_by_separation(all_pairs(5), bonds, 5)
    as_set = lambda pairs: {frozenset(pair) for pair in zip(*map(np.ndarray.tolist, pairs), strict=True)}  # noqa: E731
    assert as_set(found[1]) == {frozenset(pair) for pair in pairwise(chain)}
    assert as_set(found[2]) == {frozenset(chain[i : i + 3 : 2]) for i in range(3)}
    assert as_set(found[3]) == as_set(all_pairs(5)) - as_set(found[1]) - as_set(found[2])
    assert set(topology.pairs_by_separation(bonds, bonds, 5)) == {1}


def test_atoms_that_are_not_connected_are_far_apart():
    found = topology.pairs_by_separation(all_pairs(3), Pairs(np.array([0]), np.array([1])), 3)
    assert [len(found[number].first) for number in found] == [1, 2] and set(found) == {1, 3}


CELL = periodic(8.0 * np.eye(3))


def water_box(num_frames=12):
    """Two molecules anywhere in the cell: whole, and wrapped."""
    rng = np.random.default_rng(0)
    molecule = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    corner = np.array([[0.0, 0, 0], [4.0, 4, 4]])[:, None] + rng.uniform(0, 8, (num_frames, 1, 1, 3))
    whole = (corner + molecule + 0.02 * rng.normal(size=(num_frames, 2, 3, 3))).reshape(num_frames, 6, 3)
    return whole, CELL.wrap(whole), np.tile([8, 1, 1], 2), np.tile([0.66, 0.31, 0.31], 2)


def test_bonds_and_molecules_of_wrapped_frames_are_those_of_whole_ones():
    whole, wrapped, species, radius = water_box()
    assert np.abs(wrapped - whole).max() > 7
    mass = np.tile([15.999, 1.008, 1.008], 2)
    facts = [
        topology.find_topology(x, species, mass=mass, covalent_radius=radius, space=CELL) for x in (whole, wrapped)
    ]
    for found in facts:
        assert [pair.tolist() for pair in found.bonds] == [[0, 0, 3, 3], [1, 2, 4, 5]]
        np.testing.assert_allclose(found.bond_length, facts[0].bond_length, atol=1e-5)
        assert found.molecule.tolist() == [0, 0, 0, 1, 1, 1] and found.num_molecules == 2
        assert len(topology.unwatched_atoms(found)) == 0
    in_the_open, _ = topology.find_bonds(wrapped, radius)  # the control: cut molecules lose bonds
    assert len(in_the_open.first) < 4


def test_ions_are_not_watched_by_bonds():
    position = np.array([[[0.0, 0, 0], [1, 0, 0], [9, 0, 0]]])
    facts = topology.find_topology(
        position, np.array([8, 1, 11]), mass=np.ones(3), covalent_radius=np.array([0.66, 0.31, 1.66])
    )
    assert topology.unwatched_atoms(facts).tolist() == [2]
    assert facts.num_molecules == 2


def test_wrapped_molecules_are_made_whole():
    whole, wrapped, _, _ = water_box()
    bonds = Pairs(np.array([0, 0, 3, 3]), np.array([1, 2, 4, 5]))
    broken = np.linalg.norm(wrapped[:, bonds.first] - wrapped[:, bonds.second], axis=-1)
    assert (broken > 2).any()
    mended = topology.make_whole(wrapped, bonds, CELL)
    vectors = lambda x: x[:, bonds.second] - x[:, bonds.first]  # noqa: E731
    np.testing.assert_allclose(vectors(mended), vectors(whole), atol=1e-9)
    moved = (mended - wrapped) / 8.0
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-9)
    assert topology.make_whole(whole, bonds, OPEN) is whole


def test_ranges_are_of_each_bond_and_angle_and_of_contacts_by_elements():
    """Propane-like chain H–C–C–C–H with one more hydrogen on the first carbon, in two frames."""
    bonds = Pairs(np.array([0, 1, 2, 3, 1]), np.array([1, 2, 3, 4, 5]))
    species = np.array([1, 6, 6, 6, 1, 1])
    rng = np.random.default_rng(0)
    position = np.arange(6)[:, None] * np.array([1.5, 0, 0]) + rng.normal(size=(250, 6, 3)) * 0.1
    ranges = topology.distance_ranges(position.astype(np.float32), species, bonds)
    pairs = list(zip(ranges.pairs.first.tolist(), ranges.pairs.second.tolist(), strict=True))
    assert len(pairs) == 15
    distance = np.linalg.norm(position[:, ranges.pairs.first] - position[:, ranges.pairs.second], axis=-1)
    near = [(0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (0, 2), (1, 3), (2, 4), (0, 5), (2, 5)]
    for number, pair in enumerate(pairs):
        if pair in near:
            assert ranges.shortest[number] == pytest.approx(distance[:, number].min(), abs=1e-5)
            assert ranges.longest[number] == pytest.approx(distance[:, number].max(), abs=1e-5)
        else:
            assert np.isinf(ranges.longest[number])
    hydrogens = [pairs.index(pair) for pair in ((0, 4), (4, 5))]
    np.testing.assert_allclose(ranges.shortest[hydrogens], distance[:, hydrogens].min(), rtol=1e-6)


def test_torsions_are_about_bonds_that_are_in_no_ring():
    """Toluene's heavy atoms with one hydrogen on the methyl group: a ring of six, 6 on 0, 7 on 6."""
    ring = [(i, (i + 1) % 6) for i in range(6)]
    first, second = np.array([*ring, (0, 6), (6, 7)]).T
    quads = topology.torsions(Pairs(first, second), 8)
    assert len(quads) == 1
    assert set(quads[0, 1:3].tolist()) == {0, 6}
    assert quads[0, 0] in (1, 5) and quads[0, 3] == 7
    assert topology.torsions(Pairs(np.array([0]), np.array([1])), 2).shape == (0, 4)
