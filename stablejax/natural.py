"""Steps that change no more than they must: a natural gradient in the metric of energies and forces.

Of all changes d of the parameters that lower the loss of the observables by the same amount, the one is taken that
changes energies and forces least where they should stay: on anchors, which are the frames of the static data set and
samples of replicas that stayed stable. To first order

    d = −s (G + εI)⁻¹ (∇L_obs + ν ∇L_σ),    G = Σ_i w_i (4 ∂U_iᵀ ∂U_i / σ_U² + ∂F_iᵀ ∂F_i / (3N σ_F²))

where ∂ is the derivative with respect to the parameters and σ_U, σ_F are the mean absolute errors of the static data
set at the start of training: G is the Gauss–Newton matrix of the errors in their own units, energies twice as strict.
The length s is that at which the changes on the anchors reach a given fraction of σ_U / 2 or σ_F: a trust region in the
place of a learning rate.
L_σ is the loss on the static data set in the same units, of forces and of the common shift of energies, which no
average of the simulation tells of: ⟨(ΔF/σ_F)²⟩ + 10 ⟨ΔU/σ_U⟩². ν ≥ 0 is the least weight with which L_σ stays below its
bound: the multiplier of a constraint in the place of λ of Equation 7. It is 0 where a step without keeps the bound, and
else the one to first order, corrected by what L_σ is found to exceed the bound by. G is never formed: a product with it
is one forward and one reverse derivative. Each iteration of conjugate gradients makes the step cost less elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.sparse.linalg import cg

from stablejax.collective import sum_over_chunks
from stablejax.losses import Labeled
from stablejax.parallel import Execution
from stablejax.potential import energy_and_forces
from stablejax.types import Array, Bool, EnergyFn, Float, Params
from stablejax.updates import Evaluated, Rule, Seen, Step

ENERGY_WEIGHT = 4.0
"""Of energies in the metric, beside that of forces: with 1 it is their errors that the steps were paid for with."""
SHIFT_WEIGHT = 10.0
"""Of the common shift of energies in the loss on the static data set."""
BACK_SHARE = 4
"""Iterations for L_obs over those for L_σ, whose step only corrects the other."""
NUM_ATTEMPTS = 4
"""Of a step that keeps the bound; each is corrected by what the one before exceeded it by."""


class TrustRegion(NamedTuple):
    """Settings of the steps."""

    max_change: float = 0.3  # of energies or forces, rms over the anchors, over σ_U / 2 or σ_F
    max_qm_loss: float = 1.0  # bound on L_σ, over that at the start of training
    num_anchors: int = 96  # of which half are of the static data set, if it has as many
    damping: float = 1e-5  # ε, over the curvature of G along ∇L_obs
    num_iterations: int = 40  # of conjugate gradients


class Anchors(NamedTuple):
    """Frames whose energies and forces should stay."""

    position: Float[Array, "frame atom 3"]  # Å
    weight: Float[Array, " frame"]  # their sum is 1


class Scale(NamedTuple):
    """Units of the metric, and the loss that the bound refers to; NaN until the first step."""

    energy: Float[Array, ""]  # σ_U, eV
    force: Float[Array, ""]  # σ_F, eV/Å
    loss: Float[Array, ""]  # L_σ


class Change(NamedTuple):
    """Linear change along a direction, rms over the anchors."""

    energy: Float[Array, ""]  # eV
    force: Float[Array, ""]  # eV/Å, per component


class _Tried(NamedTuple):
    """A step."""

    direction: Params
    length: Float[Array, ""]
    change: Change  # along the direction


class Metric(NamedTuple):
    """The Gauss–Newton matrix G of energies and forces on anchors, without forming it."""

    product: Callable[[Params, Anchors, Scale, Params], Params]  # (params, anchors, scale, direction) -> G · direction
    change: Callable[[Params, Anchors, Params], Change]  # (params, anchors, direction) -> change along it


def check(settings: TrustRegion) -> None:
    """Check the settings.

    Raises:
      ValueError: a bound, the damping or a number is not positive.
    """
    positive = settings.max_change, settings.max_qm_loss, settings.damping
    if not min(positive) > 0 or settings.num_anchors < 2 or settings.num_iterations < 1:
        raise ValueError(
            "`TrustRegion`: expected max_change > 0, max_qm_loss > 0, damping > 0, num_anchors >= 2 and "
            f"num_iterations >= 1, got {tuple(settings)}: change the settings."
        )


def natural_gradient(
    energy_fn: EnergyFn,
    settings: TrustRegion,
    *,
    execution: Execution,
    prepare: Callable[[Params], Any] = lambda params: params,
) -> Rule:
    """The rule of a natural-gradient step in a trust region. Without a gradient of L_obs nothing changes.

    Args:
      energy_fn: `(prepared, position) -> eV`.
      settings: sizes and bounds.
      execution: devices and batch sizes.
      prepare: `params -> prepared`, what the energies of all frames have in common.

    Raises:
      ValueError: the settings make no sense.
    """
    check(settings)
    metric = gauss_newton(energy_fn, execution=execution)

    def static_loss(params: Params, frames: Labeled, energy_unit, force_unit) -> Float[Array, ""]:
        energy, force = jax.vmap(energy_and_forces(energy_fn), (None, 0))(prepare(params), frames.position)
        shift = jnp.mean(energy - frames.energy)
        return jnp.mean((force - frames.force) ** 2) / force_unit**2 + SHIFT_WEIGHT * (shift / energy_unit) ** 2

    def init(_: Params) -> Scale:
        unknown = jnp.full((), jnp.nan, jnp.result_type(float))
        return Scale(unknown, unknown, unknown)

    def step(scale: Scale, params: Params, evaluated: Evaluated, seen: Seen, rate_scale) -> Step:
        errors = evaluated.qm_errors
        energy, force = _first(scale.energy, errors.energy_mae), _first(scale.force, errors.force_mae)
        loss, loss_gradient = jax.value_and_grad(static_loss)(params, seen.frames, energy, force)
        scale = Scale(energy, force, _first(scale.loss, loss))
        anchors = choose_anchors(seen, settings.num_anchors, multiple_of=_num_devices(execution))
        toward = _where(evaluated.has_observable, evaluated.observable_gradient)
        prepared, along = jax.linearize(prepare, params)
        transposed = jax.linear_transpose(along, params)

        def product(direction: Params) -> Params:
            return transposed(metric.product(prepared, anchors, scale, along(direction)))[0]

        def length_of(direction: Params) -> tuple[Float[Array, ""], Change]:
            change = metric.change(prepared, anchors, along(direction))
            relative = jnp.maximum(ENERGY_WEIGHT**0.5 * change.energy / scale.energy, change.force / scale.force)
            length = settings.max_change * rate_scale / jnp.where(relative > 0, relative, jnp.inf)
            return length.astype(relative.dtype), change

        def above(direction: Params, length) -> Float[Array, ""]:
            """What L_σ exceeds its bound by after a step."""
            moved = jax.tree.map(lambda p, d: (p - length * d).astype(p.dtype), params, direction)
            bound = settings.max_qm_loss * scale.loss
            return jnp.maximum(static_loss(moved, seen.frames, energy, force) - bound, 0)

        damping = settings.damping * _curvature(product, toward)
        solve = partial(_solve, product, damping)
        natural = solve(settings.num_iterations, toward)
        free = _Tried(natural, *length_of(natural))

        def bounded() -> _Tried:
            back = solve(-(-settings.num_iterations // BACK_SHARE), loss_gradient)

            def attempt(_, carried: tuple[Float[Array, ""], _Tried]) -> tuple[Float[Array, ""], _Tried]:
                excess, _ = carried
                multiplier = _multiplier(excess, loss_gradient, natural, back, free.length)
                direction = jax.tree.map(lambda a, b: a + multiplier * b, natural, back)
                tried = _Tried(direction, *length_of(direction))
                return excess + above(direction, tried.length), tried

            excess = (loss - settings.max_qm_loss * scale.loss).astype(free.length.dtype)
            return lax.fori_loop(0, NUM_ATTEMPTS, attempt, (excess, free))[1]

        direction, length, change = lax.cond(above(natural, free.length) > 0, bounded, lambda: free)
        return Step(
            change=jax.tree.map(lambda leaf: (-length * leaf).astype(leaf.dtype), direction),
            state=scale,
            gradient=direction,
            force_change=length * change.force,
            energy_change=length * change.energy,
        )

    return Rule(init, step)


def gauss_newton(energy_fn: EnergyFn, *, execution: Execution) -> Metric:
    """The metric of energies and forces on anchors.

    Args:
      energy_fn: `(params, position) -> eV`.
      execution: devices that share the anchors, and how many of them are differentiated together.
    """
    model = energy_and_forces(energy_fn)

    def along(params, position) -> Callable[[Params], tuple[Any, Any]]:
        """The linear map from a change of the parameters to those of energies and forces."""
        return jax.linearize(lambda params: jax.vmap(model, (None, 0))(params, position), params)[1]

    def product_of_chunk(params, scale: Scale, direction, position, weight):
        linear = along(params, position)
        energy, force = linear(direction)
        mean = weight[:, None, None] / force[0].size
        weighted = ENERGY_WEIGHT * weight * energy / scale.energy**2, mean * force / scale.force**2
        return jax.linear_transpose(linear, params)(weighted)[0]

    def squares_of_chunk(params, direction, position, weight):
        energy, force = along(params, position)(direction)
        mean = weight[:, None, None] / force[0].size
        return jnp.sum(weight * energy**2), jnp.sum(mean * force**2)

    def over_anchors(of_chunk: Callable) -> Callable:
        def local(shared, position, weight):
            def chunk(index, is_real):
                return of_chunk(*shared, position[index], jnp.where(is_real, weight[index], 0))

            total = sum_over_chunks(chunk, len(weight), execution.chunk_size)
            return total if execution.axis_name is None else lax.psum(total, execution.axis_name)

        return execution.over_samples(local)

    def product(params: Params, anchors: Anchors, scale: Scale, direction: Params) -> Params:
        return over_anchors(product_of_chunk)((params, scale, direction), *anchors)

    def change(params: Params, anchors: Anchors, direction: Params) -> Change:
        energy, force = over_anchors(squares_of_chunk)((params, direction), *anchors)
        return Change(jnp.sqrt(energy), jnp.sqrt(force))

    return Metric(product, change)


def choose_anchors(seen: Seen, num: int, *, multiple_of: int = 1) -> Anchors:
    """Static frames of an epoch, and samples of its stable replicas, evenly spaced; all count the same.

    Args:
      seen: of the epoch; its samples are frames.
      num: anchors; half of them are static frames, or all that there are if they are fewer. Where too few samples
        count they are chosen several times.
      multiple_of: the number of anchors is filled up to a multiple with others of weight 0.
    """
    static = seen.frames.position[: num // 2]
    num_samples = num - len(static)
    is_kept = seen.is_counted & seen.is_stable
    num_kept = jnp.sum(is_kept)
    index = jnp.argsort(~is_kept, stable=True)[jnp.arange(num_samples) * num_kept // num_samples]
    weight = jnp.concatenate([jnp.ones(len(static)), jnp.where(num_kept > 0, jnp.ones(num_samples), 0)])
    position = jnp.concatenate([static, seen.samples.position[index].astype(static.dtype)])
    missing = -len(weight) % multiple_of
    position = jnp.concatenate([position, jnp.broadcast_to(position[:1], (missing, *position.shape[1:]))])
    weight = jnp.concatenate([weight, jnp.zeros(missing)])
    return Anchors(position, (weight / jnp.sum(weight)).astype(position.dtype))


def _first(old: Float[Array, ""], new: Float[Array, ""]) -> Float[Array, ""]:
    """What is known since the first step."""
    return jnp.where(jnp.isnan(old), new, old).astype(old.dtype)


def _curvature(product: Callable, direction: Params) -> Float[Array, ""]:
    """Of the metric along a direction; 1 where there is none."""
    curvature = optax.tree.vdot(direction, product(direction)) / optax.tree.vdot(direction, direction)
    return jnp.where(jnp.isfinite(curvature), curvature, 1)


def _solve(product: Callable, damping, num_iterations: int, gradient: Params) -> Params:
    """(G + εI)⁻¹ of a gradient, by conjugate gradients that are cut short."""

    def damped(direction):
        return jax.tree.map(lambda a, b: a + damping * b, product(direction), direction)

    return cg(damped, gradient, tol=0.0, maxiter=num_iterations)[0]


def _multiplier(excess, gradient: Params, natural: Params, back: Params, length) -> Float[Array, ""]:
    """ν ≥ 0 for which L_σ + ∇L_σ · d is at most its bound.

    Args:
      excess: of L_σ over its bound.
      gradient: of L_σ.
      natural: direction for L_obs.
      back: direction for L_σ.
      length: of the step along `natural`.
    """
    gained, gained_back = (optax.tree.vdot(gradient, one) for one in (natural, back))
    needed = (jnp.where(length > 0, excess / length, 0) - gained) / jnp.where(gained_back > 0, gained_back, jnp.inf)
    return jnp.maximum(needed, 0)


def _where(condition: Bool[Array, ""], tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.where(condition, leaf, jnp.zeros_like(leaf)), tree)


def _num_devices(execution: Execution) -> int:
    return 1 if execution.mesh is None else execution.mesh.size
