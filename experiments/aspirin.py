"""Aspirin with SchNet (paper Section 3.1).

    python -m experiments.aspirin                    # a quarter of an hour on two CPU cores
    python -m experiments.aspirin --config=experiments/configs/aspirin_paper.py --config.data.path=aspirin.npz

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from __future__ import annotations

from pathlib import Path

from absl import app
from ml_collections import ConfigDict, config_flags

from experiments import runtime

_CONFIG = config_flags.DEFINE_config_file("config", str(Path(__file__).parent / "configs" / "aspirin.py"))


def build(config: ConfigDict):
    """A molecule described by SchNet."""
    from experiments import systems
    from stablejax.models import basis
    from stablejax.models.schnet import SchNet

    model = config.model
    return systems.molecule(
        config,
        SchNet(
            num_features=model.num_features,
            num_filters=model.num_filters,
            num_blocks=model.num_blocks,
            gaussian_centre=basis.equal_centres(model.num_gaussians, cutoff=model.cutoff_A),
            cutoff=model.cutoff_A,
        ),
    )


if __name__ == "__main__":
    app.run(lambda _: runtime.main(_CONFIG.value, build))
