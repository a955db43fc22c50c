"""Geometry, criteria and observables against values known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    centre = structure.bin_centres(10.0, 0.02)
    assert len(centre) == 500
    assert centre[0] == pytest.approx(0.01)
    h_r = np.asarray(structure.interatomic_distances(geometry.all_pairs(3), centre, smearing=0.05)(TRIANGLE))
    assert h_r.sum() * 0.02 == pytest.approx(1.0, abs=1e-4)
    for side in (3, 4, 5):
        near = np.abs(centre - side) < 0.3
        assert h_r[near].sum() * 0.02 == pytest.approx(1 / 3, abs=1e-4)
        assert np.average(centre[near], weights=h_r[near]) == pytest.approx(side, abs=1e-3)


def test_pairs_by_element_are_all_pairs_in_parts():
    parts = structure.pairs_by_element(np.array([8, 1, 6, 1]))
    named = {kind: set(zip(p.first.tolist(), p.second.tolist(), strict=True)) for kind, p in parts.items()}
    assert named == {(1, 1): {(1, 3)}, (1, 6): {(1, 2), (2, 3)}, (1, 8): {(0, 1), (0, 3)}, (6, 8): {(0, 2)}}


def test_h_r_gradient_is_finite_differences(x64):
    observable = structure.interatomic_distances(geometry.all_pairs(3), structure.bin_centres(6.0, 0.1), smearing=0.2)
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
