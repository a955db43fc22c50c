"""A liquid of one kind of molecule in a periodic cell, at a size for two CPU cores; data and temperature are given."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from experiments.configs import recipe, water_paper
from experiments.configs.models import schnet


def get_config() -> ConfigDict:
    """What differs from the paper's settings is scaled down, and the recipe; the criterion of stability is not."""
    config = water_paper.get_config()
    config.name = "liquid"

    config.data.path = config_dict.placeholder(str)
    config.data.energy_unit = config_dict.placeholder(str)
    config.md.temperature_K = config_dict.placeholder(float)

    config.data.num_train = 100
    config.data.num_validation = 20
    config.data.num_test = 50

    with config.unlocked():
        config.model = schnet.get_config()
    config.pretrain.num_steps = 3000
    config.pretrain.batch_size = 2
    recipe.apply(config)
    config.md.replica_batch = 1
    config.stable.num_replicas = 12

    config.evaluate.num_replicas = 16
    config.evaluate.horizon_ps = 16.0
    # Short windows, so that some are complete before the first failures.
    config.evaluate.chunk_ps = 2.0
    config.evaluate.displacement_ps = 1.5
    config.evaluate.green_kubo_ps = 1.5
    config.evaluate.diffusion_from_ps = 0.5
    return config
