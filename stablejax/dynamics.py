"""NVT dynamics of one replica, and a run of its steps that stops at the first violation.

The integrators are jax-md's, with two corrections: the Nosé–Hoover chain counts the degrees of freedom that are free to
move, and initial momenta are Maxwell–Boltzmann for every element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax_md import simulate, space

from stablejax.neighbors import NeighborList
from stablejax.potential import Potential
from stablejax.types import Array, Bool, Criterion, Float, Frame, Int, Key, Position, stateful

_, _SHIFT_FREE = space.free()
Energy = float | Float[Array, ""]
Time = float | Float[Array, ""]


class Integrator(NamedTuple):
    """`init(key, position, prepared, listed) -> md` and `step(md, prepared, listed) -> md`, a jax-md state each.

    `prepared` is what `potential.prepare` gave; `listed` one of `potential.lists`, None where there are none.
    """

    potential: Potential
    init: Callable[[Key, Position, Any, NeighborList | None], Any]
    step: Callable[[Any, Any, NeighborList | None], Any]
    constrained_dof: int  # degrees of freedom that do not move, of 3N


class Replica(NamedTuple):
    """One replica. A frozen one keeps the state and the step at which it was stopped."""

    md: Any  # jax-md state
    step: Int[Array, "*replica"]  # steps taken; the first-passage step once frozen
    violation: Float[Array, "*replica"]  # largest value of the criterion since the start: unstable above 0
    is_frozen: Bool[Array, "*replica"]  # stopped: by the criterion, or before a state that was not finite
    is_finite: Bool[Array, "*replica"]  # False: quarantined, `md` is the last finite state
    did_overflow: Bool[Array, "*replica"]  # True: paused, its neighbor list lacks the capacity for the next step
    criterion: Any  # state of the criterion

    @property
    def is_unstable(self) -> Bool[Array, "*replica"]:
        """True once the criterion was violated or the dynamics left the finite numbers."""
        return (self.violation > 0) | ~self.is_finite


class Trajectory(NamedTuple):
    """Decimated frames of one replica."""

    frame: Frame  # leaves [frame, ...]
    is_valid: Bool[Array, "*replica frame"]  # False where the replica was frozen before the frame


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
      potential: the form that is run.
      mass: amu.
      kT: eV; may be traced.
      timestep: internal unit of time.
      friction: friction coefficient γ, per internal unit of time.

    Raises:
      ValueError: masses of another number of atoms; kT, timestep or friction are not positive.
    """
    mass = _checked("langevin", potential, mass, kT=kT, timestep=timestep, friction=friction)
    init_fn, step_fn = simulate.nvt_langevin(_force_fn(potential), _SHIFT_FREE, dt=timestep, kT=kT, gamma=friction)

    def init(key, position, prepared, listed):
        velocity_key, thermostat_key = jax.random.split(key)
        # The center of mass moves as freely as the rest: its velocity is thermal too.
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
    not counted. One chain over stiff modes that hardly exchange energy, as in flexible water, warms them slowly.

    Args:
      potential: the form that is run.
      mass: amu.
      kT: eV; may be traced.
      timestep: internal unit of time.
      damping_time: period of the thermostat τ, internal unit of time.
      chain_length: thermostats in the chain, at least 2.
      chain_steps: substeps of the chain in a step.
      suzuki_yoshida_steps: 1, 3, 5 or 7.

    Raises:
      ValueError: fewer than 3 atoms (3N − 6 would not be positive); masses of another number of atoms; kT, timestep or
        damping time are not positive; a chain of one thermostat, which jax-md integrates wrongly.
    """
    mass = _checked("nose_hoover", potential, mass, kT=kT, timestep=timestep, damping_time=damping_time)
    if len(mass) < 3:
        raise ValueError(
            f"`nose_hoover`: needs at least 3 atoms for 3N - 6 degrees of freedom, got {len(mass)}: use `langevin`."
        )
    if chain_length < 2:
        raise ValueError(f"`nose_hoover`: `chain_length` must be at least 2, got {chain_length}: use 3, or `langevin`.")
    constrained_dof = 3 if potential.space.is_periodic else 6
    init_fn, step_fn = simulate.nvt_nose_hoover(
        _force_fn(potential),
        _SHIFT_FREE,
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
      constrained_dof: degrees of freedom that do not move; see `Integrator`.
    """
    kinetic = 0.5 * jnp.sum(mass[:, None] * velocity * velocity, axis=(-1, -2))
    return 2 * kinetic / (3 * len(mass) - constrained_dof)


