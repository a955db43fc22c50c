"""SchNet at a size for two CPU cores; the paper's in brackets."""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of `config.model`."""
    model = ConfigDict()
    model.name = "schnet"
    model.num_features = 32  # of an atom [64]
    model.num_filters = 32  # of a continuous-filter convolution [64]
    model.num_blocks = 2  # interactions [6]
    model.num_gaussians = 25  # radial basis [25]
    model.cutoff_A = 4.0  # [5]
    return model
