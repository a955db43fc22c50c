"""Dynamics: observables of a window of consecutive frames."""

from __future__ import annotations

import jax.numpy as jnp

from stablejax.types import Array, Float


def velocity_autocorrelation(
    velocity: Float[Array, "frame atom 3"], mass: Float[Array, " atom"], *, num_lags: int
) -> Float[Array, " lag"]:
    """Velocity autocorrelation function (A.4), normalised to 1 at lag 0, over all time origins.

    The velocity of the centre of mass is taken off first, so that thermostats that do and do not move it agree.

    Args:
      velocity: equally spaced consecutive frames.
      mass: amu.
      num_lags: lags from 0, at most the number of frames.

    Raises:
      ValueError: more lags than frames.
    """
    num_frames = velocity.shape[0]
    if num_lags > num_frames:
        raise ValueError(f"`velocity_autocorrelation`: {num_lags} lags need as many frames, got {num_frames}.")
    mass = jnp.asarray(mass)[:, None]
    velocity = velocity - jnp.sum(mass * velocity, axis=1, keepdims=True) / jnp.sum(mass)
    correlation = jnp.stack(
        [jnp.mean(jnp.sum(velocity[: num_frames - lag] * velocity[lag:], axis=-1)) for lag in range(num_lags)]
    )
    return correlation / correlation[0]
