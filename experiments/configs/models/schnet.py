"""SchNet at a size for two CPU cores; the paper's in brackets."""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of `config.model`."""
    model = ConfigDict()
    model.name = "schnet"  # gemnet, nequip or schnet; another one comes with sizes of its own
    model.num_features = 32  # features of an atom [64]
    model.num_filters = 32  # filters of a continuous-filter convolution [64]
    model.num_blocks = 2  # interaction blocks [6]
    model.num_gaussians = 25  # Gaussians of the radial basis [25]
    model.cutoff_A = 4.0  # distance up to which atoms interact, Å [5]
    return model