def init_replica(
    integrator: Integrator, key: Key, position: Position, prepared: Any, criterion: Criterion | None = None
) -> Replica:
    """A replica at `position` with velocities drawn from `key`, at step 0.

    Where the neighbor list lacks capacity `did_overflow` is set, and forces are made anew once it has enough.

    Args:
      integrator: see `langevin` and `nose_hoover`.
      key: PRNG key.
      position: Å.
      prepared: what `integrator.potential.prepare` gave.
      criterion: one with a state has to be given.
    """
    listed = _listed(integrator, position)
    md = integrator.init(key, position, prepared, listed)
    did_overflow = jnp.bool(False) if listed is None else listed.did_overflow
    return _unfrozen(md, jnp.int32(0), criterion)._replace(did_overflow=did_overflow)


def restart(replica: Replica, criterion: Criterion | None = None) -> Replica:
    """The replica, free to move and with its record of violations cleared. Its step is kept.

    Args:
      replica: frozen or not.
      criterion: one with a state has to be given; it starts from this frame.
    """
    return _unfrozen(replica.md, replica.step, criterion)


def _unfrozen(md, step, criterion: Criterion | None) -> Replica:
    return Replica(
        md=md,
        step=step,
        violation=jnp.full(step.shape, -jnp.inf, md.position.dtype),
        is_frozen=jnp.zeros(step.shape, bool),
        is_finite=jnp.ones(step.shape, bool),
        did_overflow=jnp.zeros(step.shape, bool),
        criterion=() if criterion is None else stateful(criterion).init(frame_of(md)),
    )


def _listed(integrator: Integrator, position: Position) -> NeighborList | None:
    lists = integrator.potential.lists
    return None if lists is None else lists.init(position)


def frame_of(md: Any, energy: Float[Array, "*replica"] | None = None) -> Frame:
    """Position, velocity and force of a jax-md state, and the energy if it is given.

    Args:
      md: of one replica, or of several on axis 0.
      energy: eV.
    """
    return Frame(md.position, md.velocity, md.force, energy)


def advance(
    integrator: Integrator,
    criterion: Criterion,
    prepared: Any,
    replica: Replica,
    until_step: int | Int[Array, ""],
    *,
    freeze_above: float = 0.0,
) -> Replica:
    """Steps up to `until_step`, or up to and including the first step at which the criterion exceeds `freeze_above`.

    The criterion is evaluated after every step. A step to a non-finite state is not taken: the replica keeps the state
    before it and is marked. Neither is one for which the neighbor list lacks capacity: the replica is paused, and
    resumes from there when it is given to an integrator with more. Frozen replicas cost nothing where replicas run one
    after the other.

    Args:
      integrator: see `langevin` and `nose_hoover`.
      criterion: unstable above 0.
      prepared: what `integrator.potential.prepare` gave.
      replica: from `init_replica`.
      until_step: count of steps since the start.
      freeze_above: in the criterion's unit.
    """
    carry = _begin(integrator, prepared, replica)
    return _advance(integrator, criterion, prepared, carry, until_step, freeze_above).replica


class _Carry(NamedTuple):
    """What is carried through the steps of a call."""

    replica: Replica
    listed: NeighborList | None
    is_stale: Bool[Array, ""]  # the step was more than the list covers, and is taken again with a new one


