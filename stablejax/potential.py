"""Binds an architecture to a system: energies, forces, and the form that molecular dynamics runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from stablejax import tabulate
from stablejax.geometry import NeighborLists, Pairs, all_pairs, check_cell, pair_vectors, safe_norm
from stablejax.types import Array, AtomEnergyFn, EnergyFn, Float, Key, Params, Position, Species


class Potential(NamedTuple):
    """A model bound to a system.

    `init(key) -> params` and `atom_energies(params, position, pairs=None) -> [atom]`, eV. `pairs` are those that may be
    within the cutoff, padded or not; None: all.
    """

    init: Callable[[Key], Params]
    atom_energies: AtomEnergyFn

    def energy(self, params: Params, position: Position, pairs: Pairs | None = None) -> Float[Array, ""]:
        """Potential energy, eV: the sum of the atom energies."""
        return jnp.sum(self.atom_energies(params, position, pairs))


class MDForm(NamedTuple):
    """A potential as molecular dynamics runs it: `prepare` once per set of parameters, `energy` at every step.

    `energy(prepared, position, pairs=None)`, eV; over all pairs where none are given. With `lists` it is
    `energy((prepared, neighbor list), position)`; see `listed_form`.
    """

    prepare: Callable[[Params], Any]
    energy: Callable[..., Float[Array, ""]]
    lists: NeighborLists | None = None


def bind(
    model: nn.Module,
    species: Species,
    *,
    cell: Float[np.ndarray, "3 3"] | None = None,
    scale: float | Float[np.ndarray, " atom"] = 1.0,
) -> Potential:
    """A model for one system.

    A shift of the energies has no place here: thousands of eV would not fit into float32, so it comes off the labels.

    Args:
      model: called as `model(species, pairs, vector)`, gives atom energies; has `cutoff` and `elements`.
      species: atomic numbers.
      cell: lattice vectors in rows, Å, with heights of at least twice the cutoff. None: open boundaries.
      scale: eV that 1 of the model stands for, for all atoms or for each.

    Raises:
      ValueError: species are not integers in a row, or not known to the model; the cell is too small.
    """
    species, every_pair, cell = _system(model, species, cell)
    scale = np.asarray(scale)

    def init(key: Key) -> Params:
        return model.init(key, species, every_pair, jnp.ones((len(every_pair.first), 3)))

    def atom_energies(params: Params, position: Position, pairs: Pairs | None = None) -> Float[Array, " atom"]:
        pairs = every_pair if pairs is None else pairs
        energies = _apply(model)(params, species, pairs, pair_vectors(position, pairs, cell))
        return energies * scale.astype(energies.dtype)

    return Potential(init, atom_energies)


def exact_form(potential: Potential) -> MDForm:
    """The potential itself: exact, and slow where radial networks could be tabulated."""
    return MDForm(prepare=lambda params: params, energy=potential.energy)


def tabulated_form(
    model: nn.Module,
    species: Species,
    *,
    num_intervals: int = 1024,
    cell: Float[np.ndarray, "3 3"] | None = None,
    scale: float | Float[np.ndarray, " atom"] = 1.0,
) -> MDForm:
    """Radial filters from tables that are made once per set of parameters.

    The force error falls as `num_intervals`⁻³ down to float32 rounding: for SchNet of the paper's size and aspirin,
    1,024 intervals give forces within 5e-5 eV/Å of the exact ones.

    Args:
      model: has `filters(distance)`, `energies_from_filters(species, pairs, vector, filters)` and `cutoff`.
      species: atomic numbers.
      num_intervals: pieces of each table.
      cell: see `bind`.
      scale: see `bind`.
    """
    species, every_pair, cell = _system(model, species, cell)
    scale = np.asarray(scale)

    def filters(params: Params, distance) -> Any:
        return _apply(model)(params, distance, method="filters")

    def prepare(params: Params):
        of_all = lambda distance: jnp.concatenate(filters(params, distance), axis=1)  # noqa: E731
        return params, tabulate.radial_table(of_all, cutoff=model.cutoff, num_intervals=num_intervals)

    def energy(prepared, position: Position, pairs: Pairs | None = None) -> Float[Array, ""]:
        params, table = prepared
        pairs = every_pair if pairs is None else pairs
        vector = pair_vectors(position, pairs, cell)
        values = tabulate.evaluate(table, safe_norm(vector))
        sizes = [one.shape[1] for one in jax.eval_shape(filters, params, vector[:, 0])]
        split = jnp.split(values, np.cumsum(sizes)[:-1], axis=1)
        energies = _apply(model)(params, species, pairs, vector, split, method="energies_from_filters")
        return jnp.sum(energies * scale.astype(energies.dtype))

    return MDForm(prepare, energy)


def listed_form(form: MDForm, lists: NeighborLists) -> MDForm:
    """Only over the pairs of a neighbor list: worth it where far more pairs are beyond the cutoff than within.

    Where the list has too few places, or an atom has moved further than it covers, energy and forces are not a number;
    `dynamics` makes lists in time, and says where they are overfull.

    >>> import jax, numpy as np
    >>> from stablejax import SchNet, exact_form, neighbor_lists
    >>> model, species, cell = SchNet(num_blocks=1), np.tile([8, 1, 1], 27), 10.0 * np.eye(3)
    >>> lists = neighbor_lists(len(species), cutoff=model.cutoff, skin=0.5, num_pairs=2500, cell=cell)
    >>> potential = bind(model, species, cell=cell)
    >>> form = listed_form(exact_form(potential), lists)
    >>> params, position = potential.init(jax.random.key(0)), 10 * jax.random.uniform(jax.random.key(1), (81, 3))
    >>> bool(abs(form.energy((params, lists.find(position)), position) - potential.energy(params, position)) < 1e-3)
    True

    Args:
      form: any form that takes pairs.
      lists: for the model's cutoff; see `geometry.neighbor_lists`. Give them to the integrator too.
    """

    def energy(prepared_and_list, position: Position) -> Float[Array, ""]:
        prepared, listed = prepared_and_list
        is_whole = lists.covers(listed, position) & ~listed.is_overfull
        # As a factor, so that forces are not a number either.
        return form.energy(prepared, position, listed.pairs) * jnp.where(is_whole, 1.0, jnp.nan)

    return MDForm(form.prepare, energy, lists)


def over_near_pairs(potential: Potential, lists: NeighborLists) -> Potential:
    """The potential over the pairs of a list that is made for each frame, where none are given.

    For learning: frames are far apart, so no list is kept. Energies are not a number where it has too few places.
    """

    def atom_energies(params: Params, position: Position, pairs: Pairs | None = None) -> Float[Array, " atom"]:
        if pairs is not None:
            return potential.atom_energies(params, position, pairs)
        listed = lists.find(lax.stop_gradient(position))
        energies = potential.atom_energies(params, position, listed.pairs)
        return energies * jnp.where(listed.is_overfull, jnp.nan, 1.0).astype(energies.dtype)

    return Potential(potential.init, atom_energies)


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


def _system(model, species, cell) -> tuple[Species, Pairs, Float[np.ndarray, "3 3"] | None]:
    species = np.asarray(species)
    if species.ndim != 1 or not np.issubdtype(species.dtype, np.integer):
        raise ValueError(
            f"`species` must be one-dimensional integers, got shape {species.shape} of {species.dtype}: "
            "pass the atomic number of each atom."
        )
    if unknown := set(species.tolist()) - set(model.elements):
        raise ValueError(
            f"`species` has atomic number {min(unknown)}, which the model does not know: it knows {model.elements}."
        )
    if cell is not None:
        cell = check_cell(cell, cutoff=model.cutoff)
    return species.astype(np.int32), all_pairs(len(species)), cell
