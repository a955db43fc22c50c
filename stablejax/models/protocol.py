"""What the library requires of a model, and what a model may use of the data that it is built for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from stablejax.space import Pairs, Space, all_pairs
from stablejax.types import Array, Float, Int, Key, Params, Positions, Shaped, Species


@runtime_checkable
class Model(Protocol):
    """A Flax module that gives one energy per atom, eV, and states its cutoff and its elements."""

    @property
    def cutoff(self) -> float:
        """Å: pairs beyond it, and padding, contribute 0."""
        ...

    @property
    def elements(self) -> Collection[int]:
        """Atomic numbers that can occur."""
        ...

    def __call__(self, species: Species, pairs: Pairs, vector: Float[Array, "pair 3"], /) -> Float[Array, " atom"]:
        """Energy of each atom, eV, from the vectors of the pairs, Å."""
        ...

    def init(self, key: Key, *arguments: Any) -> Params:
        """Flax's own: parameters, from the arguments of a call."""
        ...

    def apply(self, params: Params, *arguments: Any, **options: Any) -> Any:
        """Flax's own: a method with these parameters, `__call__` unless `method` names another."""
        ...


@runtime_checkable
class RadialFilters(Model, Protocol):
    """A model in which distances enter through radial filters only, which a table may replace."""

    def filters(self, distance: Float[Array, " pair"], /) -> list[Float[Array, "pair _"]]:
        """Filters of each layer: 0 from the cutoff on."""
        ...

    def energies_from_filters(
        self,
        species: Species,
        pairs: Pairs,
        vector: Float[Array, "pair 3"],
        filters: list[Float[Array, "pair _"]],
        /,
    ) -> Float[Array, " atom"]:
        """Energy of each atom, eV, from vectors and the filters of each pair."""
        ...


class ModelData(NamedTuple):
    """What a model may use of the data that it is built for."""

    species: Species  # atomic numbers
    position: Positions  # frames, Å
    space: Space
    key: Key  # of the parameters that scale factors are fitted with

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur."""
        return tuple(np.unique(self.species).tolist())

    def mean_neighbors(self, cutoff: float) -> float:
        """Mean number of atoms within the cutoff, Å, of an atom."""
        pairs, space = all_pairs(len(self.species)), self.space
        count = jax.jit(lambda x: jnp.sum(space.distances(x, pairs) < cutoff))
        return 2 * float(np.mean([count(x) for x in self.position])) / len(self.species)


def check_model(model: object) -> Model:
    """The model, if it is one.

    Raises:
      ValueError: it lacks a member, which the message names.
    """
    if isinstance(model, Model):
        return model
    wanted = ["__call__", *(name for name in vars(Model) if not name.startswith("_"))]
    missing = [name for name in wanted if not hasattr(model, name)]
    raise ValueError(
        f"`bind`: expected a model with {_quoted(wanted)}, got {type(model).__name__} without {_quoted(missing)}: see "
        "`models.protocol.Model`."
    )


def check_species(model: Model, species: Shaped[Array, "..."] | Sequence[int]) -> Int[Array, " atom"]:
    """The atomic numbers, if the model supports them. Traced ones are not compared with its elements.

    Args:
      model: with its elements.
      species: atomic numbers.

    Raises:
      ValueError: they are not one-dimensional integers, or not supported by the model.
    """
    is_traced = isinstance(species, jax.core.Tracer)
    numbers: Any = species if is_traced else np.asarray(species)
    if numbers.ndim != 1 or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(
            f"`species` must be one-dimensional integers, got shape {numbers.shape} of {numbers.dtype}: "
            "pass the atomic number of each atom."
        )
    if not is_traced and (unknown := set(numbers.tolist()) - set(model.elements)):
        raise ValueError(
            f"`species` has atomic number {min(unknown)}, which the model does not support: it supports "
            f"{model.elements}."
        )
    return numbers.astype(np.int32)


def _quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
