"""Binds an architecture to a system: energies, forces, and the form that molecular dynamics runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stablejax import tabulate
from stablejax.geometry import Pairs, all_pairs, pair_distances, pair_vectors
from stablejax.types import Array, AtomEnergyFn, EnergyFn, Float, Key, Params, Position, Species


class Potential(NamedTuple):
    """A model bound to a system: `init(key) -> params` and `atom_energies(params, position)`."""

    init: Callable[[Key], Params]
    atom_energies: AtomEnergyFn

    def energy(self, params: Params, position: Position) -> Float[Array, ""]:
        """Potential energy, eV: the sum of the atom energies."""
        return jnp.sum(self.atom_energies(params, position))


class MDForm(NamedTuple):
    """A potential as molecular dynamics runs it: `prepare` once per set of parameters, `energy` at every step."""

    prepare: Callable[[Params], Any]
    energy: Callable[[Any, Position], Float[Array, ""]]


def bind(model: nn.Module, species: Species) -> Potential:
    """A model for one molecule in open boundaries, over all its pairs.

    Args:
      model: called as `model(species, pairs, vector)`, gives atom energies in eV.
      species: atomic numbers.
    """
    species, pairs = _species_and_pairs(species)

    def init(key: Key) -> Params:
        return model.init(key, species, pairs, jnp.ones((len(pairs.first), 3)))

    def atom_energies(params: Params, position: Position) -> Float[Array, " atom"]:
        return _apply(model)(params, species, pairs, pair_vectors(position, pairs))

    return Potential(init, atom_energies)


def exact_form(potential: Potential) -> MDForm:
    """The potential itself: exact, and slow where radial networks could be tabulated."""
    return MDForm(prepare=lambda params: params, energy=potential.energy)


def tabulated_form(model: nn.Module, species: Species, *, num_intervals: int = 1024) -> MDForm:
    """Radial filters from tables that are made once per set of parameters.

    The force error falls as `num_intervals`⁻³ down to float32 rounding: for SchNet of the paper's size and aspirin,
    1,024 intervals give forces within 5e-5 eV/Å of the exact ones.

    Args:
      model: has `filters(distance)`, `energies_from_filters(species, pairs, filters)` and `cutoff`.
      species: atomic numbers.
      num_intervals: pieces of each table.
    """
    species, pairs = _species_and_pairs(species)

    def prepare(params: Params):
        def table(block: int) -> tabulate.RadialTable:
            return tabulate.radial_table(
                lambda distance: _apply(model)(params, distance, method="filters")[block],
                cutoff=model.cutoff,
                num_intervals=num_intervals,
            )

        return params, [table(block) for block in range(model.num_blocks)]

    def energy(prepared, position: Position) -> Float[Array, ""]:
        params, tables = prepared
        distance = pair_distances(position, pairs)
        filters = [tabulate.evaluate(table, distance) for table in tables]
        return jnp.sum(_apply(model)(params, species, pairs, filters, method="energies_from_filters"))

    return MDForm(prepare, energy)


def energy_and_forces(
    energy_fn: EnergyFn,
) -> Callable[[Params, Position], tuple[Float[Array, ""], Float[Array, "atom 3"]]]:
    """`(params, position) -> (energy, forces)`, eV and eV/Å, forces = −∂U/∂position."""

    def energy_and_forces_fn(params, position):
        energy, gradient = jax.value_and_grad(energy_fn, argnums=1)(params, position)
        return energy, -gradient

    return energy_and_forces_fn


def _apply(model: nn.Module) -> Callable[..., Array]:
    # Without mutable collections `apply` gives what the method gives.
    return cast(Callable[..., Array], model.apply)


def _species_and_pairs(species) -> tuple[Species, Pairs]:
    species = np.asarray(species)
    if species.ndim != 1 or not np.issubdtype(species.dtype, np.integer):
        raise ValueError(
            f"`species` must be one-dimensional integers, got shape {species.shape} of {species.dtype}: "
            "pass the atomic number of each atom."
        )
    return jnp.asarray(species, jnp.int32), all_pairs(len(species))
