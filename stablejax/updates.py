"""Updates of the parameters from the samples of one epoch: Equation 7, once or, by reweighting, several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from stablejax.losses import Labeled, LabelErrors
from stablejax.reweighting import effective_sample_size, perturbation_weights
from stablejax.types import Array, Bool, Float, Int, Params
from stablejax.uncertainty import cosine


class UpdateState(NamedTuple):
    """Parameters and the state of their optimizer."""

    params: Params
    optimizer: Any


class UpdateInfo(NamedTuple):
    """Statistics of the updates of one epoch. Losses, errors and gradients are those before the first."""

    observable_loss: Float[Array, ""]
    qm_loss: Float[Array, ""]
    qm_errors: LabelErrors
    observable_gradient_norm: Float[Array, ""]
    qm_gradient_norm: Float[Array, ""]
    gradient_cosine: Float[Array, ""]  # of the angle between the two: negative where they are opposed
    num_updates: Int[Array, ""]  # 0: gradient, update or parameters were not finite; parameters kept
    used_observable: Bool[Array, ""]  # False: fewer than 2 samples counted, the step is that of L_QM alone
    effective_fraction: Float[Array, ""]  # N_eff/N of the samples at the last parameters that were evaluated


class Gradients(NamedTuple):
    """The two losses of Equation 7, each with its gradient."""

    observable: Callable[..., tuple[Float[Array, ""], Params]]  # (params, samples, mask, weight)
    qm: Callable[[Params, Labeled], tuple[tuple[Float[Array, ""], LabelErrors], Params]]
    combine: Callable[[Params, Params], Params]  # (∇L_obs, ∇L_QM) -> gradient that is used; see `weighted_sum`


class Reuse(NamedTuple):
    """Further updates from the samples of one epoch, reweighted to the updated parameters."""

    energies_fn: Callable[[Params, Any], Float[Array, " sample"]]  # (params, samples) -> eV
    kT: float | Float[Array, ""]  # eV
    max_updates: int  # of one epoch, the first included
    min_effective_fraction: float  # N_eff/N below which the samples are no longer used


class Updates(NamedTuple):
    """`init(params) -> state` and `step(state, rate_scale, samples, mask, frames) -> (state, info)`."""

    init: Callable[[Params], UpdateState]
    step: Callable[..., tuple[UpdateState, UpdateInfo]]


class _Moving(NamedTuple):
    state: UpdateState
    num_updates: Int[Array, ""]
    effective_fraction: Float[Array, ""]
    is_going: Bool[Array, ""]


def weighted_sum(qm_weight: float) -> Callable[[Params, Params], Params]:
    """∇L_obs + λ ∇L_QM (Equation 7) with λ = `qm_weight`."""
    return lambda observable, qm: jax.tree.map(lambda o, q: o + qm_weight * q, observable, qm)


def clipped_sum(qm_weight: float, *, max_norm: float) -> Callable[[Params, Params], Params]:
    """∇L_obs, clipped to a global norm of `max_norm`, + λ ∇L_QM.

    The observable's gradient has a heavy tail, from samples far outside the data; clipping the sum instead would let
    them suppress the regularization.

    Args:
      qm_weight: λ.
      max_norm: of ∇L_obs.
    """
    clip = optax.clip_by_global_norm(max_norm)

    def combine(observable, qm):
        clipped, _ = clip.update(observable, clip.init(observable))
        return weighted_sum(qm_weight)(clipped, qm)

    return combine


def make_updates(
    gradients: Gradients, optimizer: optax.GradientTransformation, *, reuse: Reuse | None = None
) -> Updates:
    """From samples to new parameters.

    Args:
      gradients: of L_obs by the estimator, of L_QM on the static data set, and how they are combined.
      optimizer: optax transformation, with the learning rate.
      reuse: further updates from the same samples. None: one update, as in the paper.

    Returns:
      `init` and `step`, with `samples` a pytree [sample, ...], `mask` [sample] or [sample, neighborhood], and
      `rate_scale` a factor on the update.
      A gradient, an update or parameters after it that are not finite change nothing. Fewer than 2 samples that count
      give no gradient of L_obs: the step is that of L_QM alone.
    """

    def update(moving: _Moving, evaluated, rate_scale, has_observable) -> _Moving:
        (_, observable_gradient), (_, qm_gradient) = evaluated
        state = moving.state
        # Chosen after they are combined: before, XLA rounds the gradient differently.
        nothing = jax.tree.map(jnp.zeros_like, observable_gradient)
        both, alone = (gradients.combine(some, qm_gradient) for some in (observable_gradient, nothing))
        gradient = jax.tree.map(lambda a, b: jnp.where(has_observable, a, b), both, alone)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        updates = jax.tree.map(lambda u: u * rate_scale.astype(u.dtype), updates)
        new = UpdateState(optax.apply_updates(state.params, updates), optimizer_state)
        is_finite = jnp.bool(True)
        for tree in (gradient, updates, new.params):
            is_finite &= jnp.isfinite(optax.tree.norm(tree))
        kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
        is_going = is_finite & has_observable
        return moving._replace(state=kept, num_updates=moving.num_updates + is_finite, is_going=is_going)

    def all_gradients(params, samples, mask, weight, frames):
        return gradients.observable(params, samples, mask, weight), gradients.qm(params, frames)

    def reused(moving: _Moving, reuse: Reuse, sampled_energy, rate_scale, samples, mask, frames) -> _Moving:
        is_counted = mask if mask.ndim == 1 else jnp.any(mask, axis=1)
        energy = reuse.energies_fn(moving.state.params, samples)
        weight = perturbation_weights(jnp.where(is_counted, energy, jnp.inf), sampled_energy, kT=reuse.kT)
        fraction = effective_sample_size(weight) / jnp.sum(is_counted)

        def again():
            evaluated = all_gradients(moving.state.params, samples, mask, weight, frames)
            return update(moving, evaluated, rate_scale, jnp.bool(True))

        is_worth_it = fraction >= reuse.min_effective_fraction
        moved = lax.cond(is_worth_it, again, lambda: moving._replace(is_going=jnp.bool(False)))
        return moved._replace(effective_fraction=fraction)

    def step(state: UpdateState, rate_scale, samples: Any, mask, frames: Labeled) -> tuple[UpdateState, UpdateInfo]:
        ones = jnp.ones(len(mask), jnp.result_type(float))
        start = _Moving(state, jnp.int32(0), jnp.float32(1), jnp.bool(True))
        evaluated = all_gradients(state.params, samples, mask, ones, frames)
        has_observable = jnp.sum(mask) >= 2
        moving = update(start, evaluated, rate_scale, has_observable)
        if reuse is not None:
            sampled_energy = reuse.energies_fn(state.params, samples)
            moving = lax.while_loop(
                lambda m: m.is_going & (m.num_updates < reuse.max_updates),
                lambda m: reused(m, reuse, sampled_energy, rate_scale, samples, mask, frames),
                moving,
            )
        return moving.state, _info(evaluated, moving, has_observable)

    return Updates(lambda params: UpdateState(params, optimizer.init(params)), step)


def _info(evaluated, moving: _Moving, has_observable) -> UpdateInfo:
    (observable_loss, observable_gradient), ((qm_loss, qm_errors), qm_gradient) = evaluated
    return UpdateInfo(
        observable_loss=observable_loss,
        qm_loss=qm_loss,
        qm_errors=qm_errors,
        observable_gradient_norm=optax.tree.norm(observable_gradient),
        qm_gradient_norm=optax.tree.norm(qm_gradient),
        gradient_cosine=cosine(observable_gradient, qm_gradient),
        num_updates=moving.num_updates,
        used_observable=has_observable,
        effective_fraction=moving.effective_fraction,
    )
