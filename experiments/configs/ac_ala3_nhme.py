"""Ac-Ala3-NHMe at a size for two CPU cores, on the data set that ships."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs import ac_ala3_nhme_paper, recipe
from experiments.configs.models import nequip

DATA = Path(__file__).resolve().parent.parent / "data" / "ac_ala3_nhme_gfn2.npz"


def get_config() -> ConfigDict:
    """What differs from the paper's settings is scaled down, and the recipe; the criterion of stability is not."""
    config = ac_ala3_nhme_paper.get_config()
    config.name = "ac_ala3_nhme"

    config.data.path = str(DATA)
    config.data.energy_unit = "eV"
    config.data.num_train = 30
    config.data.num_validation = 30

    config.model = nequip.get_config()
    config.pretrain.num_steps = 1000
    config.pretrain.batch_size = 4
    recipe.apply(config)
    config.stable.num_replicas = 16

    config.evaluate.num_replicas = 32
    config.evaluate.horizon_ps = 24.0
    config.evaluate.frame_spacing_fs = 20.0
    return config
