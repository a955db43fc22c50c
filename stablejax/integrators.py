"""Integrators of NVT dynamics: jax-md's, with thermal energy in the unconstrained degrees of freedom, and only there.

The Nosé–Hoover chain counts the unconstrained degrees of freedom, and initial momenta are Maxwell–Boltzmann for
every element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stablejax._imports import imported
from stablejax.neighbors import NeighborList
from stablejax.potential import Potential
from stablejax.types import Array, Float, Key, Position

Energy = float | Float[Array, ""]
Time = float | Float[Array, ""]


class Integrator(NamedTuple):
    """`init(key, position, prepared, listed) -> md` and `step(md, prepared, listed) -> md`, a jax-md state each.

    `prepared` comes from `potential.prepare`, `listed` from `potential.lists`; None where there are none.
    """

    potential: Potential
    init: Callable[[Key, Position, Any, NeighborList | None], Any]
    step: Callable[[Any, Any, NeighborList | None], Any]
    constrained_dof: int  # constrained degrees of freedom, of 3N


def maxwell_boltzmann(
    key: Key, mass: Float[Array, " atom"], *, kT: Energy, position: Position | None = None
) -> Float[Array, "atom 3"]:
    """Maxwell–Boltzmann velocities with the center of mass at rest, and no rotation if `position` is given.

    Args:
      key: PRNG key.
      mass: amu.
      kT: eV.
      position: Å; angular momentum about the center of mass is then removed (3N − 6 degrees of freedom).
    """
    mass = jnp.asarray(mass)[:, None]
    velocity = jnp.sqrt(kT / mass) * jax.random.normal(key, (len(mass), 3), mass.dtype)
    velocity = velocity - jnp.sum(mass * velocity, axis=0) / jnp.sum(mass)
    if position is None:
        return velocity
    arm = position - jnp.sum(mass * position, axis=0) / jnp.sum(mass)
    angular_momentum = jnp.sum(mass * jnp.cross(arm, velocity), axis=0)
    inertia = jnp.sum(mass * jnp.sum(arm * arm, axis=1, keepdims=True)) * jnp.eye(3) - (mass * arm).T @ arm
    return velocity - jnp.cross(jnp.linalg.pinv(inertia, hermitian=True) @ angular_momentum, arm)


def langevin(
    potential: Potential, mass: Float[Array, " atom"], *, kT: Energy, timestep: Time, friction: Time
) -> Integrator:
    """Langevin dynamics by jax-md's BAOAB splitting: all 3N degrees of freedom are thermal.

    Args:
      potential: the form that is simulated.
      mass: amu.
      kT: eV; may be traced.
      timestep: internal unit of time.
      friction: friction coefficient γ, per internal unit of time.

    Raises:
      ValueError: masses for a different number of atoms; kT, timestep or friction are not positive.
    """
    mass = _checked("langevin", potential, mass, kT=kT, timestep=timestep, friction=friction)
    init_fn, step_fn = _engine().nvt_langevin(force_fn(potential), _shift, dt=timestep, kT=kT, gamma=friction)

    def init(key, position, prepared, listed):
        velocity_key, thermostat_key = jax.random.split(key)
        # The center of mass is not constrained: its velocity is thermal too.
        drift = jnp.sqrt(kT / jnp.sum(mass)) * jax.random.normal(jax.random.fold_in(velocity_key, 1), (3,), mass.dtype)
        velocity = maxwell_boltzmann(velocity_key, mass, kT=kT) + drift
        momenta = (mass[:, None] * velocity).astype(position.dtype)
        return init_fn(thermostat_key, position, mass=mass, momenta=momenta, prepared=prepared, listed=listed)

    step = lambda md, prepared, listed: step_fn(md, prepared=prepared, listed=listed)  # noqa: E731
    return Integrator(potential, init, step, constrained_dof=0)


def nose_hoover(
    potential: Potential,
    mass: Float[Array, " atom"],
    *,
    kT: Energy,
    timestep: Time,
    damping_time: Time,
    chain_length: int = 3,
    chain_steps: int = 1,
    suzuki_yoshida_steps: int = 1,
) -> Integrator:
    """Nosé–Hoover chain: 3N − 6 thermal degrees of freedom of a molecule at rest without rotation, 3N − 3 in a cell.

    The chain conserves the directions of momentum and, in open boundaries, angular momentum, so these are set to 0 and
    not counted. One chain over stiff modes that hardly exchange energy, as in flexible water, heats them slowly.

    Args:
      potential: the form that is simulated.
      mass: amu.
      kT: eV; may be traced.
      timestep: internal unit of time.
      damping_time: period of the thermostat τ, internal unit of time.
      chain_length: thermostats in the chain, at least 2.
      chain_steps: substeps of the chain in a step.
      suzuki_yoshida_steps: 1, 3, 5 or 7.

    Raises:
      ValueError: fewer than 3 atoms (3N − 6 would not be positive); masses for a different number of atoms; kT,
        timestep or damping time are not positive; a chain of one thermostat, which jax-md integrates incorrectly.
    """
    mass = _checked("nose_hoover", potential, mass, kT=kT, timestep=timestep, damping_time=damping_time)
    if len(mass) < 3:
        raise ValueError(
            f"`nose_hoover`: needs at least 3 atoms for 3N - 6 degrees of freedom, got {len(mass)}: use `langevin`."
        )
    if chain_length < 2:
        raise ValueError(f"`nose_hoover`: `chain_length` must be at least 2, got {chain_length}: use 3, or `langevin`.")
    constrained_dof = 3 if potential.space.is_periodic else 6
    init_fn, step_fn = _engine().nvt_nose_hoover(
        force_fn(potential),
        _shift,
        dt=timestep,
        kT=kT,
        chain_length=chain_length,
        chain_steps=chain_steps,
        sy_steps=suzuki_yoshida_steps,
        tau=damping_time,
    )

    def init(key, position, prepared, listed):
        velocity = maxwell_boltzmann(key, mass, kT=kT, position=position if constrained_dof == 6 else None)
        momenta = (mass[:, None] * velocity).astype(position.dtype)
        md = init_fn(key, position, mass=mass, momenta=momenta, prepared=prepared, listed=listed)
        return md.set(chain=md.chain.set(degrees_of_freedom=3 * len(mass) - constrained_dof))

    step = lambda md, prepared, listed: step_fn(md, prepared=prepared, listed=listed)  # noqa: E731
    return Integrator(potential, init, step, constrained_dof)


def kinetic_temperature(
    velocity: Float[Array, "*batch atom 3"], mass: Float[Array, " atom"], *, constrained_dof: int
) -> Float[Array, "*batch"]:
    """k_B T from the kinetic energy over 3N − `constrained_dof` degrees of freedom, eV.

    Args:
      velocity: Å per internal unit of time.
      mass: amu.
      constrained_dof: constrained degrees of freedom; see `Integrator`.
    """
    kinetic = 0.5 * jnp.sum(mass[:, None] * velocity * velocity, axis=(-1, -2))
    return 2 * kinetic / (3 * len(mass) - constrained_dof)


def force_fn(potential: Potential) -> Callable[..., Float[Array, "atom 3"]]:
    """`(position, prepared, listed) -> forces`, eV/Å, as jax-md takes them."""

    def force(position, prepared, listed, **_):
        return -jax.grad(potential.prepared_energy, argnums=1)(prepared, position, listed)

    return force


def _checked(name: str, potential: Potential, mass, **positive) -> Float[Array, " atom"]:
    mass = jnp.asarray(mass)
    if mass.shape != (potential.num_atoms,):
        raise ValueError(
            f"`{name}`: expected masses of {potential.num_atoms} atoms, got shape {mass.shape}: pass one mass, "
            "amu, for each atom of the potential."
        )
    for setting, value in positive.items():
        if not isinstance(value, jax.core.Tracer) and not value > 0:
            raise ValueError(f"`{name}`: expected a positive `{setting}`, got {value}: pass it in internal units.")
    return mass


def _engine() -> Any:
    """jax-md's integrators, imported where they are needed: that takes seconds and starts the backend."""
    return imported("jax_md.simulate")


def _shift(position: Position, change: Position, **_: Any) -> Position:
    """Positions are not wrapped."""
    return position + change