def _begin(integrator: Integrator, prepared: Any, replica: Replica) -> _Carry:
    listed = _listed(integrator, replica.md.position)
    if listed is not None:
        # A replica that was paused at its start has no forces yet, also where `restart` has cleared that it was.
        lacks_forces = ~jnp.all(jnp.isfinite(replica.md.force))
        force = _force_fn(integrator.potential)(replica.md.position, prepared=prepared, listed=listed)
        md = replica.md.set(force=jnp.where(lacks_forces, force, replica.md.force))
        replica = replica._replace(md=md)
    replica = replica._replace(did_overflow=jnp.zeros_like(replica.did_overflow))
    return _Carry(replica, listed, jnp.zeros_like(replica.did_overflow))


def _advance(integrator: Integrator, criterion, prepared, carry: _Carry, until_step, freeze_above) -> _Carry:
    lists = integrator.potential.lists

    def is_going(carry):
        replica = carry.replica
        return ~replica.is_frozen & ~replica.did_overflow & (replica.step < until_step)

    def take_step(carry):
        replica, listed, is_stale = carry
        if lists is not None:
            listed = lists.step(listed, replica.md.position, is_going(carry), is_stale)
        stepped, position = _stepped(integrator, criterion, prepared, replica, listed, freeze_above)
        if lists is None:
            return _Carry(stepped, None, is_stale)
        # Once: what a new list does not cover either is a state that is not finite.
        is_stale = ~is_stale & ~lists.covers(listed, position) & ~listed.did_overflow
        paused = replica._replace(did_overflow=listed.did_overflow)
        return _Carry(
            jax.tree.map(partial(jnp.where, is_stale | listed.did_overflow), paused, stepped), listed, is_stale
        )

    return lax.while_loop(is_going, take_step, carry)


def _stepped(
    integrator: Integrator, criterion, prepared, replica: Replica, listed, freeze_above
) -> tuple[Replica, Position]:
    """The replica after a step, and the position that the step led to, which it has not where that is not finite."""
    md = integrator.step(replica.md, prepared, listed)
    # Dropped by the compiler where the criterion does not ask for it.
    energy = integrator.potential.prepared_energy(prepared, md.position, listed)
    state, violation = stateful(criterion).step(replica.criterion, frame_of(md, energy))
    is_finite = jnp.all(jnp.isfinite(md.position)) & jnp.all(jnp.isfinite(md.momentum)) & jnp.isfinite(violation)
    keep = lambda new, old: jax.tree.map(partial(jnp.where, is_finite), new, old)  # noqa: E731
    stepped = replica._replace(
        md=keep(md, replica.md),
        step=replica.step + 1,
        violation=jnp.where(is_finite, jnp.maximum(violation, replica.violation), replica.violation),
        is_frozen=~(is_finite & (violation <= freeze_above)),
        is_finite=is_finite,
        criterion=keep(state, replica.criterion),
    )
    return stepped, md.position


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

    A replica that is frozen on the way stays there, and one whose neighbor list overflows is paused; its frames from
    then on are marked as not valid.

    Args:
      integrator: see `langevin` and `nose_hoover`.
      criterion: unstable above 0.
      prepared: what `integrator.potential.prepare` gave.
      replica: from `init_replica`.
      num_frames: to keep.
      steps_per_frame: between two of them.
      freeze_above: in the criterion's unit.
    """
    start = replica.step

    def next_frame(carry, index):
        until_step = start + (index + 1) * steps_per_frame
        carry = _advance(integrator, criterion, prepared, carry, until_step, freeze_above)
        replica = carry.replica
        energy = integrator.potential.prepared_energy(prepared, replica.md.position, carry.listed)
        frame = frame_of(replica.md, energy)
        return carry, Trajectory(frame, ~replica.is_frozen & ~replica.did_overflow)

    carry, trajectory = lax.scan(next_frame, _begin(integrator, prepared, replica), jnp.arange(num_frames))
    return carry.replica, trajectory


def _force_fn(potential: Potential):
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
