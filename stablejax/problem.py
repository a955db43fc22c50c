"""The input of StABlE training: a potential, the observables it has to reproduce, and a criterion of failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stablejax.boltzmann import Localized, Parametric, localized
from stablejax.losses import Labeled, LabelErrors, energy_and_force_loss
from stablejax.neighborhoods import neighborhood_energies
from stablejax.potential import Potential
from stablejax.types import Array, Criterion, Float, Frame, Int, ObservableFn, Params


class Observables(NamedTuple):
    """What L_obs compares (Equation 4): means of observables over the simulation, and their references."""

    fn: ObservableFn | Parametric  # of a frame, a pytree
    reference: Any  # a pytree with the structure of the observables; localized: without the axis of neighborhoods
    weight: Any  # w, a pytree with the structure of `reference`; see `losses.observable_loss`


class Subsample(NamedTuple):
    """Neighborhoods that are learned from, at most `per_bin` from each bin of a value (A.6); see `neighborhoods`."""

    value_fn: Callable[[Frame], Float[Array, " neighborhood"]]
    num_bins: int
    per_bin: int


class Problem(NamedTuple):
    """Everything that the method needs to know about a system."""

    potential: Potential
    mass: Float[Array, " atom"]  # amu
    kT: float | Float[Array, ""]  # eV
    criterion: Criterion  # of training; unstable above 0
    observables: Observables
    frames: Labeled  # the static data set, energies relative to the potential's offset
    energy_weight: float = 0.05  # λ_U of Equation 3, per eV²
    force_weight: float = 0.95  # λ_F of Equation 3, per (eV/Å)²
    neighborhoods: Callable[[Frame], Int[Array, "neighborhood member"]] | None = None  # None: the global estimator
    subsample: Subsample | None = None  # None: all neighborhoods count
    held_out: Labeled | None = None  # frames like those of the static data set that nothing is trained on

    def energies(self) -> Callable[[Params, Frame], Float[Array, ""]] | Localized:
        """What the estimator differentiates: the energy of a frame, or those of its neighborhoods (Equation 8)."""
        potential, member_fn = self.potential, self.neighborhoods
        if member_fn is None:
            return lambda params, frame: potential.energy(params, frame.position)
        return localized(
            lambda params, frame: neighborhood_energies(
                potential.atom_energies(params, frame.position), member_fn(frame)
            )
        )

    def qm_loss(self) -> Callable[[Params, Labeled], tuple[Float[Array, ""], LabelErrors]]:
        """L_QM with the weights of the problem; see `losses.energy_and_force_loss`."""
        return energy_and_force_loss(
            self.potential.energy, energy_weight=self.energy_weight, force_weight=self.force_weight
        )


def check_problem(problem: Problem) -> None:
    """Check that the parts are consistent, before anything is computed.

    Raises:
      ValueError: masses or frames for a different number of atoms; a kT that is not positive; a reference or weights
        that differ in structure or shape from the observables.
    """
    num_atoms = problem.potential.num_atoms
    for name, shape, expected in (
        ("mass", jnp.shape(problem.mass), (num_atoms,)),
        ("frames.position", jnp.shape(problem.frames.position)[1:], (num_atoms, 3)),
        ("frames.force", jnp.shape(problem.frames.force)[1:], (num_atoms, 3)),
    ):
        if shape != expected:
            raise ValueError(
                f"`Problem`: expected `{name}` for the {num_atoms} atoms of the potential, {expected}, got {shape}: "
                "pass the same atoms in the same order everywhere."
            )
    if not isinstance(problem.kT, jax.core.Tracer) and not problem.kT > 0:
        raise ValueError(f"`Problem`: expected a positive `kT`, got {problem.kT}: pass k_B T in eV.")
    if not isinstance(problem.observables.fn, Parametric):
        _check_observables(problem, problem.observables.fn)


def _check_observables(problem: Problem, observable_fn: ObservableFn) -> None:
    vectors: Any = jax.ShapeDtypeStruct((problem.potential.num_atoms, 3), jnp.result_type(float))
    scalar: Any = jax.ShapeDtypeStruct((), vectors.dtype)
    found = jax.eval_shape(observable_fn, Frame(vectors, vectors, vectors, scalar))
    first = 0 if problem.neighborhoods is None else 1
    shapes = [(path, leaf.shape[first:]) for path, leaf in jax.tree_util.tree_leaves_with_path(found)]
    reference = [
        (path, jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(problem.observables.reference)
    ]
    if shapes != reference:
        raise ValueError(
            f"`Problem`: expected a reference like the observables, {_shown(shapes)}, got {_shown(reference)}: take "
            "the mean of the same function over the reference."
        )
    weights = jax.tree_util.tree_leaves_with_path(problem.observables.weight)
    if [path for path, _ in weights] != [path for path, _ in shapes]:
        raise ValueError(
            f"`Problem`: expected one weight for each observable, got {len(weights)} for {len(shapes)}: give the "
            "weights the structure of the reference."
        )


def _shown(shapes) -> str:
    return ", ".join(f"{jax.tree_util.keystr(path) or 'an array'} {shape}" for path, shape in shapes)
