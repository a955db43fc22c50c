"""What a run would do, need and take, a line for each stage. Nothing is written."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import estimates, locks, memory, pipeline, processes, run_directory
from experiments.estimates import Speed
from experiments.pipeline import Plan
from experiments.stages import evaluate, pretrain, reference, stabilize
from experiments.stages.evaluate import Evaluator
from experiments.systems import base
from experiments.systems.base import System
from stablejax.stable import StableTraining
from stablejax.types import Params

OPTIMIZER_STEPS = 4
"""Measured together."""
UNITS = ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


class Stage(NamedTuple):
    """What a stage would do and need."""

    what: str
    seconds: float
    may_end_early: bool
    num_bytes: int  # on each device


def run(config: ConfigDict) -> None:
    """Check all that a run would find wrong before its first step, and print what it would do.

    Args:
      config: of the experiment.

    Raises:
      ValueError: a run would raise it.
    """
    say = partial(print, flush=True) if processes.is_first() else lambda _: None
    run_dir = pipeline.directory_of(config)
    plan, system, stages = pipeline.prepare(config)
    is_there = run_directory.holds_run(run_dir, run_directory.made_from(config))
    locks.check_free(run_dir)
    check_place(run_dir)
    say("\n".join(heading(config, system)))
    say(f"results: {run_dir}, {'where this run is already: it goes on from there' if is_there else 'not there yet'}")
    reference.motion(plan.evaluation, system)  # which says what the data lack for it

    params = jax.jit(system.problem.potential.init)(base.key_for(plan.pretraining.seed, "model"))
    pretraining, frame_s = pretraining_stage(plan.pretraining, system, stages.pretraining, params)
    say(f"pretraining: {sentence(pretraining)}")
    evaluation, speed = evaluation_stage(plan, stages.evaluator, params, frame_s)
    say(f"evaluation before: {sentence(evaluation)}")
    training = training_stage(plan, system, stages.training, params, speed)
    say(f"StABlE training: {sentence(training)}")
    say(f"evaluation after: {sentence(evaluation)}")
    total = sum(stage.seconds for stage in (pretraining, evaluation, training, evaluation))
    say(f"in all at most {duration(total)}, if this machine stays as busy as it is; nothing was written")


def check_place(run_dir: Path) -> None:
    """Refuse a directory that cannot be written, or not be created.

    Raises:
      ValueError: the nearest folder that exists is not one, or belongs to others.
    """
    nearest = next(path for path in (run_dir.absolute(), *run_dir.absolute().parents) if path.exists())
    problem = "is a file, expected a folder" if not nearest.is_dir() else "may not be written"
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{nearest} {problem}: choose another directory with --config.run_dir.")


def heading(config: ConfigDict, system: System) -> list[str]:
    """The data, the dynamics and the machine.

    Args:
      config: of the experiment.
      system: of the config.
    """
    from ase.symbols import Symbols

    data, md, split = system.data, config.md, system.data.split
    formula = Symbols(data.dataset.species).get_chemical_formula()
    kind = "a periodic cell" if data.dataset.cell is not None else "open boundaries"
    frames = (
        f"{len(data.dataset.energy):,} frames of {Path(config.data.path).name}: {len(split.train):,} training, "
        f"{len(split.validation):,} validation and {len(split.test):,} test frames, references are means over "
        f"{len(data.reference):,}"
    )
    devices = (
        f"{jax.device_count()} ({jax.devices()[0].device_kind}), {size(memory.available_bytes())} free on each, of "
        f"which a run may take {100 * memory.SHARE:.0f} %"
    )
    return [
        f"{config.name}: {len(data.dataset.species)} atoms, {formula}, in {kind}",
        f"data: {frames}",
        f"dynamics: {md.temperature_K:g} K, steps of {md.timestep_fs:g} fs, {md.thermostat}",
        f"unstable in training: {system.train_criterion_name}; at evaluation: {system.evaluation.criterion_name}",
        f"devices: {devices}",
    ]


def pretraining_stage(
    settings: pretrain.Settings, system: System, program: pretrain.Program, params: Params
) -> tuple[Stage, float]:
    """The stage, and the seconds that it takes for a labeled frame.

    Args:
      settings: of the stage.
      system: what is trained.
      program: of the stage.
      params: of its potential, untrained.

    Raises:
      ValueError: it would not fit the memory.
    """
    data = system.data
    train = data.labeled(data.split.train)
    state = program.init(params)
    num_bytes = pretrain.check_memory(settings, program, state, train)
    few = pretrain.batches(np.random.default_rng(0), len(train.energy), OPTIMIZER_STEPS, settings.batch_size)
    frame_s = estimates.seconds(lambda: program.run(state, train, few)) / few.size
    num_validations = -(-settings.num_steps // settings.steps_per_validation)
    num_frames = settings.num_steps * settings.batch_size + num_validations * len(data.split.validation)
    may_end_early = settings.min_rate_scale is not None
    what = (
        f"{'at most ' if may_end_early else ''}{settings.num_steps:,} steps of {settings.batch_size} of the "
        f"{len(train.energy):,} training frames, {num_parameters(params):,} parameters"
    )
    return Stage(what, num_frames * frame_s, may_end_early, num_bytes), frame_s


def evaluation_stage(plan: Plan, evaluator: Evaluator, params: Params, frame_s: float) -> tuple[Stage, Speed]:
    """The stage, and how fast the dynamics are.

    Args:
      plan: of the run.
      evaluator: of the stage.
      params: of its potential, untrained.
      frame_s: see `Speed`.

    Raises:
      ValueError: it would not fit the memory.
    """
    schedule, system = plan.evaluation, evaluator.system
    prepared = evaluator.prepare(params)
    replicas = evaluator.start(prepared)
    num_bytes = evaluate.check_memory(evaluator, prepared, replicas)
    numbers = [estimates.num_at_once(system, number) for number in (schedule.num_replicas, plan.num_replicas)]
    measured = partial(estimates.step_seconds, evaluator.replay.run, prepared, replicas)
    steps_s = {number: measured(number=number) for number in dict.fromkeys(numbers)}
    speed = Speed(frame_s, *(steps_s[number] for number in numbers))
    steps = schedule.num_chunks * schedule.frames_per_chunk * schedule.steps_per_frame
    num_steps = schedule.num_replicas * steps
    what = (
        f"{schedule.num_replicas} replicas from test frames, at most {schedule.num_chunks * schedule.ps_per_chunk:g} "
        f"ps each, {num_steps:,} replica-steps"
    )
    wall_s = num_steps * speed.evaluation_s + len(system.data.split.test) * frame_s
    return Stage(what, wall_s, True, num_bytes), speed


def training_stage(plan: Plan, system: System, training: StableTraining, params: Params, speed: Speed) -> Stage:
    """StABlE training, to the end of all its cycles.

    Args:
      plan: of the run.
      system: what is trained.
      training: the stage.
      params: of its potential, untrained.
      speed: of the dynamics and of derivatives.

    Raises:
      ValueError: it would not fit the memory.
    """
    settings, num_replicas = plan.training, plan.num_replicas
    state = stabilize.start(settings, system, params, num_replicas=num_replicas)
    num_bytes = stabilize.check_memory(system, settings, training, state)
    simulation, learning = settings.simulation, settings.learning
    t, ps = simulation.steps_per_epoch, simulation.steps_per_epoch * system.timestep_fs / 1000
    assert simulation.max_searches is not None  # known from the config
    num_steps = estimates.most_steps(settings, num_replicas)
    what = (
        f"{num_replicas} replicas from training frames, t = {t} steps ({ps:g} ps), S = {learning.steps_per_frame}; "
        f"{settings.num_cycles} {'cycle' if settings.num_cycles == 1 else 'cycles'} of a search of at most "
        f"{simulation.max_searches * ps:g} ps and at most {learning.max_epochs} epochs of learning, at most "
        f"{num_steps:,} replica-steps"
    )
    wall_s = num_steps * speed.training_s + estimates.most_frames(settings, system, num_replicas) * speed.frame_s
    return Stage(what, wall_s, True, num_bytes)


def num_parameters(params: Params) -> int:
    """Numbers in a pytree of parameters."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))


def sentence(stage: Stage) -> str:
    """What a stage does, how long it takes and what it needs."""
    most = "at most " if stage.may_end_early else ""
    return f"{stage.what}; {most}{duration(stage.seconds)}; {size(stage.num_bytes)} per device"


def duration(wall_s: float) -> str:
    """An estimated time to two digits."""
    if math.isnan(wall_s):
        return "an unknown time"
    unit_s, unit = next((unit for unit in UNITS if wall_s >= 2 * unit[0]), UNITS[-1])
    return f"about {float(f'{wall_s / unit_s:.2g}'):g} {unit}"


def size(num_bytes: float) -> str:
    """Memory in MB or GB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.{0 if num_bytes >= 1e7 else 1}f} MB"
