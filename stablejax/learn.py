"""The learning phase of Algorithm 1: epochs of dynamics from the rewound states, and updates of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stablejax import buffer, forms, guard
from stablejax.boltzmann import boltzmann_value_and_grad
from stablejax.buffer import Buffer
from stablejax.dynamics import Replica
from stablejax.guard import Epoch, Guard, GuardState, Verdict
from stablejax.losses import Labeled, observable_loss
from stablejax.natural import TrustRegion, natural_gradient
from stablejax.neighborhoods import balanced_subsample
from stablejax.parallel import Execution
from stablejax.potential import Potential
from stablejax.problem import Problem
from stablejax.reweighting import sample_energies
from stablejax.simulate import Engine, num_overflows, select
from stablejax.types import Array, Bool, Float, Frame, Int, Key, Params
from stablejax.uncertainty import jackknife_gradient, samples_needed
from stablejax.updates import (
    Gradients,
    Reuse,
    Rule,
    Seen,
    UpdateInfo,
    Updates,
    UpdateState,
    by_optimizer,
    clipped_sum,
    make_updates,
    weighted_sum,
)


class Optimization(NamedTuple):
    """Settings of the updates of one epoch.

    With a `TrustRegion` the steps are natural gradients, without λ and clipping.
    """

    optimizer: optax.GradientTransformation | TrustRegion  # with the learning rate α; or the bounds of steps
    qm_weight: float = 10.0  # λ of Equation 7
    qm_batch_size: int = 100  # frames of the static data set per epoch; all of them if there are fewer
    observable_clip_norm: float = math.inf  # of ∇L_obs before it is added
    max_updates: int = 1  # per epoch; above 1 its samples are reused by reweighting
    min_effective_fraction: float = 0.5  # samples are reused while N_eff/N is at least this
    buffer_epochs: int = 0  # earlier epochs whose samples are learned from, too, reweighted by MBAR


class Noise(NamedTuple):
    """Settings for the statistical error of ∇L_obs."""

    num_blocks: int = 0  # blocks of replicas in the jackknife, one gradient each; 0: the error is not estimated
    wanted_signal_to_noise: float = 0.0  # below it the next epoch simulates a larger multiple of t; 0: always t
    max_rounds: int = 8  # largest multiple of t


class Learning(NamedTuple):
    """Settings of the learning phase."""

    optimization: Optimization
    steps_per_frame: int = 100  # S
    min_unstable: float = 0.0  # f_min: the phase ends when at most this fraction of the replicas fails within t
    max_epochs: int = 200
    rate_schedule: optax.Schedule = optax.constant_schedule(1.0)  # epoch -> factor on the rate
    plateau_factor: float = 0.2  # the rate is multiplied by this when L_obs has reached a plateau
    plateau_patience: int = 10  # epochs without improvement
    min_rate_scale: float = 0.04  # the phase ends when the plateau has lowered the rate to this
    freeze_above: float = math.inf  # frames count until the criterion exceeds this value, in its unit
    noise: Noise = Noise()
    guard: Guard = Guard()
    cycle_factor: float = 1.0  # the rate is multiplied by this from cycle to cycle


class LearnState(NamedTuple):
    """State of the learning phase."""

    updates: UpdateState
    plateau: Any
    epoch: Int[Array, ""]  # epochs of the present phase
    num_rounds: Int[Array, ""]  # multiple of t that the next epoch simulates
    guard: GuardState
    buffer: Buffer | None = None  # of the last epochs; None: nothing is learned from earlier ones


class Endpoints(NamedTuple):
    """Where an epoch left the replicas, and where each would be rewound to."""

    replicas: Replica
    checkpoint: Replica


class LearnInfo(NamedTuple):
    """Statistics of an epoch, before its update, and what was found wrong with it."""

    fraction_unstable: Float[Array, ""]
    num_steps: Int[Array, ""]  # replica-steps taken
    num_quarantined: Int[Array, ""]
    num_overflows: Int[Array, ""]  # see `SimulateInfo`
    num_rounds: Int[Array, ""]  # multiple of t that was simulated
    num_samples: Int[Array, ""]  # valid frames
    updates: UpdateInfo
    signal_to_noise: Float[Array, ""]  # of ∇L_obs; NaN where it is not estimated
    rate_scale: Float[Array, ""]  # factor on the learning rate
    fault: Int[Array, ""]  # what went wrong, see `guard.FAULTS`; 0: nothing
    num_rollbacks: Int[Array, ""]  # returns to the last good parameters, this one included
    gives_up: Bool[Array, ""]  # training ends: too many returns, or nothing moves
    ends_cycle: Bool[Array, ""]
    endpoints: Endpoints | None  # what the next cycle begins with; None after `stable_training` has used them
    kept_fraction: Float[Array, ""]  # of what the phase has learned; below 1 where the held-out error bounds it


class LearnPhase(NamedTuple):
    """`init(params, replicas) -> state` and `step(state, rewound, frames, key, *, num_rounds=1) -> (state, info)`."""

    init: Callable[[Params, Replica], LearnState]  # (params, replicas): of the latter the shapes
    step: Callable[..., tuple[LearnState, LearnInfo]]
    begin: Callable[[LearnState], LearnState]  # a phase: resets the plateau and keeps the optimizer's state


def learn_phase(problem: Problem, engine: Engine, settings: Learning) -> LearnPhase:
    """The learning phase (Algorithm 1, lines 22 to 30).

    Each epoch runs all replicas for t steps from where they were rewound to, takes a frame every `steps_per_frame`
    steps, and updates the parameters. The phase ends when at most a fraction `min_unstable` of the replicas became
    unstable, the rate has fallen to `min_rate_scale`, or after `max_epochs`.

    An epoch has gone wrong if the force error on the static set exceeds its bound, if no sample counts where there were
    some with the parameters before, or if its update is not finite. Then parameters and optimizer go back to those
    before the last epoch that had not, with a smaller rate for the rest of training. The update that ends a phase is
    measured before it is kept, by one more pass over the frames. Parameters that no longer change end the phase, or
    training if they did not in the whole phase. See `Guard`, and `guard.decide` for the parameters that remain.

    Args:
      problem: what is learned.
      engine: see `simulate.make_engine`.
      settings: S, f_min, α, λ and the rest.

    Raises:
      ValueError: S does not divide t, f_min is not a fraction, or the settings of the guard make no sense.
    """
    _check(settings, engine.steps_per_epoch)
    fast = engine.integrator.potential
    energies_fn = _energies_of(fast, engine.execution)
    updates = _updates_of(problem, fast, energies_fn, engine.execution, settings.optimization)
    signal_to_noise = _signal_to_noise(problem, fast, engine.execution, settings.noise)
    plateau = optax.contrib.reduce_on_plateau(factor=settings.plateau_factor, patience=settings.plateau_patience)

    qm_loss = problem.qm_loss()

    def begin(state: LearnState) -> LearnState:
        begun = guard.begin(state.guard)
        slower = begun._replace(rate_scale=begun.rate_scale * settings.cycle_factor)
        return state._replace(plateau=plateau.init(state.updates.params), epoch=jnp.int32(0), guard=slower)

    def init(params: Params, replicas: Replica) -> LearnState:
        first = updates.init(params)
        zero, one = jnp.int32(0), jnp.int32(1)
        return LearnState(first, plateau.init(params), zero, one, guard.init(first), first_buffer(params, replicas))

    def first_buffer(params: Params, replicas: Replica) -> Buffer | None:
        if not (num_epochs := settings.optimization.buffer_epochs):
            return None
        shape = jax.eval_shape(
            lambda: seen_in(engine.prepare(params), replicas, problem.frames, jax.random.key(0), 1)[1]
        )
        return buffer.empty(num_epochs, params, shape.samples, shape.mask)

    def seen_in(prepared: Any, rewound: Replica, frames: Labeled, key: Key, num_rounds: int):
        """Replicas after an epoch, what it gives to learn from, and the number of its valid frames."""
        replicas, samples, is_valid = _samples(engine, settings, prepared, rewound, num_rounds)
        mask = _counted(problem, key, samples, is_valid)
        is_stable = jnp.repeat(~replicas.is_unstable, len(mask) // len(replicas.step))
        return replicas, Seen(samples, mask, is_stable, frames), jnp.sum(is_valid)

    def step(
        state: LearnState, rewound: Replica, frames: Labeled, key: Key, *, num_rounds: int = 1
    ) -> tuple[LearnState, LearnInfo]:
        params = state.updates.params
        prepared = engine.prepare(params)
        replicas, seen, num_samples = seen_in(prepared, rewound, frames, key, num_rounds)
        rate_scale = state.plateau.scale * settings.rate_schedule(state.epoch) * state.guard.rate_scale
        known = state.buffer
        both = seen if known is None else buffer.joined(known, params, seen, energies_fn, kT=problem.kT)
        updated, update_info = updates.step(state.updates, rate_scale, both)
        _, improved = plateau.update(params, state.plateau, value=update_info.observable_loss)
        ratio = signal_to_noise(params, seen.samples, seen.mask, len(replicas.step))
        fraction = jnp.mean(replicas.is_unstable)
        epoch = Epoch(state.updates, updated, frames, fraction, num_samples, update_info)
        judged = _judged(settings, qm_loss, state, epoch, improved)
        info = LearnInfo(
            fraction_unstable=fraction,
            num_steps=jnp.sum(replicas.step - rewound.step),
            num_quarantined=jnp.sum(~replicas.is_finite),
            num_overflows=num_overflows(engine, replicas),
            num_rounds=jnp.int32(num_rounds),
            num_samples=num_samples,
            updates=update_info,
            signal_to_noise=ratio,
            rate_scale=rate_scale,
            fault=judged.fault,
            num_rollbacks=judged.verdict.guard.num_rollbacks,
            gives_up=judged.verdict.gives_up,
            ends_cycle=judged.ends_cycle,
            endpoints=Endpoints(replicas, _checkpoint(engine, prepared, rewound, replicas, num_rounds)),
            kept_fraction=jnp.float32(1),
        )
        rounds = _next_rounds(settings.noise, ratio, num_rounds)
        updated, guarded, _ = judged.verdict
        known = None if known is None else buffer.pushed(known, params, seen)
        return LearnState(updated, judged.plateau, state.epoch + 1, rounds, guarded, known), info

    return LearnPhase(init, step, begin)


def static_batch(problem: Problem, settings: Learning, *, seed: int, cycle: int, epoch: int) -> Labeled:
    """Frames of the static data set for one epoch, without replacement, determined by seed, cycle and epoch.

    Args:
      problem: holds the frames.
      settings: the size of a batch.
      seed: of the run.
      cycle: completed cycles.
      epoch: completed epochs of the present phase.
    """
    rng = np.random.default_rng([seed, 1, cycle, epoch])
    index = rng.permutation(len(problem.frames.energy))[: settings.optimization.qm_batch_size]
    return jax.tree.map(lambda leaf: leaf[index], problem.frames)


def _check(settings: Learning, steps_per_epoch: int) -> None:
    if settings.steps_per_frame < 1 or steps_per_epoch % settings.steps_per_frame:
        raise ValueError(
            f"`Learning`: `steps_per_frame` has to divide `steps_per_epoch`, got {settings.steps_per_frame} and "
            f"{steps_per_epoch}: choose a divisor."
        )
    if not 0 <= settings.min_unstable < 1 or settings.max_epochs < 1:
        raise ValueError(
            f"`Learning`: expected 0 <= min_unstable < 1 and max_epochs >= 1, got {settings.min_unstable} and "
            f"{settings.max_epochs}: change the settings."
        )
    if not 0 < settings.cycle_factor <= 1:
        raise ValueError(
            f"`Learning`: expected 0 < cycle_factor <= 1, got {settings.cycle_factor}: choose a smaller one, above 0."
        )
    if settings.optimization.buffer_epochs < 0:
        raise ValueError(
            f"`Optimization`: expected buffer_epochs >= 0, got {settings.optimization.buffer_epochs}: choose 0 or more."
        )
    if settings.optimization.buffer_epochs and settings.noise.wanted_signal_to_noise:
        raise ValueError(
            "`Learning`: a buffer of epochs needs them to be of equal length: set `buffer_epochs` of `Optimization` or "
            "`wanted_signal_to_noise` of `Noise` to 0."
        )
    if settings.noise.wanted_signal_to_noise and settings.noise.num_blocks < 2:
        raise ValueError(
            "`Noise`: `wanted_signal_to_noise` needs the statistical error of the gradient, got num_blocks = "
            f"{settings.noise.num_blocks}: set it to 2 or more."
        )
    guard.check(settings.guard)


class _Judged(NamedTuple):
    verdict: Verdict
    plateau: Any
    fault: Int[Array, ""]
    ends_cycle: Bool[Array, ""]


def _judged(settings: Learning, qm_loss: Callable, state: LearnState, epoch: Epoch, improved: Any) -> _Judged:
    """What was wrong with an epoch and what follows; `improved` is the state of the plateau if nothing was."""
    noted, fault = guard.note(settings.guard, state.guard, epoch)
    is_wrong = guard.is_wrong(fault)
    plateau = guard.choose(is_wrong, state.plateau, improved)
    # An epoch that went wrong does not end the phase by the stability of its parameters.
    fraction = jnp.where(is_wrong, 1, epoch.fraction_unstable)
    ends = _ends(settings, fraction, plateau.scale, state.epoch + 1) | (fault == guard.STILL)
    # The errors after an update are those of the next epoch; there is none in this phase after the last.
    error = jax.lax.cond(
        ends & ~is_wrong,
        lambda: qm_loss(epoch.after.params, epoch.frames)[1].force_mae,
        lambda: epoch.info.qm_errors.force_mae,
    )
    fault = jnp.where(~is_wrong & guard.exceeds(settings.guard, noted, error), guard.FORCE_ERROR, fault)
    verdict = guard.decide(settings.guard, noted, fault, epoch.after, ends)
    return _Judged(verdict, plateau, fault, ends & ~verdict.gives_up)


def _ends(settings: Learning, fraction, scale, num_epochs) -> Bool[Array, ""]:
    # The plateau multiplies in float32: 0.2 · 0.2 is a little more than 0.04.
    has_decayed = scale <= settings.min_rate_scale * (1 + 1e-5)
    return (fraction <= settings.min_unstable) | has_decayed | (num_epochs >= settings.max_epochs)


def _samples(engine: Engine, settings: Learning, prepared, rewound: Replica, num_rounds: int):
    """Replicas at the end of the epoch, its frames [sample, ...], and which of them are valid."""
    replicas, trajectory = engine.sample(
        prepared,
        rewound,
        num_frames=num_rounds * engine.steps_per_epoch // settings.steps_per_frame,
        steps_per_frame=settings.steps_per_frame,
        freeze_above=settings.freeze_above,
    )
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), trajectory.frame)
    return replicas, flat, trajectory.is_valid.reshape(-1)


def _counted(problem: Problem, key: Key, samples: Frame, is_valid) -> Bool[Array, "sample *neighborhood"]:
    """Which samples count, [sample], or which of their neighborhoods, chosen from those of all devices (A.6)."""
    if problem.subsample is None:
        return is_valid
    value_fn, num_bins, per_bin = problem.subsample
    value = jax.vmap(value_fn)(samples)
    everywhere = jnp.broadcast_to(is_valid[:, None], value.shape)
    chosen, _ = balanced_subsample(key, value, everywhere, num_bins=num_bins, per_bin=per_bin)
    return chosen


def _checkpoint(engine: Engine, prepared, rewound: Replica, replicas: Replica, num_rounds: int) -> Replica:
    """Where unstable replicas are rewound to when the next cycle begins, with the parameters that they failed with."""
    before = rewound
    if num_rounds > 1:
        # Frames are taken beyond the first violation, so its step has to be found.
        failed = engine.replay(prepared, rewound, replicas.step)
        target = jnp.maximum(failed.step - engine.steps_per_epoch, rewound.step)
        before = engine.replay(prepared, rewound, target)
    is_unstable = replicas.is_unstable
    return select(is_unstable, before, replicas._replace(is_frozen=is_unstable))


def _value_and_grad(problem: Problem, fast: Potential, execution: Execution) -> Callable:
    """The estimator's gradient for the potential that is sampled, which is the fast form.

    The radial networks are differentiated once, not in every sample.
    """
    of_prepared = boltzmann_value_and_grad(
        observable_loss(problem.observables.reference, problem.observables.weight),
        problem._replace(potential=forms.of_prepared(fast)).energies(),
        problem.observables.fn,
        kT=problem.kT,
        chunk_size=execution.chunk_size,
        axis_name=execution.axis_name,
    )

    def value_and_grad(params, samples, **others):
        prepared, pull_back = jax.vjp(fast.prepare, params)
        value, gradient = of_prepared(prepared, samples, **others)
        return value, pull_back(gradient)[0]

    return value_and_grad


def _energies_of(fast: Potential, execution: Execution) -> Callable:
    """`(params, samples) -> U [sample]`, eV, of the potential that is sampled."""
    of_prepared = forms.of_prepared(fast)
    energies = execution.over_samples(
        sample_energies(
            lambda prepared, frame: of_prepared.energy(prepared, frame.position), chunk_size=execution.chunk_size
        ),
        gives_samples=True,
    )
    return lambda params, samples: energies(fast.prepare(params), samples)


def _updates_of(
    problem: Problem, fast: Potential, energies_fn: Callable, execution: Execution, settings: Optimization
) -> Updates:
    value_and_grad = _value_and_grad(problem, fast, execution)
    observable = execution.over_samples(
        lambda params, samples, mask, weight: value_and_grad(params, samples, mask=mask, weight=weight)
    )
    reuse = Reuse(
        energies_fn=energies_fn,
        kT=problem.kT,
        max_updates=settings.max_updates,
        min_effective_fraction=settings.min_effective_fraction,
    )
    return make_updates(
        Gradients(observable, jax.value_and_grad(problem.qm_loss(), has_aux=True)),
        _rule_of(fast, execution, settings),
        reuse=reuse if settings.max_updates > 1 or settings.buffer_epochs else None,
    )


def _rule_of(fast: Potential, execution: Execution, settings: Optimization) -> Rule:
    if isinstance(settings.optimizer, TrustRegion):
        energy_fn = forms.of_prepared(fast).energy
        return natural_gradient(energy_fn, settings.optimizer, execution=execution, prepare=fast.prepare)
    combine = weighted_sum(settings.qm_weight)
    if math.isfinite(settings.observable_clip_norm):
        combine = clipped_sum(settings.qm_weight, max_norm=settings.observable_clip_norm)
    return by_optimizer(settings.optimizer, combine)


def _signal_to_noise(problem: Problem, fast: Potential, execution: Execution, settings: Noise) -> Callable:
    """`(params, samples, mask, number of replicas) -> signal-to-noise of ∇L_obs`, by the jackknife over replicas."""
    if not settings.num_blocks:
        return lambda *_: jnp.float32(jnp.nan)
    jackknife = jackknife_gradient(_value_and_grad(problem, fast, execution), num_blocks=settings.num_blocks)
    shared = execution.over_samples(
        lambda params, samples, mask, block: jackknife(params, samples, mask=mask, block=block).signal_to_noise
    )

    def signal_to_noise(params, samples, mask, num_replicas: int):
        if settings.num_blocks > num_replicas:
            raise ValueError(
                f"`Noise`: {settings.num_blocks} blocks need at least as many replicas, got {num_replicas}: choose "
                "fewer blocks."
            )
        # Replicas are independent of each other, so each belongs to one block as a whole.
        replica = jnp.arange(len(mask)) // (len(mask) // num_replicas)
        return shared(params, samples, mask, replica % settings.num_blocks)

    return signal_to_noise


def _next_rounds(settings: Noise, ratio, num_rounds: int) -> Int[Array, ""]:
    """Multiple of t in the next epoch for the wanted signal-to-noise: a power of 2, for few compilations."""
    if not settings.wanted_signal_to_noise:
        return jnp.int32(1)
    needed = samples_needed(num_rounds, ratio, wanted=settings.wanted_signal_to_noise)
    rounds = 2.0 ** jnp.ceil(jnp.log2(jnp.clip(needed, 1, settings.max_rounds)))
    return jnp.where(jnp.isfinite(ratio), jnp.minimum(rounds, settings.max_rounds), 1).astype(jnp.int32)
