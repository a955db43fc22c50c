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
    """Parameters and the state of the rule that changes them."""

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
    used_observable: Bool[Array, ""]  # False: fewer than 2 samples counted
    effective_fraction: Float[Array, ""]  # N_eff/N of the samples at the last parameters that were evaluated
    force_change: Float[Array, ""]  # eV/Å, rms over the anchors, of the last update; NaN for rules without
    energy_change: Float[Array, ""]  # eV, likewise


class Seen(NamedTuple):
    """What an epoch gives to learn from."""

    samples: Any  # of the simulation, a pytree [sample, ...]
    mask: Bool[Array, "sample *neighborhood"]  # which count
    is_stable: Bool[Array, " sample"]  # which are of replicas that did not fail in the epoch
    frames: Labeled  # of the static data set
    sampled_energy: Float[Array, " sample"] | None = None  # that the samples are of, eV; None: of the present potential

    @property
    def is_counted(self) -> Bool[Array, " sample"]:
        """Samples that count, or of which a neighborhood does."""
        return self.mask if self.mask.ndim == 1 else jnp.any(self.mask, axis=1)


class Gradients(NamedTuple):
    """The two losses of Equation 7, each with its gradient."""

    observable: Callable[..., tuple[Float[Array, ""], Params]]  # (params, samples, mask, weight)
    qm: Callable[[Params, Labeled], tuple[tuple[Float[Array, ""], LabelErrors], Params]]


class Evaluated(NamedTuple):
    """Both losses and their gradients, of one set of parameters."""

    observable_loss: Float[Array, ""]
    observable_gradient: Params
    qm_loss: Float[Array, ""]
    qm_errors: LabelErrors
    qm_gradient: Params
    has_observable: Bool[Array, ""]  # False: fewer than 2 samples count, so that L_obs has no gradient


class Step(NamedTuple):
    """What a rule makes of gradients."""

    change: Params
    state: Any
    gradient: Params  # that the change follows from
    force_change: Float[Array, ""]  # see `UpdateInfo`
    energy_change: Float[Array, ""]


class Rule(NamedTuple):
    """`init(params) -> state` and `step(state, params, evaluated, seen, rate_scale) -> Step`."""

    init: Callable[[Params], Any]
    step: Callable[[Any, Params, Evaluated, Seen, Float[Array, ""]], Step]


class Reuse(NamedTuple):
    """Samples of other parameters, reweighted: for further updates from one epoch, or from those of earlier epochs."""

    energies_fn: Callable[[Params, Any], Float[Array, " sample"]]  # (params, samples) -> eV
    kT: float | Float[Array, ""]  # eV
    max_updates: int  # of one epoch, the first included
    min_effective_fraction: float  # N_eff/N below which the samples are no longer used


class Updates(NamedTuple):
    """`init(params) -> state` and `step(state, rate_scale, seen) -> (state, info)`."""

    init: Callable[[Params], UpdateState]
    step: Callable[[UpdateState, Float[Array, ""], Seen], tuple[UpdateState, UpdateInfo]]


class _Moving(NamedTuple):
    state: UpdateState
    num_updates: Int[Array, ""]
    effective_fraction: Float[Array, ""]
    is_going: Bool[Array, ""]
    force_change: Float[Array, ""]
    energy_change: Float[Array, ""]


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


def by_optimizer(optimizer: optax.GradientTransformation, combine: Callable[[Params, Params], Params]) -> Rule:
    """The rule of Equation 7: an optimizer's step along the sum of both gradients.

    Args:
      optimizer: optax transformation, with the learning rate.
      combine: (∇L_obs, ∇L_QM) -> gradient that is used; see `weighted_sum` and `clipped_sum`.
    """
    unknown = jnp.float32(jnp.nan)

    def step(state, params, evaluated: Evaluated, _: Seen, rate_scale) -> Step:
        # Chosen after they are combined: before, XLA rounds the gradient differently.
        nothing = jax.tree.map(jnp.zeros_like, evaluated.observable_gradient)
        both, alone = (combine(some, evaluated.qm_gradient) for some in (evaluated.observable_gradient, nothing))
        gradient = jax.tree.map(lambda a, b: jnp.where(evaluated.has_observable, a, b), both, alone)
        updates, state = optimizer.update(gradient, state, params)
        updates = jax.tree.map(lambda u: u * rate_scale.astype(u.dtype), updates)
        return Step(updates, state, gradient, unknown, unknown)

    return Rule(optimizer.init, step)


