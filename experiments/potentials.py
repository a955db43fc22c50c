"""The potentials of a run as files of their own, before and after StABlE training, which `stablejax.load` reads."""

from __future__ import annotations

from pathlib import Path

from experiments import disk, processes, provenance
from experiments.data.sources import without_folders
from experiments.systems.base import System
from stablejax.interfaces import files
from stablejax.types import Params

NAMES = {"before": "potential_before", "after": "potential"}
"""Of the files, without their suffix, by phase."""


def save(run_dir: Path, phase: str, system: System, params: Params, made_from: dict) -> None:
    """Write the potential of a phase, if it is of a model of the library; one that is there is replaced.

    Args:
      run_dir: of the run.
      phase: before or after StABlE training.
      system: that the parameters are for.
      params: θ.
      made_from: see `run_directory.made_from`.

    Raises:
      ValueError: it cannot be written.
    """
    potential = system.problem.potential
    if not (processes.is_first() and files.can_be_saved(potential)):
        return
    config = made_from["config"]
    about = {
        "made_by": "stablejax",
        "stage": {"before": "pretraining", "after": "StABlE training"}[phase],
        "run": {name: config[name] for name in ("name", "seed")},
        "temperature_K": config["md"]["temperature_K"],
        "data": {"files": without_folders(config["data"]["path"]), "sha256": made_from["data"]},
    }
    path = run_dir / NAMES[phase]
    with disk.writing(path):
        files.save(path, potential, params, provenance=about | provenance.about())
