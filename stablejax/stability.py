"""Stability criteria (paper A.5): functions of a frame that are positive where it is unstable."""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from stablejax.space import OPEN, Pairs, Space
from stablejax.topology import Links, Ranges
from stablejax.types import (
    Array,
    Criterion,
    Float,
    Frame,
    FrameCriterion,
    Int,
    ObservableFn,
    StatefulCriterion,
    stateful,
)


def bond_length_deviation(
    bonds: Pairs, length: Float[Array, " bond"], *, threshold: float, space: Space = OPEN
) -> FrameCriterion:
    """Max |r_ij − b_ij| − threshold over the bonds, Å (A.5, maximum bond length deviation).

    Args:
      bonds: bonded pairs.
      length: b_ij, their lengths in the reference, Å.
      threshold: Δ, Å: 0.25 in training and 0.5 at evaluation in the paper.
      space: in which distances are computed.

    Raises:
      ValueError: a bond at the threshold is beyond the reach of the cell, where it would be folded to a shorter one.
    """
    space.check_reach("bond_length_deviation", float(np.max(length)) + threshold)

    def criterion(frame: Frame):
        distance = space.distances(frame.position, bonds)
        return jnp.max(jnp.abs(distance - jnp.asarray(length, distance.dtype))) - threshold

    return criterion


def intermolecular_distance(pairs: Pairs, *, threshold: float, space: Space = OPEN) -> FrameCriterion:
    """Threshold − min r_ij over pairs that are not bonded, Å (A.5, minimum intermolecular distance).

    Args:
      pairs: of atoms of different molecules; see `topology.intermolecular_pairs`.
      threshold: Δ, Å: 1.2 in training in the paper.
      space: in which distances are computed.

    Raises:
      ValueError: the threshold is beyond the reach of the cell.
    """
    space.check_reach("intermolecular_distance", threshold)
    return lambda frame: threshold - jnp.min(space.distances(frame.position, pairs))


def fragment_distance(links: Links, *, threshold: float, space: Space = OPEN) -> FrameCriterion:
    """Largest distance of two fragments beyond its range in the reference, − threshold, Å.

    It watches what no bond does: ions, molecules that part, and an atom that two others share.

    Args:
      links: of the reference; see `topology.find_links`.
      threshold: Å, below the shortest and above the longest distance.
      space: in which distances are computed.

    Raises:
      ValueError: a distance at the threshold is beyond the reach of the cell.
    """
    space.check_reach("fragment_distance", float(np.max(links.longest)) + threshold)

    def criterion(frame: Frame):
        distance = space.distances(frame.position, links.pairs)
        nearest = jax.ops.segment_min(distance, links.link, len(links.longest), indices_are_sorted=True)
        beyond = jnp.maximum(nearest - links.longest, links.shortest - nearest)
        return jnp.max(beyond).astype(distance.dtype) - threshold

    return criterion


def distance_range(ranges: Ranges, *, margin: float, space: Space = OPEN) -> FrameCriterion:
    """Max(shortest_ij − r_ij, r_ij − longest_ij) − margin over pairs, Å: distances beyond those of the reference.

    A potential may open an angle, or draw atoms together that are not bonded, long before a bond breaks.

    Args:
      ranges: of the reference; see `topology.distance_ranges`.
      margin: Δ, Å.
      space: in which distances are computed.

    Raises:
      ValueError: a distance at its margin is beyond the reach of the cell, where it would be folded to a shorter one.
    """
    bounds = np.concatenate([np.asarray(ranges.shortest), np.asarray(ranges.longest)])
    space.check_reach("distance_range", float(np.max(bounds, where=np.isfinite(bounds), initial=0.0)) + margin)
    excess = distance_excess(ranges, space=space)
    return lambda frame: jnp.max(excess(frame)) - margin


def distance_excess(ranges: Ranges, *, space: Space = OPEN) -> ObservableFn:
    """Max(shortest − r, r − longest) of each pair, Å: positive beyond the distances of the reference. Differentiable.

    Args:
      ranges: of the reference; see `topology.distance_ranges`.
      space: in which distances are computed.
    """
    low, high = (np.asarray(bound, np.float32) for bound in (ranges.shortest, ranges.longest))

    def observable(frame: Frame):
        distance = space.distances(frame.position, ranges.pairs)
        return jnp.maximum(low - distance, distance - high)

    return observable


def kinetic_energy_per_dof(mass: Float[Array, " atom"], *, threshold: float, constrained_dof: int) -> FrameCriterion:
    """Instantaneous k_B T − threshold, eV: replicas that heat up.

    Args:
      mass: amu.
      threshold: eV.
      constrained_dof: constrained degrees of freedom; see `integrators.Integrator`.
    """

    def criterion(frame: Frame):
        velocity = _known(frame, "velocity", "kinetic_energy_per_dof")
        kinetic = 0.5 * jnp.sum(jnp.asarray(mass)[:, None] * velocity * velocity)
        return 2 * kinetic / (3 * len(mass) - constrained_dof) - threshold

    return criterion


