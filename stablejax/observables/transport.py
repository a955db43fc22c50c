"""Dynamical properties: observables of a window of consecutive frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.observables.structure import dihedral_angles
from stablejax.types import Array, Float, Frame, Int


def velocity_autocorrelation(
    velocity: Float[Array, "frame atom 3"], mass: Float[Array, " atom"], *, num_lags: int
) -> Float[Array, " lag"]:
    """Velocity autocorrelation function (A.4), normalized to 1 at lag 0, over all time origins.

    The velocity of the center of mass is removed first, so that thermostats that do and do not move it agree.

    Args:
      velocity: equally spaced consecutive frames.
      mass: amu.
      num_lags: lags from 0, at most the number of frames.

    Raises:
      ValueError: more lags than frames.
    """
    _check_lags("velocity_autocorrelation", num_lags, len(velocity))
    correlation = velocity_correlation(velocity, mass, num_lags=num_lags)
    return correlation / correlation[0]


def velocity_correlation(
    velocity: Float[Array, "frame atom 3"], mass: Float[Array, " atom"], *, num_lags: int
) -> Float[Array, " lag"]:
    """⟨v(0) · v(t)⟩ over atoms and time origins, drift removed, in the unit of the velocity squared.

    Corrected for the motion that is removed with the drift; see `mean_squared_displacement`.

    Args:
      velocity: equally spaced consecutive frames.
      mass: amu.
      num_lags: lags from 0, at most the number of frames.

    Raises:
      ValueError: more lags than frames.
    """
    _check_lags("velocity_correlation", num_lags, len(velocity))
    moved = _without_drift(velocity, mass)
    return _over_lags(lambda now, later: jnp.sum(now * later, axis=-1), moved, num_lags) / _share_kept(mass)


def torsion_transitions(
    position: Float[Array, "frame atom 3"], quads: Int[Array, "torsion 4"], *, num_sectors: int = 3
) -> Float[Array, " 1"]:
    """Changes of the sector that a torsion is in, per torsion and interval between frames; 0 without torsions.

    A potential that has become too stiff turns less often than the reference does.

    Args:
      position: equally spaced consecutive frames, in open boundaries.
      quads: atoms i, j, k, l; see `topology.torsions`.
      num_sectors: of equal size, centered at 0.
    """
    if not len(quads):
        return jnp.zeros(1, position.dtype)
    angle = jax.vmap(lambda x: dihedral_angles(quads)(Frame(x)))(position)
    sector = jnp.round(angle * num_sectors / (2 * jnp.pi)) % num_sectors
    return jnp.mean(sector[1:] != sector[:-1], dtype=position.dtype)[None]


def mean_squared_displacement(
    position: Float[Array, "frame atom 3"], mass: Float[Array, " atom"], *, num_lags: int
) -> Float[Array, " lag"]:
    """Mean squared displacement over atoms and time origins, the drift of the center of mass removed, Å².

    N atoms that move independently keep 1 − m_i/M of their motion when that of their center of mass M is removed, so
    the mean is divided by that of this factor, (N − 1)/N for like atoms.

    Args:
      position: equally spaced consecutive frames, not wrapped into the cell, Å.
      mass: amu.
      num_lags: lags from 0, at most the number of frames.

    Raises:
      ValueError: more lags than frames.
    """
    _check_lags("mean_squared_displacement", num_lags, len(position))
    moved = _without_drift(position, mass)
    return _over_lags(lambda now, later: jnp.sum((later - now) ** 2, axis=-1), moved, num_lags) / _share_kept(mass)


def diffusivity_of_displacement(
    msd: Float[Array, "*batch lag"], *, spacing: float, first: float, last: float
) -> Float[np.ndarray, "*batch"]:
    """Self-diffusion coefficient D (A.4) from the slope of the mean squared displacement, 6 D t, where it is linear.

    Args:
      msd: see `mean_squared_displacement`.
      spacing: time between lags.
      first: time from which it is linear.
      last: time until which it is fitted.

    Returns:
      D in the unit of `msd` per unit of time.

    Raises:
      ValueError: fewer than two lags between `first` and `last`.
    """
    time = spacing * np.arange(msd.shape[-1])
    is_fitted = (time >= first) & (time <= last)
    if is_fitted.sum() < 2:
        raise ValueError(
            f"`diffusivity_of_displacement`: needs two lags from {first:g} to {last:g}, got {is_fitted.sum()} of "
            f"{msd.shape[-1]} with a spacing of {spacing:g}: take more lags."
        )
    centered = time[is_fitted] - time[is_fitted].mean()
    return np.asarray(np.asarray(msd)[..., is_fitted] @ centered / np.sum(centered**2) / 6)


def diffusivity_of_velocity(correlation: Float[Array, "*batch lag"], *, spacing: float) -> Float[np.ndarray, "*batch"]:
    """Self-diffusion coefficient by Green–Kubo, D = ⅓ ∫ ⟨v(0) · v(t)⟩ dt over all lags by the trapezoidal rule.

    Lags have to be dense enough for the fastest motion, so centers of molecules suit better than atoms.

    Args:
      correlation: see `velocity_correlation`.
      spacing: time between lags.
    """
    return np.asarray(np.trapezoid(np.asarray(correlation), dx=spacing, axis=-1) / 3)


def molecule_centers(
    x: Float[Array, "*batch atom 3"], mass: Float[Array, " atom"], molecule: Int[np.ndarray, " atom"]
) -> Float[Array, "*batch molecule 3"]:
    """Center of mass of each molecule, or its velocity. Positions of a molecule have to be whole, not wrapped.

    Args:
      x: positions or velocities.
      mass: amu.
      molecule: number of the molecule of each atom; see `topology.find_molecules`.
    """
    weight = np.asarray(mass)[:, None] * np.eye(molecule.max() + 1)[molecule]
    share = jnp.asarray(weight / weight.sum(axis=0), x.dtype)
    return jnp.einsum("am,...ad->...md", share, x, precision=lax.Precision.HIGHEST)


def _over_lags(fn, x, num_lags: int) -> Float[Array, " lag"]:
    """Mean of fn(x(t), x(t + lag)) over atoms and time origins, evaluated sequentially over lags."""
    frame = jnp.arange(len(x))

    def at_lag(lag):
        has_later = frame < len(x) - lag
        values = jnp.mean(fn(x, jnp.roll(x, -lag, axis=0)), axis=-1)
        return jnp.sum(jnp.where(has_later, values, 0)) / (len(x) - lag)

    return lax.map(at_lag, jnp.arange(num_lags))


def _without_drift(x, mass):
    mass = jnp.asarray(mass)[:, None]
    return x - jnp.sum(mass * x, axis=1, keepdims=True) / jnp.sum(mass)


def _share_kept(mass) -> Float[Array, ""]:
    """Mean over the atoms of 1 − m/M: what is left of independent motion without that of the center of mass."""
    mass = jnp.asarray(mass)
    return 1 - jnp.mean(mass) / jnp.sum(mass)


def _check_lags(name: str, num_lags: int, num_frames: int) -> None:
    if num_lags > num_frames:
        raise ValueError(
            f"`{name}`: {num_lags} lags need at least as many frames, got {num_frames}: ask for fewer lags."
        )
