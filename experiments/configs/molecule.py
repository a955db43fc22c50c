"""A molecule in open boundaries at a size for two CPU cores; data and temperature have to be given."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from experiments.configs import aspirin_paper


def get_config() -> ConfigDict:
    """What differs from the paper's settings is scaled down; the criterion is not."""
    config = aspirin_paper.get_config()
    config.name = "molecule"

    config.data.energy_unit = config_dict.placeholder(str)
    config.md.temperature_K = config_dict.placeholder(float)

    config.data.num_train = 30
    config.data.num_validation = 30

    config.pretrain.num_steps = 1000
    config.pretrain.batch_size = 4
    config.pretrain.learning_rate = 2e-3
    config.pretrain.schedule = "cosine"

    # For the structure: a Nosé–Hoover chain samples a single molecule slowly.
    config.md.thermostat = "langevin"
    config.md.damping_time_fs = 1000.0

    # A single h(r) hides pairs of one kind behind those of another.
    config.observable.by_element = True
    config.observable.width_A = 0.04
    config.observable.smearing_A = 0.02
    config.observable.weight = 30.0
    config.observable.bond_weight = 3.0

    config.stable.num_replicas = 32
    config.stable.max_unstable = 0.5
    config.stable.num_cycles = 1
    config.stable.max_epochs = 14
    config.stable.optimizer = "adam"
    config.stable.learning_rate = 1e-4
    config.stable.observable_clip_norm = 15.0
    config.stable.max_simulation_ps = 20.0

    config.evaluate.num_replicas = 32
    config.evaluate.horizon_ps = 15.0
    return config
