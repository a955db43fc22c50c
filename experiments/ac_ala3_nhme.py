"""The peptide Ac-Ala3-NHMe with NequIP (paper Section 3.3).

    python -m experiments.ac_ala3_nhme
    python -m experiments.ac_ala3_nhme --config=experiments/configs/ac_ala3_nhme_paper.py --config.data.path=md22.npz

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
    runtime.start("ac_ala3_nhme", build)
