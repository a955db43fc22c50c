"""NVT dynamics of one replica, a run of steps that stops at the first violation, and many replicas at once.

The integrators are jax-md's, with two things put right: the Nosé–Hoover chain counts the degrees of freedom that are
free to move, and initial momenta are Maxwell–Boltzmann for every element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax_md import simulate, space

from stablejax.types import Array, Bool, Criterion, Float, Frame, Int, Key, Position

_, _SHIFT_FREE = space.free()
REPLICA_AXIS = "replica"
"""Name of the mesh axis over which replicas are sharded."""


class Integrator(NamedTuple):
    """`init(key, prepared, position) -> md_state` and `step(prepared, md_state) -> md_state`."""

    init: Callable[[Key, Any, Position], Any]
    step: Callable[[Any, Any], Any]


class Replica(NamedTuple):
    """One replica. A frozen one keeps the state and the step at which it was stopped."""

    md: Any  # jax-md state
    step: Int[Array, ""]  # steps taken; the first-passage step once frozen
    violation: Float[Array, ""]  # largest value of the criterion since the start: unstable above 0
    is_frozen: Bool[Array, ""]  # stopped: by the criterion, or before a state that was not finite
    is_finite: Bool[Array, ""]  # False: quarantined, `md` is the last finite state

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
    """Maxwell–Boltzmann velocities with the centre of mass at rest, and no rotation if `position` is given.

    Args:
      key: PRNG key.
      mass: amu.
      kT: eV.
      position: Å; angular momentum about the centre of mass is then removed (3N − 6 degrees of freedom).
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
) -> Integrator:
    """Langevin dynamics by jax-md's BAOAB splitting: all 3N degrees of freedom are thermal.

    Args:
      energy_fn: `(prepared, position) -> eV`.
      mass: amu.
      kT: eV.
      timestep: internal unit of time.
      friction: rate at which velocities forget, per internal unit of time.
    """
    mass = jnp.asarray(mass)
    init_fn, step_fn = simulate.nvt_langevin(_force_fn(energy_fn), _SHIFT_FREE, dt=timestep, kT=kT, gamma=friction)

    def init(key, prepared, position):
        velocity_key, thermostat_key = jax.random.split(key)
        # The centre of mass moves as freely as the rest: its velocity is thermal too.
        drift = jnp.sqrt(kT / jnp.sum(mass)) * jax.random.normal(jax.random.fold_in(velocity_key, 1), (3,), mass.dtype)
        velocity = maxwell_boltzmann(velocity_key, mass, kT=kT) + drift
        momenta = (mass[:, None] * velocity).astype(position.dtype)
        return init_fn(thermostat_key, position, mass=mass, momenta=momenta, prepared=prepared)

    return Integrator(init, lambda prepared, state: step_fn(state, prepared=prepared))


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
) -> Integrator:
    """Nosé–Hoover chain of an isolated molecule: 3N − 6 thermal degrees of freedom, at rest and without rotation.

    The chain conserves the directions of momentum and angular momentum, so both are set to 0 and not counted.

    Args:
      energy_fn: `(prepared, position) -> eV`.
      mass: amu.
      kT: eV.
      timestep: internal unit of time.
      damping_time: period of the thermostat τ, internal unit of time.
      chain_length: thermostats in the chain.
      chain_steps: substeps of the chain in a step.
      suzuki_yoshida_steps: 1, 3, 5 or 7.

    Raises:
      ValueError: fewer than 3 atoms (3N − 6 would not be positive).
    """
    mass = jnp.asarray(mass)
    if len(mass) < 3:
        raise ValueError(
            f"`nose_hoover`: needs at least 3 atoms for 3N - 6 degrees of freedom, got {len(mass)}: use `langevin`."
        )
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
        velocity = maxwell_boltzmann(key, mass, kT=kT, position=position)
        momenta = (mass[:, None] * velocity).astype(position.dtype)
        state = init_fn(key, position, mass=mass, momenta=momenta, prepared=prepared)
        return state.set(chain=state.chain.set(degrees_of_freedom=3 * len(mass) - 6))

    return Integrator(init, lambda prepared, state: step_fn(state, prepared=prepared))


def kinetic_temperature(velocity: Float[Array, "*batch atom 3"], mass: Float[Array, " atom"], *, num_removed: int):
    """k_B T from the kinetic energy over 3N − `num_removed` degrees of freedom, eV."""
    kinetic = 0.5 * jnp.sum(mass[:, None] * velocity * velocity, axis=(-1, -2))
    return 2 * kinetic / (3 * len(mass) - num_removed)


def init_replica(integrator: Integrator, key: Key, prepared: Any, position: Position) -> Replica:
    """A replica at `position` with velocities drawn from `key`, at step 0."""
    return _unfrozen(integrator.init(key, prepared, position), jnp.int32(0))


def restart(replica: Replica) -> Replica:
    """The replica, free to move and with its record of violations cleared. Its step is kept."""
    return _unfrozen(replica.md, replica.step)


