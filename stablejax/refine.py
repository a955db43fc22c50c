"""The updates of one learning step: Equation 7 applied once or, by reweighting, several times to the same samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from stablejax.losses import Labeled, LabelErrors
from stablejax.reweighting import effective_sample_size, perturbation_weights
from stablejax.types import Array, Bool, Float, Int, Params, Position
from stablejax.uncertainty import cosine


class RefineInfo(NamedTuple):
    """What the updates of one step saw. Losses, errors and gradients are those before the first."""

    observable_loss: Float[Array, ""]
    qm_loss: Float[Array, ""]
    qm_errors: LabelErrors
    observable_gradient_norm: Float[Array, ""]
    qm_gradient_norm: Float[Array, ""]
    gradient_cosine: Float[Array, ""]  # between the two: negative where they work against each other
    signal_to_noise: Float[Array, ""]  # of the observable's gradient; NaN where it was not asked for
    num_updates: Int[Array, ""]  # 0: the gradient was not finite, parameters kept
    effective_fraction: Float[Array, ""]  # N_eff/N of the samples at the last parameters that were looked at


class Reuse(NamedTuple):
    """Further updates from the samples of one step, reweighted to the parameters that have moved on."""

    energies_fn: Callable[[Params, Float[Array, "sample atom 3"]], Float[Array, " sample"]]  # eV
    kT: float  # eV
    max_updates: int  # of one step, the first included
    min_effective_fraction: float  # of N_eff/N under which the samples are not used any more


class Refinement(NamedTuple):
    """`init(params) -> optimizer state`, and `step`; see `refinement`."""

    init: Callable[[Params], Any]
    step: Callable[..., tuple[Params, Any, RefineInfo]]


class _Moving(NamedTuple):
    params: Params
    optimizer_state: Any
    num_updates: Int[Array, ""]
    effective_fraction: Float[Array, ""]
    is_going: Bool[Array, ""]


def weighted_sum(qm_weight: float) -> Callable[[Params, Params], Params]:
    """∇L_obs + λ ∇L_QM (Equation 7) with λ = `qm_weight`."""
    return lambda observable, qm: jax.tree.map(lambda o, q: o + qm_weight * q, observable, qm)


def clipped_sum(qm_weight: float, *, max_norm: float) -> Callable[[Params, Params], Params]:
    """∇L_obs, clipped to a global norm of `max_norm`, + λ ∇L_QM.

    The observable's gradient has a heavy tail, from samples far outside the data; clipping the sum instead would let
    them silence the regularization.
    """
    clip = optax.clip_by_global_norm(max_norm)

    def combine(observable, qm):
        clipped, _ = clip.update(observable, clip.init(observable))
        return weighted_sum(qm_weight)(clipped, qm)

    return combine


def refinement(
    *,
    observable_grad: Callable[..., tuple[Float[Array, ""], Params]],
    qm_loss: Callable[[Params, Labeled], tuple[Float[Array, ""], LabelErrors]],
    combine: Callable[[Params, Params], Params],
    optimizer: optax.GradientTransformation,
    reuse: Reuse | None = None,
    signal_to_noise: Callable[[Params, Position, Bool[Array, " sample"]], Float[Array, ""]] | None = None,
) -> Refinement:
    """The step from samples to new parameters.

    Args:
      observable_grad: `(params, positions, mask, weight) -> (loss, gradient)`; see `boltzmann_value_and_grad`.
      qm_loss: `(params, frames) -> (loss, errors)` on the static data set.
      combine: the gradients of L_obs and L_QM -> the gradient that is used; `weighted_sum` is Equation 7.
      optimizer: optax transformation, with the learning rate.
      reuse: further updates from the same samples. None: one update, as in the paper.
      signal_to_noise: `(params, positions, mask) -> ` that of the observable's gradient; see
        `uncertainty.jackknife_gradient`. None: not looked at.

    Returns:
      `init` and `step(params, optimizer_state, rate_scale, position, mask, frames) -> (params, optimizer_state, info)`,
      with `position` [sample, atom, 3] and `rate_scale` a factor on the update. A gradient that is not finite changes
      nothing.
    """

    def gradients(params, position, mask, weight, frames):
        return (
            observable_grad(params, position, mask, weight),
            jax.value_and_grad(qm_loss, has_aux=True)(params, frames),
        )

    def update(moving: _Moving, seen, rate_scale) -> _Moving:
        (_, observable_gradient), (_, qm_gradient) = seen
        gradient = combine(observable_gradient, qm_gradient)
        is_finite = jnp.isfinite(optax.tree.norm(gradient))
        updates, optimizer_state = optimizer.update(gradient, moving.optimizer_state, moving.params)
        updates = jax.tree.map(lambda u: u * rate_scale.astype(u.dtype), updates)
        params = optax.apply_updates(moving.params, updates)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, old)  # noqa: E731
        return moving._replace(
            params=keep(params, moving.params),
            optimizer_state=keep(optimizer_state, moving.optimizer_state),
            num_updates=moving.num_updates + is_finite,
            is_going=is_finite,
        )

    def step(params, optimizer_state, rate_scale, position: Position, mask, frames: Labeled):
        start = _Moving(params, optimizer_state, jnp.int32(0), jnp.float32(1), jnp.bool(True))
        ones = jnp.ones(len(mask), position.dtype)
        observable, qm = gradients(params, position, mask, ones, frames)
        moving = update(start, (observable, qm), rate_scale)
        if reuse is not None:
            sampled_energy = reuse.energies_fn(params, position)

            def again(moving: _Moving) -> _Moving:
                energy = reuse.energies_fn(moving.params, position)
                weight = perturbation_weights(jnp.where(mask, energy, jnp.inf), sampled_energy, kT=reuse.kT)
                fraction = effective_sample_size(weight) / jnp.sum(mask)
                moved = lax.cond(
                    fraction >= reuse.min_effective_fraction,
                    lambda: update(moving, gradients(moving.params, position, mask, weight, frames), rate_scale),
                    lambda: moving._replace(is_going=jnp.bool(False)),
                )
                return moved._replace(effective_fraction=fraction)

            moving = lax.while_loop(lambda m: m.is_going & (m.num_updates < reuse.max_updates), again, moving)
        info = RefineInfo(
            observable_loss=observable[0],
            qm_loss=qm[0][0],
            qm_errors=qm[0][1],
            observable_gradient_norm=optax.tree.norm(observable[1]),
            qm_gradient_norm=optax.tree.norm(qm[1]),
            gradient_cosine=cosine(observable[1], qm[1]),
            signal_to_noise=signal_to_noise(params, position, mask) if signal_to_noise else jnp.float32(jnp.nan),
            num_updates=moving.num_updates,
            effective_fraction=moving.effective_fraction,
        )
        return moving.params, moving.optimizer_state, info

    return Refinement(optimizer.init, step)
