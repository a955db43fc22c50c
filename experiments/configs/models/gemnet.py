"""GemNet-T at a size for two CPU cores; the paper's in brackets."""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of `config.model`."""
    model = ConfigDict()
    model.name = "gemnet"  # gemnet, nequip or schnet; another one comes with sizes of its own
    model.num_blocks = 1  # interaction blocks [4]
    model.atom_size = 16  # features of an atom [128]
    model.edge_size = 16  # features of a directed edge [128]
    model.triplet_size = 8  # features of messages between edges [64]
    model.bilinear_size = 8  # width of the bilinear layer [64]
    model.num_spherical = 4  # Legendre polynomials of the angle [7]
    model.num_radial = 6  # Gaussians of the distance [6]
    model.cutoff_A = 3.5  # distance up to which atoms interact, Å [5]
    return model
