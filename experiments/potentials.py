"""The potential of a run, to be read back without its data set: `potential.json` beside the parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

import stablejax
from experiments import checkpoints, disk, processes
from experiments.systems.base import System
from stablejax import OPEN, Potential, bind, periodic
from stablejax.types import Params

FILE = "potential.json"


def save(run_dir: Path, system: System) -> None:
    """Write the description of a run's potential. Its energies are relative to `offset_eV`.

    Args:
      run_dir: of the run.
      system: provides model, elements, cell and offset.
    """
    model, dataset = system.model, system.data.dataset
    sizes = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.init}
    about = {
        "model": type(model).__name__,
        "sizes": {name: value for name, value in sizes.items() if name not in ("parent", "name")},
        "species": dataset.species.tolist(),
        "elements": np.unique(dataset.species).tolist(),
        "cutoff_A": system.problem.potential.cutoff,
        "cell_A": None if dataset.cell is None else dataset.cell.tolist(),
        "offset_eV": system.data.offset,
    }
    if processes.is_first():
        disk.write_json(run_dir / FILE, about)


def load(run_dir: Path, *, parameters: str = "refined.npz") -> tuple[Potential, Params]:
    """The potential of a run and its parameters: the total energy, eV, is `potential.energy` plus `potential.offset`.

    Args:
      run_dir: of the run.
      parameters: file of the run; `pretrained.npz` for those before StABlE training.

    Raises:
      ValueError: the model is not one of the library; the parameters are those of another model.
    """
    about = disk.read_json(
        run_dir / FILE, use="it describes the potential: give the command of the run again, which writes it"
    )
    model = getattr(stablejax, about["model"], None)
    if model is None:
        raise ValueError(
            f"{run_dir / FILE}: expected a model of the library, got {about['model']!r}: bind yours to the species and "
            "read the parameters with `checkpoints.load`."
        )
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in about["sizes"].items()}
    potential = bind(
        model(**sizes),
        np.array(about["species"]),
        space=OPEN if about["cell_A"] is None else periodic(np.array(about["cell_A"])),
        offset=about["offset_eV"],
    )
    like = jax.eval_shape(potential.init, jax.random.key(0))
    return potential, checkpoints.load(run_dir / parameters, like)
