"""Water at a size for two CPU cores: SchNet with the localized estimator, on the data set that ships."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import water_paper
from experiments.configs.models import schnet


def get_config() -> ConfigDict:
    """What differs from the paper's settings is scaled down; the criterion is not."""
    config = water_paper.get_config()
    config.name = "water"
    config.data.num_train = 100
    config.data.num_validation = 20
    config.data.num_test = 50

    with config.unlocked():
        config.model = schnet.get_config()

    config.pretrain.num_steps = 3000
    config.pretrain.batch_size = 2
    config.pretrain.learning_rate = 2e-3
    config.pretrain.average_decay = 0.99
    config.pretrain.schedule = "cosine"

    # For the structure, as the data set was made; one Nosé–Hoover chain samples a whole box slowly.
    config.md.thermostat = "langevin"
    config.md.damping_time_fs = 1000.0
    config.md.replica_batch = 1

    # The mean bond length hardly changes when a hydrogen comes too close to another molecule; the smallest distances
    # between molecules do, below the shortest of the reference.
    config.observable.length_weight = 1000.0
    config.observable.distance_weight = 300.0
    config.observable.distance_stop_A = 1.3

    # Short learning phases: a few epochs remove the failures found, and the next ones have to be searched for.
    config.stable.num_replicas = 12
    config.stable.steps_per_frame = 20
    config.stable.max_unstable = 0.33
    config.stable.min_unstable = 0.1
    config.stable.num_cycles = 5
    config.stable.max_epochs = 6
    config.stable.optimizer = "adam"
    # Adam's first updates are of this size for every parameter, whatever its gradient: larger ones cost structure.
    config.stable.learning_rate = 3e-5
    config.stable.observable_clip_norm = 15.0
    config.stable.qm_weight = 15.0
    config.stable.qm_batch_size = 100
    config.stable.max_simulation_ps = 12.0

    config.evaluate.num_replicas = 16
    config.evaluate.horizon_ps = 16.0
    # Short windows, so that some are complete before the first failures.
    config.evaluate.chunk_ps = 2.0
    config.evaluate.displacement_ps = 1.5
    config.evaluate.green_kubo_ps = 1.5
    config.evaluate.diffusion_from_ps = 0.5
    return config
