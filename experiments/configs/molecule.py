"""A molecule in open boundaries at a size for two CPU cores; data and temperature have to be given."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from experiments.configs import aspirin_paper, recipe


def get_config() -> ConfigDict:
    """What differs from the paper's settings is scaled down, and the recipe; the criterion of stability is not."""
    config = aspirin_paper.get_config()
    config.name = "molecule"

    config.data.energy_unit = config_dict.placeholder(str)
    config.md.temperature_K = config_dict.placeholder(float)

    config.data.num_train = 30
    config.data.num_validation = 30

    config.pretrain.num_steps = 1000
    config.pretrain.batch_size = 4
    recipe.apply(config)
    config.stable.num_replicas = 32

    config.evaluate.num_replicas = 16
    config.evaluate.horizon_ps = 40.0
    return config
