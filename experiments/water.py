"""Liquid water, 64 molecules in a periodic cell, with the localized estimator (paper Section 3.4).

    python -m experiments.water
    python -m experiments.water --config=experiments/configs/water_paper.py --config.data.path=water.npz

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import runtime


def build(config: ConfigDict):
    """A liquid described by the model of the config."""
    from experiments import liquids

    return liquids.build(config)


if __name__ == "__main__":
    runtime.start("water", build)
