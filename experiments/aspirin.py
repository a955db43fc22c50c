"""Aspirin with SchNet (paper Section 3.1).

    python -m experiments.aspirin                    # a quarter of an hour on two CPU cores
    python -m experiments.aspirin --config=experiments/configs/aspirin_paper.py --config.data.path=aspirin.npz

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import runtime


def build(config: ConfigDict):
    """A molecule described by the model of the config."""
    from experiments import molecules

    return molecules.build(config)


if __name__ == "__main__":
    runtime.start("aspirin", build)
