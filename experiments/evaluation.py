"""The stage that measures: first passage from held-out starts, and what the potential gives until then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from experiments import memory, processes, systems
from experiments.progress import Progress
from experiments.systems import System
from stablejax import dynamics, losses, units
from stablejax.types import Frame, Params


class Evaluation(NamedTuple):
    """What simulation with one set of parameters gave. Observables are of stable frames only."""

    first_passage_ps: np.ndarray  # [replica]; the horizon where stable
    is_unstable: np.ndarray  # [replica]
    is_finite: np.ndarray  # [replica] False: stopped before a state that was not finite
    num_frames: np.ndarray  # [] stable frames
    temperature_K: np.ndarray  # [] mean kinetic temperature
    structure: dict[str, np.ndarray]  # means over the stable frames
    motion: dict[str, np.ndarray]  # [replica, lag] of whole windows; NaN for a replica without any
    energy_mae: np.ndarray  # [] eV, held-out frames
    force_mae: np.ndarray  # [] eV/Å


class Seen(NamedTuple):
    """What one chunk of simulation showed."""

    num_frames: jax.Array  # [] stable frames of all replicas
    num_overfull: jax.Array  # [] replicas that wait for longer neighbor lists: to be repeated
    total: dict[str, jax.Array]  # observables, summed over them
    is_whole: jax.Array  # [replica] stable for the whole chunk, so that its motion counts
    motion: dict[str, jax.Array]  # [replica, lag]


class Looks(NamedTuple):
    """Compiled once for an experiment: start the replicas of an evaluation, and run them for a chunk."""

    prepare: Callable[[Params], Any]
    start: Callable[[Any], dynamics.Replica]
    look: Callable[[Any, dynamics.Replica], tuple[dynamics.Replica, Seen]]


def build_evaluation(config: ConfigDict, system: System) -> Looks:
    """Starts, velocities and noise depend on the config only, so they are the same for any parameters."""
    settings = config.evaluate
    steps_per_frame = systems.whole(settings.frame_spacing_fs / config.md.timestep_fs, "evaluate.frame_spacing_fs")
    frames_per_chunk = systems.whole(settings.chunk_ps * 1000 / settings.frame_spacing_fs, "evaluate.chunk_ps")

    def look_at_one(prepared, replica):
        replica, (frame, is_valid) = dynamics.sample(
            system.integrator,
            system.evaluate_criterion,
            prepared,
            replica,
            num_frames=frames_per_chunk,
            steps_per_frame=steps_per_frame,
        )
        temperature = dynamics.kinetic_temperature(frame.velocity, system.mass, num_removed=system.num_removed)
        seen = jax.vmap(system.structure_fn)(frame.position) | {"temperature": temperature}
        total = jax.tree.map(
            partial(jnp.tensordot, is_valid.astype(jnp.float32), axes=1, precision=lax.Precision.HIGHEST), seen
        )
        return replica, Seen(jnp.sum(is_valid), replica.is_overfull, total, jnp.all(is_valid), system.motion_fn(frame))

    look_at_all = system.map_replicas(look_at_one, is_active=lambda replica: ~replica.is_frozen)

    # Buffers are given up, unless a chunk may have to be repeated.
    @partial(jax.jit, donate_argnames=None if system.with_more_pairs else "replicas")
    def look(prepared, replicas):
        replicas, seen = look_at_all(prepared, replicas)
        total = jax.tree.map(lambda x: jnp.sum(x, axis=0), seen.total)
        seen = seen._replace(num_frames=jnp.sum(seen.num_frames), num_overfull=jnp.sum(seen.num_overfull), total=total)
        return replicas, seen

    start = system.map_replicas(
        lambda prepared, one: dynamics.init_replica(
            system.integrator, one[0], prepared, one[1], system.evaluate_criterion
        )
    )
    position = systems.start_positions(system, system.split.test, settings.num_replicas)
    keys = jax.random.split(systems.key_for(config, "evaluate"), settings.num_replicas)
    return Looks(
        prepare=jax.jit(system.md_form.prepare),
        start=jax.jit(lambda prepared: start(prepared, (keys, position))),
        look=look,
    )


def run_evaluation(config: ConfigDict, system: System, looks: Looks, params: Params, progress: Progress) -> Evaluation:
    """First passage from held-out starts, and observables of the frames before it."""
    settings = config.evaluate
    num_chunks = systems.whole(settings.horizon_ps / settings.chunk_ps, "evaluate.horizon_ps")
    prepared = looks.prepare(params)
    replicas = looks.start(prepared)
    memory.check("the evaluation", looks.look, (prepared, replicas), "lower config.evaluate.num_replicas or chunk_ps")
    chunks: list[Seen] = []
    while len(chunks) < num_chunks:
        before, (replicas, seen) = replicas, looks.look(prepared, replicas)
        if int(seen.num_overfull):
            system, replicas = systems.lengthen_lists(system, progress), before
            looks = build_evaluation(config, system)
            continue
        chunks.append(jax.tree.map(lambda x: x.astype(np.float64), processes.to_host(seen)))
        fraction = float(replicas.is_frozen.mean())
        progress.update(
            f"{len(chunks) * settings.chunk_ps:g}/{settings.horizon_ps:g} ps, {100 * fraction:.0f} % unstable",
            len(chunks) / num_chunks,
            simulated_ps=float(replicas.step.sum()) * config.md.timestep_fs / 1000,
            fraction_unstable=fraction,
        )
        if fraction == 1:
            break
    num_frames = sum(seen.num_frames for seen in chunks)
    if num_frames == 0:
        raise ValueError(
            f"no replica was stable until its first frame at {settings.frame_spacing_fs:g} fs, so there is nothing to "
            "average: the potential is too poor to simulate; raise config.pretrain.num_steps."
        )
    structure = jax.tree.map(lambda *parts: sum(parts) / num_frames, *(seen.total for seen in chunks))
    errors = label_errors(system, params, system.split.test)
    step, is_unstable, is_finite = processes.to_host((replicas.step, replicas.is_unstable, replicas.is_finite))
    return Evaluation(
        first_passage_ps=step * config.md.timestep_fs / 1000,
        is_unstable=is_unstable,
        is_finite=is_finite,
        num_frames=np.asarray(num_frames),
        temperature_K=np.asarray(structure.pop("temperature") / units.BOLTZMANN_EV_PER_K),
        structure=structure,
        motion=_mean_motion(chunks),
        energy_mae=np.asarray(errors.energy_mae),
        force_mae=np.asarray(errors.force_mae),
    )


def _mean_motion(chunks: list[Seen]) -> dict[str, np.ndarray]:
    """[replica, lag] mean over the chunks that count; NaN for a replica without any."""
    is_whole = np.stack([seen.is_whole for seen in chunks])[:, :, None] > 0
    num_windows = is_whole.sum(axis=0)

    def mean(*windows):
        total = np.where(is_whole, np.stack(windows), 0.0).sum(axis=0)
        return np.divide(total, num_windows, out=np.full(total.shape, np.nan), where=num_windows > 0)

    return jax.tree.map(mean, *(seen.motion for seen in chunks))


def reference_motion(config: ConfigDict, system: System) -> dict[str, np.ndarray]:
    """[window, lag] curves of the reference: those beside the data, or of its velocities in windows like ours.

    Without either, and where their frames are not spaced as those of the evaluation, there are none.
    """
    dataset, settings = system.dataset, config.evaluate
    if dataset.motion is not None and dataset.motion_spacing_fs == settings.frame_spacing_fs:
        return dataset.motion
    if dataset.velocity is None or dataset.trajectory is None or dataset.frame_spacing_fs != settings.frame_spacing_fs:
        return {}
    size = round(settings.chunk_ps * 1000 / settings.frame_spacing_fs)
    runs = [np.flatnonzero(dataset.trajectory == run) for run in np.unique(dataset.trajectory)]
    windows = [run[start : start + size] for run in runs for start in range(0, len(run) - size + 1, size)]
    fn = jax.jit(system.motion_fn)
    curves = [fn(Frame(dataset.position[window], dataset.velocity[window])) for window in windows]
    return jax.tree.map(lambda *some: np.stack(some), *curves)


def label_errors(system: System, params: Params, index: np.ndarray) -> losses.LabelErrors:
    """Mean absolute errors on frames."""

    @jax.jit
    def mean_errors(params, frames):
        one = lambda frame: system.qm_loss(params, jax.tree.map(lambda leaf: leaf[None], frame))[1]  # noqa: E731
        return jax.tree.map(jnp.mean, lax.map(one, frames, batch_size=systems.FRAME_BATCH))

    return mean_errors(params, systems.labeled(system, index))
