"""What a data set says of its own temperature and of the unit of its energies."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from ase.data import atomic_masses

from experiments.data.checks import ENERGY_UNITS, stiff_pairs
from experiments.data.dataset import Dataset
from stablejax import units

FRAMES = 2000
"""That a temperature is estimated from, evenly spaced."""
NEAR_TOTAL = 0.1
"""Relative deviation of total energies from those of free atoms, which bind by less."""
NEAR_TEMPERATURE = 2.0
"""Factor within which forces have to give the temperature; units are at least four times apart."""
AT_REST = 0.1
"""Kinetic energy of the center of mass below which it rests, over that at the temperature."""
BY_ASE = (".xyz", ".extxyz", ".traj", ".db")
"""Formats whose energies are in eV where nothing says otherwise."""


class Found(NamedTuple):
    """A value and what it follows from, in words."""

    value: str | float
    why: str


def temperature_of(dataset: Dataset) -> Found | None:
    """The temperature, K: what the file states, or 2 ⟨E_kin⟩ / (f k_B) by its velocities.

    f is 3N, less 3 where the center of mass rests.

    Args:
      dataset: in internal units.
    """
    if dataset.temperature_K is not None:
        return Found(dataset.temperature_K, "as the file states")
    if dataset.velocity is None:
        return None
    mass = np.asarray(atomic_masses[dataset.species] if dataset.mass is None else dataset.mass, float)
    velocity = dataset.velocity.astype(float)
    kinetic = 0.5 * np.mean(np.sum(mass[:, None] * velocity**2, axis=(1, 2)))
    of_center = 0.5 * np.mean(np.sum(np.einsum("a,fax->fx", mass, velocity) ** 2, axis=1)) / mass.sum()
    # At the temperature, the center has 3 of the 3N degrees of freedom.
    is_at_rest = of_center < AT_REST * kinetic / len(mass)
    dof = 3 * len(mass) - 3 * is_at_rest
    return Found(float(f"{2 * kinetic / (dof * units.BOLTZMANN_EV_PER_K):.3g}"), "by its velocities")


def temperature_by_forces(dataset: Dataset) -> float:
    """The temperature at which forces and positions belong together, K; NaN where there is no bond.

    ⟨F·v⟩ = −k_B T ⟨∇·v⟩ for any field v at equilibrium. Here v moves one end of a bond along it by r − ⟨r⟩, of all
    bonds: the same for a molecule and a liquid, whatever else moves.

    Args:
      dataset: energies and forces in any unit, positions in Å.
    """
    chosen = slice(None, None, max(1, len(dataset.position) // FRAMES))
    position, force = dataset.position[chosen].astype(float), dataset.force[chosen].astype(float)
    length, along = stiff_pairs(position, force, dataset.space)
    if not length.size:
        return math.nan
    stretch = length - length.mean(axis=0)
    divergence = 2 + 4 * stretch / length  # of both ends
    return float(-np.mean(along * stretch) / divergence.mean() / units.BOLTZMANN_EV_PER_K)


def unit_of(path: str, dataset: Dataset, temperature_K: float | None) -> Found:
    """The unit of the energies, if the data leave no doubt.

    Total energies are near those of free atoms in one unit only, where all electrons are in them; forces agree with
    the temperature in one only; and files of ASE are in eV.

    Args:
      path: of the data set.
      dataset: energies and forces in the unit of the file, positions in Å.
      temperature_K: of the data; None: not known.

    Raises:
      ValueError: they leave doubt.
    """
    by_forces = temperature_by_forces(dataset)
    found = [_by_total(dataset), None if temperature_K is None else _by_temperature(by_forces, temperature_K)]
    named = {str(one.value) for one in found if one is not None}
    if len(named) == 1:
        return next(one for one in found if one is not None)
    if not named and path.removesuffix(".gz").endswith(BY_ASE) and not by_forces > 5000:
        return Found("eV", "as ASE writes it")
    doubt = "nothing in the file tells" if not named else f"its energies and forces tell {' and '.join(sorted(named))}"
    suggested = ", ".join(f"{unit} if it is at {by_forces * factor:.0f} K" for unit, factor in ENERGY_UNITS.items())
    raise ValueError(
        f"{path}: expected the unit of its energies, which {doubt}: set --config.data.energy_unit; by the forces it "
        f"is {suggested}."
    )


def _by_total(dataset: Dataset) -> Found | None:
    """By the energy of free atoms, all electrons: Thomas–Fermi with the corrections of Scott and Schwinger."""
    number = dataset.species.astype(float)
    atoms = -np.sum(0.768745 * number ** (7 / 3) - 0.5 * number**2 + 0.2699 * number ** (5 / 3)) * units.HARTREE
    mean = float(dataset.energy.mean())
    for unit, factor in ENERGY_UNITS.items():
        if abs(mean * factor / atoms - 1) < NEAR_TOTAL:
            return Found(unit, f"its energies are those of all electrons, {mean:.6g} {unit}")
    return None


def _by_temperature(by_forces: float, temperature_K: float) -> Found | None:
    for unit, factor in ENERGY_UNITS.items():
        if 1 / NEAR_TEMPERATURE < by_forces * factor / temperature_K < NEAR_TEMPERATURE:
            return Found(unit, f"its forces belong to {by_forces * factor:.0f} K in this unit")
    return None
