"""The evaluation stage: first passage from held-out starts, and observables until then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from experiments import failures, memory, processes
from experiments.failures import FailureFile, Point, replayer
from experiments.progress import Progress
from experiments.stages import causes
from experiments.systems import base
from experiments.systems.base import System
from stablejax import dynamics, forms, integrators, losses, units
from stablejax.dynamics import Replica
from stablejax.integrators import Integrator
from stablejax.problem import Problem
from stablejax.types import Array, Frame, Params

log = logging.getLogger("experiments.evaluate")


class Evaluation(NamedTuple):
    """Results of simulations with one set of parameters. Observables are of stable frames only."""

    first_passage_ps: np.ndarray  # [replica]; the horizon where stable
    is_unstable: np.ndarray  # [replica]
    is_finite: np.ndarray  # [replica] False: stopped before a state that was not finite
    num_frames: np.ndarray  # [] stable frames
    temperature_K: np.ndarray  # [] mean kinetic temperature
    structure: dict[str, np.ndarray]  # means over the stable frames
    motion: dict[str, np.ndarray]  # [replica, lag] of whole windows; NaN for a replica without any
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

    @property
    def ps_per_chunk(self) -> float:
        """Time simulated between two checks by the host."""
        return self.frames_per_chunk * self.frame_spacing_fs / 1000


class ChunkStatistics(NamedTuple):
    """Statistics of one chunk of simulation."""

    num_frames: Array  # [] stable frames of all replicas
    num_overflows: Array  # [] replicas paused by an overflow of their neighbor list: the chunk has to be repeated
    total: dict[str, Array]  # observables, summed over them
    is_whole: Array  # [replica] stable for the whole chunk, so that its motion counts
    motion: dict[str, Array]  # [replica, lag]


class Evaluator(NamedTuple):
    """Compiled once for an experiment: start the replicas of an evaluation, and run them for a chunk."""

    system: System
    schedule: Schedule
    prepare: Callable[[Params], Any]
    start: Callable[[Any], Replica]
    run_chunk: Callable[[Any, Replica], tuple[Replica, ChunkStatistics]]
    replay: Callable[..., tuple[Replica, Point]]  # see `failures.replayer`


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
        total = jax.tree.map(lambda x: jnp.sum(x, axis=0), stats.total)
        counts = dict(num_frames=jnp.sum(stats.num_frames), num_overflows=jnp.sum(stats.num_overflows))
        return replicas, stats._replace(**counts, total=total)

    start = execution.map_replicas(
        lambda prepared, one: dynamics.init_replica(integrator, one[0], one[1], prepared, criterion)
    )
    position = system.data.starts(system.data.split.test, schedule.num_replicas)
    keys = jax.random.split(base.key_for(schedule.seed, "evaluate"), schedule.num_replicas)
    start_all = jax.jit(lambda prepared: start(prepared, (keys, position)))
    return Evaluator(system, schedule, jax.jit(form.prepare), start_all, run_chunk, replayer(system, integrator))


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
    return replica, ChunkStatistics(jnp.sum(is_valid), replica.did_overflow, total, jnp.all(is_valid), motion)


def run_evaluation(
    evaluator: Evaluator,
    params: Params,
    progress: Progress,
    *,
    on_longer_lists: Callable[[Problem], None] = lambda _: None,
    failure_file: FailureFile | None = None,
) -> tuple[Evaluation, Evaluator]:
    """First passage from held-out starts, and observables of the frames before it.

    Args:
      evaluator: from `build`.
      params: of the potential.
      progress: updated after every chunk.
      on_longer_lists: called with the problem whenever its lists were lengthened.
      failure_file: keeps the last frames of replicas that fail. None: they are not kept.

    Returns:
      The results, and the evaluator with the neighbor lists that it needed.

    Raises:
      ValueError: no replica was stable until the first frame, or the memory does not suffice.
    """
    schedule = evaluator.schedule
    prepared = evaluator.prepare(params)
    replicas = evaluator.start(prepared)
    check_memory(evaluator, prepared, replicas)
    chunks: list[ChunkStatistics] = []
    while len(chunks) < schedule.num_chunks:
        room = 0 if failure_file is None else failure_file.room
        # The chunk takes the buffers of its replicas, unless there are neighbor lists.
        before = jax.tree.map(jnp.copy, replicas) if room else replicas
        replicas, stats = evaluator.run_chunk(prepared, replicas)
        if int(stats.num_overflows):
            progress.say("a neighbor list overflowed: lists are made longer and the chunk is repeated")
            evaluator, replicas = build(schedule, with_longer_lists(evaluator.system)), before
            on_longer_lists(evaluator.system.problem)
            continue
        if failure_file is not None and room:
            failure_file.add(failures.find(evaluator.system, evaluator.replay, prepared, before, replicas))
        chunks.append(jax.tree.map(lambda x: x.astype(np.float64), processes.to_host(stats)))
        fraction = _report(progress, schedule, len(chunks), replicas)
        if fraction == 1:
            break
    return _evaluation(evaluator, params, replicas, chunks), evaluator


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


def _report(progress: Progress, schedule: Schedule, done: int, replicas: Replica) -> float:
    """Report the progress of the evaluation; returns the fraction that is unstable."""
    fraction = float(replicas.is_frozen.mean())
    done_ps, horizon_ps = (chunks * schedule.ps_per_chunk for chunks in (done, schedule.num_chunks))
    progress.update(
        f"{done_ps:g}/{horizon_ps:g} ps, {100 * fraction:.0f} % unstable",
        done / schedule.num_chunks,
        simulated_ps=float(replicas.step.sum()) * schedule.ps_per_step,
        fraction_unstable=fraction,
    )
    return fraction


def _evaluation(evaluator: Evaluator, params: Params, replicas: Replica, chunks: list[ChunkStatistics]) -> Evaluation:
    num_frames = sum(stats.num_frames for stats in chunks)
    if num_frames == 0:
        raise ValueError(
            f"no replica was stable until its first frame at {evaluator.schedule.frame_spacing_fs:g} fs, so there is "
            f"nothing to average; {_why(evaluator, params, replicas)}."
        )
    structure = jax.tree.map(lambda *parts: sum(parts) / num_frames, *(stats.total for stats in chunks))
    errors = label_errors(evaluator.system, params, evaluator.system.data.split.test)
    step, is_unstable, is_finite = processes.to_host((replicas.step, replicas.is_unstable, replicas.is_finite))
    return Evaluation(
        first_passage_ps=step * evaluator.schedule.ps_per_step,
        is_unstable=is_unstable,
        is_finite=is_finite,
        num_frames=np.asarray(num_frames),
        temperature_K=np.asarray(structure.pop("temperature") / units.BOLTZMANN_EV_PER_K),
        structure=structure,
        motion=_mean_motion(chunks),
        energy_mae=np.asarray(errors.energy_mae),
        force_mae=np.asarray(errors.force_mae),
    )


def _why(evaluator: Evaluator, params: Params, replicas: Replica) -> str:
    starts = evaluator.start(evaluator.prepare(params))
    step, is_finite = processes.to_host((replicas.step, replicas.is_finite))
    num_lost, most_steps = int((~is_finite).sum()), int(step.max())
    criterion = evaluator.system.evaluation.criterion
    return causes.sentence(evaluator.system, criterion, params, starts, num_lost=num_lost, most_steps=most_steps)


def _mean_motion(chunks: list[ChunkStatistics]) -> dict[str, np.ndarray]:
    """[replica, lag] mean over the chunks that a replica completed; NaN for one without any."""
    is_whole = np.stack([stats.is_whole for stats in chunks])[:, :, None] > 0
    num_windows = is_whole.sum(axis=0)

    def mean(*windows):
        total = np.where(is_whole, np.stack(windows), 0.0).sum(axis=0)
        return np.divide(total, num_windows, out=np.full(total.shape, np.nan), where=num_windows > 0)

    return jax.tree.map(mean, *(stats.motion for stats in chunks))


def reference_motion(schedule: Schedule, system: System) -> dict[str, np.ndarray]:
    """[window, lag] curves of the reference: those in the data set, or computed from its velocities in equal windows.

    Empty without either, and where frames are spaced otherwise than those of the evaluation, which is said.

    Args:
      schedule: of the evaluation.
      system: provides the data.
    """
    dataset, size, spacing_fs = system.data.dataset, schedule.frames_per_chunk, schedule.frame_spacing_fs
    if dataset.motion is not None and _is_near(dataset.motion_spacing_fs, spacing_fs):
        return dataset.motion
    if dataset.velocity is None or dataset.trajectory is None:
        return {}
    if not _is_near(dataset.frame_spacing_fs, spacing_fs):
        log.warning(
            "note: the reference has no motion, its frames are %s fs apart, those of the evaluation %g fs: set "
            "config.evaluate.frame_spacing_fs.",
            *(dataset.frame_spacing_fs or "an unknown number of", spacing_fs),
        )
        return {}
    runs = [np.flatnonzero(dataset.trajectory == run) for run in np.unique(dataset.trajectory)]
    windows = [run[start : start + size] for run in runs for start in range(0, len(run) - size + 1, size)]
    if not windows:
        log.warning("note: the reference has no motion, none of its trajectories has %d frames.", size)
        return {}
    fn = jax.jit(system.evaluation.motion_fn)
    # Undo the jumps of molecules that were wrapped into the cell.
    position = [dataset.space.unwrap(dataset.position[window]) for window in windows]
    curves = [fn(Frame(x, dataset.velocity[window])) for x, window in zip(position, windows, strict=True)]
    return jax.tree.map(lambda *some: np.stack(some), *curves)


def _is_near(found_fs: float | None, wanted_fs: float) -> bool:
    """Whether two spacings of frames are the same up to rounding in a file."""
    return found_fs is not None and bool(np.isclose(found_fs, wanted_fs, rtol=1e-4))


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
        return jax.tree.map(jnp.mean, lax.map(one, frames, batch_size=base.FRAME_BATCH))

    return mean_errors(params, data.labeled(index))
