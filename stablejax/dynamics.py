"""NVT dynamics of one replica, which stops at the first violation of a criterion."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stablejax.integrators import Integrator, force_fn
from stablejax.neighbors import NeighborList, any_side_by_side
from stablejax.types import Array, Bool, Criterion, Float, Frame, Int, Key, Position, stateful


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
        """True once the criterion was violated or the state was no longer finite."""
        return (self.violation > 0) | ~self.is_finite


class Trajectory(NamedTuple):
    """Decimated frames of one replica."""

    frame: Frame  # leaves [frame, ...]
    is_valid: Bool[Array, "*replica frame"]  # False where the replica was frozen before the frame


def init_replica(
    integrator: Integrator, key: Key, position: Position, prepared: Any, criterion: Criterion | None = None
) -> Replica:
    """A replica at `position` with velocities drawn from `key`, at step 0.

    Where the neighbor list lacks capacity `did_overflow` is set, and forces are recomputed once it has enough.

    Args:
      integrator: see `integrators.langevin` and `integrators.nose_hoover`.
      key: PRNG key.
      position: Å.
      prepared: from `integrator.potential.prepare`.
      criterion: required where it has a state.
    """
    listed = _listed(integrator, position)
    md = integrator.init(key, position, prepared, listed)
    did_overflow = jnp.bool(False) if listed is None else listed.did_overflow
    return _unfrozen(md, jnp.int32(0), criterion)._replace(did_overflow=did_overflow)


def restart(replica: Replica, criterion: Criterion | None = None) -> Replica:
    """The replica, no longer frozen and with its record of violations cleared. Its step is kept.

    Args:
      replica: frozen or not.
      criterion: required where it has a state, which then starts from this frame.
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


def frame_at(integrator: Integrator, prepared: Any, replica: Replica) -> Frame:
    """The frame at which a replica stands, with its energy.

    Args:
      integrator: see `integrators.langevin` and `integrators.nose_hoover`.
      prepared: from `integrator.potential.prepare`.
      replica: from `init_replica`.
    """
    position = replica.md.position
    energy = integrator.potential.prepared_energy(prepared, position, _listed(integrator, position))
    return frame_of(replica.md, energy)


def violates(integrator: Integrator, criterion: Criterion, prepared: Any, replica: Replica) -> Bool[Array, ""]:
    """Whether the frame at which a replica stands violates the criterion, or its value is not finite.

    Args:
      integrator: see `integrators.langevin` and `integrators.nose_hoover`.
      criterion: unstable above 0.
      prepared: from `integrator.potential.prepare`.
      replica: from `init_replica`.
    """
    _, violation = stateful(criterion).step(replica.criterion, frame_at(integrator, prepared, replica))
    return ~(violation <= 0)


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
    resumes from there when it is given to an integrator with more. Frozen replicas cost nothing where replicas run
    sequentially.

    Args:
      integrator: see `integrators.langevin` and `integrators.nose_hoover`.
      criterion: unstable above 0.
      prepared: from `integrator.potential.prepare`.
      replica: from `init_replica`.
      until_step: count of steps since the start.
      freeze_above: in the criterion's unit.
    """
    carry = _begin(integrator, prepared, replica)
    return _advance(integrator, criterion, prepared, carry, until_step, freeze_above).replica


class _Carry(NamedTuple):
    """The loop carry of a call."""

    replica: Replica
    listed: NeighborList | None
    is_stale: Bool[Array, ""]  # the step moved atoms further than the list covers, and is repeated with a new one


def _begin(integrator: Integrator, prepared: Any, replica: Replica) -> _Carry:
    listed = _listed(integrator, replica.md.position)
    if listed is not None:
        # A replica that was paused at its start has no forces yet, even where `restart` has cleared the flag.
        md = replica.md
        lacks_forces = ~jnp.all(jnp.isfinite(md.force))
        force = lax.cond(
            any_side_by_side(lacks_forces),
            lambda: force_fn(integrator.potential)(md.position, prepared=prepared, listed=listed),
            lambda: md.force,
        )
        replica = replica._replace(md=md.set(force=jnp.where(lacks_forces, force, md.force)))
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
        # Repeated once only: a step that a new list does not cover either counts as not finite.
        is_stale = ~is_stale & ~lists.covers(listed, position) & ~listed.did_overflow
        paused = replica._replace(did_overflow=listed.did_overflow)
        return _Carry(
            jax.tree.map(partial(jnp.where, is_stale | listed.did_overflow), paused, stepped), listed, is_stale
        )

    return lax.while_loop(is_going, take_step, carry)


def _stepped(
    integrator: Integrator, criterion, prepared, replica: Replica, listed, freeze_above
) -> tuple[Replica, Position]:
    """The replica after a step, and the position that the step led to, which it does not take if not finite."""
    md = integrator.step(replica.md, prepared, listed)
    # Removed by the compiler where the criterion does not use it.
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

    A replica that freezes keeps its state, and one whose neighbor list overflows is paused; its frames from then on are
    marked as not valid.

    Args:
      integrator: see `integrators.langevin` and `integrators.nose_hoover`.
      criterion: unstable above 0.
      prepared: from `integrator.potential.prepare`.
      replica: from `init_replica`.
      num_frames: number of frames kept.
      steps_per_frame: steps between frames.
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