def largest_force(*, threshold: float) -> FrameCriterion:
    """Max_i |F_i| − threshold, eV/Å: forces beyond those in the data.

    Args:
      threshold: eV/Å.
    """

    def criterion(frame: Frame):
        force = _known(frame, "force", "largest_force")
        return jnp.sqrt(jnp.max(jnp.sum(force * force, axis=-1))) - threshold

    return criterion


def potential_energy(*, threshold: float) -> FrameCriterion:
    """U − threshold, eV, relative to the potential's offset. It costs one evaluation of the energy per step.

    Args:
      threshold: eV.
    """
    return lambda frame: _known(frame, "energy", "potential_energy") - threshold


def soft_violation(value_fn: ObservableFn, *, width: float) -> ObservableFn:
    """1 / (1 + exp(−value/width)): how far a criterion is violated, from 0 where it holds to 1, as an observable.

    Its mean is the fraction of violating frames, smoothed; in the reference it is next to nothing, and known.

    Args:
      value_fn: a criterion of frames; or several values that are positive where they violate one, of any shape.
      width: of the transition, in the unit of the value.

    Raises:
      ValueError: the width is not positive.
    """
    if not width > 0:
        raise ValueError(f"`soft_violation`: expected a positive width, got {width}: choose a tenth of the threshold.")
    return lambda frame: jax.nn.sigmoid(value_fn(frame) / width)


def _known(frame: Frame, field: str, name: str):
    value = getattr(frame, field)
    if value is None:
        raise ValueError(
            f"`{name}`: expected frames with `{field}`, got none: dynamics provides it; elsewhere pass it to `Frame`."
        )
    return value


def window_mean_error(
    observable_fn: ObservableFn,
    reference: Any,
    *,
    bin_width: float,
    steps_per_frame: int,
    frames_per_window: int,
    threshold: float,
) -> StatefulCriterion:
    """∫ |⟨g⟩_τ − g_ref| dr − threshold, the largest over the curves g (A.5, RDF mean absolute error).

    The mean is over consecutive windows of τ; the value is that of the last complete window, and −threshold in the
    first. What happens within a window is detected at its end, so first passages are multiples of τ.

    Args:
      observable_fn: frame -> curves [bin], a pytree of them.
      reference: their means in the reference.
      bin_width: of all curves, Å.
      steps_per_frame: between evaluations of the observable.
      frames_per_window: τ in such evaluations: 1 ps in the paper.
      threshold: Δ, Å: 3 in the paper.

    Raises:
      ValueError: counts are not positive.
    """
    if min(steps_per_frame, frames_per_window) < 1:
        raise ValueError(
            "`window_mean_error`: `steps_per_frame` and `frames_per_window` must be at least 1, got "
            f"{steps_per_frame} and {frames_per_window}: pass counts."
        )
    reference = jax.tree.map(jnp.asarray, reference)

    def init(frame: Frame):
        zero = jax.tree.map(jnp.zeros_like, reference)
        return _Window(total=zero, step=jnp.int32(0), value=jnp.asarray(-threshold, frame.position.dtype))

    def add(window: _Window, frame: Frame) -> _Window:
        total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), window.total, observable_fn(frame))
        errors = jax.tree.map(lambda t, r: bin_width * jnp.sum(jnp.abs(t / frames_per_window - r)), total, reference)
        value = jnp.max(jnp.stack(jax.tree.leaves(errors))) - threshold
        is_complete = window.step % (steps_per_frame * frames_per_window) == 0
        return window._replace(
            total=jax.tree.map(lambda t: jnp.where(is_complete, 0, t), total),
            value=jnp.where(is_complete, value, window.value).astype(window.value.dtype),
        )

    def step(window: _Window, frame: Frame):
        window = window._replace(step=window.step + 1)
        window = jax.lax.cond(window.step % steps_per_frame == 0, add, lambda window, _: window, window, frame)
        return window, window.value

    return StatefulCriterion(init, step)


class _Window(NamedTuple):
    total: Any  # of the observable, since the start of the window
    step: Int[Array, ""]
    value: Float[Array, ""]  # of the last complete window


@overload
def any_of(*criteria: FrameCriterion) -> FrameCriterion: ...


@overload
def any_of(*criteria: Criterion) -> Criterion: ...


def any_of(*criteria: Criterion) -> Criterion:
    """Unstable where any of the criteria is: their maximum. Stateful where any of them is.

    Args:
      criteria: at least one.
    """
    if not any(isinstance(criterion, StatefulCriterion) for criterion in criteria):
        return lambda frame: jnp.max(jnp.stack([criterion(frame) for criterion in criteria]))  # type: ignore[operator]

    every = [stateful(criterion) for criterion in criteria]

    def step(states, frame):
        pairs = [one.step(state, frame) for one, state in zip(every, states, strict=True)]
        return [state for state, _ in pairs], jnp.max(jnp.stack([value for _, value in pairs]))

    return StatefulCriterion(lambda frame: [one.init(frame) for one in every], step)
