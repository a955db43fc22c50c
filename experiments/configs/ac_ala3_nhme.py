"""Ac-Ala3-NHMe at a size for two CPU cores, on the data set that ships."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs import ac_ala3_nhme_paper
from experiments.configs.models import nequip

DATA = Path(__file__).resolve().parent.parent / "data" / "ac_ala3_nhme_gfn2.npz"


def get_config() -> ConfigDict:
    """What differs from the paper's settings is scaled down; the criterion is not."""
    config = ac_ala3_nhme_paper.get_config()
    config.name = "ac_ala3_nhme"

    config.data.path = str(DATA)
    config.data.energy_unit = "eV"
    config.data.num_train = 30
    config.data.num_validation = 30

    config.model = nequip.get_config()

    config.pretrain.num_steps = 1000
    config.pretrain.batch_size = 4
    config.pretrain.learning_rate = 1e-2
    config.pretrain.schedule = "cosine"

    # As the data set was made, so that dynamics can be compared.
    config.md.thermostat = "langevin"
    config.md.damping_time_fs = 1000.0

    # A single h(r) hides pairs of one kind behind those of another: a hydrogen that moves from its carbon to the
    # neighboring nitrogen looks like one that is bonded there.
    config.observable.by_element = True
    config.observable.by_separation = True
    config.observable.width_A = 0.04
    config.observable.smearing_A = 0.02
    config.observable.weight = 60.0
    config.observable.bond_weight = 3.0

    config.stable.num_replicas = 16
    config.stable.max_unstable = 0.5
    config.stable.max_epochs = 10
    config.stable.optimizer = "adam"
    config.stable.learning_rate = 1e-3
    config.stable.observable_clip_norm = 15.0
    config.stable.max_updates = 4
    config.stable.min_effective_fraction = 0.3
    config.stable.max_simulation_ps = 20.0

    config.evaluate.num_replicas = 32
    config.evaluate.horizon_ps = 8.0
    config.evaluate.frame_spacing_fs = 20.0
    return config
