"""Learning that goes wrong: noticed, taken back with a smaller rate, and given up after a bounded number of times."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stablejax.losses import Labeled
from stablejax.types import Array, Bool, Float, Int
from stablejax.updates import UpdateInfo, UpdateState

NOTHING, FORCE_ERROR, NO_SAMPLES, NOT_FINITE, STILL = range(5)
"""What was wrong with an epoch."""

FAULTS = (
    "nothing went wrong",
    "the force error on the static set exceeds its bound, or is not finite",
    "no sample counts any more, where some did with the parameters before",
    "the update of the parameters is not finite",
    "no parameter changes: the rate is 0 or too small for the precision of the parameters, or no gradient is known",
)
"""The same in words."""

SMALLEST_ERROR = 0.01  # of the mean force component: the bound of a potential that is exact at the start is not 0


class Guard(NamedTuple):
    """Settings: when an epoch counts as gone wrong, and what follows."""

    max_force_error: float = 3.0  # force MAE on the static set, over that at the start of training
    max_rollbacks: int = 3  # of training; it ends when another would be due
    rate_factor: float = 0.1  # the rate is multiplied by this at every return
    max_still: int = 2  # epochs in a row without a change of any parameter, after which a phase ends


class GuardState(NamedTuple):
    """What parameters and rate can be taken back to."""

    good: UpdateState  # before the last epoch in which nothing went wrong
    best: UpdateState  # before the best such epoch of the present phase; `good` until there is one
    best_fraction: Float[Array, ""]  # fraction unstable of that epoch; infinite until there is one
    best_loss: Float[Array, ""]  # its observable loss
    first_error: Float[Array, ""]  # force MAE at the start of training, eV/Å; NaN until it is known
    rate_scale: Float[Array, ""]  # factor on the rate
    num_rollbacks: Int[Array, ""]  # so far
    num_still: Int[Array, ""]  # latest epochs in a row in which no parameter changed
    has_moved: Bool[Array, ""]  # some parameter did in the present phase
    has_samples: Bool[Array, ""]  # `good` gave samples in the present phase
    has_rolled_back: Bool[Array, ""]  # in the present phase


class Epoch(NamedTuple):
    """What an epoch measured, of the parameters that it began with."""

    before: UpdateState
    after: UpdateState
    frames: Labeled
    fraction_unstable: Float[Array, ""]
    num_samples: Int[Array, ""]
    info: UpdateInfo


class Verdict(NamedTuple):
    """What follows from an epoch."""

    updates: UpdateState
    guard: GuardState
    gives_up: Bool[Array, ""]


def check(settings: Guard) -> None:
    """Check the settings.

    Raises:
      ValueError: a bound or a number is not positive, or the factor is not below 1.
    """
    if not settings.max_force_error >= 1 or settings.max_rollbacks < 0 or settings.max_still < 1:
        raise ValueError(
            "`Guard`: expected max_force_error >= 1, max_rollbacks >= 0 and max_still >= 1, got "
            f"{settings.max_force_error}, {settings.max_rollbacks} and {settings.max_still}: change the settings."
        )
    if not 0 < settings.rate_factor < 1:
        raise ValueError(f"`Guard`: expected 0 < rate_factor < 1, got {settings.rate_factor}: choose a smaller one.")


def init(updates: UpdateState) -> GuardState:
    """Before the first epoch. Parameters are copied, since buffers of a state may be donated."""
    unknown, never = jnp.full((), jnp.nan, jnp.result_type(float)), jnp.bool(False)
    return GuardState(
        good=jax.tree.map(jnp.copy, updates),
        best=jax.tree.map(jnp.copy, updates),
        best_fraction=jnp.full_like(unknown, jnp.inf),
        best_loss=jnp.full_like(unknown, jnp.inf),
        first_error=unknown,
        rate_scale=jnp.float32(1),
        num_rollbacks=jnp.int32(0),
        num_still=jnp.int32(0),
        has_moved=never,
        has_samples=never,
        has_rolled_back=never,
    )


def begin(state: GuardState) -> GuardState:
    """For the next phase: what is compared within a phase, from the same starts, begins afresh; the rate stays."""
    fresh = init(state.good)
    return fresh._replace(
        good=state.good,
        first_error=state.first_error,
        rate_scale=state.rate_scale,
        num_rollbacks=state.num_rollbacks,
    )


def note(settings: Guard, state: GuardState, epoch: Epoch) -> tuple[GuardState, Int[Array, ""]]:
    """What was wrong with an epoch, and the state that has noted what was not.

    Nothing is evaluated for it. `good` and `best` are left as they were by an epoch that went wrong. An epoch without
    samples only counts as wrong if there were some with the parameters before: otherwise going back does not help.

    Args:
      settings: the bounds.
      state: before the epoch.
      epoch: what it measured.
    """
    error = epoch.info.qm_errors.force_mae
    state = state._replace(first_error=jnp.where(jnp.isnan(state.first_error), _first(epoch), state.first_error))
    is_still = _is_still(epoch)
    num_still = jnp.where(is_still, state.num_still + 1, 0)
    fault = jnp.select(
        [
            exceeds(settings, state, error),
            (epoch.num_samples == 0) & state.has_samples,
            epoch.info.num_updates == 0,
            num_still >= settings.max_still,
        ],
        [FORCE_ERROR, NO_SAMPLES, NOT_FINITE, STILL],
        NOTHING,
    )
    noted = _noted(state, epoch)._replace(num_still=num_still, has_moved=state.has_moved | ~is_still)
    return choose(is_wrong(fault), state, noted), fault


def exceeds(settings: Guard, state: GuardState, force_mae: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a force error is beyond the bound, or not finite.

    Args:
      settings: the bound.
      state: knows the error at the start.
      force_mae: on the static set, eV/Å.
    """
    return ~(force_mae <= settings.max_force_error * state.first_error) | ~jnp.isfinite(force_mae)


