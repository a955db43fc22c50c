"""Liquid water, 64 molecules in a periodic cell, with the localized estimator (paper Section 3.4).

    python -m experiments.water
    python -m experiments.water --config=experiments/configs/water_paper.py --config.data.path=water.npz

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from experiments import cli

if __name__ == "__main__":
    cli.start("water")
