"""Pretrain, evaluate, stabilize, evaluate again, report: shared by all experiments, resumed where interrupted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import disk, failures, locks, processes, report, run_directory, systems
from experiments.failures import FailureFile, TrainingFailures
from experiments.run_directory import RunDirectory
from experiments.stages import evaluate, pretrain, reference, stabilize
from experiments.stages.evaluate import Evaluation, Evaluator, Schedule
from experiments.systems import base
from experiments.systems.base import System
from experiments.trajectories import TrajectoryFiles
from stablejax import stable, survival
from stablejax.learn import static_batch
from stablejax.stable import Settings, StableState, StableTraining
from stablejax.types import Params


class Plan(NamedTuple):
    """Settings of the stages of a run."""

    pretraining: pretrain.Settings
    evaluation: Schedule
    training: Settings
    num_replicas: int  # of training
    max_minutes: float  # of training, see `stabilize.run_stable`
    horizon_ratio: float  # see `evaluate.following`
    max_failures: int  # kept of each evaluation
    max_training_failures: int


class Stages(NamedTuple):
    """The stages of a run, built for its system."""

    pretraining: pretrain.Program
    evaluator: Evaluator
    training: StableTraining


def run(config: ConfigDict) -> dict:
    """All stages; returns the record that is also written to the run's directory.

    Raises:
      ValueError: a setting is not possible, or the directory is of another run, in use by one or cannot be written.
      Interrupted: the run was asked to end.
    """
    run_dir = directory_of(config)
    plan, system, stages = prepare(config)
    made_from = run_directory.made_from(config)
    with locks.exclusive(run_dir):
        return _run(RunDirectory(run_dir, made_from), config, plan, system, stages)


def directory_of(config: ConfigDict) -> Path:
    """Where the results of a run go."""
    return Path(config.run_dir or f"runs/{config.name}_seed{config.seed}")


def prepare(config: ConfigDict) -> tuple[Plan, System, Stages]:
    """What the stages of a run do, the system that they are of, and the stages, built and traced.

    What does not fit is found here, before the first stage runs; nothing is compiled.

    Args:
      config: of the experiment.

    Raises:
      ValueError: a setting is not possible.
    """
    schedule = evaluate.schedule_of(config)
    system = systems.build(config)
    plan = Plan(
        pretraining=pretrain.settings_of(config),
        evaluation=schedule,
        training=stabilize.settings_of(config, system),
        num_replicas=config.stable.num_replicas,
        max_minutes=config.stable.max_minutes,
        horizon_ratio=config.evaluate.horizon_ratio,
        max_failures=config.evaluate.max_failures,
        max_training_failures=config.stable.max_failures,
    )
    stages = Stages(
        pretrain.build(plan.pretraining, system),
        evaluate.build(schedule, system),
        stable.build(system.problem, plan.training, execution=system.execution),
    )
    _trace(plan, system, stages)
    return plan, system, stages


def _run(directory: RunDirectory, config: ConfigDict, plan: Plan, system: System, stages: Stages) -> dict:
    directory.claim()
    run_dir, progress, data = directory.path, directory.progress, system.data
    progress.say(
        f"{config.name}: {len(data.dataset.species)} atoms; {len(data.split.train)} training, "
        f"{len(data.split.validation)} validation and {len(data.split.test)} test frames; results go to {run_dir}"
    )
    try:
        before, after, course = _all_stages(directory, plan, system, stages)
    finally:
        wall_s = directory.close()

    facts = report.facts_of(config, system)
    runs = report.Runs(before, after, reference.motion(plan.evaluation, system))
    kept = {phase: failures.read(run_dir / f"failures_{phase}.xyz") for phase in ("before", "after")}
    record = report.diagnosed(report.make_record(facts, runs, wall_s, course=course), kept)
    if not processes.is_first():
        return record
    disk.write_json(run_dir / "record.json", record)
    page = report.write_page(run_dir, facts, record, runs, course)
    for line in report.summary(record):
        progress.say(line)
    progress.say(f"report: {page}")
    return record


def _trace(plan: Plan, system: System, stages: Stages) -> None:
    """Follow the shapes of arrays through every stage."""
    params = jax.eval_shape(system.problem.potential.init, base.key_for(plan.pretraining.seed, "model"))
    evaluate.shape_of(stages.evaluator, params)
    start = partial(stabilize.start, plan.training, system, num_replicas=plan.num_replicas, training=stages.training)
    state = jax.eval_shape(start, params)
    jax.eval_shape(stages.training.simulate, state)
    frames = static_batch(system.problem, plan.training.learning, seed=plan.training.seed, cycle=0, epoch=0)
    jax.eval_shape(partial(stages.training.learn, num_rounds=1), state, frames)


def _all_stages(
    directory: RunDirectory, plan: Plan, system: System, stages: Stages
) -> tuple[Evaluation, Evaluation, list[dict]]:
    """Neighbor lists that are lengthened in one stage stay so in the next, and when it is resumed."""
    params = _pretrain(directory, plan.pretraining, system, stages.pretraining)
    directory.save_potential("before", system, params)
    before, evaluator = _evaluate(directory, "before", plan, stages.evaluator, params)
    if warning := _warning(evaluator.system, before):
        directory.progress.say(warning)
    refined, course, longer = _stabilize(directory, plan, evaluator.system, params, stages)
    directory.save_potential("after", longer, refined)
    evaluator = evaluate.following(evaluate.with_system(evaluator, longer), before, plan.horizon_ratio)
    after, _ = _evaluate(directory, "after", plan, evaluator, refined)
    return before, after, course


def _warning(system: System, before: Evaluation) -> str:
    median = survival.median_first_passage(before.first_passage_ps, before.is_unstable)
    return report.beyond_repair(median.value, float(before.force_mae), system.data.mean_force)


def _pretrain(
    directory: RunDirectory, settings: pretrain.Settings, system: System, program: pretrain.Program
) -> Params:
    directory.progress.stage("pretraining")
    shape = jax.eval_shape(system.problem.potential.init, base.key_for(settings.seed, "model"))
    if (made := directory.result("pretrained", shape)) is not None:
        return made.tree
    saved = directory.state("pretraining", jax.eval_shape(partial(pretrain.start, settings, system, program)))
    params = pretrain.run_pretraining(
        settings,
        system,
        directory.progress,
        program=program,
        saved=None if saved is None else saved.tree,
        save=partial(directory.save_state, "pretraining"),
    )
    directory.save_result("pretrained", params)
    return params


def _evaluate(
    directory: RunDirectory, phase: str, plan: Plan, evaluator: Evaluator, params: Params
) -> tuple[Evaluation, Evaluator]:
    return evaluate.resumed(
        directory,
        f"evaluation_{phase}",
        evaluator,
        params,
        failure_file=FailureFile(directory.path / f"failures_{phase}.xyz", max_failures=plan.max_failures),
        trajectory_files=TrajectoryFiles(
            directory.path,
            phase,
            num_replicas=plan.evaluation.num_trajectories,
            dataset=evaluator.system.data.dataset,
            frame_spacing_fs=plan.evaluation.frame_spacing_fs,
        ),
    )


def _stabilize(
    directory: RunDirectory, plan: Plan, system: System, params: Params, stages: Stages
) -> tuple[Params, list[dict], System]:
    """StABlE training; its state and course are saved after every step."""
    directory.progress.stage("StABlE training")
    training = stages.training if system is stages.evaluator.system else None
    start = partial(stabilize.start, plan.training, system, params, num_replicas=plan.num_replicas, training=training)
    if (made := directory.result("refined", params)) is not None:
        return made.tree, made.about["course"], system.with_num_pairs(made.about["num_pairs"])
    saved = directory.state("stable", jax.eval_shape(start))
    if saved is None:
        state, course = start(), []
    else:
        state, course = saved.tree, saved.about["course"]
        longer = system.with_num_pairs(saved.about["num_pairs"])
        system, training = longer, training if longer is system else None

    def save(state: StableState, course: list[dict], system: System) -> None:
        directory.save_state("stable", int(state.num_calls), state, course=course, num_pairs=system.num_pairs)

    file = FailureFile(directory.path / "failures_training.xyz", max_failures=plan.max_training_failures)
    state, system = stabilize.run_stable(
        plan.training,
        system,
        state,
        course,
        save,
        directory.progress,
        max_minutes=plan.max_minutes,
        failures=TrainingFailures(file),
        training=training,
    )
    directory.save_result("refined", state.params, course=course, num_pairs=system.num_pairs)
    return jax.tree.map(jnp.asarray, state.params), course, system
