"""Losses: energies and forces of labeled frames, and ensemble averages against reference observables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stablejax.potential import energy_and_forces
from stablejax.types import Array, EnergyFn, Float, Params


class Labeled(NamedTuple):
    """Frames with reference energies and forces."""

    position: Float[Array, "frame atom 3"]  # Å
    energy: Float[Array, " frame"]  # eV, offset removed
    force: Float[Array, "frame atom 3"]  # eV/Å


class LabelErrors(NamedTuple):
    """Mean absolute errors over the frames."""

    energy_mae: Float[Array, ""]  # eV
    force_mae: Float[Array, ""]  # eV/Å, per component


def energy_and_force_loss(
    energy_fn: EnergyFn, *, energy_weight: float, force_weight: float
) -> Callable[[Params, Labeled], tuple[Float[Array, ""], LabelErrors]]:
    """L_QM = λ_U mean (U_ref − U_θ)² + λ_F mean |F_ref − F_θ|² (Equation 3, except for the second mean).

    The first mean is over frames, in eV²; the second over frames, atoms and components, in (eV/Å)². Equation 3 has the
    squared norm of a frame's forces, 3N times as much, so its λ_F is the one here divided by 3N: 63 for aspirin, 576
    for 64 molecules of water. Differentiable.

    Args:
      energy_fn: `(params, position) -> eV`.
      energy_weight: λ_U.
      force_weight: λ_F.

    Returns:
      `(params, frames) -> (loss, errors)`.
    """
    model = jax.vmap(energy_and_forces(energy_fn), in_axes=(None, 0))

    def loss(params: Params, frames: Labeled):
        energy, force = model(params, frames.position)
        energy_error, force_error = energy - frames.energy, force - frames.force
        value = energy_weight * jnp.mean(energy_error**2) + force_weight * jnp.mean(force_error**2)
        return value, LabelErrors(jnp.mean(jnp.abs(energy_error)), jnp.mean(jnp.abs(force_error)))

    return loss


def observable_loss(reference: Any, weight: Any) -> Callable[[Any], Float[Array, ""]]:
    """L_obs = Σ_i w_i ‖E[g_i] − g_ref,i‖² (Equation 4, Algorithm 1 line 27).

    For a density on bins of width Δ, w = Δ makes it the integral of the squared difference, whatever the bins.

    Args:
      reference: g_ref, a pytree with the structure of the observable.
      weight: w, a pytree with the structure of `reference`, of scalars or of arrays with a weight for each component.
    """

    def loss(mean):
        terms = jax.tree.map(lambda g, ref, w: jnp.sum(w * (g - ref) ** 2), mean, reference, weight)
        return sum(jax.tree.leaves(terms))

    return loss


def fluctuation_weights(variance: Any, *, least: float = 0.1) -> Any:
    """Weights of `observable_loss` that measure every component in units of its fluctuation in the reference.

    w_j = 1 / (n (σ_j² + least² max_k σ_k²)) for the n components of an observable, so that each contributes its mean
    squared deviation in standard deviations. The second term bounds the weight of bins that the reference hardly
    visits. An observable that does not fluctuate at all has weight 0.

    Args:
      variance: σ² of each component over the reference, a pytree of arrays.
      least: smallest standard deviation, over the largest of the same observable.
    """

    def of(one):
        scale = one.size * (one + least**2 * jnp.max(one))
        return jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)

    return jax.tree.map(of, jax.tree.map(jnp.asarray, variance))
