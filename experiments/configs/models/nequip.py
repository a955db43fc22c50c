"""NequIP at a size for two CPU cores; the paper's in brackets."""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of `config.model`."""
    model = ConfigDict()
    model.name = "nequip"  # gemnet, nequip or schnet; another one comes with sizes of its own
    model.num_features = 16  # features of each irreducible representation [32]
    model.num_layers = 2  # convolutions [3]
    model.max_degree = 1  # l_max of features and harmonics [1]
    model.num_basis = 8  # Bessel functions of the distance [8]
    model.radial_width = 32  # width of the two hidden layers of radial networks [64]
    model.cutoff_A = 4.0  # distance up to which atoms interact, Å [5]
    return model
