"""The peptide Ac-Ala3-NHMe with NequIP (paper Section 3.3).

    python -m experiments.ac_ala3_nhme
    python -m experiments.ac_ala3_nhme --config=experiments/configs/ac_ala3_nhme_paper.py --config.data.path=md22.npz

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from experiments import cli

if __name__ == "__main__":
    cli.start("ac_ala3_nhme")
