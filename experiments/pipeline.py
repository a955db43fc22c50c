"""Pretrain, evaluate, stabilize, evaluate again, report: shared by all experiments, resumed where interrupted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import disk, locks, potentials, processes, report, run_directory, systems
from experiments.failures import FailureFile, TrainingFailures
from experiments.run_directory import RunDirectory
from experiments.stages import evaluate, pretrain, reference, stabilize
from experiments.stages.evaluate import Evaluation, Schedule
from experiments.systems import base
from experiments.systems.base import System
from experiments.trajectories import TrajectoryFiles
from stablejax import stable
from stablejax.stable import Settings, StableState
from stablejax.types import Params


class _Plan(NamedTuple):
    """Settings of the stages of a run."""

    pretraining: pretrain.Settings
    evaluation: Schedule
    training: Settings
    num_replicas: int  # of training
    max_failures: int  # kept of each evaluation
    max_training_failures: int


def run(config: ConfigDict) -> dict:
    """All stages; returns the record that is also written to the run's directory.

    Raises:
      ValueError: a setting is not possible, or the directory is of another run, in use by one or cannot be written.
      Interrupted: the run was asked to end.
    """
    run_dir = Path(config.run_dir or f"runs/{config.name}_seed{config.seed}")
    schedule = evaluate.schedule_of(config)
    system = systems.build(config)
    plan = _Plan(
        pretraining=pretrain.settings_of(config),
        evaluation=schedule,
        training=stabilize.settings_of(config, system),
        num_replicas=config.stable.num_replicas,
        max_failures=config.evaluate.max_failures,
        max_training_failures=config.stable.max_failures,
    )
    _check_stages(plan, system)
    made_from = run_directory.made_from(config)
    with locks.exclusive(run_dir):
        return _run(RunDirectory(run_dir, made_from), config, plan, system)


def _run(directory: RunDirectory, config: ConfigDict, plan: _Plan, system: System) -> dict:
    directory.claim()
    run_dir, progress, data = directory.path, directory.progress, system.data
    progress.say(
        f"{config.name}: {len(data.dataset.species)} atoms; {len(data.split.train)} training, "
        f"{len(data.split.validation)} validation and {len(data.split.test)} test frames; results go to {run_dir}"
    )
    try:
        before, after, course = _stages(directory, plan, system)
    finally:
        wall_s = directory.close()

    facts = report.facts_of(config, system)
    runs = report.Runs(before, after, reference.motion(plan.evaluation, system))
    record = report.make_record(facts, runs, wall_s, course=course)
    if not processes.is_first():
        return record
    disk.write_json(run_dir / "record.json", record)
    page = report.write_page(run_dir, facts, record, runs, course)
    for line in report.summary(record):
        progress.say(line)
    progress.say(f"report: {page}")
    return record


def _check_stages(plan: _Plan, system: System) -> None:
    """Build every stage, without compiling it, so that what does not fit is found before the first one runs."""
    pretrain.build(plan.pretraining, system)
    params = jax.eval_shape(system.problem.potential.init, base.key_for(plan.pretraining.seed, "model"))
    evaluator = evaluate.build(plan.evaluation, system)
    jax.eval_shape(evaluator.start, jax.eval_shape(evaluator.prepare, params))
    stable.build(system.problem, plan.training, execution=system.execution)
    jax.eval_shape(partial(stabilize.start, plan.training, system, num_replicas=plan.num_replicas), params)


def _stages(directory: RunDirectory, plan: _Plan, system: System) -> tuple[Evaluation, Evaluation, list[dict]]:
    """All three stages; neighbor lists lengthened in one of them stay so in the next, and when it is resumed."""
    potentials.save(directory.path, system)
    params = _pretrain(directory, plan.pretraining, system)
    before, system = _evaluate(directory, "before", plan, system, params)
    refined, course, system = _stabilize(directory, plan, system, params)
    after, _ = _evaluate(directory, "after", plan, system, refined)
    return before, after, course


def _evaluate(
    directory: RunDirectory, phase: str, plan: _Plan, system: System, params: Params
) -> tuple[Evaluation, System]:
    schedule = plan.evaluation
    return evaluate.resumed(
        directory,
        f"evaluation_{phase}",
        schedule,
        system,
        params,
        failure_file=FailureFile(directory.path / f"failures_{phase}.xyz", max_failures=plan.max_failures),
        trajectory_files=TrajectoryFiles(
            directory.path,
            phase,
            num_replicas=schedule.num_trajectories,
            dataset=system.data.dataset,
            frame_spacing_fs=schedule.frame_spacing_fs,
        ),
    )


def _pretrain(directory: RunDirectory, settings: pretrain.Settings, system: System) -> Params:
    directory.progress.stage("pretraining")
    shape = jax.eval_shape(system.problem.potential.init, base.key_for(settings.seed, "model"))
    if (made := directory.result("pretrained", shape)) is not None:
        return made.tree
    saved = directory.state("pretraining", jax.eval_shape(partial(pretrain.start, settings, system)))
    params = pretrain.run_pretraining(
        settings,
        system,
        directory.progress,
        saved=None if saved is None else saved.tree,
        save=partial(directory.save_state, "pretraining"),
    )
    directory.save_result("pretrained", params)
    return params


def _stabilize(
    directory: RunDirectory, plan: _Plan, system: System, params: Params
) -> tuple[Params, list[dict], System]:
    """StABlE training; its state and course are saved after every step."""
    directory.progress.stage("StABlE training")
    start = partial(stabilize.start, plan.training, system, params, num_replicas=plan.num_replicas)
    if (made := directory.result("refined", params)) is not None:
        return made.tree, made.about["course"], system.with_num_pairs(made.about["num_pairs"])
    saved = directory.state("stable", jax.eval_shape(start))
    if saved is None:
        state, course = start(), []
    else:
        state, course = saved.tree, saved.about["course"]
        system = system.with_num_pairs(saved.about["num_pairs"])

    def save(state: StableState, course: list[dict], system: System) -> None:
        directory.save_state("stable", int(state.num_calls), state, course=course, num_pairs=system.num_pairs)

    file = FailureFile(directory.path / "failures_training.xyz", max_failures=plan.max_training_failures)
    state, system = stabilize.run_stable(
        plan.training, system, state, course, save, directory.progress, failures=TrainingFailures(file)
    )
    directory.save_result("refined", state.params, course=course, num_pairs=system.num_pairs)
    return jax.tree.map(jnp.asarray, state.params), course, system
