"""Geometry, criteria and observables against values known by hand."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.models import DATA
from stablejax import geometry, stability
from stablejax.geometry import Pairs
from stablejax.observables import structure, transport

TRIANGLE = jnp.array([[0.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])  # sides 3, 4, 5


def test_safe_norm_has_no_nan_gradient_at_zero():
    assert float(geometry.safe_norm(jnp.array([3.0, 4.0, 0]))) == 5.0
    np.testing.assert_array_equal(jax.grad(geometry.safe_norm)(jnp.zeros(3)), 0)
    np.testing.assert_allclose(jax.grad(geometry.safe_norm)(jnp.array([3.0, 4.0, 0])), [0.6, 0.8, 0])


def test_all_pairs_are_each_once():
    pairs = geometry.all_pairs(4)
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == {
        (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least 2, got 1"):
        geometry.all_pairs(1)


def test_h_r_is_a_density_with_peaks_at_the_distances():
    center = structure.bin_centers(10.0, 0.02)
    assert len(center) == 500
    assert center[0] == pytest.approx(0.01)
    h_r = np.asarray(structure.interatomic_distances(geometry.all_pairs(3), center, smearing=0.05)(TRIANGLE))
    assert h_r.sum() * 0.02 == pytest.approx(1.0, abs=1e-4)
    for side in (3, 4, 5):
        near = np.abs(center - side) < 0.3
        assert h_r[near].sum() * 0.02 == pytest.approx(1 / 3, abs=1e-4)
        assert np.average(center[near], weights=h_r[near]) == pytest.approx(side, abs=1e-3)


def test_pairs_by_element_are_all_pairs_in_parts():
    parts = structure.pairs_by_element(np.array([8, 1, 6, 1]))
    named = {kind: set(zip(p.first.tolist(), p.second.tolist(), strict=True)) for kind, p in parts.items()}
    assert named == {(1, 1): {(1, 3)}, (1, 6): {(1, 2), (2, 3)}, (1, 8): {(0, 1), (0, 3)}, (6, 8): {(0, 2)}}


def test_h_r_gradient_is_finite_differences(x64):
    observable = structure.interatomic_distances(geometry.all_pairs(3), structure.bin_centers(6.0, 0.1), smearing=0.2)
    position, weight = TRIANGLE.astype(np.float64) + 0.01, jnp.asarray(np.random.default_rng(0).normal(size=60))
    gradient = jax.grad(lambda x: jnp.vdot(weight, observable(x)))(position)
    step = jnp.zeros((3, 3)).at[1, 0].set(1e-6)
    slope = jnp.vdot(weight, observable(position + step) - observable(position - step)) / 2e-6
    assert abs(float(slope)) > 1e-3
    assert float(gradient[1, 0]) == pytest.approx(float(slope), rel=1e-6)


def test_bond_variances_are_one_on_the_reference_and_find_one_stretched_bond():
    rng = np.random.default_rng(0)
    position = np.zeros((500, 3, 3), np.float32)
    position[:, 1, 0], position[:, 2, 1] = 1.0 + 0.05 * rng.normal(size=500), 1.4 + 0.03 * rng.normal(size=500)
    bonds = geometry.Pairs(np.array([0, 0]), np.array([1, 2]))
    length = np.array(jax.vmap(structure.bond_lengths(bonds))(position))
    observable = jax.vmap(structure.bond_variances(bonds, length.mean(0), length.var(0)))
    np.testing.assert_allclose(observable(position).mean(0), 1.0, rtol=1e-4)
    stretched = position.copy()
    stretched[:5, 1, 0] += 0.5
    mean = observable(stretched).mean(0)
    assert mean[0] == pytest.approx(1 + 0.01 * (0.5 / length[:, 0].std()) ** 2, rel=0.2)
    assert mean[1] == pytest.approx(1.0, rel=1e-4)


def test_bonds_lengths_and_angles_of_a_water_molecule():
    angle = np.deg2rad(104.5)
    position = 0.96 * np.array([[0, 0, 0], [1, 0, 0], [np.cos(angle), np.sin(angle), 0]]) + 0.3
    bonds, length = stability.find_bonds(position[None], np.array([0.66, 0.31, 0.31]))
    assert (bonds.first.tolist(), bonds.second.tolist()) == ([0, 0], [1, 2])
    np.testing.assert_allclose(length, 0.96, rtol=1e-6)
    np.testing.assert_allclose(structure.bond_lengths(bonds)(jnp.asarray(position)), 0.96, rtol=1e-5)
    triples = structure.angle_triples(bonds)
    assert triples.tolist() == [[1, 0, 2]]
    np.testing.assert_allclose(structure.bond_angles(triples)(jnp.asarray(position)), angle, rtol=1e-5)


def test_no_bonds_are_refused():
    with pytest.raises(ValueError, match="no pair closer than 1.25 times its covalent radii"):
        stability.find_bonds(np.asarray(TRIANGLE)[None], np.full(3, 0.3))


def test_bond_criterion_is_positive_beyond_the_threshold_on_either_side():
    criterion = stability.bond_length_deviation(
        Pairs(np.array([0, 0]), np.array([1, 2])), np.array([3.0, 4.0]), threshold=0.5
    )
    assert float(criterion(TRIANGLE)) == pytest.approx(-0.5)
    assert float(criterion(TRIANGLE.at[1, 0].set(3.6))) == pytest.approx(0.1, abs=1e-5)
    assert float(criterion(TRIANGLE.at[2, 1].set(3.3))) == pytest.approx(0.2, abs=1e-5)
    both = stability.any_of(criterion, lambda position: position[0, 0] + 0.05)
    assert float(both(TRIANGLE)) == pytest.approx(0.05)


def test_vacf_of_an_oscillator_is_a_cosine_and_ignores_the_drift():
    omega, time = 0.4, jnp.arange(400.0)
    velocity = jnp.zeros((400, 2, 3)).at[:, 0, 0].set(2 * jnp.cos(omega * time)).at[:, 1, 0].set(-jnp.cos(omega * time))
    mass = jnp.array([1.0, 2.0])
    for drift in (0.0, 5.0):
        vacf = transport.velocity_autocorrelation(velocity + drift, mass, num_lags=30)
        np.testing.assert_allclose(vacf, jnp.cos(omega * time[:30]), atol=0.01)
    with pytest.raises(ValueError, match="30 lags need as many frames, got 10"):
        transport.velocity_autocorrelation(velocity[:10], mass, num_lags=30)


def test_dihedral_angle_has_its_sign_and_is_0_for_cis():
    position = jnp.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [0, 0, 0]])
    quads = np.array([[0, 1, 2, 3]])
    for degree in (0.0, 60.0, 120.0, 179.0, -90.0):
        angle = np.deg2rad(degree)
        # Seen along the middle bond, the last atom is turned clockwise by the angle.
        last = jnp.array([np.cos(angle), np.sin(angle), 2.0])
        found = structure.dihedral_angles(quads)(position.at[3].set(last))
        assert float(np.degrees(found[0])) == pytest.approx(degree, abs=1e-3)


def peptide():
    from ase.data import covalent_radii
    from ase.io import read

    atoms = read(DATA / "ac_ala3_nhme.xyz", format="extxyz")
    return atoms, stability.find_bonds(atoms.positions[None], covalent_radii[atoms.numbers])[0]


def test_backbone_dihedrals_of_the_peptide_are_those_of_ase():
    atoms, bonds = peptide()
    phi, psi = structure.backbone_dihedrals(atoms.numbers, bonds)
    assert phi.shape == psi.shape == (3, 4)
    symbols = np.array(atoms.get_chemical_symbols())
    assert ["".join(row) for row in symbols[phi]] == ["CNCC"] * 3
    assert ["".join(row) for row in symbols[psi]] == ["NCCN"] * 3
    np.testing.assert_array_equal(phi[:, 1:], psi[:, :3])
    for quads in (phi, psi):
        expected = [(atoms.get_dihedral(*row) + 180) % 360 - 180 for row in quads.tolist()]
        angles = structure.dihedral_angles(quads)(jnp.asarray(atoms.positions, jnp.float32))
        np.testing.assert_allclose(np.degrees(angles), expected, atol=1e-2)


def test_molecules_without_peptide_bonds_have_no_backbone():
    phi, psi = structure.backbone_dihedrals(np.array([6, 8, 7, 1]), Pairs(np.array([0, 0]), np.array([1, 2])))
    assert phi.shape == psi.shape == (0, 4)


def test_ramachandran_map_has_each_residue_in_its_bin():
    atoms, bonds = peptide()
    phi, psi = structure.backbone_dihedrals(atoms.numbers, bonds)
    density = structure.ramachandran(phi, psi, num_bins=36)(jnp.asarray(atoms.positions, jnp.float32))
    assert float(density.sum()) == pytest.approx(1)
    angles = [np.array([(atoms.get_dihedral(*row) + 180) % 360 for row in quads.tolist()]) for quads in (phi, psi)]
    for one, other in zip(*angles, strict=True):
        assert float(density[int(one // 10), int(other // 10)]) == pytest.approx(1 / 3)


CELL = 12.0 * np.eye(3)


def test_radial_distribution_of_an_ideal_gas_is_1_and_of_a_lattice_has_its_shells():
    rng = np.random.default_rng(0)
    species, molecule = np.tile([8, 1, 1], 64), np.repeat(np.arange(64), 3)
    pairs = structure.intermolecular_pairs(species, molecule)
    assert {kind: len(p.first) for kind, p in pairs.items()} == {(1, 1): 8064, (1, 8): 8064, (8, 8): 2016}
    position = jnp.asarray(12.0 * rng.normal(size=(50, 192, 3)), jnp.float32)  # not wrapped
    for some in pairs.values():
        rdf = jax.jit(jax.vmap(structure.radial_distribution(some, stop=6.0, width=0.5, cell=CELL)))(position).mean(0)
        shell = 4 / 3 * np.pi * np.diff((0.5 * np.arange(13)) ** 3) / 12.0**3
        np.testing.assert_allclose(rdf, 1.0, atol=5 / np.sqrt(50 * len(some.first) * shell.min()))
        np.testing.assert_allclose(rdf[4:], 1.0, atol=0.05)
    lattice = jnp.asarray(np.argwhere(np.ones((4, 4, 4))) * 3.0, jnp.float32)
    one = structure.radial_distribution(geometry.all_pairs(64), stop=3.5, width=0.5, cell=CELL)(lattice)
    shell = 4 / 3 * np.pi * (3.5**3 - 3.0**3)
    np.testing.assert_allclose(one, [0] * 6 + [64 * 3 / 2016 * 12.0**3 / shell], rtol=1e-5)
    with pytest.raises(ValueError, match="less than twice the cutoff of 6.5"):
        structure.radial_distribution(some, stop=6.5, width=0.5, cell=CELL)


def test_molecules_are_what_bonds_connect():
    bonds = Pairs(np.array([0, 0, 3, 3]), np.array([1, 2, 5, 4]))
    np.testing.assert_array_equal(structure.find_molecules(bonds, 7), [0, 0, 0, 1, 1, 1, 2])


def test_nearest_atoms_of_different_molecules_are_found_through_the_walls():
    molecule = np.array([0, 0, 1])
    pairs = structure.intermolecular_pairs(np.array([8, 1, 1]), molecule)
    assert set(pairs) == {(1, 1), (1, 8)}
    position = jnp.array([[0.5, 0, 0], [1.4, 0, 0], [11.0, 0, 0]])
    for cell, nearest in ((CELL, 1.5), (None, 10.5)):
        criterion = stability.intermolecular_distance(pairs[1, 8], threshold=1.2, cell=cell)
        assert float(criterion(position)) == pytest.approx(1.2 - nearest, abs=1e-5)


def window_criterion(**settings):
    return stability.window_mean_error(
        lambda position: {"a": position[0, :2], "b": position[0, 2:]},
        {"a": np.zeros(2, np.float32), "b": np.ones(1, np.float32)},
        bin_width=0.5,
        threshold=3.0,
        **settings,
    )


def test_window_mean_error_is_that_of_the_worst_curve_over_the_last_whole_window():
    criterion = window_criterion(steps_per_frame=2, frames_per_window=3)
    memory, values = criterion.init(), []
    frames = np.array([[100.0, 0, 0]] + [[step, 0.0, 1.0 - step] for step in range(2, 19)], np.float32)
    for frame in frames:
        memory, value = jax.jit(criterion.update)(memory, frame[None])
        values.append(float(value))
    # Looks at steps 2, 4, 6, then 8, 10, 12, then 14, 16, 18: means 4, 10 and 16.
    expected = [-3.0] * 5 + [0.5 * 4 - 3] * 6 + [0.5 * 10 - 3] * 6 + [0.5 * 16 - 3]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        window_criterion(steps_per_frame=0, frames_per_window=3)


def test_criteria_that_remember_and_those_that_do_not_go_together():
    both = stability.any_of(window_criterion(steps_per_frame=1, frames_per_window=2), lambda x: x[0, 0] - 50)
    memory = both.init()
    memory, first = both.update(memory, jnp.array([[20.0, 0, 1]]))
    memory, second = both.update(memory, jnp.array([[20.0, 0, 1]]))
    memory, third = both.update(memory, jnp.array([[60.0, 0, 1]]))
    assert [float(first), float(second), float(third)] == pytest.approx([-3, 7, 10])


def test_displacements_and_velocities_of_brownian_motion_give_its_diffusivity():
    """Ornstein–Uhlenbeck velocities: D = kT/(mγ), by Einstein and by Green–Kubo, whatever the drift."""
    rng = np.random.default_rng(0)
    spacing, friction, num_atoms, num_frames = 0.05, 1.0, 400, 4000
    velocity = np.zeros((num_frames, num_atoms, 3))
    velocity[0] = rng.normal(size=(num_atoms, 3))
    keep = np.exp(-friction * spacing)
    for frame in range(1, num_frames):
        velocity[frame] = keep * velocity[frame - 1] + np.sqrt(1 - keep**2) * rng.normal(size=(num_atoms, 3))
    velocity += 3.0
    position = np.cumsum(0.5 * (velocity[1:] + velocity[:-1]), axis=0) * spacing
    mass = np.ones(num_atoms)
    msd = np.asarray(transport.mean_squared_displacement(jnp.asarray(position), mass, num_lags=300))
    correlation = np.asarray(transport.velocity_correlation(jnp.asarray(velocity), mass, num_lags=160))
    by_displacement = transport.diffusivity_of_displacement(msd, spacing=spacing, first=5.0, last=14.0)
    by_velocity = transport.diffusivity_of_velocity(correlation, spacing=spacing)
    assert float(by_displacement) == pytest.approx(1.0, rel=0.06)
    assert float(by_velocity) == pytest.approx(1.0, rel=0.06)
    with pytest.raises(ValueError, match="needs two lags from 20 to 30, got 0"):
        transport.diffusivity_of_displacement(msd, spacing=spacing, first=20.0, last=30.0)
    with pytest.raises(ValueError, match="`mean_squared_displacement`: 11 lags need as many frames, got 10"):
        transport.mean_squared_displacement(jnp.asarray(position[:10]), mass, num_lags=11)


def test_centers_of_molecules_weigh_by_mass():
    x = jnp.array([[[0.0, 0, 0], [3, 0, 0], [5, 5, 5]]])
    centers = transport.molecule_centers(x, np.array([2.0, 1.0, 7.0]), np.array([0, 0, 1]))
    np.testing.assert_allclose(centers, [[[1, 0, 0], [5, 5, 5]]])


def test_density_of_each_value_integrates_to_one_and_is_where_the_value_is():
    center = structure.bin_centers(4.0, 0.05)
    observable = structure.density(lambda position: position[:, 0], center, smearing=0.1)
    density = observable(jnp.array([[1.0, 0, 0], [2.5, 0, 0]]))
    assert density.shape == (2, 80)
    np.testing.assert_allclose(density.sum(axis=1) * 0.05, 1.0, rtol=1e-4)
    np.testing.assert_allclose(density @ center * 0.05, [1.0, 2.5], rtol=1e-4)


def test_pairs_by_separation_are_bonds_angles_and_the_rest():
    """A chain of five atoms, in disorder."""
    chain = [3, 0, 4, 1, 2]
    bonds = Pairs(np.array(chain[:-1]), np.array(chain[1:]))
    found = structure.pairs_by_separation(geometry.all_pairs(5), bonds, 5)
    as_set = lambda pairs: {frozenset(pair) for pair in zip(*map(np.ndarray.tolist, pairs), strict=True)}  # noqa: E731
    assert as_set(found[1]) == {frozenset(pair) for pair in pairwise(chain)}
    assert as_set(found[2]) == {frozenset(chain[i : i + 3 : 2]) for i in range(3)}
    assert as_set(found[3]) == as_set(geometry.all_pairs(5)) - as_set(found[1]) - as_set(found[2])
    assert set(structure.pairs_by_separation(bonds, bonds, 5)) == {1}


def test_atoms_that_are_not_connected_are_far_apart():
    found = structure.pairs_by_separation(geometry.all_pairs(3), Pairs(np.array([0]), np.array([1])), 3)
    assert [len(found[number].first) for number in found] == [1, 2] and set(found) == {1, 3}
