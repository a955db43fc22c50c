"""The recipe that all systems share at a size for two CPU cores; nothing in it is of one of them."""

from __future__ import annotations

from ml_collections import ConfigDict

LEARNING_RATES = {"schnet": 2e-3, "nequip": 1e-2, "gemnet": 1e-3}
"""Of pretraining, by model."""


def apply(config: ConfigDict) -> None:
    """Set what is not of the system: pretraining, dynamics, steps of learning, cycles and the evaluation.

    Args:
      config: of a system, with the fields of its kind and its model.
    """
    pretrain = config.pretrain
    pretrain.learning_rate = LEARNING_RATES[config.model.name]
    pretrain.average_decay = 0.99
    pretrain.schedule = "cosine"

    # For the structure, and as the data sets were made: a Nosé–Hoover chain samples a single system slowly.
    config.md.thermostat = "langevin"
    config.md.damping_time_fs = 1000.0

    _signals(config)
    _learning(config.stable)

    # A ratio of 10 can be seen below a horizon of 12 medians; chunks are the windows that motion is measured in.
    config.evaluate.horizon_ratio = 12.0


def _signals(config: ConfigDict) -> None:
    """What counts as failed in training, and what is learned from it."""
    config.observable.in_fluctuations = True
    config.observable.violation_weight = 1.0

    if config.system == "molecule":
        # What leaves the distances of the reference has failed, though no bond is broken yet: where an angle opens, the
        # potential falls into a hole, and what is learned from after a bond has broken is the bottom of it.
        config.stability.range_margin_A = 0.25
        # Replicas are hotter in training than the reference, whose violation is next to nothing and whose h(r) is not.
        config.observable.weight = 0.0
        config.observable.width_A = 0.04
        config.observable.smearing_A = 0.02
    else:
        config.observable.length_weight = 1.0


def _learning(stable: ConfigDict) -> None:
    """Steps that change little, in short phases with searches from the first frames between them."""
    stable.temperature_ratio = 1.3
    stable.steps_per_frame = 20
    stable.optimizer = "natural"
    stable.max_unstable = 0.4
    stable.min_unstable = 0.1
    stable.num_cycles = 5
    stable.max_epochs = 4
    stable.cycle_factor = 0.9
    stable.max_qm_loss = 1.15
    stable.qm_batch_size = 100
    stable.restarts = True
    stable.returns_best = True
    stable.target_ratio = 20.0
    stable.max_held_out_error = 1.03
    stable.max_simulation_ps = 20.0
