"""Ac-Ala3-NHMe with the paper's settings (Tables 1, 2, 4, 5), for real MD22 data on an accelerator.

python -m experiments.ac_ala3_nhme --config=experiments/configs/ac_ala3_nhme_paper.py --config.data.path=md22.npz
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs import aspirin_paper
from experiments.configs.models import nequip


def get_config() -> ConfigDict:
    """The paper's settings; `experiments/configs/ac_ala3_nhme.py` scales them down."""
    config = aspirin_paper.get_config()
    config.name = "ac_ala3_nhme_paper"
    config.data.num_train = 14_890

    with config.unlocked():
        model = config.model = nequip.get_config()
    model.num_features = 32
    model.num_layers = 3
    model.radial_width = 64
    model.cutoff_A = 5.0

    config.observable.stop_A = 15.0

    config.stable.num_cycles = 1
    config.evaluate.num_replicas = 48
    return config
