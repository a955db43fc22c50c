"""What a finished run is compared with: potentials that cost as much, and were trained without simulations.

    python -m experiments.benchmarks.controls --run=runs/aspirin_seed0 --control=position_noise

Supervised training takes as long as pretraining and StABlE training of the run did together, shared between candidates,
of which the one with the smallest force error on validation frames is kept, or between the members of an ensemble. It
is evaluated as the run was, from the same starts, and compared with the run's potential before StABlE training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from experiments import cli
from experiments.progress import silent

FOLDER = "controls"


class Control(NamedTuple):
    """Another way to spend the time of StABlE training."""

    candidates: tuple[dict[str, Any], ...] = ({},)  # fields of the config that differ
    num_members: int = 1  # of an ensemble
    trains: bool = True  # False: the run's pretrained parameters, in other dynamics


CONTROLS = {
    "more_pretraining": Control(),
    "early_stopping": Control(({"pretrain.schedule": "constant"},)),
    "weight_decay": Control(tuple({"pretrain.weight_decay": value} for value in (0.03, 0.3))),
    "averaged_weights": Control(tuple({"pretrain.average_decay": value} for value in (0.998, 0.9995))),
    "position_noise": Control(tuple({"pretrain.position_noise_A": value} for value in (0.01, 0.03))),
    "ensemble": Control(num_members=4),
    "smaller_timestep": Control(trains=False),
}
"""By name."""


def run(run_dir: Path, name: str) -> dict:
    """Train, evaluate and compare; returns the record, `controls/NAME.json` in the directory of the run.

    Args:
      run_dir: of a finished run.
      name: of the control.
    """
    import jax

    from experiments import checkpoints, disk, provenance, report, systems, transfer
    from experiments.stages import evaluate, reference
    from experiments.systems import base

    control, config = CONTROLS[name], transfer.config_of(run_dir)
    system, schedule = systems.build(config), evaluate.schedule_of(config)
    like = jax.eval_shape(system.problem.potential.init, base.key_for(config.seed, "model"))
    pretrained = checkpoints.load(run_dir / "pretrained.npz", like)
    shape = evaluate.shape_of(evaluate.build(schedule, system), pretrained)
    before = checkpoints.load(run_dir / "evaluation_before.npz", evaluate.like(shape, system.evaluation.measures))

    progress = silent("training")
    if control.trains:
        system, trained, chosen = train(config, control, _steps(config, control, run_dir), progress)
    else:
        with config.unlocked():
            config.md.timestep_fs /= 2
        system, trained, chosen = systems.build(config), pretrained, {"md.timestep_fs": config.md.timestep_fs}
        schedule = evaluate.schedule_of(config)
    progress.stage("evaluation")
    evaluator = evaluate.following(evaluate.build(schedule, system), before, config.evaluate.horizon_ratio)
    after, _ = evaluate.run_evaluation(evaluator, trained, progress)
    facts = report.facts_of(config, system)
    rows = report.measured_rows(facts, report.Runs(before, after, reference.motion(schedule, system)))
    rows += [
        {"metric": "stage_wall_s", "stage": stage, "value": value, "unit": "s"}
        for stage, value in progress.stage_wall_s.items()
    ]
    record = {"name": f"{facts.name}_seed{facts.seed}_{name}", "chosen": chosen, "config": facts.config, "rows": rows}
    record = disk.finite(record | provenance.about())
    (run_dir / FOLDER).mkdir(exist_ok=True)
    disk.write_json(run_dir / FOLDER / f"{name}.json", record)
    for line in report.summary(record):
        print(f"{name}: {line}", flush=True)
    return record


def train(config, control: Control, num_steps: int, progress) -> tuple[Any, Any, dict[str, Any]]:
    """The system, the parameters that do best on validation frames, and the fields of their candidate.

    Args:
      config: of the run.
      control: with its candidates and members.
      num_steps: of each.
      progress: of supervised training.
    """
    import jax
    import jax.numpy as jnp

    from experiments import systems
    from experiments.stages import evaluate, pretrain
    from stablejax import forms

    found: list[tuple] = []
    for fields in control.candidates:
        one = config.copy_and_resolve_references()
        one.update_from_flattened_dict(fields | {"pretrain.num_steps": num_steps})
        system, members = systems.build(one), []
        for member in range(control.num_members):
            # Another seed of the parameters and the batches, with the same frames.
            settings = pretrain.settings_of(one)._replace(seed=config.seed + 1000 * member)
            members.append(pretrain.run_pretraining(settings, system, progress))
        params = members[0]
        if control.num_members > 1:
            system = system.with_potential(forms.ensemble(system.problem.potential))
            params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
        error = float(evaluate.label_errors(system, params, system.data.split.validation).force_mae)
        found.append((error, len(found), system, params, fields | {"validation_force_mae_eV_per_A": error}))
    _, _, system, params, chosen = min(found, key=lambda one: one[:2])
    return system, params, chosen | {"pretrain.num_steps": num_steps, "num_members": control.num_members}


def _steps(config, control: Control, run_dir: Path) -> int:
    """Of each candidate and member, for the time that pretraining and StABlE training took together."""
    from experiments import disk

    rows = disk.read_json(run_dir / "record.json", use="run the experiment to its end")["rows"]
    wall_s = {row["stage"]: row["value"] for row in rows if row["metric"] == "stage_wall_s"}
    ratio = 1 + wall_s["StABlE training"] / wall_s["pretraining"]
    per_validation = config.pretrain.steps_per_validation
    steps = config.pretrain.num_steps * ratio / (len(control.candidates) * control.num_members)
    return max(1, round(steps / per_validation)) * per_validation


def main() -> None:
    """One control of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="directory of a finished run")
    parser.add_argument("--control", choices=CONTROLS, required=True, help="what it is compared with")
    given = parser.parse_args()
    with cli.reported():
        cli.configure(host_devices=0)
        run(given.run, given.control)


if __name__ == "__main__":
    main()
