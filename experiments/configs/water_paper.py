"""Water with the paper's settings (Tables 1, 2, 4, 5), for an accelerator.

python -m experiments.water --config=experiments/configs/water_paper.py
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs import common
from experiments.configs.models import gemnet

DATA = Path(__file__).resolve().parent.parent / "data" / "water_spcfw.npz"


def get_config() -> ConfigDict:
    """The paper's settings; `experiments/configs/water.py` scales them down."""
    config = common.get_config()
    config.name = "water_paper"
    config.system = "liquid"
    config.data.path = str(DATA)
    config.data.energy_unit = "eV"
    config.data.num_test = 200

    model = config.model = gemnet.get_config()  # its sizes; in brackets the paper's
    model.num_blocks = 4
    model.atom_size = 128
    model.edge_size = 128
    model.triplet_size = 64
    model.bilinear_size = 64
    model.num_spherical = 7
    model.cutoff_A = 5.0

    config.pretrain.batch_size = 1
    config.pretrain.average_decay = 0.999
    config.pretrain.energy_weight = 0.001
    config.pretrain.force_weight = 0.999
    config.pretrain.schedule = "plateau"

    config.md.temperature_K = 300.0
    config.md.timestep_fs = 1.0
    config.md.thermostat = "nose_hoover"
    config.md.damping_time_fs = 16.7
    config.md.skin_A = 0.25  # of neighbor lists, Å beyond the cutoff
    config.md.spare_pairs = 1.15  # capacity of neighbor lists, over the largest number of pairs in a frame of the data

    stability = config.stability
    stability.train_threshold_A = 1.2  # smallest distance between molecules, Å, in training
    stability.learn_threshold_A = 1.0  # smallest distance, Å, down to which frames are learned from
    stability.evaluate_threshold = 3.0  # largest ∫|Δg|dr of any RDF, Å, over a window, at evaluation
    stability.window_ps = 1.0  # τ: length of a window, ps
    stability.look_fs = 20.0  # between two frames of a window, fs
    stability.bond_threshold_A = 0.5  # largest deviation of a bond, Å, in the reference

    observable = config.observable
    observable.stop_A = 6.2  # upper end of the RDFs, Å
    observable.width_A = 0.05  # of the bins of the RDFs, Å
    observable.molecules_per_neighborhood = 1  # in the neighborhoods of the localized estimator
    observable.length_weight = 1.0  # w of (mean O-H length − reference)², per Å²
    observable.distance_weight = 0.0  # w of ∫(p − p_ref)² dr, p(r) of a molecule's smallest distance to another
    observable.distance_stop_A = 3.0  # upper end of p(r), Å
    observable.distance_width_A = 0.1  # of the bins of p(r), Å, and twice the width of its Gaussians
    observable.num_bins = 100  # of the value that the balanced subsample is drawn by; 0: all molecules are learned from
    observable.per_bin = 5  # most molecules that are learned from in each bin

    config.stable.num_replicas = 8
    config.stable.steps_per_epoch = 1000
    config.stable.learning_rate = 3e-3
    config.stable.qm_weight = 0.0
    config.stable.qm_batch_size = 1
    config.stable.num_cycles = 1

    config.evaluate.num_replicas = 10
    config.evaluate.horizon_ps = 200.0
    config.evaluate.chunk_ps = 5.0
    config.evaluate.displacement_ps = 3.0  # largest lag of the mean squared displacement, ps
    config.evaluate.green_kubo_ps = 2.0  # largest lag of the velocity correlation of molecules, ps
    config.evaluate.diffusion_from_ps = 1.0  # lag from which the displacement is linear, ps
    return config
