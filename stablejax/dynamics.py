"""NVT dynamics of one replica, and a run of its steps that stops at the first violation.

The integrators are jax-md's, with two things put right: the Nosé–Hoover chain counts the degrees of freedom that are
free to move, and initial momenta are Maxwell–Boltzmann for every element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax_md import simulate, space

from stablejax.geometry import NeighborList, NeighborLists
from stablejax.types import Array, Bool, Criterion, Float, Frame, Int, Key, Position, running

_, _SHIFT_FREE = space.free()


class Integrator(NamedTuple):
    """`init(key, prepared, position) -> md_state` and `step(prepared, md_state) -> md_state`.

    With `lists`, those of the potential's form, both are given `(prepared, neighbor list)`; see
    `potential.listed_form`.
    """

    init: Callable[[Key, Any, Position], Any]
    step: Callable[[Any, Any], Any]
    lists: NeighborLists | None = None


class Replica(NamedTuple):
    """One replica. A frozen one keeps the state and the step at which it was stopped."""

    md: Any  # jax-md state
    step: Int[Array, ""]  # steps taken; the first-passage step once frozen
    violation: Float[Array, ""]  # largest value of the criterion since the start: unstable above 0
    is_frozen: Bool[Array, ""]  # stopped: by the criterion, or before a state that was not finite
    is_finite: Bool[Array, ""]  # False: quarantined, `md` is the last finite state
    is_overfull: Bool[Array, ""]  # True: waits, its neighbor list has too few places for the next step
    memory: Any  # of the criterion

    @property
    def is_unstable(self) -> Bool[Array, ""]:
        """True once the criterion was violated or the dynamics left the finite numbers."""
        return (self.violation > 0) | ~self.is_finite


class Trajectory(NamedTuple):
    """Decimated frames of one replica."""

    frame: Frame  # leaves [frame, atom, 3]
    is_valid: Bool[Array, " frame"]  # False where the replica was frozen before the frame


def maxwell_boltzmann(
    key: Key, mass: Float[Array, " atom"], *, kT: float, position: Position | None = None
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
    energy_fn: Callable[[Any, Position], Float[Array, ""]],
    mass: Float[Array, " atom"],
    *,
    kT: float,
    timestep: float,
    friction: float,
    lists: NeighborLists | None = None,
) -> Integrator:
    """Langevin dynamics by jax-md's BAOAB splitting: all 3N degrees of freedom are thermal.

    Args:
      energy_fn: `(prepared, position) -> eV`.
      mass: amu.
      kT: eV.
      timestep: internal unit of time.
      friction: rate at which velocities forget, per internal unit of time.
      lists: of the form whose energy is given, where it has any.
    """
    mass = jnp.asarray(mass)
    init_fn, step_fn = simulate.nvt_langevin(_force_fn(energy_fn), _SHIFT_FREE, dt=timestep, kT=kT, gamma=friction)

    def init(key, prepared, position):
        velocity_key, thermostat_key = jax.random.split(key)
        # The center of mass moves as freely as the rest: its velocity is thermal too.
        drift = jnp.sqrt(kT / jnp.sum(mass)) * jax.random.normal(jax.random.fold_in(velocity_key, 1), (3,), mass.dtype)
        velocity = maxwell_boltzmann(velocity_key, mass, kT=kT) + drift
        momenta = (mass[:, None] * velocity).astype(position.dtype)
        return init_fn(thermostat_key, position, mass=mass, momenta=momenta, prepared=prepared)

    return Integrator(init, lambda prepared, state: step_fn(state, prepared=prepared), lists)


def nose_hoover(
    energy_fn: Callable[[Any, Position], Float[Array, ""]],
    mass: Float[Array, " atom"],
    *,
    kT: float,
    timestep: float,
    damping_time: float,
    chain_length: int = 3,
    chain_steps: int = 1,
    suzuki_yoshida_steps: int = 1,
    num_removed: int = 6,
    lists: NeighborLists | None = None,
) -> Integrator:
    """Nosé–Hoover chain: 3N − 6 thermal degrees of freedom of a molecule at rest and without rotation, or 3N − 3.

    The chain conserves the directions of momentum and, in open boundaries, angular momentum, so these are set to 0 and
    not counted. One chain over stiff modes that hardly exchange energy, as in flexible water, warms them slowly.

    Args:
      energy_fn: `(prepared, position) -> eV`.
      mass: amu.
      kT: eV.
      timestep: internal unit of time.
      damping_time: period of the thermostat τ, internal unit of time.
      chain_length: thermostats in the chain.
      chain_steps: substeps of the chain in a step.
      suzuki_yoshida_steps: 1, 3, 5 or 7.
      num_removed: 6 in open boundaries; 3 in a periodic cell, where angular momentum is not conserved.
      lists: of the form whose energy is given, where it has any.

    Raises:
      ValueError: fewer than 3 atoms (3N − 6 would not be positive); `num_removed` is neither 3 nor 6.
    """
    mass = jnp.asarray(mass)
    if len(mass) < 3:
        raise ValueError(
            f"`nose_hoover`: needs at least 3 atoms for 3N - 6 degrees of freedom, got {len(mass)}: use `langevin`."
        )
    if num_removed not in (3, 6):
        raise ValueError(f"`nose_hoover`: `num_removed` is 6 in open boundaries, 3 in a cell, got {num_removed}.")
    init_fn, step_fn = simulate.nvt_nose_hoover(
        _force_fn(energy_fn),
        _SHIFT_FREE,
        dt=timestep,
        kT=kT,
        chain_length=chain_length,
        chain_steps=chain_steps,
        sy_steps=suzuki_yoshida_steps,
        tau=damping_time,
    )

    def init(key, prepared, position):
        velocity = maxwell_boltzmann(key, mass, kT=kT, position=position if num_removed == 6 else None)
        momenta = (mass[:, None] * velocity).astype(position.dtype)
        state = init_fn(key, position, mass=mass, momenta=momenta, prepared=prepared)
        return state.set(chain=state.chain.set(degrees_of_freedom=3 * len(mass) - num_removed))

    return Integrator(init, lambda prepared, state: step_fn(state, prepared=prepared), lists)


def kinetic_temperature(velocity: Float[Array, "*batch atom 3"], mass: Float[Array, " atom"], *, num_removed: int):
    """k_B T from the kinetic energy over 3N − `num_removed` degrees of freedom, eV."""
    kinetic = 0.5 * jnp.sum(mass[:, None] * velocity * velocity, axis=(-1, -2))
    return 2 * kinetic / (3 * len(mass) - num_removed)


def init_replica(
    integrator: Integrator, key: Key, prepared: Any, position: Position, criterion: Criterion | None = None
) -> Replica:
    """A replica at `position` with velocities drawn from `key`, at step 0.

    A criterion that remembers has to be given; where the neighbor list has too few places `is_overfull` is set.
    """
    listed = _find(integrator, position)
    md = integrator.init(key, _given(integrator, prepared, listed), position)
    is_overfull = jnp.bool(False) if listed is None else listed.is_overfull
    return _unfrozen(md, jnp.int32(0), criterion)._replace(is_overfull=is_overfull)


def restart(replica: Replica, criterion: Criterion | None = None) -> Replica:
    """The replica, free to move and with its record of violations cleared. Its step is kept."""
    return _unfrozen(replica.md, replica.step, criterion)


def _unfrozen(md, step, criterion) -> Replica:
    return Replica(
        md=md,
        step=step,
        violation=jnp.full(step.shape, -jnp.inf, md.position.dtype),
        is_frozen=jnp.zeros(step.shape, bool),
        is_finite=jnp.ones(step.shape, bool),
        is_overfull=jnp.zeros(step.shape, bool),
        memory=() if criterion is None else running(criterion).init(),
    )


def _find(integrator: Integrator, position: Position) -> NeighborList | None:
    return None if integrator.lists is None else integrator.lists.find(position)


def _given(integrator: Integrator, prepared, listed: NeighborList | None):
    """What the energy function takes before the position."""
    return prepared if integrator.lists is None else (prepared, listed)


def frame_of(replica: Replica) -> Frame:
    """Position and velocity of a replica."""
    return Frame(replica.md.position, replica.md.velocity)


def advance(
    integrator: Integrator,
    criterion: Criterion,
    prepared: Any,
    replica: Replica,
    until_step: Int[Array, ""],
    *,
    freeze_above: float = 0.0,
) -> Replica:
    """Steps up to `until_step`, or up to and including the first step at which the criterion exceeds `freeze_above`.

    The criterion is looked at after every step. A step to a non-finite state is not taken: the replica keeps the state
    before it and is marked. Neither is one for which the neighbor list has too few places: the replica waits, and goes
    on from there when it is given to an integrator with more. Frozen replicas cost nothing where replicas run one after
    the other.
    """
    return _advance(integrator, criterion, prepared, _begin(integrator, replica), until_step, freeze_above).replica


class _Carry(NamedTuple):
    """What is carried through the steps of a call."""

    replica: Replica
    listed: NeighborList | None
    is_stale: Bool[Array, ""]  # the step was more than the list covers, and is taken again with a new one


def _begin(integrator: Integrator, replica: Replica) -> _Carry:
    replica = replica._replace(is_overfull=jnp.zeros_like(replica.is_overfull))
    return _Carry(replica, _find(integrator, replica.md.position), jnp.zeros_like(replica.is_overfull))


def _advance(integrator, criterion, prepared, carry: _Carry, until_step, freeze_above) -> _Carry:
    def is_going(carry):
        replica = carry.replica
        return ~replica.is_frozen & ~replica.is_overfull & (replica.step < until_step)

    def take_step(carry):
        replica, listed, is_stale = carry
        position = replica.md.position
        if integrator.lists is not None:
            listed = integrator.lists.update(listed, position, is_going(carry), is_stale)
        md = integrator.step(_given(integrator, prepared, listed), replica.md)
        memory, violation = running(criterion).update(replica.memory, md.position)
        is_finite = jnp.all(jnp.isfinite(md.position)) & jnp.all(jnp.isfinite(md.momentum)) & jnp.isfinite(violation)
        keep = lambda new, old: jax.tree.map(partial(jnp.where, is_finite), new, old)  # noqa: E731
        stepped = replica._replace(
            md=keep(md, replica.md),
            step=replica.step + 1,
            violation=jnp.where(is_finite, jnp.maximum(violation, replica.violation), replica.violation),
            is_frozen=~(is_finite & (violation <= freeze_above)),
            is_finite=is_finite,
            memory=keep(memory, replica.memory),
        )
        if integrator.lists is None:
            return _Carry(stepped, None, is_stale)
        # Once: what a new list does not cover either is a state that is not finite.
        is_stale = ~is_stale & ~integrator.lists.covers(listed, md.position) & ~listed.is_overfull
        waiting = replica._replace(is_overfull=listed.is_overfull)
        return _Carry(
            jax.tree.map(partial(jnp.where, is_stale | listed.is_overfull), waiting, stepped), listed, is_stale
        )

    return lax.while_loop(is_going, take_step, carry)


def sample(
    integrator: Integrator,
    criterion: Criterion,
    prepared: Any,
    replica: Replica,
    *,
    num_frames: int,
    steps_per_frame: int,
    freeze_above: float = 0.0,
) -> tuple[Replica, Trajectory]:
    """`num_frames` times `steps_per_frame` steps, keeping the frame at the end of each; memory is that of the frames.

    A replica that is frozen on the way stays there, and one whose neighbor list is overfull waits; its frames from
    then on are marked as not valid.
    """
    start = replica.step

    def next_frame(carry, index):
        until_step = start + (index + 1) * steps_per_frame
        carry = _advance(integrator, criterion, prepared, carry, until_step, freeze_above)
        replica = carry.replica
        return carry, Trajectory(frame_of(replica), ~replica.is_frozen & ~replica.is_overfull)

    carry, trajectory = lax.scan(next_frame, _begin(integrator, replica), jnp.arange(num_frames))
    return carry.replica, trajectory


def _force_fn(energy_fn):
    return lambda position, prepared, **_: -jax.grad(energy_fn, argnums=1)(prepared, position)
