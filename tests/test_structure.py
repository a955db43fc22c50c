"""Observables of static structure against values known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_topology import peptide

from stablejax import topology
from stablejax.observables import structure
from stablejax.space import OPEN, Pairs, all_pairs, periodic
from stablejax.types import Frame

TRIANGLE = jnp.array([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])  # sides 3, 4, 5
CELL = periodic(12.0 * np.eye(3))


def test_h_r_is_a_density_with_peaks_at_the_distances():
    center = structure.bin_centers(10.0, 0.02)
    assert len(center) == 500
    assert center[0] == pytest.approx(0.01)
    h_r = np.asarray(structure.interatomic_distances(all_pairs(3), center, smearing=0.05)(Frame(TRIANGLE)))
    assert h_r.sum() * 0.02 == pytest.approx(1.0, abs=1e-4)
    for side in (3, 4, 5):
        near = np.abs(center - side) < 0.3
        assert h_r[near].sum() * 0.02 == pytest.approx(1 / 3, abs=1e-4)
        assert np.average(center[near], weights=h_r[near]) == pytest.approx(side, abs=1e-3)


def test_h_r_gradient_is_finite_differences(x64):
    observable = structure.interatomic_distances(all_pairs(3), structure.bin_centers(6.0, 0.1), smearing=0.2)
    position, weight = TRIANGLE.astype(np.float64) + 0.01, jnp.asarray(np.random.default_rng(0).normal(size=60))
    gradient = jax.grad(lambda x: jnp.vdot(weight, observable(Frame(x))))(position)
    step = jnp.zeros((3, 3)).at[1, 0].set(1e-6)
    slope = jnp.vdot(weight, observable(Frame(position + step)) - observable(Frame(position - step))) / 2e-6
    assert abs(float(slope)) > 1e-3
    assert float(gradient[1, 0]) == pytest.approx(float(slope), rel=1e-6)


def test_bond_variances_are_one_on_the_reference_and_find_one_stretched_bond():
    rng = np.random.default_rng(0)
    position = np.zeros((500, 3, 3), np.float32)
    position[:, 1, 0], position[:, 2, 1] = 1.0 + 0.05 * rng.normal(size=500), 1.4 + 0.03 * rng.normal(size=500)
    bonds = Pairs(np.array([0, 0]), np.array([1, 2]))
    length = np.array(jax.vmap(structure.bond_lengths(bonds))(Frame(position)))
    observable = jax.vmap(structure.bond_variances(bonds, length.mean(0), length.var(0)))
    np.testing.assert_allclose(observable(Frame(position)).mean(0), 1.0, rtol=1e-4)
    stretched = position.copy()
    stretched[:5, 1, 0] += 0.5
    mean = observable(Frame(stretched)).mean(0)
    assert mean[0] == pytest.approx(1 + 0.01 * (0.5 / length[:, 0].std()) ** 2, rel=0.2)
    assert mean[1] == pytest.approx(1.0, rel=1e-4)


def test_bonds_lengths_and_angles_of_a_water_molecule():
    angle = np.deg2rad(104.5)
    position = 0.96 * np.array([[0, 0, 0], [1, 0, 0], [np.cos(angle), np.sin(angle), 0]]) + 0.3
    bonds, length = topology.find_bonds(position[None], np.array([0.66, 0.31, 0.31]))
    assert (bonds.first.tolist(), bonds.second.tolist()) == ([0, 0], [1, 2])
    np.testing.assert_allclose(length, 0.96, rtol=1e-6)
    np.testing.assert_allclose(structure.bond_lengths(bonds)(Frame(jnp.asarray(position))), 0.96, rtol=1e-5)
    triples = topology.angle_triples(bonds)
    assert triples.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(structure.bond_angles(triples)(Frame(jnp.asarray(position))), angle, rtol=1e-5)


def test_dihedral_angle_has_its_sign_and_is_0_for_cis():
    position = jnp.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [0, 0, 0]])
    quads = np.array([[0, 1, 2, 3]])
    for degree in (0.0, 60.0, 120.0, 179.0, -90.0):
        angle = np.deg2rad(degree)
        # Seen along the middle bond, the last atom is turned clockwise by the angle.
        last = jnp.array([np.cos(angle), np.sin(angle), 2.0])
        found = structure.dihedral_angles(quads)(Frame(position.at[3].set(last)))
        assert float(np.degrees(found[0])) == pytest.approx(degree, abs=1e-3)


def test_ramachandran_map_has_each_residue_in_its_bin():
    atoms, bonds = peptide()
    phi, psi = topology.backbone_dihedrals(atoms.numbers, bonds)
    density = structure.ramachandran(phi, psi, num_bins=36)(Frame(jnp.asarray(atoms.positions, jnp.float32)))
    assert float(density.sum()) == pytest.approx(1)
    angles = [np.array([(atoms.get_dihedral(*row) + 180) % 360 for row in quads.tolist()]) for quads in (phi, psi)]
    for one, other in zip(*angles, strict=True):
        assert float(density[int(one // 10), int(other // 10)]) == pytest.approx(1 / 3)


def test_radial_distribution_of_an_ideal_gas_is_1_and_of_a_lattice_has_its_shells():
    rng = np.random.default_rng(0)
    species, molecule = np.tile([8, 1, 1], 64), np.repeat(np.arange(64), 3)
    pairs = topology.intermolecular_pairs(species, molecule)
    assert {kind: len(p.first) for kind, p in pairs.items()} == {(1, 1): 8064, (1, 8): 8064, (8, 8): 2016}
    position = jnp.asarray(12.0 * rng.normal(size=(50, 192, 3)), jnp.float32)  # not wrapped
    for some in pairs.values():
        rdf_fn = structure.radial_distribution(some, stop=6.0, width=0.5, space=CELL)
        rdf = jax.jit(jax.vmap(rdf_fn))(Frame(position)).mean(0)
        shell = 4 / 3 * np.pi * np.diff((0.5 * np.arange(13)) ** 3) / 12.0**3
        np.testing.assert_allclose(rdf, 1.0, atol=5 / np.sqrt(50 * len(some.first) * shell.min()))
        np.testing.assert_allclose(rdf[4:], 1.0, atol=0.05)
    lattice = jnp.asarray(np.argwhere(np.ones((4, 4, 4))) * 3.0, jnp.float32)
    one = structure.radial_distribution(all_pairs(64), stop=3.5, width=0.5, space=CELL)(Frame(lattice))
    shell = 4 / 3 * np.pi * (3.5**3 - 3.0**3)
    np.testing.assert_allclose(one, [0] * 6 + [64 * 3 / 2016 * 12.0**3 / shell], rtol=1e-5)
    with pytest.raises(ValueError, match="at most 6.000 Å, .*, got 6.5 Å"):
        structure.radial_distribution(some, stop=6.5, width=0.5, space=CELL)


def test_density_of_each_value_integrates_to_one_and_is_where_the_value_is():
    center = structure.bin_centers(4.0, 0.05)
    observable = structure.density(lambda frame: frame.position[:, 0], center, smearing=0.1)
    density = observable(Frame(jnp.array([[1.0, 0, 0], [2.5, 0, 0]])))
    assert density.shape == (2, 80)
    np.testing.assert_allclose(density.sum(axis=1) * 0.05, 1.0, rtol=1e-4)
    np.testing.assert_allclose(density @ center * 0.05, [1.0, 2.5], rtol=1e-4)


def test_the_last_bin_ends_within_the_reach_of_the_cell():
    """6.4 Å in bins of 1 Å are 6 of them; rounding up would look beyond half the cell."""
    pairs = all_pairs(3)
    rdf = structure.radial_distribution(pairs, stop=6.4, width=1.0, space=CELL)(Frame(TRIANGLE))
    assert rdf.shape == structure.bin_centers(6.4, 1.0).shape == (6,)
    assert len(structure.bin_centers(0.3, 0.1)) == 3  # 0.3 / 0.1 is a little less than 3
    with pytest.raises(ValueError, match="open boundaries"):
        structure.radial_distribution(pairs, stop=2.0, width=1.0, space=OPEN)


def test_observables_of_wrapped_frames_are_those_of_whole_molecules():
    """A bond, an angle, a dihedral and the distances to others, across the walls of the cell."""
    whole = jnp.asarray(np.array([[0.0, 0, 0], [1.2, 0, 0], [1.5, 1.3, 0], [2.0, 1.5, 1.1]]) + 11.3, jnp.float32)
    wrapped = jnp.asarray(CELL.wrap(np.asarray(whole)))
    assert float(jnp.abs(whole - wrapped).max()) > 10
    chain, molecule = Pairs(np.arange(3), np.arange(1, 4)), np.array([0, 0, 1, 1])
    center = structure.bin_centers(5.0, 0.5)
    between = Pairs(np.array([0, 0, 1, 1]), np.array([2, 3, 2, 3]))
    observables = {
        "h_r": structure.interatomic_distances(all_pairs(4), center, smearing=0.3, space=CELL),
        "lengths": structure.bond_lengths(chain, space=CELL),
        "variances": structure.bond_variances(chain, np.ones(3), np.ones(3), space=CELL),
        "angles": structure.bond_angles(topology.angle_triples(chain), space=CELL),
        "dihedral": structure.dihedral_angles(np.array([[0, 1, 2, 3]]), space=CELL),
        "map": structure.ramachandran(np.array([[0, 1, 2, 3]]), np.array([[3, 2, 1, 0]]), num_bins=8, space=CELL),
        "molecules": structure.molecule_bond_lengths(Pairs(np.array([0, 2]), np.array([1, 3])), molecule, space=CELL),
        "nearest": structure.molecule_distances(between, molecule, space=CELL),
    }
    for name, fn in observables.items():
        np.testing.assert_allclose(fn(Frame(wrapped)), fn(Frame(whole)), atol=1e-4, err_msg=name)
    open_nearest = structure.molecule_distances(between, molecule)(Frame(wrapped))
    assert np.abs(open_nearest - observables["nearest"](Frame(whole))).max() > 1  # the control


def test_a_molecule_without_bonds_has_no_mean_bond_length():
    with pytest.raises(ValueError, match="expected a bond in every molecule, got none in 1"):
        structure.molecule_bond_lengths(Pairs(np.array([0]), np.array([1])), np.array([0, 0, 1]))


def test_largest_value_by_molecule_is_of_pairs_within_and_between():
    pairs, molecule = Pairs(np.array([0, 0, 1]), np.array([1, 2, 3])), np.array([0, 0, 1, 2])
    observable = structure.largest_by_molecule(lambda frame: frame.position, pairs, molecule)
    np.testing.assert_array_equal(observable(Frame(jnp.array([1.0, -3.0, 0.5]))), [1.0, -3.0, 0.5])
    np.testing.assert_array_equal(observable(Frame(jnp.array([-4.0, -3.0, 0.5]))), [0.5, -3.0, 0.5])
