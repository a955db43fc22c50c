"""Water with a small GemNet-T for one short cycle on two CPU cores: that all of it runs, not that it is cured.

python -m experiments.water --config=experiments/configs/water_gemnet.py
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import water, water_paper


def get_config() -> ConfigDict:
    """The paper's architecture in a few features; shorter than `experiments/configs/water.py` in everything."""
    config = water.get_config()
    config.name = "water_gemnet"

    with config.unlocked():
        model = config.model = water_paper.get_config().model
    model.num_blocks = 1
    model.atom_size = 16
    model.edge_size = 16
    model.triplet_size = 8
    model.bilinear_size = 8
    model.num_spherical = 4
    model.cutoff_A = 3.5

    config.pretrain.num_steps = 300
    config.observable.distance_weight = 1000.0
    config.stable.num_replicas = 4
    config.stable.steps_per_epoch = 250
    config.stable.steps_per_frame = 50
    config.stable.num_cycles = 1
    config.stable.max_epochs = 4
    config.stable.learning_rate = 1e-4
    config.stable.qm_weight = 10.0
    config.stable.qm_batch_size = 16
    config.evaluate.num_replicas = 4
    config.evaluate.horizon_ps = 2.0
    return config