def _unfrozen(md, step) -> Replica:
    return Replica(
        md=md,
        step=step,
        violation=jnp.full(step.shape, -jnp.inf, md.position.dtype),
        is_frozen=jnp.zeros(step.shape, bool),
        is_finite=jnp.ones(step.shape, bool),
    )


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
    before it and is marked. Frozen replicas cost nothing where replicas run one after the other.
    """

    def is_running(replica: Replica):
        return ~replica.is_frozen & (replica.step < until_step)

    def take_step(replica: Replica):
        md = integrator.step(prepared, replica.md)
        violation = criterion(md.position)
        is_finite = jnp.all(jnp.isfinite(md.position)) & jnp.all(jnp.isfinite(md.momentum)) & jnp.isfinite(violation)
        md = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), md, replica.md)
        return Replica(
            md=md,
            step=replica.step + 1,
            violation=jnp.where(is_finite, jnp.maximum(violation, replica.violation), replica.violation),
            is_frozen=~(is_finite & (violation <= freeze_above)),
            is_finite=is_finite,
        )

    return lax.while_loop(is_running, take_step, replica)


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

    A replica that is frozen on the way stays there; its frames from then on are marked as not valid.
    """
    start = replica.step

    def next_frame(replica, index):
        until_step = start + (index + 1) * steps_per_frame
        replica = advance(integrator, criterion, prepared, replica, until_step, freeze_above=freeze_above)
        return replica, Trajectory(frame_of(replica), ~replica.is_frozen)

    return lax.scan(next_frame, replica, jnp.arange(num_frames))


def map_replicas(
    fn: Callable,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    is_active: Callable[[Any], Bool[Array, ""]] | None = None,
) -> Callable:
    """`fn(shared, one)` over axis 0 of `many`: `(shared, many) -> stacked`.

    Args:
      fn: function of what all replicas share and of one replica's pytree.
      batch_size: replicas that run side by side on a device (`vmap`); the others follow in turn. None: all.
        1 suits the caches of a CPU, None a GPU.
      mesh: devices to share the replicas between, by their axis `replica`. Their number has to divide the replicas'.
      is_active: of one replica's pytree, whether `fn` has work to do, as `advance` has with a replica that is not
        frozen. Replicas without work are put side by side, so that nobody waits for others beside them: on each device,
        those with work run on a half, a quarter or an eighth of the width where they fit. None: all have work.
    """

    def in_order(shared, many):
        one_fn = lambda one: fn(shared, one)  # noqa: E731
        if batch_size is None:
            return jax.vmap(one_fn)(many)
        # A batch of one is a plain loop, in which frozen replicas are skipped.
        return lax.map(one_fn, many, batch_size=None if batch_size == 1 else batch_size)

    def mapped(shared, many):
        if is_active is None or batch_size == 1:
            return in_order(shared, many)
        has_work = jax.vmap(is_active)(many)
        order = jnp.argsort(~has_work, stable=True)
        many = jax.tree.map(lambda leaf: leaf[order], many)
        if batch_size is None:
            widths = _widths(len(order))
            runs = [partial(_run_apart, partial(in_order, shared), width) for width in widths]
            done = lax.switch(jnp.searchsorted(jnp.asarray(widths), jnp.sum(has_work)), runs, many)
        else:
            done = in_order(shared, many)
        return jax.tree.map(lambda leaf: leaf[jnp.argsort(order)], done)

    if mesh is None:
        return mapped
    replicated, sharded = PartitionSpec(), PartitionSpec(REPLICA_AXIS)
    sharded_fn = jax.shard_map(mapped, mesh=mesh, in_specs=(replicated, sharded), out_specs=sharded, check_vma=False)

    def checked(shared, many):
        num_replicas = jax.tree.leaves(many)[0].shape[0]
        if num_replicas % mesh.shape[REPLICA_AXIS]:
            raise ValueError(
                f"`map_replicas`: {num_replicas} replicas cannot be shared evenly by {mesh.shape[REPLICA_AXIS]} "
                "devices: choose a multiple of the number of devices."
            )
        return sharded_fn(shared, many)

    return checked


def _widths(num_replicas: int) -> list[int]:
    """An eighth, a quarter, a half and all of them, rounded up, each once."""
    return sorted({-(-num_replicas // parts) for parts in (8, 4, 2, 1)})


def _run_apart(fn: Callable, width: int, many):
    """`fn` of the first `width` and of the rest, one after the other."""
    if width == jax.tree.leaves(many)[0].shape[0]:
        return fn(many)
    first, rest = jax.tree.map(lambda leaf: leaf[:width], many), jax.tree.map(lambda leaf: leaf[width:], many)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), fn(first), fn(rest))


def replica_mesh(devices: list | None = None) -> Mesh:
    """All devices, or those given, in a row named `replica`."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (REPLICA_AXIS,))


def _force_fn(energy_fn):
    return lambda position, prepared, **_: -jax.grad(energy_fn, argnums=1)(prepared, position)