def decide(
    settings: Guard, state: GuardState, fault: Int[Array, ""], after: UpdateState, ends: Bool[Array, ""]
) -> Verdict:
    """What follows: the parameters to go on with, with which rate, and whether training is given up.

    After an epoch that went wrong these are the last good ones, and the rate is lowered; after `max_rollbacks` returns
    training is given up. A phase in which the parameters were taken back, and training that is given up, end with the
    best parameters; others end with the last.

    Args:
      settings: the bounds.
      state: from `note`.
      fault: what was wrong.
      after: the epoch's update.
      ends: whether the phase does.
    """
    went_wrong = is_wrong(fault)
    is_beyond = went_wrong & (state.num_rollbacks >= settings.max_rollbacks)
    goes_back = went_wrong & ~is_beyond
    has_rolled_back = state.has_rolled_back | goes_back
    gives_up = is_beyond | ((fault == STILL) & ~state.has_moved)
    updates = choose(went_wrong, state.good, after)
    updates = choose(is_beyond | ((ends | gives_up) & has_rolled_back), state.best, updates)
    lowered = state._replace(
        rate_scale=jnp.where(goes_back, state.rate_scale * settings.rate_factor, state.rate_scale),
        num_rollbacks=state.num_rollbacks + goes_back,
        has_rolled_back=has_rolled_back,
    )
    return Verdict(updates, lowered, gives_up)


def choose(is_first: Bool[Array, ""], first: Any, second: Any) -> Any:
    """One pytree or the other.

    Args:
      is_first: which.
      first: taken where True.
      second: taken where False.
    """
    return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), first, second)


def is_wrong(fault: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether it is one of the faults after which the parameters are taken back."""
    return (fault != NOTHING) & (fault != STILL)


def _is_still(epoch: Epoch) -> Bool[Array, ""]:
    """No parameter changed, although the losses are not constant."""
    info = epoch.info
    is_constant = info.used_observable & (info.observable_gradient_norm == 0) & (info.qm_gradient_norm == 0)
    is_still = ~is_constant
    for a, b in zip(jax.tree.leaves(epoch.before.params), jax.tree.leaves(epoch.after.params), strict=True):
        is_still &= jnp.all(a == b)
    return is_still


def _first(epoch: Epoch) -> Float[Array, ""]:
    error = epoch.info.qm_errors.force_mae
    return jnp.maximum(error, SMALLEST_ERROR * jnp.mean(jnp.abs(epoch.frames.force))).astype(jnp.result_type(float))


def _noted(state: GuardState, epoch: Epoch) -> GuardState:
    """After an epoch in which nothing went wrong."""
    fraction = epoch.fraction_unstable.astype(state.best_fraction.dtype)
    loss = epoch.info.observable_loss
    loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf).astype(state.best_loss.dtype)
    is_better = (fraction < state.best_fraction) | ((fraction == state.best_fraction) & (loss <= state.best_loss))
    return state._replace(
        good=epoch.before,
        best=choose(is_better, epoch.before, state.best),
        best_fraction=jnp.where(is_better, fraction, state.best_fraction),
        best_loss=jnp.where(is_better, loss, state.best_loss),
        has_samples=epoch.num_samples > 0,
    )
