r"""A molecule or a liquid of your own: everything follows from its data and from a time.

    python -m experiments.molecule mine.xyz
    python -m experiments.molecule mine.xyz --minutes=60 --config.seed=1

What was chosen, and why, is printed and written to `chosen.py` in the directory of the run, which can be changed and
given again as `--config=FILE`. What the data leave open is asked for: their temperature where they have no velocities,
the unit of their energies where nothing in them tells it.

Every field of the config can be set on the command line, `--config.seed=1` for one.
"""

from experiments import cli

if __name__ == "__main__":
    cli.start("molecule", takes_data=True)
