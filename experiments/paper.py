"""A system of the paper with its settings, for an accelerator; data that do not ship have to be given.

    python -m experiments.paper --system=aspirin --config.data.path=md17_aspirin.npz
    python -m experiments.paper --system=ac_ala3_nhme --config.data.path=md22.npz
    python -m experiments.paper --system=water

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from experiments import cli

if __name__ == "__main__":
    cli.start("{system}_paper", systems=("aspirin", "ac_ala3_nhme", "water"))
