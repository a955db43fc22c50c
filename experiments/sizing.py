"""Sizes of a run that fit a time on this machine, by the speed of a few steps."""

from __future__ import annotations

import math
from collections.abc import Collection

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import disk, door, dry_run, pipeline, processes, provenance, run_directory
from experiments.configs import check
from experiments.door import Choice
from experiments.systems import base

SHARES = {"pretraining": 0.15, "evaluation": 0.2, "StABlE training": 0.4}
"""Of the time, `evaluation` for the one after training; the rest is for the one before, compiling and the report."""
PRETRAINING_STEPS = (500, 20_000)
"""Fewest and most."""
LEAST_HORIZON_PS = 2.0
NOT_WRITTEN = ("data.path", "model.name", "run_dir", "host_devices")
"""Fields that a person may set and that stand in the file otherwise, or are of the machine."""


def complete(config: ConfigDict, opened: door.Opened, *, is_dry: bool) -> None:
    """Choose sizes for the time, say what was chosen, and write it where the results go.

    Args:
      config: from `opened`, with what a person has set; is changed.
      opened: what was chosen from the data.
      is_dry: whether nothing is written.

    Raises:
      ValueError: the time is too short; the directory is of another run or cannot be written.
    """
    values = dict(check.fields(config))
    of_person = [Choice(name, values[name], "given") for name in opened.given if name not in NOT_WRITTEN]
    choices = [*of_person, *opened.choices, *for_time(config, opened.minutes, opened.given)]
    if not processes.is_first():
        return
    for one in choices:
        print(f"chosen: {one.field} = {one.value}, {one.why}", flush=True)
    if is_dry:
        return
    run_dir = pipeline.directory_of(config)
    run_directory.holds_run(run_dir, run_directory.made_from(config))
    with disk.writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    disk.write_text(run_dir / door.FILE, door.text(config, choices, str(provenance.command())))


def for_time(config: ConfigDict, minutes: float, given: Collection[str]) -> list[Choice]:
    """Sizes that fit a time on this machine, by the speed of a few steps; the config is changed to them.

    Args:
      config: whole.
      minutes: that the run may take.
      given: fields that a person sets, which are not chosen.

    Raises:
      ValueError: the time is too short for this system and machine.
    """
    plan, system, stages = pipeline.prepare(config)
    params = jax.jit(system.problem.potential.init)(base.key_for(config.seed, "model"))
    _, frame_s = dry_run.pretraining_stage(plan.pretraining, system, stages.pretraining, params)
    _, speed = dry_run.evaluation_stage(plan, stages.evaluator, params, frame_s)
    seconds = {stage: 60 * minutes * share for stage, share in SHARES.items()}
    steps = seconds["pretraining"] / (config.pretrain.batch_size * frame_s)
    num_steps = int(np.clip(float(f"{steps:.2g}"), *PRETRAINING_STEPS))
    num_replicas = config.evaluate.num_replicas
    affordable_ps = seconds["evaluation"] / (num_replicas * speed.evaluation_s) * config.md.timestep_fs / 1000
    if affordable_ps < LEAST_HORIZON_PS:
        raise ValueError(
            f"--minutes={minutes:g} is too short: {num_replicas} replicas could be simulated for {affordable_ps:.2g} "
            f"ps here, expected at least {LEAST_HORIZON_PS:g}: give --minutes="
            f"{math.ceil(minutes * LEAST_HORIZON_PS / affordable_ps)}, or a smaller model."
        )
    chunk_ps = config.evaluate.chunk_ps
    horizon_ps = max(chunk_ps, min(config.evaluate.horizon_ps, affordable_ps // chunk_ps * chunk_ps))
    rate = 1 / speed.evaluation_s
    choices = [
        Choice("pretrain.num_steps", num_steps, f"a step takes {1000 * config.pretrain.batch_size * frame_s:.3g} ms"),
        Choice("evaluate.horizon_ps", horizon_ps, f"{rate:,.0f} replica-steps are simulated in a second"),
        Choice("stable.max_minutes", round(SHARES["StABlE training"] * minutes, 2), f"of {minutes:g}"),
    ]
    if config.cluster.num_processes > 1:  # their clocks differ
        choices.pop()
    return door.made(config, choices, given)
