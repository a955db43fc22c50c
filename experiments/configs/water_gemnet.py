"""Water with a small GemNet-T for one short cycle on two CPU cores: shows that it runs, not that it becomes stable.

python -m experiments.water --config=experiments/configs/water_gemnet.py
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import water
from experiments.configs.models import gemnet


def get_config() -> ConfigDict:
    """The paper's architecture with few features; everything is shorter than in `experiments/configs/water.py`."""
    config = water.get_config()
    config.name = "water_gemnet"

    with config.unlocked():
        config.model = gemnet.get_config()

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
