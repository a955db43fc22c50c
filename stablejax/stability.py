"""Stability criteria (paper A.5): functions of a frame that are positive where it is unstable."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stablejax.geometry import Pairs, pair_distances
from stablejax.types import Array, Criterion, Float, FrameCriterion, Int, ObservableFn, RunningCriterion, running


def find_bonds(
    position: Float[np.ndarray, "frame atom 3"],
    covalent_radius: Float[np.ndarray, " atom"],
    *,
    tolerance: float = 1.25,
    cell: Float[np.ndarray, "3 3"] | None = None,
) -> tuple[Pairs, Float[np.ndarray, " bond"]]:
    """Bonds of a reference simulation and their mean lengths.

    A bond is a pair whose mean distance is under `tolerance` times the sum of the covalent radii.

    Args:
      position: frames of the reference, Å.
      covalent_radius: Å.
      tolerance: factor.
      cell: lattice vectors in rows, Å. None: open boundaries.

    Returns:
      The bonds, and their mean lengths, Å.

    Raises:
      ValueError: no bond was found.
    """
    first, second = np.triu_indices(position.shape[1], k=1)
    distances = jax.jit(partial(pair_distances, pairs=Pairs(first, second), cell=cell))
    length = np.mean([distances(x) for x in np.asarray(position)], axis=0, dtype=float)
    is_bond = length < tolerance * (covalent_radius[first] + covalent_radius[second])
    if not is_bond.any():
        raise ValueError(
            f"`find_bonds`: no pair closer than {tolerance} times its covalent radii (nearest mean distance "
            f"{length.min():.2f} Å): check that positions are in Å and in the order of the atoms."
        )
    bonds = Pairs(first[is_bond].astype(np.int32), second[is_bond].astype(np.int32))
    return bonds, length[is_bond].astype(np.float32)


def bond_length_deviation(bonds: Pairs, length: Float[Array, " bond"], *, threshold: float) -> FrameCriterion:
    """Max |r_ij − b_ij| − threshold over the bonds, Å (A.5, maximum bond length deviation).

    Args:
      bonds: bonded pairs.
      length: b_ij, their lengths in the reference, Å.
      threshold: Δ, Å: 0.25 in training and 0.5 at evaluation in the paper.
    """

    def criterion(position):
        return jnp.max(jnp.abs(pair_distances(position, bonds) - jnp.asarray(length, position.dtype))) - threshold

    return criterion


def intermolecular_distance(
    pairs: Pairs, *, threshold: float, cell: Float[np.ndarray, "3 3"] | None = None
) -> FrameCriterion:
    """Threshold − min r_ij over pairs that are not bonded, Å (A.5, minimum intermolecular distance).

    Args:
      pairs: of atoms of different molecules; see `structure.intermolecular_pairs`.
      threshold: Δ, Å: 1.2 in training in the paper.
      cell: lattice vectors in rows, Å. None: open boundaries.
    """
    return lambda position: threshold - jnp.min(pair_distances(position, pairs, cell))


def window_mean_error(
    observable_fn: ObservableFn,
    reference: Any,
    *,
    bin_width: float,
    steps_per_frame: int,
    frames_per_window: int,
    threshold: float,
) -> RunningCriterion:
    """∫ |⟨g⟩_τ − g_ref| dr − threshold, the largest over the curves g (A.5, RDF mean absolute error).

    The mean is over windows of τ that follow each other; the value is that of the last window that is over, and
    −threshold in the first. What happens within a window is found at its end, so first passages are multiples of τ.

    Args:
      observable_fn: position -> curves [bin], a pytree of them.
      reference: their means in the reference.
      bin_width: of all curves, Å.
      steps_per_frame: how often the observable is looked at.
      frames_per_window: τ in such looks: 1 ps in the paper.
      threshold: Δ, Å: 3 in the paper.

    Raises:
      ValueError: counts are not positive.
    """
    if min(steps_per_frame, frames_per_window) < 1:
        raise ValueError(
            "`window_mean_error`: `steps_per_frame` and `frames_per_window` must be at least 1, got "
            f"{steps_per_frame} and {frames_per_window}."
        )
    reference = jax.tree.map(jnp.asarray, reference)

    def init():
        return _Window(total=jax.tree.map(jnp.zeros_like, reference), step=jnp.int32(0), value=jnp.float32(-threshold))

    def look(window: _Window, position) -> _Window:
        total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), window.total, observable_fn(position))
        errors = jax.tree.map(lambda t, r: bin_width * jnp.sum(jnp.abs(t / frames_per_window - r)), total, reference)
        value = jnp.max(jnp.stack(jax.tree.leaves(errors))) - threshold
        is_over = window.step % (steps_per_frame * frames_per_window) == 0
        return window._replace(
            total=jax.tree.map(lambda t: jnp.where(is_over, 0, t), total),
            value=jnp.where(is_over, value, window.value).astype(window.value.dtype),
        )

    def update(window: _Window, position):
        window = window._replace(step=window.step + 1)
        window = jax.lax.cond(window.step % steps_per_frame == 0, look, lambda window, _: window, window, position)
        return window, window.value

    return RunningCriterion(init, update)


class _Window(NamedTuple):
    total: Any  # of the observable, since the window began
    step: Int[Array, ""]
    value: Float[Array, ""]  # of the window before


def any_of(*criteria: Criterion) -> Criterion:
    """Unstable where any of the criteria is: their maximum. With one that remembers, the whole does."""
    if not any(isinstance(criterion, RunningCriterion) for criterion in criteria):
        return lambda position: jnp.max(jnp.stack([criterion(position) for criterion in criteria]))  # type: ignore[operator]

    every = [running(criterion) for criterion in criteria]

    def update(memories, position):
        pairs = [one.update(memory, position) for one, memory in zip(every, memories, strict=True)]
        return [memory for memory, _ in pairs], jnp.max(jnp.stack([value for _, value in pairs]))

    return RunningCriterion(lambda: [one.init() for one in every], update)
