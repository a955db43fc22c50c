"""Aspirin at the size of the reliability benchmark, as a file for `--config`: every stage has several checkpoints."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import aspirin


def get_config() -> ConfigDict:
    """Some seconds of work in every stage, once compiled."""
    config = aspirin.get_config()
    config.host_devices = 1  # more are not faster at this size
    config.data.num_train = config.data.num_validation = config.data.num_test = 16
    config.model.num_features = config.model.num_filters = 16
    config.model.num_blocks = 1
    config.pretrain.num_steps = 1200
    config.pretrain.steps_per_validation = 100
    config.md.table_intervals = 128
    config.observable.width_A, config.observable.smearing_A = 0.1, 0.1
    config.stable.num_replicas = 4
    config.stable.steps_per_epoch, config.stable.steps_per_frame = 1000, 50
    config.stable.num_cycles, config.stable.max_epochs = 2, 6
    config.evaluate.num_replicas = 8
    config.evaluate.horizon_ps, config.evaluate.chunk_ps = 2.0, 0.2
    config.evaluate.vacf_window_fs = 100.0
    return config
