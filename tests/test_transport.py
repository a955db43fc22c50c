"""Dynamics against values known by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from stablejax.observables import transport


def test_vacf_of_an_oscillator_is_a_cosine_and_ignores_the_drift():
    omega, time = 0.4, jnp.arange(400.0)
    velocity = jnp.zeros((400, 2, 3)).at[:, 0, 0].set(2 * jnp.cos(omega * time)).at[:, 1, 0].set(-jnp.cos(omega * time))
    mass = jnp.array([1.0, 2.0])
    for drift in (0.0, 5.0):
        vacf = transport.velocity_autocorrelation(velocity + drift, mass, num_lags=30)
        np.testing.assert_allclose(vacf, jnp.cos(omega * time[:30]), atol=0.01)
    with pytest.raises(ValueError, match="30 lags need at least as many frames, got 10"):
        transport.velocity_autocorrelation(velocity[:10], mass, num_lags=30)


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
    with pytest.raises(ValueError, match="`mean_squared_displacement`: 11 lags need at least as many frames, got 10"):
        transport.mean_squared_displacement(jnp.asarray(position[:10]), mass, num_lags=11)


def test_centers_of_molecules_weigh_by_mass():
    x = jnp.array([[[0.0, 0, 0], [3, 0, 0], [5, 5, 5]]])
    centers = transport.molecule_centers(x, np.array([2.0, 1.0, 7.0]), np.array([0, 0, 1]))
    np.testing.assert_allclose(centers, [[[1, 0, 0], [5, 5, 5]]])


def test_free_walkers_keep_their_diffusivity_however_few_they_are():
    """Two independent walkers: without their center of mass half of the motion is left, which is corrected for."""
    rng = np.random.default_rng(0)
    mass = np.array([1.0, 1.0])
    steps = rng.normal(size=(20_000, 2, 3))
    position = jnp.asarray(np.cumsum(steps, axis=0))
    msd = np.asarray(transport.mean_squared_displacement(position, mass, num_lags=6))
    np.testing.assert_allclose(msd, 3.0 * np.arange(6), rtol=0.03, atol=1e-6)
    correlation = np.asarray(transport.velocity_correlation(jnp.asarray(steps), mass, num_lags=3))
    np.testing.assert_allclose(correlation, [3.0, 0, 0], atol=0.06)


def test_drift_is_that_of_the_center_of_mass():
    """A heavy atom at rest and a light one that moves away: the drift is a hundredth of its velocity."""
    velocity = jnp.zeros((10, 2, 3)).at[:, 1, 0].set(1.0)
    moved = transport._without_drift(velocity, jnp.array([99.0, 1.0]))
    np.testing.assert_allclose(moved[0, :, 0], [-0.01, 0.99], rtol=1e-5)


def test_green_kubo_is_a_third_of_the_area_by_trapezoids():
    correlation = np.array([3.0, 1.0, 0.0])
    assert float(transport.diffusivity_of_velocity(correlation, spacing=0.5)) == pytest.approx((2.0 + 0.5) * 0.5 / 3)


def test_diffusivity_is_a_sixth_of_the_slope():
    msd = 2.0 + 12.0 * 0.25 * np.arange(20)
    found = transport.diffusivity_of_displacement(msd, spacing=0.25, first=1.0, last=4.0)
    assert float(found) == pytest.approx(2.0)


def test_torsion_transitions_count_changes_of_sector_once_each():
    """A torsion that turns by 30° from frame to frame passes three boundaries in a whole turn of twelve frames."""
    angle = np.deg2rad(30 * np.arange(13) + 5)
    end = np.stack([np.ones(13), np.cos(angle), np.sin(angle)], axis=1)
    fixed = np.broadcast_to(np.array([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]]), (13, 3, 3))
    position = jnp.asarray(np.concatenate([fixed, end[:, None]], axis=1))
    quads = np.array([[0, 1, 2, 3]])
    assert float(transport.torsion_transitions(position, quads)[0]) == pytest.approx(3 / 12)
    assert float(transport.torsion_transitions(position, quads, num_sectors=4)[0]) == pytest.approx(4 / 12)
    still = jnp.broadcast_to(position[:1], position.shape)
    assert float(transport.torsion_transitions(still, quads)[0]) == 0
    assert float(transport.torsion_transitions(position, np.zeros((0, 4), int))[0]) == 0
