"""Is a potential that was made stable at one temperature stable at others? (paper Section 3.2)

    python -m experiments.transfer --run=runs/aspirin_seed0 --temperatures=350,700

Evaluates both sets of parameters of a finished run at each temperature, and writes transfer.json beside them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from experiments import cli, disk
from experiments.configs import check, common

NEEDED = ("config.json", "pretrained.npz", "refined.npz")


def positive_numbers(text: str) -> list[float]:
    """`350,700` as temperatures, K.

    Raises:
      ValueError: one is not a positive number.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(f"--temperatures has to be positive numbers, K, got {text!r}: write --temperatures=350,700.")
    return numbers


def config_of(run_dir: Path) -> ConfigDict:
    """The config of a finished run.

    Raises:
      ValueError: there is no finished run; its config lacks a field that this version reads.
    """
    if missing := [name for name in NEEDED if not (run_dir / name).exists()]:
        raise ValueError(
            f"--run has to be the directory of a finished run, got {run_dir}, which has no {missing[0]}: "
            "run the experiment to its end first."
        )
    use = "give the command of the run again, which writes it"
    config = ConfigDict(disk.read_json(run_dir / "config.json", use=use)["config"])
    if lacking := sorted(fields(common.get_config()) - fields(config)):
        raise ValueError(
            f"{run_dir}: expected the config of a run of this version, got one without {', '.join(lacking)}: "
            "run the experiment again, or use the version that made it."
        )
    config.run_dir = str(run_dir)
    return config


def fields(config: ConfigDict) -> set[str]:
    """Names of all fields of an experiment, without those of its model and of the machine."""
    others = ("model", *common.OF_THE_MACHINE)
    return {name for name, _ in check.fields(config) if name.partition(".")[0] not in others}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: what is wrong with the input is one sentence, not a traceback.

    Args:
      arguments: of the command line. None: those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="directory of a finished run of a molecule")
    parser.add_argument("--temperatures", default="350,700", help="K, the paper's unless given")
    parser.add_argument("--host_devices", type=int, default=0, help="CPU devices for replicas; 0: one per core")
    given = parser.parse_args(arguments)
    with cli.reported():
        numbers, config = positive_numbers(given.temperatures), config_of(given.run)
        cli.configure(host_devices=given.host_devices)
        # Not before: jax-md starts the backend when it is imported, and the number of devices is fixed then.
        from experiments import temperatures

        temperatures.run(config, numbers)


if __name__ == "__main__":
    main()
