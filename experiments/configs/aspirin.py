"""Aspirin at a size for two CPU cores and a quarter of an hour, on the data set that ships."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs import molecule

DATA = Path(__file__).resolve().parent.parent / "data" / "aspirin_gfn2.npz"


def get_config() -> ConfigDict:
    """The defaults of a molecule, with the thermostat and the temperature that the data set was made at."""
    config = molecule.get_config()
    config.name = "aspirin"
    config.data.path = str(DATA)
    config.data.energy_unit = "eV"
    config.md.temperature_K = 500.0
    return config
