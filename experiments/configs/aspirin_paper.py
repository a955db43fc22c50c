"""Aspirin with the paper's settings (Tables 1, 2, 4, 5), for real MD17 data on an accelerator.

python -m experiments.aspirin --config=experiments/configs/aspirin_paper.py --config.data.path=md17_aspirin.npz
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.configs.models import schnet


def get_config() -> ConfigDict:
    """The paper's settings; `experiments/configs/aspirin.py` scales them down."""
    config = common.get_config()
    config.name = "aspirin_paper"
    config.data.energy_unit = "kcal/mol"

    model = config.model = schnet.get_config()  # its sizes; in brackets the paper's
    model.num_features = 64
    model.num_filters = 64
    model.num_blocks = 6
    model.cutoff_A = 5.0

    config.pretrain.schedule = "plateau"

    config.md.temperature_K = 500.0
    config.md.timestep_fs = 0.5
    config.md.thermostat = "nose_hoover"
    config.md.damping_time_fs = 16.7  # the period of the paper's effective mass, 2000 cm⁻¹

    stability = config.stability
    stability.train_threshold_A = 0.25  # largest deviation of a bond from its mean length, Å, in training
    stability.evaluate_threshold_A = 0.5  # largest deviation of a bond from its mean length, Å, at evaluation
    stability.learn_threshold_A = 0.5  # deviation, Å, up to which frames are learned from; then the replica is stopped

    observable = config.observable
    observable.stop_A = 10.0  # upper end of h(r), Å
    observable.width_A = 0.02  # of the bins of h(r), Å
    observable.smearing_A = 0.01  # width of the Gaussians of h(r), Å
    observable.by_element = False  # whether every pair of elements has an h(r), instead of one for all pairs
    observable.by_separation = False  # whether bonded atoms, ends of an angle and others have an h(r) each
    observable.bond_weight = 0.0  # of the squared relative error of the variance of bond lengths, mean of the bonds
    observable.weight = 100.0  # w of L_obs = w ∫ (h − h_ref)² dr, averaged over the h(r)
    return config
