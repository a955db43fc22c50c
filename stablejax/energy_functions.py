"""Potentials from any JAX function: of a total energy, or of the energies of atoms."""

from __future__ import annotations

from collections.abc import Callable

from stablejax.potential import Potential
from stablejax.space import OPEN, Pairs, Space, all_pairs
from stablejax.types import Array, EnergyFn, Float, Key, Params, Position


def from_energy(
    energy_fn: EnergyFn,
    *,
    num_atoms: int,
    space: Space = OPEN,
    init: Callable[[Key], Params] | None = None,
    offset: float = 0.0,
) -> Potential:
    """A potential from any JAX function of parameters and positions. This is all that the global estimator needs.

    >>> import jax, jax.numpy as jnp
    >>> well = from_energy(lambda k, x: 0.5 * k * jnp.sum(x**2), num_atoms=1)
    >>> print(well.forces(2.0, jnp.array([[1.0, 0.0, 0.5]])))
    [[-2. -0. -1.]]

    Args:
      energy_fn: `(params, position) -> eV`, with the boundaries of `space`.
      num_atoms: of the system.
      space: the boundaries that the function assumes; thermostats count the degrees of freedom by it.
      init: `key -> params`. None: parameters come from elsewhere.
      offset: see `potential.bind`.
    """
    return Potential(
        num_atoms=num_atoms,
        init=init or _no_init,
        prepare=lambda params: params,
        evaluate=lambda params, position, _: energy_fn(params, position),
        has_atom_energies=False,
        takes_pairs=False,
        space=space,
        offset=float(offset),
    )


def from_atom_energies(
    atom_energies_fn: Callable[[Params, Position, Pairs], Float[Array, " atom"]],
    *,
    num_atoms: int,
    cutoff: float,
    space: Space = OPEN,
    init: Callable[[Key], Params] | None = None,
    offset: float = 0.0,
) -> Potential:
    """A potential from any JAX function that gives energies of atoms, as the localized estimator needs.

    Args:
      atom_energies_fn: `(params, position, pairs) -> [atom]`, eV. It computes distances in `space`; pairs beyond the
        cutoff and padding contribute 0.
      num_atoms: of the system.
      cutoff: Å.
      space: in which the function computes distances.
      init: `key -> params`. None: parameters come from elsewhere.
      offset: see `potential.bind`.

    Raises:
      ValueError: the cell is too small for the cutoff.
    """
    space.check_reach("from_atom_energies", cutoff)
    every_pair = all_pairs(num_atoms)

    def evaluate(params, position, pairs):
        return atom_energies_fn(params, position, every_pair if pairs is None else pairs)

    return Potential(
        num_atoms=num_atoms,
        init=init or _no_init,
        prepare=lambda params: params,
        evaluate=evaluate,
        space=space,
        cutoff=float(cutoff),
        offset=float(offset),
    )


def _no_init(_: Key) -> Params:
    raise ValueError(
        "`Potential.init`: expected a potential made with `init`, got one without: pass parameters instead."
    )
