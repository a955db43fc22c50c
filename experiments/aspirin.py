"""Aspirin with SchNet (paper Section 3.1).

    python -m experiments.aspirin                    # 4 to 12 minutes on two CPU cores
    python -m experiments.aspirin --config=experiments/configs/aspirin_paper.py --config.data.path=aspirin.npz

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from experiments import cli

if __name__ == "__main__":
    cli.start("aspirin")
