"""Supervised training on energies and forces, as a pair of pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from stablejax.losses import Labeled, LabelErrors
from stablejax.types import Array, Float, Int, Params


class PretrainState(NamedTuple):
    """State of supervised training."""

    params: Params
    average_params: Params  # exponential moving average of the parameters
    optimizer_state: Any
    step: Int[Array, ""]


class PretrainInfo(NamedTuple):
    """Loss and errors of one step, before the update."""

    loss: Float[Array, ""]
    errors: LabelErrors


def pretraining(
    loss_fn: Callable[[Params, Labeled], tuple[Float[Array, ""], LabelErrors]],
    optimizer: optax.GradientTransformation,
    *,
    average_decay: float,
    position_noise: float = 0.0,
    seed: int = 0,
    axis_name: str | None = None,
) -> tuple[Callable[[Params], PretrainState], Callable[[PretrainState, Labeled], tuple[PretrainState, PretrainInfo]]]:
    """`(init, step)` of training on energies and forces.

    Args:
      loss_fn: see `losses.energy_and_force_loss`.
      optimizer: an optax transformation; one that asks for `value` (reduce on plateau) is given the loss.
      average_decay: of the exponential moving average of parameters; 0 follows them exactly. At first the average
        follows more closely, with decay (step + 1) / (step + 10) until that exceeds `average_decay`.
      position_noise: standard deviation of Gaussian noise on the positions of every batch, Å; the labels stay. As
        regularization it penalizes large derivatives of energies and forces (Bishop 1995).
      seed: of the noise.
      axis_name: mapped axis over which a batch is sharded; loss and gradient are then averaged over it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> PretrainState:
        return PretrainState(params, params, optimizer.init(params), jnp.int32(0))

    def noisy(frames: Labeled, step: Int[Array, ""]) -> Labeled:
        if not position_noise:
            return frames
        key = jax.random.fold_in(jax.random.key(seed), step)
        key = key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))
        position = frames.position
        return frames._replace(
            position=position + position_noise * jax.random.normal(key, position.shape, position.dtype)
        )

    def step(state: PretrainState, frames: Labeled) -> tuple[PretrainState, PretrainInfo]:
        frames = noisy(frames, state.step)
        (loss, errors), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.params, frames)
        if axis_name is not None:
            loss, errors, gradient = lax.pmean((loss, errors, gradient), axis_name)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(average_decay, (state.step + 1) / (state.step + 10))
        average = optax.incremental_update(params, state.average_params, 1 - decay)
        return PretrainState(params, average, optimizer_state, state.step + 1), PretrainInfo(loss, errors)

    return init, step
