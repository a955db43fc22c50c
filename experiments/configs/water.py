"""Water at a size for two CPU cores: SchNet with the localized estimator, on the data set that ships."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import liquid, water_paper


def get_config() -> ConfigDict:
    """The defaults of a liquid, at the temperature that the data set was made at."""
    config = liquid.get_config()
    config.name = "water"
    config.data.path = str(water_paper.DATA)
    config.data.energy_unit = "eV"
    config.md.temperature_K = 300.0
    return config
