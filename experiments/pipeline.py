"""Pretrain, evaluate, stabilize, evaluate again, report: shared by all experiments, resumed where it was left."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import checkpoints, evaluation, processes, report, runtime, systems, training
from experiments.evaluation import Evaluation
from experiments.progress import Progress
from experiments.systems import System


def run(config: ConfigDict, build: Callable[[ConfigDict], System]) -> dict:
    """All stages; returns the record that is also written to the run's directory."""
    run_dir = Path(config.run_dir or f"runs/{config.name}_seed{config.seed}")
    system = build(config)
    _claim(run_dir, config)
    progress = Progress(run_dir / "metrics.jsonl", is_silent=not processes.is_first())
    split = system.split
    progress.say(
        f"{config.name}: {len(system.dataset.species)} atoms; {len(split.train)} training, {len(split.validation)} "
        f"validation and {len(split.test)} test frames; results go to {run_dir}"
    )
    try:
        before, after, course = _stages(run_dir, config, system, progress)
    finally:
        progress.close()
        wall_s = _add_wall(run_dir, progress.stage_wall_s)

    reference_motion = evaluation.reference_motion(config, system)
    record = report.make_record(config, system, before, after, reference_motion, wall_s)
    if not processes.is_first():
        return record
    (run_dir / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    page = report.write_page(run_dir, config, system, record, before, after, course, reference_motion)
    for line in report.summary(record):
        progress.say(line)
    progress.say(f"report: {page}")
    return record


def _stages(run_dir: Path, config, system, progress: Progress) -> tuple[Evaluation, Evaluation, list[dict]]:
    progress.stage("pretraining")
    params = _cached(
        run_dir / "pretrained.npz",
        lambda: training.run_pretraining(config, system, progress),
        like=jax.eval_shape(system.potential.init, systems.key_for(config, "model")),
    )
    looks = evaluation.build_evaluation(config, system)
    before = _evaluate(run_dir, "before", config, system, looks, params, progress)

    progress.stage("StABlE training")
    refined, course = _stabilize(run_dir, config, system, params, progress)
    after = _evaluate(run_dir, "after", config, system, looks, refined, progress)
    return before, after, course


def _claim(run_dir: Path, config: ConfigDict) -> None:
    """Make the directory, or make sure that what lies there is of the same config."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.json"
    mine = json.loads(config.to_json_best_effort())
    for name in ("run_dir", "host_devices", "cluster"):
        mine.pop(name)
    if processes.agree(path.exists() and (run_dir / "pretrained.npz").exists()):
        theirs = json.loads(path.read_text())["config"]
        if theirs != mine:
            changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
            raise ValueError(
                f"{run_dir} holds a run with another config (it differs in {', '.join(changed)}): "
                "choose another directory with --config.run_dir, or remove this one."
            )
        return
    if processes.is_first():
        path.write_text(json.dumps({"config": mine} | runtime.about(), indent=1) + "\n")


def _cached(path: Path, make: Callable, like):
    if processes.agree(path.exists()):
        return checkpoints.load(path, like)
    made = make()
    checkpoints.save(path, made)
    return made


def _evaluate(run_dir, phase: str, config, system, looks, params, progress: Progress) -> Evaluation:
    progress.stage(f"evaluation {phase}")
    path = run_dir / f"evaluation_{phase}.npz"
    if processes.agree(path.exists()):
        with np.load(path) as file:
            arrays = dict(file)
        parts: dict[str, Any] = {"structure": {}, "motion": {}}
        for name in list(arrays):
            part, slash, key = name.partition("/")
            if slash:
                parts[part][key] = arrays.pop(name)
        return Evaluation(**parts, **arrays)
    made = evaluation.run_evaluation(config, system, looks, params, progress)
    checkpoints.save(path, made)
    return made


def _stabilize(run_dir: Path, config, system, params, progress: Progress):
    """StABlE training; its state and course are saved after every step."""
    state_path, tracker_path = run_dir / "stable_state.npz", run_dir / "stable_course.json"
    start = partial(training.init_stable, config, system, params)
    if processes.agree(state_path.exists() and tracker_path.exists()):
        state = checkpoints.load(state_path, like=jax.eval_shape(start))
        # The course is written before the state: an entry more means that the last step has to be done again.
        tracker = json.loads(tracker_path.read_text())[: int(state.num_calls)]
    else:
        state, tracker = start(), []

    def save(state, tracker):
        if processes.is_first():
            tracker_path.write_text(json.dumps(tracker))
        checkpoints.save(state_path, state)

    state = training.run_stable(config, system, state, tracker, save, progress)
    checkpoints.save(run_dir / "refined.npz", state.params)
    return jax.tree.map(jnp.asarray, state.params), tracker


def _add_wall(run_dir: Path, stage_wall_s: dict[str, float]) -> dict[str, float]:
    """Time spent in each stage, over all the sessions of a run that was interrupted."""
    path = run_dir / "stage_wall_s.json"
    total = json.loads(path.read_text()) if path.exists() else {}
    for stage, seconds in stage_wall_s.items():
        total[stage] = total.get(stage, 0.0) + seconds
    if processes.is_first():
        path.write_text(json.dumps(total) + "\n")
    return total
