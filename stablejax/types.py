"""Array aliases and the shapes of the functions that the library passes around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Array = jax.Array | np.ndarray
"""What NumPy functions take and give: constants of a system may stay on the host."""
Params = Any
"""A pytree of floating-point arrays."""
Key = jax.Array
Position = Float[Array, "atom 3"]
Species = Int[Array, " atom"]


class Frame(NamedTuple):
    """What an observable or a criterion sees of one replica at one time."""

    position: Position  # Å
    velocity: Float[Array, "atom 3"]  # Å per internal unit of time


class AtomEnergyFn(Protocol):
    """Energy of each atom, eV: the primitive of every model. `pairs` is `geometry.Pairs`, or None for all."""

    def __call__(self, params: Params, position: Position, pairs: Any = None) -> Float[Array, " atom"]: ...


class EnergyFn(Protocol):
    """Potential energy of one frame, eV."""

    def __call__(self, params: Params, position: Position) -> Float[Array, ""]: ...


class ObservableFn(Protocol):
    """An observable of one frame: a pytree of arrays."""

    def __call__(self, position: Position) -> Any: ...


class FrameCriterion(Protocol):
    """How far one frame is from the allowed region: unstable where it exceeds 0, in the criterion's own unit."""

    def __call__(self, position: Position) -> Float[Array, ""]: ...


class RunningCriterion(NamedTuple):
    """A criterion that looks at more than one frame: `init() -> memory`, `update(memory, position) -> (memory, value)`.

    It is given the position after every step; unstable where the value exceeds 0.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Position], tuple[Any, Float[Array, ""]]]


Criterion = FrameCriterion | RunningCriterion


def running(criterion: Criterion) -> RunningCriterion:
    """Any criterion as one that may remember; that of a frame has an empty memory."""
    if isinstance(criterion, RunningCriterion):
        return criterion
    return RunningCriterion(init=lambda: (), update=lambda memory, position: (memory, criterion(position)))


__all__ = [
    "Array",
    "AtomEnergyFn",
    "Bool",
    "Criterion",
    "EnergyFn",
    "Float",
    "Frame",
    "FrameCriterion",
    "Int",
    "Key",
    "ObservableFn",
    "Params",
    "Position",
    "RunningCriterion",
    "Shaped",
    "Species",
    "running",
]
