"""The evaluation stage: first passage from held-out starts, and observables until then."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from experiments import failures, memory, processes
from experiments.failures import FailureFile, Replayer, replayer
from experiments.progress import Progress
from experiments.run_directory import RunDirectory
from experiments.stages import causes
from experiments.stages.statistics import (
    ChunkStatistics,
    Totals,
    added,
    mean_motion,
    mean_observables,
    of_replicas,
    standard_error,
)
from experiments.systems import base
from experiments.systems.base import Evaluated, Measure, System
from experiments.trajectories import TrajectoryFiles
from stablejax import dynamics, forms, integrators, losses, survival, units
from stablejax.dynamics import Replica
from stablejax.integrators import Integrator
from stablejax.topology import FRAME_BATCH
from stablejax.types import Params

TEMPERATURE = "internal_temperature_K"
"""Its metric in the record."""


class Averages(NamedTuple):
    """Of stable frames."""

    num_frames: np.ndarray  # []
    temperature_K: np.ndarray  # [] mean kinetic temperature
    structure: dict[str, np.ndarray]  # means over the frames
    motion: dict[str, np.ndarray]  # [replica, lag] of whole windows; NaN for a replica without any
    standard_error: dict[str, np.ndarray]  # [] of the temperature, K, and of each measure, by its metric


class Evaluation(NamedTuple):
    """Results of simulations with one set of parameters.

    Replicas begin at frames of the reference and drift away from its conformations if the potential prefers others.
    Those that fail early have no time to, so averages before and after StABlE training are compared over equal times.
    """

    first_passage_ps: np.ndarray  # [replica]; the horizon where stable
    is_unstable: np.ndarray  # [replica]
    is_finite: np.ndarray  # [replica] False: stopped before a state that was not finite
    horizon_ps: np.ndarray  # [] longest simulation of a replica
    averages: Averages  # of all stable frames
    early: Averages  # of each replica up to the chunk that it failed in in an earlier evaluation, if there is one
    energy_mae: np.ndarray  # [] eV, held-out frames
    force_mae: np.ndarray  # [] eV/Å


class Schedule(NamedTuple):
    """Lengths of an evaluation, in steps, frames and chunks, and the seed of its velocities and noise."""

    num_replicas: int
    steps_per_frame: int
    frames_per_chunk: int
    num_chunks: int
    ps_per_step: float
    frame_spacing_fs: float
    seed: int
    num_trajectories: int = 0  # replicas whose frames are kept

    @property
    def ps_per_chunk(self) -> float:
        """Time simulated between two checks by the host."""
        return self.frames_per_chunk * self.frame_spacing_fs / 1000

    @property
    def horizon_ps(self) -> float:
        """Longest simulation of a replica."""
        return self.num_chunks * self.ps_per_chunk


class Measured(NamedTuple):
    """State of an evaluation, from which it goes on."""

    replicas: Replica
    totals: Totals
    early: Totals  # see `Evaluation`


class Evaluator(NamedTuple):
    """Compiled once for an experiment: start the replicas of an evaluation, and run them for a chunk."""

    system: System
    schedule: Schedule
    prepare: Callable[[Params], Any]
    start: Callable[[Any], Replica]
    run_chunk: Callable[[Any, Replica], tuple[Replica, ChunkStatistics]]
    replay: Replayer
    early_ps: np.ndarray | None = None  # [replica] first passage in an earlier evaluation; None: there is none


def schedule_of(config: ConfigDict) -> Schedule:
    """Lengths from the settings of a config.

    Raises:
      ValueError: one does not divide the next.
    """
    settings, timestep_fs = config.evaluate, config.md.timestep_fs
    return Schedule(
        num_replicas=settings.num_replicas,
        steps_per_frame=base.whole(settings.frame_spacing_fs / timestep_fs, "evaluate.frame_spacing_fs"),
        frames_per_chunk=base.whole(settings.chunk_ps * 1000 / settings.frame_spacing_fs, "evaluate.chunk_ps"),
        num_chunks=base.whole(settings.horizon_ps / settings.chunk_ps, "evaluate.horizon_ps"),
        ps_per_step=timestep_fs / 1000,
        frame_spacing_fs=settings.frame_spacing_fs,
        seed=config.seed,
        num_trajectories=min(settings.trajectory, settings.num_replicas),
    )


def build(schedule: Schedule, system: System) -> Evaluator:
    """Starts, velocities and noise depend on the seed only, so they are the same for any parameters.

    Args:
      schedule: from `schedule_of`.
      system: what is simulated.
    """
    execution, problem = system.execution, system.problem
    form = problem.potential.fast(system.table_intervals)
    integrator = system.thermostat(form, problem.mass, kT=problem.kT)
    criterion = system.evaluation.criterion
    run_all = execution.map_replicas(
        partial(_run_one, system, integrator, schedule), is_active=lambda replica: ~replica.is_frozen
    )

    # Buffers are donated, unless a chunk may have to be repeated.
    @partial(jax.jit, donate_argnames=None if form.lists else "replicas")
    def run_chunk(prepared, replicas):
        replicas, stats = run_all(prepared, replicas)
        kept = {name: getattr(stats, name)[: schedule.num_trajectories] for name in ("position", "is_valid")}
        return replicas, stats._replace(num_overflows=jnp.sum(stats.num_overflows), **kept)

    start = execution.map_replicas(
        lambda prepared, one: dynamics.init_replica(integrator, one[0], one[1], prepared, criterion)
    )
    position = system.data.starts(system.data.split.test, schedule.num_replicas)
    keys = jax.random.split(base.key_for(schedule.seed, "evaluate"), schedule.num_replicas)
    start_all = jax.jit(lambda prepared: start(prepared, (keys, position)))
    replay = replayer(system, integrator, criterion, system.evaluation.criterion_name)
    return Evaluator(system, schedule, jax.jit(form.prepare), start_all, run_chunk, replay)


def _run_one(
    system: System, integrator: Integrator, schedule: Schedule, prepared, replica: Replica
) -> tuple[Replica, ChunkStatistics]:
    replica, (frame, is_valid) = dynamics.sample(
        integrator,
        system.evaluation.criterion,
        prepared,
        replica,
        num_frames=schedule.frames_per_chunk,
        steps_per_frame=schedule.steps_per_frame,
    )
    assert frame.velocity is not None  # known in dynamics
    temperature = integrators.kinetic_temperature(
        frame.velocity, system.problem.mass, constrained_dof=integrator.constrained_dof
    )
    observed = jax.vmap(system.evaluation.structure_fn)(frame) | {"temperature": temperature}
    weight = is_valid.astype(jnp.float32)
    total = jax.tree.map(partial(jnp.tensordot, weight, axes=1, precision=lax.Precision.HIGHEST), observed)
    motion = system.evaluation.motion_fn(frame)
    kept = frame.position, is_valid
    return replica, ChunkStatistics(jnp.sum(is_valid), replica.did_overflow, total, jnp.all(is_valid), motion, *kept)


def shape_of(evaluator: Evaluator, params: Params) -> Measured:
    """Shapes and types of the state of an evaluation; its totals are zero.

    Args:
      evaluator: from `build`.
      params: of the potential.
    """
    prepared = jax.eval_shape(evaluator.prepare, params)
    replicas = jax.eval_shape(evaluator.start, prepared)
    _, stats = jax.eval_shape(evaluator.run_chunk, prepared, replicas)
    zeros = partial(jax.tree.map, lambda leaf: np.zeros(leaf.shape))
    nothing = np.zeros((), np.int64)
    totals = Totals(nothing, zeros(stats.num_frames), zeros(stats.total), zeros(stats.is_whole), zeros(stats.motion))
    return Measured(replicas, totals, totals)


def like(measured: Measured, measures: tuple[Measure, ...]) -> Evaluation:
    """Shapes and types of the results of an evaluation.

    Args:
      measured: from `shape_of`.
      measures: of the system.
    """
    totals = measured.totals
    of_replicas, error = np.zeros(totals.num_windows.shape), np.zeros((), np.float32)
    structure = {name: zeros[0] for name, zeros in totals.total.items() if name != "temperature"}
    is_not = of_replicas.astype(bool)
    one = np.zeros(())
    errors = dict.fromkeys((TEMPERATURE, *(measure.metric for measure in measures)), one)
    averages = Averages(totals.num_frames.sum(), one, structure, totals.motion, errors)
    return Evaluation(of_replicas, is_not, is_not, one, averages, averages, error, error)


def resumed(
    directory: RunDirectory,
    name: str,
    evaluator: Evaluator,
    params: Params,
    *,
    failure_file: FailureFile | None = None,
    trajectory_files: TrajectoryFiles | None = None,
) -> tuple[Evaluation, Evaluator]:
    """An evaluation that is kept in a directory and goes on where it was interrupted.

    Args:
      directory: of the run.
      name: of the evaluation.
      evaluator: from `build`.
      params: of the potential.
      failure_file: see `run_evaluation`.
      trajectory_files: see `run_evaluation`.

    Returns:
      The results, and the evaluator with the neighbor lists that it needed.
    """
    directory.progress.stage(name.replace("_", " "))
    shape = shape_of(evaluator, params)
    if (known := directory.result(name, like(shape, evaluator.system.evaluation.measures))) is not None:
        return known.tree, with_system(evaluator, evaluator.system.with_num_pairs(known.about["num_pairs"]))
    saved = directory.state(name, shape)
    if saved is not None:
        evaluator = with_system(evaluator, evaluator.system.with_num_pairs(saved.about["num_pairs"]))
    if trajectory_files is not None:
        none = [0] * evaluator.schedule.num_trajectories
        trajectory_files.resume_at(none if saved is None else saved.about["trajectories"])
    made, evaluator = run_evaluation(
        evaluator,
        params,
        directory.progress,
        saved=None if saved is None else saved.tree,
        save=partial(directory.save_state, name),
        failure_file=failure_file,
        trajectory_files=trajectory_files,
    )
    directory.save_result(name, made, num_pairs=evaluator.system.num_pairs)
    return made, evaluator


def run_evaluation(
    evaluator: Evaluator,
    params: Params,
    progress: Progress,
    *,
    saved: Measured | None = None,
    save: Callable[..., None] = lambda *_, **__: None,
    failure_file: FailureFile | None = None,
    trajectory_files: TrajectoryFiles | None = None,
) -> tuple[Evaluation, Evaluator]:
    """First passage from held-out starts, and observables of the frames before it.

    Args:
      evaluator: from `build`.
      params: of the potential.
      progress: updated after every chunk.
      saved: state to go on from. None: the start.
      save: called after every chunk with its number, the state, `num_pairs` of the neighbor lists and the sizes of the
        files of `trajectories`.
      failure_file: keeps the last frames of replicas that fail. None: they are not kept.
      trajectory_files: keep the stable frames of the first replicas. None: they are not kept.

    Returns:
      The results, and the evaluator with the neighbor lists that it needed.

    Raises:
      ValueError: no replica was stable until the first frame, or the memory does not suffice.
    """
    prepared = evaluator.prepare(params)
    replicas, totals, early = saved or shape_of(evaluator, params)._replace(replicas=evaluator.start(prepared))
    check_memory(evaluator, prepared, replicas)
    while totals.num_chunks < evaluator.schedule.num_chunks and not bool(jnp.all(replicas.is_frozen)):
        room = 0 if failure_file is None else failure_file.room
        # The chunk takes the buffers of its replicas, unless there are neighbor lists.
        before = jax.tree.map(jnp.copy, replicas) if room else replicas
        replicas, stats = evaluator.run_chunk(prepared, replicas)
        if int(stats.num_overflows):
            progress.say("a neighbor list overflowed: lists are made longer and the chunk is repeated")
            evaluator, replicas = with_system(evaluator, with_longer_lists(evaluator.system)), before
            continue
        if failure_file is not None and room:
            failure_file.add(failures.find(evaluator.system, evaluator.replay, prepared, before, replicas))
        stats = processes.to_host(stats)
        if trajectory_files is not None and processes.is_first():
            num_frames = int(totals.num_chunks) * evaluator.schedule.frames_per_chunk
            trajectory_files.add(stats.position, stats.is_valid, num_frames=num_frames)
        stats = jax.tree.map(lambda x: x.astype(np.float64), stats)
        early = added(early, of_replicas(stats, _is_early(evaluator, int(totals.num_chunks))))
        totals = added(totals, stats)
        number = int(totals.num_chunks)
        _report(progress, evaluator.schedule, number, replicas)
        sizes = [] if trajectory_files is None else trajectory_files.sizes
        save(number, Measured(replicas, totals, early), num_pairs=evaluator.system.num_pairs, trajectories=sizes)
    return _evaluation(evaluator, params, Measured(replicas, totals, early)), evaluator


def with_system(evaluator: Evaluator, system: System) -> Evaluator:
    """The same evaluation of a system whose neighbor lists may be longer."""
    if system is evaluator.system:
        return evaluator
    return build(evaluator.schedule, system)._replace(early_ps=evaluator.early_ps)


def _is_early(evaluator: Evaluator, num_chunks: int) -> np.ndarray:
    """[replica] whether it had not failed before this chunk in the earlier evaluation."""
    if evaluator.early_ps is None:
        return np.ones(evaluator.schedule.num_replicas, bool)
    return evaluator.early_ps > num_chunks * evaluator.schedule.ps_per_chunk - 1e-9


def following(evaluator: Evaluator, before: Evaluation, ratio: float) -> Evaluator:
    """The same evaluation to be compared with an earlier one: `Evaluation.early` has the same times.

    It goes up to a multiple of the earlier one's median, rounded up to whole chunks, but not beyond the horizon that it
    has: a ratio of medians can only be seen up to that of the horizon.

    Args:
      evaluator: from `build`.
      before: an earlier evaluation. Where more than half of its replicas were stable, the horizon stays.
      ratio: of the horizon and its median; 0: the horizon stays.
    """
    median = survival.median_first_passage(before.first_passage_ps, before.is_unstable)
    evaluator = evaluator._replace(early_ps=before.first_passage_ps)
    if not ratio or median.is_censored:
        return evaluator
    schedule = evaluator.schedule
    wanted = max(math.ceil(ratio * median.value / schedule.ps_per_chunk - 1e-9), 1)
    return evaluator._replace(schedule=schedule._replace(num_chunks=min(wanted, schedule.num_chunks)))


def check_memory(evaluator: Evaluator, prepared: Any, replicas: Replica) -> int:
    """Compile the program, and raise where it would not fit; returns its peak memory on each device, bytes.

    Args:
      evaluator: from `build`.
      prepared: from its `prepare`.
      replicas: from its `start`.
    """
    advice = "lower config.evaluate.num_replicas or chunk_ps"
    return memory.check("the evaluation", evaluator.run_chunk, (prepared, replicas), advice)


def with_longer_lists(system: System) -> System:
    """The system with a larger capacity of its neighbor lists."""
    return system.with_potential(forms.with_longer_lists(system.problem.potential))


def _report(progress: Progress, schedule: Schedule, done: int, replicas: Replica) -> None:
    fraction = float(replicas.is_frozen.mean())
    done_ps, horizon_ps = (chunks * schedule.ps_per_chunk for chunks in (done, schedule.num_chunks))
    progress.update(
        f"{done_ps:g}/{horizon_ps:g} ps, {100 * fraction:.0f} % unstable",
        done / schedule.num_chunks,
        simulated_ps=float(replicas.step.sum()) * schedule.ps_per_step,
        fraction_unstable=fraction,
    )


def _evaluation(evaluator: Evaluator, params: Params, measured: Measured) -> Evaluation:
    replicas = measured.replicas
    if measured.totals.num_frames.sum() == 0:
        raise ValueError(
            f"no replica was stable until its first frame at {evaluator.schedule.frame_spacing_fs:g} fs, so there is "
            f"nothing to average; {_why(evaluator, params, replicas)}."
        )
    errors = label_errors(evaluator.system, params, evaluator.system.data.split.test)
    step, is_unstable, is_finite = processes.to_host((replicas.step, replicas.is_unstable, replicas.is_finite))
    return Evaluation(
        first_passage_ps=step * evaluator.schedule.ps_per_step,
        is_unstable=is_unstable,
        is_finite=is_finite,
        horizon_ps=np.asarray(evaluator.schedule.horizon_ps),
        averages=_averages(evaluator.system.evaluation, measured.totals),
        early=_averages(evaluator.system.evaluation, measured.early),
        energy_mae=np.asarray(errors.energy_mae),
        force_mae=np.asarray(errors.force_mae),
    )


def _averages(evaluation: Evaluated, totals: Totals) -> Averages:
    structure = mean_observables(totals)
    return Averages(
        num_frames=totals.num_frames.sum(),
        temperature_K=np.asarray(structure.pop("temperature") / units.BOLTZMANN_EV_PER_K),
        structure=structure,
        motion=mean_motion(totals),
        standard_error=_standard_errors(evaluation, totals),
    )


def _standard_errors(evaluation: Evaluated, totals: Totals) -> dict[str, np.ndarray]:
    kelvin = lambda kT: float(kT) / units.BOLTZMANN_EV_PER_K  # noqa: E731
    found = {TEMPERATURE: standard_error(totals, "temperature", kelvin)}
    for measure in evaluation.measures:
        reference = evaluation.structure_reference[measure.name]
        figure = partial(_figure, measure, reference)
        found[measure.metric] = standard_error(totals, measure.name, figure)
    return found


def _figure(measure: Measure, reference: np.ndarray, structure: np.ndarray) -> float:
    return measure.factor * measure.error_fn(structure, reference)


def _why(evaluator: Evaluator, params: Params, replicas: Replica) -> str:
    starts = evaluator.start(evaluator.prepare(params))
    step, is_finite = processes.to_host((replicas.step, replicas.is_finite))
    num_lost, most_steps = int((~is_finite).sum()), int(step.max())
    criterion = evaluator.system.evaluation.criterion
    return causes.sentence(evaluator.system, criterion, params, starts, num_lost=num_lost, most_steps=most_steps)


def label_errors(system: System, params: Params, index: np.ndarray) -> losses.LabelErrors:
    """Mean absolute errors on frames.

    Args:
      system: its potential and data.
      params: of the potential.
      index: of the frames.
    """
    qm_loss, data = system.problem.qm_loss(), system.data

    @jax.jit
    def mean_errors(params, frames):
        one = lambda frame: qm_loss(params, jax.tree.map(lambda leaf: leaf[None], frame))[1]  # noqa: E731
        return jax.tree.map(jnp.mean, lax.map(one, frames, batch_size=FRAME_BATCH))

    return mean_errors(params, data.labeled(index))
