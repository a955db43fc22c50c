"""StABlE training (Algorithm 1): simulation and learning in turn, the whole state one pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stablejax import dynamics
from stablejax.dynamics import Integrator, Replica
from stablejax.losses import Labeled
from stablejax.refine import RefineInfo, Refinement
from stablejax.types import Array, Bool, Criterion, Float, Int, Key, Params, Position

SIMULATE, LEARN = 0, 1
"""Phases."""


class StableState(NamedTuple):
    """State of StABlE training. Replicas are on axis 0."""

    params: Params
    optimizer_state: Any
    plateau_state: Any
    num_calls: Int[Array, ""]  # of `simulate` and `learn` together
    phase: Int[Array, ""]  # SIMULATE or LEARN
    cycle: Int[Array, ""]  # completed cycles
    epoch: Int[Array, ""]  # epochs of the present learning phase
    replicas: Replica  # as they stand
    checkpoint: Replica  # before the latest t steps of simulation
    earlier_checkpoint: Replica  # t steps before that; kept once a replica is frozen
    rewound: Replica  # where every epoch of the present learning phase starts


class SimulateInfo(NamedTuple):
    """What a call of `simulate` saw."""

    fraction_unstable: Float[Array, ""]
    num_steps: Int[Array, ""]  # replica-steps taken
    num_quarantined: Int[Array, ""]  # replicas stopped before a state that was not finite
    num_overfull: Int[Array, ""]  # replicas that wait for longer neighbor lists: to be repeated from the state before
    starts_learning: Bool[Array, ""]


class LearnInfo(NamedTuple):
    """What a call of `learn` saw, before its update."""

    fraction_unstable: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_quarantined: Int[Array, ""]
    num_overfull: Int[Array, ""]  # see `SimulateInfo`
    num_rounds: Int[Array, ""]  # times t steps that were simulated
    num_samples: Int[Array, ""]  # frames that count
    refinement: RefineInfo
    rate_scale: Float[Array, ""]  # factor on the learning rate
    ends_cycle: Bool[Array, ""]


class StableTraining(NamedTuple):
    """`init`, `simulate` and `learn`. The phase in the state says which comes next."""

    init: Callable[[Key, Params, Position], StableState]
    simulate: Callable[[StableState], tuple[StableState, SimulateInfo]]
    learn: Callable[..., tuple[StableState, LearnInfo]]  # (state, frames, *, num_rounds=1)


def stable_training(
    *,
    prepare: Callable[[Params], Any],
    integrator: Integrator,
    criterion: Criterion,
    refinement: Refinement,
    plateau: optax.GradientTransformationExtraArgs,
    rate_schedule: optax.Schedule,
    min_rate_scale: float,
    max_epochs: int,
    steps_per_epoch: int,
    steps_per_frame: int,
    max_unstable: float,
    min_unstable: float,
    freeze_above: float,
    map_replicas: Callable[..., Callable],
) -> StableTraining:
    """Algorithm 1 as pure functions.

    Simulation: active replicas run t steps at a time and freeze at their first violation, until a fraction
    `max_unstable` has. Then every replica is rewound by t steps, exactly: a frozen one by replaying, from the earlier
    checkpoint, up to t steps before its violation. None is rewound to before the start of the present simulation phase.

    Learning: each epoch runs all replicas for t steps from where they were rewound to, takes a frame every
    `steps_per_frame` steps, and refines the parameters. The phase ends when at most `min_unstable` of the replicas
    became unstable, the rate has fallen to `min_rate_scale`, or after `max_epochs`. The next cycle goes on from the
    endpoints. Where one epoch should have more samples, `num_rounds` of `learn` (a Python integer) multiplies its t.

    Args:
      prepare: parameters -> what `integrator` takes; see `potential.MDForm`.
      integrator: see `dynamics`.
      criterion: of training; unstable above 0.
      refinement: from samples to new parameters; see `refine.refinement`.
      plateau: `optax.contrib.reduce_on_plateau`, given L_obs; started afresh in each learning phase.
      rate_schedule: epoch of the learning phase -> further factor on the rate.
      min_rate_scale: a learning phase ends when the plateau's scale is at or under this.
      max_epochs: most epochs of one learning phase.
      steps_per_epoch: t.
      steps_per_frame: S; has to divide t.
      max_unstable: f_max.
      min_unstable: f_min.
      freeze_above: in learning, how far beyond the criterion a replica may go before it is frozen; frames up to there
        are learned from. In the criterion's unit.
      map_replicas: maps `fn(shared, one)` over replicas; see `parallel.map_replicas`.

    Raises:
      ValueError: S does not divide t; the fractions are not 0 ≤ f_min < f_max ≤ 1.
    """
    if steps_per_epoch % steps_per_frame:
        raise ValueError(
            f"`stable_training`: `steps_per_frame` has to divide `steps_per_epoch`, got {steps_per_frame} and "
            f"{steps_per_epoch}."
        )
    if not 0 <= min_unstable < max_unstable <= 1:
        raise ValueError(
            f"`stable_training`: needs 0 <= min_unstable < max_unstable <= 1, got {min_unstable} and {max_unstable}."
        )

    start_replicas = map_replicas(
        lambda prepared, one: dynamics.init_replica(integrator, one[0], prepared, one[1], criterion)
    )
    run_replicas = map_replicas(
        lambda prepared, replica: dynamics.advance(
            integrator, criterion, prepared, replica, replica.step + steps_per_epoch
        ),
        is_active=lambda replica: ~replica.is_frozen,
    )
    replay_replicas = map_replicas(
        lambda prepared, one: dynamics.advance(
            integrator, criterion, prepared, dynamics.restart(one[0], criterion), one[1]
        )
    )

    def sample_replicas(prepared, replicas, num_rounds):
        sample = lambda prepared, replica: dynamics.sample(  # noqa: E731
            integrator,
            criterion,
            prepared,
            dynamics.restart(replica, criterion),
            num_frames=num_rounds * steps_per_epoch // steps_per_frame,
            steps_per_frame=steps_per_frame,
            freeze_above=freeze_above,
        )
        return map_replicas(sample)(prepared, replicas)

    def num_overfull(*some: Replica):
        if integrator.lists is None:
            return jnp.int32(0)
        return sum(jnp.sum(replicas.is_overfull) for replicas in some)

    def init(key: Key, params: Params, position: Position) -> StableState:
        keys = jax.random.split(key, len(position))
        replicas = start_replicas(prepare(params), (keys, position))
        return StableState(
            params=params,
            optimizer_state=refinement.init(params),
            plateau_state=plateau.init(params),
            num_calls=jnp.int32(0),
            phase=jnp.int32(SIMULATE),
            cycle=jnp.int32(0),
            epoch=jnp.int32(0),
            replicas=replicas,
            checkpoint=replicas,
            earlier_checkpoint=replicas,
            rewound=replicas,
        )

    def simulate(state: StableState) -> tuple[StableState, SimulateInfo]:
        prepared = prepare(state.params)
        is_active = ~state.replicas.is_frozen
        earlier_checkpoint = _select(is_active, state.checkpoint, state.earlier_checkpoint)
        replicas = run_replicas(prepared, state.replicas)
        fraction = jnp.mean(replicas.is_unstable)
        starts_learning = fraction >= max_unstable

        def rewind():
            target = jnp.maximum(replicas.step - steps_per_epoch, earlier_checkpoint.step)
            return replay_replicas(prepared, (earlier_checkpoint, target))

        rewound = jax.lax.cond(starts_learning, rewind, lambda: state.rewound)
        info = SimulateInfo(
            fraction_unstable=fraction,
            num_steps=jnp.sum(replicas.step - state.replicas.step),
            num_quarantined=jnp.sum(~replicas.is_finite),
            num_overfull=num_overfull(replicas, rewound),
            starts_learning=starts_learning,
        )
        state = state._replace(
            num_calls=state.num_calls + 1,
            phase=jnp.where(starts_learning, LEARN, SIMULATE).astype(jnp.int32),
            replicas=replicas,
            checkpoint=state.replicas,
            earlier_checkpoint=earlier_checkpoint,
            rewound=rewound,
        )
        return state, info

    def learn(state: StableState, frames: Labeled, *, num_rounds: int = 1) -> tuple[StableState, LearnInfo]:
        replicas, trajectory = sample_replicas(prepare(state.params), state.rewound, num_rounds)
        fraction = jnp.mean(replicas.is_unstable)
        mask = trajectory.is_valid.reshape(-1)
        position = trajectory.frame.position
        rate_scale = state.plateau_state.scale * rate_schedule(state.epoch)
        params, optimizer_state, refine_info = refinement.step(
            state.params,
            state.optimizer_state,
            rate_scale,
            position.reshape(-1, *position.shape[2:]),
            mask,
            frames,
        )
        _, plateau_state = plateau.update(state.params, state.plateau_state, value=refine_info.observable_loss)
        ends_cycle = (
            (fraction <= min_unstable) | (plateau_state.scale <= min_rate_scale) | (state.epoch + 1 >= max_epochs)
        )
        info = LearnInfo(
            fraction_unstable=fraction,
            num_steps=jnp.sum(replicas.step - state.rewound.step),
            num_quarantined=jnp.sum(~replicas.is_finite),
            num_overfull=num_overfull(replicas),
            num_rounds=jnp.int32(num_rounds),
            num_samples=jnp.sum(mask),
            refinement=refine_info,
            rate_scale=rate_scale,
            ends_cycle=ends_cycle,
        )
        learning = state._replace(
            params=params,
            optimizer_state=optimizer_state,
            plateau_state=plateau_state,
            num_calls=state.num_calls + 1,
            epoch=state.epoch + 1,
        )
        return _where(ends_cycle, _next_cycle(learning, replicas), learning), info

    def _next_cycle(state: StableState, endpoints: Replica) -> StableState:
        # Stable replicas go on from their endpoints; unstable ones are inactive and rewound to where they were before.
        is_unstable = endpoints.is_unstable
        replicas = endpoints._replace(is_frozen=is_unstable)
        checkpoint = _select(is_unstable, state.rewound, replicas)
        return state._replace(
            phase=jnp.int32(SIMULATE),
            cycle=state.cycle + 1,
            epoch=jnp.int32(0),
            plateau_state=plateau.init(state.params),
            replicas=replicas,
            checkpoint=checkpoint,
            earlier_checkpoint=checkpoint,
        )

    return StableTraining(init, simulate, learn)


def _where(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _select(is_first, first, second):
    """One pytree or the other for each replica on axis 0."""

    def select(a, b):
        return jnp.where(is_first.reshape((-1,) + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, first, second)
