r"""A molecule of your own: its data, their energy unit and the temperature have no default.

    python -m experiments.molecule --config.data.path=mine.xyz --config.data.energy_unit=eV \
        --config.md.temperature_K=300

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from experiments import cli

if __name__ == "__main__":
    cli.start("molecule")
