"""Array aliases, and the shapes of the functions and states that the library passes around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, PRNGKeyArray, Shaped

Array = jax.Array | np.ndarray
"""Arrays of JAX or NumPy: constants of a system may stay on the host."""
Params = Any
"""A pytree of floating-point arrays."""
Key = PRNGKeyArray
"""One PRNG key, new-style or legacy."""
Position = Float[Array, "atom 3"]
Positions = Float[Array, "sample atom 3"]
Species = Integer[Array, " atom"]
Cell = Float[Array, "3 3"]
"""Lattice vectors in rows, Å."""


class Frame(NamedTuple):
    """One replica at one time, as observables and criteria receive it. Unknown fields are None."""

    position: Position  # Å
    velocity: Float[Array, "atom 3"] | None = None  # Å per internal unit of time
    force: Float[Array, "atom 3"] | None = None  # eV/Å
    energy: Float[Array, ""] | None = None  # potential energy, eV


@runtime_checkable
class EnergyFn(Protocol):
    """Potential energy of one frame, eV."""

    def __call__(self, params: Params, position: Position, /) -> Float[Array, ""]: ...


@runtime_checkable
class ObservableFn(Protocol):
    """An observable of one frame: a pytree of arrays."""

    def __call__(self, frame: Frame, /) -> Any: ...


@runtime_checkable
class FrameCriterion(Protocol):
    """How far one frame is from the allowed region: unstable where it exceeds 0, in the criterion's own unit."""

    def __call__(self, frame: Frame, /) -> Float[Array, ""]: ...


class StatefulCriterion(NamedTuple):
    """A criterion of more than one frame, called with the frame after every step; unstable where its value exceeds 0.

    The state is a pytree of fixed shapes and dtypes.
    """

    init: Callable[[Frame], Any]  # of the first frame, whose energy is not known
    step: Callable[[Any, Frame], tuple[Any, Float[Array, ""]]]  # (state, frame) -> (state, value)


Criterion = FrameCriterion | StatefulCriterion


def stateful(criterion: Criterion) -> StatefulCriterion:
    """Any criterion as a stateful one; the state of a criterion of single frames is empty."""
    if isinstance(criterion, StatefulCriterion):
        return criterion
    return StatefulCriterion(init=lambda _: (), step=lambda state, frame: (state, criterion(frame)))


__all__ = [
    "Array",
    "Bool",
    "Cell",
    "Criterion",
    "EnergyFn",
    "Float",
    "Frame",
    "FrameCriterion",
    "Int",
    "Integer",
    "Key",
    "ObservableFn",
    "Params",
    "Position",
    "Positions",
    "Shaped",
    "Species",
    "StatefulCriterion",
    "stateful",
]
