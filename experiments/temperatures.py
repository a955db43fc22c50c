"""A finished run's potential, before and after, at other temperatures than its own (paper Section 3.2).

Starts, random numbers, criterion and horizon are those of the run's evaluation; k_B T and the reference of what is
measured are others. The starts are frames of the run's temperature, so means hold the time in which it is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import checkpoints, disk, locks, provenance, report, run_directory, systems
from experiments.report import Facts, Runs
from experiments.run_directory import RunDirectory
from experiments.stages import evaluate
from experiments.systems import base
from experiments.systems.base import System
from stablejax import reweighting, units
from stablejax.types import Params

PARAMETERS = {"before": "pretrained.npz", "after": "refined.npz"}
FILE, FOLDER = "transfer.json", "transfer"
MIN_EFFECTIVE_FRAMES = 100
"""With fewer, errors of the structure are marked: they may be of the reference."""
OF_THE_DATA = ("energy_mae_meV_per_atom", "force_mae_eV_per_A", "force_mae_change")
"""Figures that do not depend on temperature: they are in the run's own record."""


def run(config: ConfigDict, temperatures: Sequence[float]) -> dict:
    """Both sets of parameters at each temperature; returns the record, `transfer.json` in the run's directory.

    Args:
      config: of the run, with its directory.
      temperatures: K.

    Raises:
      ValueError: the run is not of a molecule, its data have changed, nothing was stable until the first frame, or the
        directory is in use or cannot be written.
      Interrupted: it was asked to end.
    """
    if config.system != "molecule":
        raise ValueError(
            f"{config.run_dir}: expected the run of a molecule, got of a {config.system}: its criterion compares with "
            "the reference of its own temperature, so there is nothing to say of another."
        )
    run_dir, schedule, system = Path(config.run_dir), evaluate.schedule_of(config), systems.build(config)
    made_from = run_directory.made_from(config)
    with locks.exclusive(run_dir):
        params = _parameters(config, made_from, system)
        directory = RunDirectory(run_dir / FOLDER, made_from)
        directory.claim()
        name, its_config = f"{config.name}_seed{config.seed}_transfer", report.facts_of(config, system).config
        record: dict = {"name": name, "config": its_config, "wall_s": 0.0, "rows": []} | provenance.about()
        for temperature_K in temperatures:
            there, effective_frames = at_temperature(system, temperature_K)
            evaluator = evaluate.build(schedule, there)
            found: dict[str, evaluate.Evaluation] = {}
            for phase in PARAMETERS:
                if found:
                    evaluator = evaluate.following(evaluator, found["before"], config.evaluate.horizon_ratio)
                stage = f"{temperature_K:g}_K_{phase}"
                found[phase], evaluator = evaluate.resumed(directory, stage, evaluator, params[phase])
            # The reference's motion is of its own temperature, so there is none.
            runs = Runs(found["before"], found["after"], reference_motion={})
            measured = _rows(report.facts_of(config, there), runs, effective_frames)
            record["wall_s"] = sum(directory.close().values())
            directory.progress.say(f"{temperature_K:g} K: {_line(measured)}")
            record["rows"] += [row | {"temperature_K": temperature_K} for row in measured]
            disk.write_json(run_dir / FILE, record)
    return record


def _parameters(config: ConfigDict, made_from: dict[str, Any], system: System) -> dict[str, Params]:
    """Those of the run, whose data have to be the same."""
    run_dir, found = Path(config.run_dir), {}
    like = jax.eval_shape(system.problem.potential.init, base.key_for(config.seed, "model"))
    for phase, file in PARAMETERS.items():
        found[phase], about = checkpoints.load_with_about(run_dir / file, like)
        if about.get("made_from", made_from)["data"] != made_from["data"]:
            raise ValueError(
                f"{run_dir / file}: expected the data of the run, but the contents of {config.data.path} have changed "
                "since: restore them."
            )
    return found


def at_temperature(system: System, temperature_K: float) -> tuple[System, float]:
    """The system at another temperature, and how many frames its reference is worth: N_eff = (Σ w)² / Σ w² (Kish).

    The paper's N_eff is exp(−Σ w ln w), which is never less than Kish's. Both take the frames as independent.

    Args:
      system: at the temperature of its data.
      temperature_K: that it is to have.
    """
    kT = units.thermal_energy(temperature_K)
    reference, effective_frames = reweighted_reference(system, kT)
    evaluation = system.evaluation._replace(structure_reference=reference)
    return system._replace(problem=system.problem._replace(kT=kT), evaluation=evaluation), effective_frames


def reweighted_reference(system: System, kT: float) -> tuple[dict[str, np.ndarray], float]:
    """Means of the structure over the reference frames, which are not the test's, as if sampled at kT (A.9); N_eff.

    Potential energies are those of the data. Kinetic ones drop out of means over positions.

    Args:
      system: whose kT its data were sampled at.
      kT: eV.
    """
    data = system.data
    energy = jnp.asarray(data.dataset.energy[data.reference], jnp.float32)
    weight = reweighting.temperature_weights(energy, sampled_kT=system.problem.kT, kT=kT)
    means = base.mean_over_frames(system.evaluation.structure_fn, data.reference_position, weight)
    return means, float(reweighting.effective_sample_size(weight))


def _rows(facts: Facts, runs: Runs, effective_frames: float) -> list[dict]:
    """What a run's record has of its evaluations, and what the reference is worth."""
    compared = {measure.metric for measure in facts.measures}
    mark = {"is_reference_too_small": effective_frames < MIN_EFFECTIVE_FRAMES}
    rows = [row for row in report.measured_rows(facts, runs) if row["metric"] not in OF_THE_DATA]
    rows = [row | mark if row["metric"] in compared else row for row in rows]
    size = {"metric": "reference_effective_frames", "value": effective_frames, "frames": facts.num_reference}
    return disk.finite([*rows, size | mark])


def _line(rows: list[dict]) -> str:
    find = report.finder({"rows": rows})
    errors = " -> ".join(report.number(find("h_r_mae", phase), "{:.4f}") for phase in PARAMETERS)
    size = find("reference_effective_frames")
    note = ", too few to rely on" if size["is_reference_too_small"] else ""
    temperatures = " -> ".join(report.number(find("internal_temperature_K", phase), "{:.0f}") for phase in PARAMETERS)
    return (
        f"{report.stability(find)}; h(r) MAE: {errors} 1/Å (a reference worth {size['value']:.0f} of {size['frames']} "
        f"frames{note}); kinetic temperature: {temperatures} K"
    )
