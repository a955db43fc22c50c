"""Pretrain, evaluate, stabilize, evaluate again, report: shared by all experiments, resumed where interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import checkpoints, locks, potentials, processes, provenance, report, systems
from experiments.configs import common
from experiments.failures import FailureFile
from experiments.progress import Progress
from experiments.stages import evaluate, pretrain, stabilize
from experiments.stages.evaluate import Evaluation, Evaluator, Schedule
from experiments.systems import base
from experiments.systems.base import System
from stablejax import stable
from stablejax.problem import Problem
from stablejax.stable import Settings

LISTS = "neighbor_lists.json"


class Plan(NamedTuple):
    """Settings of the stages of a run."""

    pretraining: pretrain.Settings
    evaluation: Schedule
    training: Settings
    num_replicas: int  # of training
    max_failures: int  # kept of each evaluation


def run(config: ConfigDict) -> dict:
    """All stages; returns the record that is also written to the run's directory.

    Raises:
      ValueError: a setting is not possible, or the directory is of another run or in use by one.
    """
    run_dir = directory_of(config)
    plan, system = prepare(config)
    with locks.exclusive(run_dir):
        return _run(run_dir, config, plan, system)


def directory_of(config: ConfigDict) -> Path:
    """Where the results of a run go."""
    return Path(config.run_dir or f"runs/{config.name}_seed{config.seed}")


def prepare(config: ConfigDict) -> tuple[Plan, System]:
    """What the stages of a run do, and the system that they are of: built, so that they are known to fit each other.

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
        max_failures=config.evaluate.max_failures,
    )
    _check_stages(plan, system)
    return plan, system


def _run(run_dir: Path, config: ConfigDict, plan: Plan, system: System) -> dict:
    _claim(run_dir, config)
    progress = Progress(run_dir / "metrics.jsonl", is_silent=not processes.is_first())
    data = system.data
    progress.say(
        f"{config.name}: {len(data.dataset.species)} atoms; {len(data.split.train)} training, "
        f"{len(data.split.validation)} validation and {len(data.split.test)} test frames; results go to {run_dir}"
    )
    try:
        before, after, course = _stages(run_dir, plan, system, progress)
    finally:
        progress.close()
        wall_s = _add_wall(run_dir, progress.stage_wall_s)

    facts = report.facts_of(config, system)
    runs = report.Runs(before, after, evaluate.reference_motion(plan.evaluation, system))
    record = report.make_record(facts, runs, wall_s, course=course)
    if not processes.is_first():
        return record
    checkpoints.write_text(run_dir / "record.json", checkpoints.to_json(record, indent=1) + "\n")
    page = report.write_page(run_dir, facts, record, runs, course)
    for line in report.summary(record):
        progress.say(line)
    progress.say(f"report: {page}")
    return record


def _check_stages(plan: Plan, system: System) -> None:
    """Build every stage, without compiling it, so that what does not fit is found before the first one runs."""
    pretrain.build(plan.pretraining, system)
    params = jax.eval_shape(system.problem.potential.init, base.key_for(plan.pretraining.seed, "model"))
    evaluator = evaluate.build(plan.evaluation, system)
    jax.eval_shape(evaluator.start, jax.eval_shape(evaluator.prepare, params))
    stable.build(system.problem, plan.training, execution=system.execution)
    jax.eval_shape(partial(stabilize.start, plan.training, system, num_replicas=plan.num_replicas), params)


def _stages(run_dir: Path, plan: Plan, system: System, progress: Progress) -> tuple[Evaluation, Evaluation, list[dict]]:
    """All three stages; neighbor lists lengthened in one of them stay so in the next, and when it is resumed."""
    system = _with_saved_lists(run_dir, system)
    potentials.save(run_dir, system)
    progress.stage("pretraining")
    params = _cached(
        run_dir / "pretrained.npz",
        lambda: pretrain.run_pretraining(plan.pretraining, system, progress),
        like=jax.eval_shape(system.problem.potential.init, base.key_for(plan.pretraining.seed, "model")),
    )
    evaluator = evaluate.build(plan.evaluation, system)
    before, evaluator = _evaluate(run_dir, "before", evaluator, params, progress, plan.max_failures)

    progress.stage("StABlE training")
    refined, course, system = _stabilize(run_dir, plan, evaluator.system, params, progress)
    if system is not evaluator.system:
        evaluator = evaluate.build(plan.evaluation, system)
    after, _ = _evaluate(run_dir, "after", evaluator, refined, progress, plan.max_failures)
    return before, after, course


