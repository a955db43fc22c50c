"""A potential as a calculator of ASE, for atoms in any order and number, in open or periodic boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from stablejax.potential import Bound, Potential
from stablejax.space import Pairs
from stablejax.types import Array, Float, Int, Params, Shaped

ROOM = 1.2
"""Capacity for pairs over their number when it is outgrown: each new capacity is compiled for."""


class PotentialCalculator(Calculator):
    """Energy, energies of atoms and forces of a potential, and stress where all three directions are periodic.

    The model is applied to the atoms it is given, whatever their number, order and cell: pairs within the cutoff are
    found by ASE, several images of an atom included. Energies are total ones: those of the model plus the potential's
    offset, which is that of its own composition. It is shared evenly among the energies of atoms.

    >>> import jax
    >>> from ase.build import molecule
    >>> from stablejax import SchNet, bind
    >>> potential = bind(SchNet(num_blocks=1), [8, 1, 1], offset=-2075.3)
    >>> water = molecule("H2O")
    >>> water.calc = PotentialCalculator(potential, potential.init(jax.random.key(0)))
    >>> print(water.get_forces().shape, bool(abs(water.get_potential_energy() + 2075.3) < 10))
    (3, 3) True
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(self, potential: Potential, params: Params, *, offset: float | None = None):
        """A calculator.

        Args:
          potential: made by `bind`.
          params: θ.
          offset: eV, added to the energy of the model. None: that of the potential, for its own composition and
            multiples of it; others are refused where it is not 0.

        Raises:
          ValueError: the potential was made from an energy function; its scale differs among atoms.
        """
        super().__init__()
        self.bound, self.cutoff = _of_any_atoms(potential), float(potential.cutoff or 0.0)
        self.potential, self.offset, self.params = potential, offset, jax.tree.map(jnp.asarray, params)
        self.capacity = 0  # for pairs
        self._evaluate = jax.jit(jax.value_and_grad(self._energy, argnums=(0, 1), has_aux=True))

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """ASE's own: fill `results`.

        Args:
          atoms: any, of elements that the model knows.
          properties: all are computed, the stress where it is defined.
          system_changes: not used.

        Raises:
          ValueError: an element or a composition that the model or the offset is not of; a result is not finite.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        atoms = self.atoms
        species = self._species(atoms)
        pairs, vector = self._pairs(atoms)
        zeros = np.zeros((len(atoms), 3)), np.zeros((3, 3))
        (_, energies), (gradient, by_strain) = self._evaluate(
            *(jnp.asarray(array, vector.dtype) for array in zeros), self.params, species, pairs, vector
        )
        energies = np.asarray(energies, float)
        offset = _offset(self.potential, atoms.numbers) if self.offset is None else self.offset
        self.results = {
            "energy": energies.sum() + offset,
            "free_energy": energies.sum() + offset,
            "energies": energies + offset / len(atoms),
            "forces": -np.asarray(gradient, float),
        }
        if not all(np.isfinite(value).all() for value in self.results.values()):
            self.results = {}
            raise ValueError(
                "`PotentialCalculator`: expected finite energy and forces, got others: atoms are closer than anything "
                "the potential knows; look at the frame before, or at its parameters."
            )
        if atoms.pbc.all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(by_strain, float) / atoms.get_volume())

    def _energy(self, moved, strain, params, species, pairs: Pairs, vector):
        """Sum of the energies of atoms that are moved and strained, with these energies."""
        deformed = vector + moved[pairs.second] - moved[pairs.first]
        deformed = deformed + jnp.matmul(deformed, (strain + strain.T) / 2, precision=jax.lax.Precision.HIGHEST)
        energies = self.bound.model.apply(params, species, pairs, deformed)
        energies = energies * jnp.asarray(self.bound.scale, energies.dtype)
        return jnp.sum(energies), energies

    def _species(self, atoms: Atoms) -> Int[np.ndarray, " atom"]:
        if unknown := set(atoms.numbers.tolist()) - set(self.bound.model.elements):
            raise ValueError(
                f"`PotentialCalculator`: expected atoms of the elements {sorted(self.bound.model.elements)}, got "
                f"atomic number {min(unknown)}, which the model does not know."
            )
        return atoms.numbers.astype(np.int32)

    def _pairs(self, atoms: Atoms) -> tuple[Pairs, Float[Array, "pair 3"]]:
        """Each pair of atom and image within the cutoff once, padded; vectors are differences in double precision."""
        first, second, shift, vector = neighbor_list("ijSD", atoms, self.cutoff)
        # Of (i, j, S) and (j, i, −S) the one is kept whose first number that differs is positive.
        order = np.concatenate([(second - first)[:, None], shift], axis=1)
        leading = np.take_along_axis(order, np.argmax(order != 0, axis=1)[:, None], axis=1)[:, 0]
        kept = leading > 0
        first, second, vector = first[kept], second[kept], vector[kept]
        if len(first) > self.capacity:
            self.capacity = int(np.ceil(ROOM * len(first)))
        missing = (0, max(self.capacity, 1) - len(first))
        padded = (np.pad(index, missing, constant_values=len(atoms)).astype(np.int32) for index in (first, second))
        return Pairs(*padded), jnp.asarray(np.pad(vector, (missing, (0, 0))), jnp.result_type(float))


def _offset(potential: Potential, species: Shaped[np.ndarray, " atom"]) -> float:
    """Of a composition, eV."""
    if not potential.offset or potential.bound is None:
        return 0.0
    own, given = (np.bincount(numbers, minlength=119) for numbers in (potential.bound.species, species))
    copies = len(species) / len(potential.bound.species)
    if not np.array_equal(copies * own, given):
        raise ValueError(
            "`PotentialCalculator`: expected atoms of the potential's own composition or a multiple of it, whose "
            "energy offset is known, got another: pass `offset`, eV, such as 0.0 for energies relative to any."
        )
    return float(copies * potential.offset)


def _of_any_atoms(potential: Potential) -> Bound:
    if potential.bound is None or potential.bound.scale.ndim:
        found = "an energy function" if potential.bound is None else "a model with a scale for each atom"
        raise ValueError(
            f"`PotentialCalculator`: expected a potential made by `bind` with one scale, got one of {found}, which "
            "cannot be applied to other atoms."
        )
    return potential.bound
