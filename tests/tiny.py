"""Aspirin at the smallest size, as a file for `--config`."""

from __future__ import annotations

from experiments.configs import aspirin


def get_config():
    """A second of work, once compiled."""
    config = aspirin.get_config()
    config.data.num_train = config.data.num_validation = 4
    config.data.num_test = 8
    config.model.num_features = config.model.num_filters = 8
    config.model.num_blocks = 1
    config.pretrain.num_steps = 20
    config.pretrain.steps_per_validation = 10
    config.md.table_intervals = 128
    config.observable.width_A, config.observable.smearing_A = 0.1, 0.1
    config.stable.num_replicas = 4
    config.stable.steps_per_epoch, config.stable.steps_per_frame = 20, 10
    config.stable.num_cycles, config.stable.max_epochs = 2, 2
    plain(config)
    config.evaluate.num_replicas = 4
    config.evaluate.horizon_ps, config.evaluate.chunk_ps = 0.04, 0.02
    config.evaluate.vacf_window_fs = 10.0
    return config


def plain(config):
    """Learning without the recipe, which takes longer to compile and has a test of its own."""
    config.stable.optimizer, config.stable.learning_rate = "adam", 1e-4
    config.stable.max_unstable, config.stable.target_ratio = 0.5, 0.0
    config.stable.restarts = config.stable.returns_best = False
    config.stable.max_held_out_error = config.evaluate.horizon_ratio = 0.0