def _claim(run_dir: Path, config: ConfigDict) -> None:
    """Create the directory, or check that a run in it has the same config."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if not holds_run(run_dir, config) and processes.is_first():
        about = {"config": _compared(config)} | provenance.about()
        checkpoints.write_text(run_dir / "config.json", checkpoints.to_json(about, indent=1) + "\n")


def _compared(config: ConfigDict) -> dict[str, Any]:
    mine = json.loads(config.to_json_best_effort())
    for name in common.OF_THE_MACHINE:
        mine.pop(name)
    return mine


def holds_run(run_dir: Path, config: ConfigDict) -> bool:
    """Whether there is a run of this config in the directory, which would be continued. Nothing is written.

    Args:
      run_dir: need not exist.
      config: of the experiment.

    Raises:
      ValueError: there is one of another config.
    """
    path, mine = run_dir / "config.json", _compared(config)
    if processes.agree(path.exists() and (run_dir / "pretrained.npz").exists()):
        theirs = json.loads(path.read_text())["config"]
        if theirs != mine:
            changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
            raise ValueError(
                f"{run_dir} holds a run with another config (it differs in {', '.join(changed)}): "
                "choose another directory with --config.run_dir, or remove this one."
            )
        return True
    return False


def _cached(path: Path, make: Callable, like):
    if processes.agree(path.exists()):
        return checkpoints.load(path, like)
    made = make()
    checkpoints.save(path, made)
    return made


def _evaluate(
    run_dir: Path, phase: str, evaluator: Evaluator, params, progress: Progress, max_failures: int
) -> tuple[Evaluation, Evaluator]:
    progress.stage(f"evaluation {phase}")
    path = run_dir / f"evaluation_{phase}.npz"
    if processes.agree(path.exists()):
        return _saved_evaluation(path), evaluator
    made, evaluator = evaluate.run_evaluation(
        evaluator,
        params,
        progress,
        on_longer_lists=partial(_save_lists, run_dir),
        failure_file=FailureFile(run_dir / f"failures_{phase}.xyz", max_failures=max_failures),
    )
    checkpoints.save(path, made)
    return made, evaluator


def _saved_evaluation(path: Path) -> Evaluation:
    with np.load(path) as file:
        arrays = dict(file)
    parts: dict[str, Any] = {"structure": {}, "motion": {}}
    for name in list(arrays):
        part, slash, key = name.partition("/")
        if slash:
            parts[part][key] = arrays.pop(name)
    return Evaluation(**parts, **arrays)


def _stabilize(run_dir: Path, plan: Plan, system: System, params, progress: Progress):
    """StABlE training; its state and course are saved after every step."""
    state_path, course_path = run_dir / "stable_state.npz", run_dir / "stable_course.json"
    start = partial(stabilize.start, plan.training, system, params, num_replicas=plan.num_replicas)
    if processes.agree(state_path.exists() and course_path.exists()):
        state = checkpoints.load(state_path, like=jax.eval_shape(start))
        # The course is written before the state: one entry more means that the last step has to be repeated.
        course = json.loads(course_path.read_text())[: int(state.num_calls)]
    else:
        state, course = start(), []

    def save(state, course):
        if processes.is_first():
            checkpoints.write_text(course_path, checkpoints.to_json(course))
        checkpoints.save(state_path, state)

    state, longer = stabilize.run_stable(
        plan.training, system, state, course, save, progress, on_longer_lists=partial(_save_lists, run_dir)
    )
    checkpoints.save(run_dir / "refined.npz", state.params)
    return jax.tree.map(jnp.asarray, state.params), course, longer


def _save_lists(run_dir: Path, problem: Problem) -> None:
    """The capacity of neighbor lists that were lengthened."""
    lists = problem.potential.lists
    if processes.is_first() and lists is not None:
        checkpoints.write_text(run_dir / LISTS, checkpoints.to_json({"num_pairs": lists.num_pairs}) + "\n")


def _with_saved_lists(run_dir: Path, system: System) -> System:
    """The system with the neighbor lists that the run has needed so far."""
    path, potential = run_dir / LISTS, system.problem.potential
    if potential.skin is None or not processes.agree(path.exists()):
        return system
    num_pairs = json.loads(path.read_text())["num_pairs"]
    return system.with_potential(potential.with_lists(skin=potential.skin, num_pairs=num_pairs))


def _add_wall(run_dir: Path, stage_wall_s: dict[str, float]) -> dict[str, float]:
    """Time spent in each stage, over all the sessions of a run that was interrupted."""
    path = run_dir / "stage_wall_s.json"
    total = json.loads(path.read_text()) if path.exists() else {}
    for stage, seconds in stage_wall_s.items():
        total[stage] = total.get(stage, 0.0) + seconds
    if processes.is_first():
        checkpoints.write_text(path, checkpoints.to_json(total) + "\n")
    return total
