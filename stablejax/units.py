"""One internal unit system: eV, Å, amu, with temperature as k_B T in eV. Conversions happen at input and output only.

The unit of time that follows is Å·√(amu/eV) ≈ 10.18 fs. Constants are CODATA 2018.
"""

from __future__ import annotations

BOLTZMANN_EV_PER_K = 8.617333262e-5
"""k_B in eV/K."""
FEMTOSECOND = 0.09822694743391452
"""One femtosecond in the internal unit of time."""
PICOSECOND = 1000 * FEMTOSECOND
"""One picosecond in the internal unit of time."""
KCAL_PER_MOL = 0.04336410390059322
"""One kcal/mol (thermochemical) in eV."""
SQUARE_ANGSTROM_PER_PICOSECOND = 10.0
"""One Å²/ps, a diffusivity, in 1e-9 m²/s."""
SQUARE_ANGSTROM_PER_TIME = SQUARE_ANGSTROM_PER_PICOSECOND * PICOSECOND
"""One Å² per internal unit of time in 1e-9 m²/s."""
HARTREE = 27.211386245988
"""One hartree in eV."""
BOHR = 0.529177210903
"""One bohr in Å."""
ENERGY_UNITS = {"eV": 1.0, "kcal/mol": KCAL_PER_MOL, "hartree": HARTREE, "kJ/mol": KCAL_PER_MOL / 4.184, "meV": 1e-3}
"""Units of energy in eV, by name."""


def thermal_energy(temperature_K: float) -> float:
    """k_B T in eV.

    Args:
      temperature_K: temperature, K.

    Raises:
      ValueError: the temperature is not positive.
    """
    if not temperature_K > 0:
        raise ValueError(f"`thermal_energy`: `temperature_K` must be positive, got {temperature_K}: pass kelvin.")
    return BOLTZMANN_EV_PER_K * temperature_K