def make_updates(gradients: Gradients, rule: Rule, *, reuse: Reuse | None = None) -> Updates:
    """From samples to new parameters.

    Args:
      gradients: of L_obs by the estimator, of L_QM on the static data set.
      rule: what is made of them; see `by_optimizer` and `natural.natural_gradient`.
      reuse: further updates from the same samples, and samples of other parameters. None: one update from samples of
        the present ones, as in the paper.

    Returns:
      `init` and `step`, with a factor `rate_scale` on the update.
      A gradient, an update or parameters after it that are not finite change nothing. Fewer than 2 samples that count
      give no gradient of L_obs: an optimizer's step is then that of L_QM alone, and a natural one is none.
    """

    def evaluate(params, weight, seen: Seen) -> Evaluated:
        observable_loss, observable_gradient = gradients.observable(params, seen.samples, seen.mask, weight)
        (qm_loss, qm_errors), qm_gradient = gradients.qm(params, seen.frames)
        has_observable = jnp.sum(seen.mask) >= 2
        return Evaluated(observable_loss, observable_gradient, qm_loss, qm_errors, qm_gradient, has_observable)

    def update(moving: _Moving, evaluated: Evaluated, seen: Seen, rate_scale) -> _Moving:
        state = moving.state
        made = rule.step(state.optimizer, state.params, evaluated, seen, rate_scale)
        new = UpdateState(optax.apply_updates(state.params, made.change), made.state)
        is_finite = jnp.bool(True)
        for tree in (made.gradient, made.change, new.params):
            is_finite &= jnp.isfinite(optax.tree.norm(tree))
        kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
        return moving._replace(
            state=kept,
            num_updates=moving.num_updates + is_finite,
            is_going=is_finite & evaluated.has_observable,
            force_change=made.force_change,
            energy_change=made.energy_change,
        )

    def weights(params, reuse: Reuse, seen: Seen) -> tuple[Float[Array, " sample"], Float[Array, ""]]:
        """Weights of the samples for the parameters, and N_eff/N."""
        energy = jnp.where(seen.is_counted, reuse.energies_fn(params, seen.samples), jnp.inf)
        assert seen.sampled_energy is not None
        weight = perturbation_weights(energy, seen.sampled_energy, kT=reuse.kT)
        return weight, effective_sample_size(weight) / jnp.maximum(jnp.sum(seen.is_counted), 1)

    def reused(moving: _Moving, reuse: Reuse, seen: Seen, rate_scale) -> _Moving:
        weight, fraction = weights(moving.state.params, reuse, seen)

        def again():
            return update(moving, evaluate(moving.state.params, weight, seen), seen, rate_scale)

        is_worth_it = fraction >= reuse.min_effective_fraction
        moved = lax.cond(is_worth_it, again, lambda: moving._replace(is_going=jnp.bool(False)))
        return moved._replace(effective_fraction=fraction)

    def step(state: UpdateState, rate_scale, seen: Seen) -> tuple[UpdateState, UpdateInfo]:
        weight: Array = jnp.ones(len(seen.mask), jnp.result_type(float))
        fraction: Array = jnp.float32(1)
        if seen.sampled_energy is not None:
            if reuse is None:
                raise ValueError("`make_updates`: samples of another energy need `reuse`: set it.")
            weight, fraction = weights(state.params, reuse, seen)
        unknown = jnp.float32(jnp.nan)
        start = _Moving(state, jnp.int32(0), fraction, jnp.bool(True), unknown, unknown)
        evaluated = evaluate(state.params, weight, seen)
        moving = update(start, evaluated, seen, rate_scale)
        if reuse is not None and reuse.max_updates > 1:
            if seen.sampled_energy is None:
                seen = seen._replace(sampled_energy=reuse.energies_fn(state.params, seen.samples))
            moving = lax.while_loop(
                lambda m: m.is_going & (m.num_updates < reuse.max_updates),
                lambda m: reused(m, reuse, seen, rate_scale),
                moving,
            )
        return moving.state, _info(evaluated, moving)

    return Updates(lambda params: UpdateState(params, rule.init(params)), step)


def _info(evaluated: Evaluated, moving: _Moving) -> UpdateInfo:
    return UpdateInfo(
        observable_loss=evaluated.observable_loss,
        qm_loss=evaluated.qm_loss,
        qm_errors=evaluated.qm_errors,
        observable_gradient_norm=optax.tree.norm(evaluated.observable_gradient),
        qm_gradient_norm=optax.tree.norm(evaluated.qm_gradient),
        gradient_cosine=cosine(evaluated.observable_gradient, evaluated.qm_gradient),
        num_updates=moving.num_updates,
        used_observable=evaluated.has_observable,
        effective_fraction=moving.effective_fraction,
        force_change=moving.force_change,
        energy_change=moving.energy_change,
    )
