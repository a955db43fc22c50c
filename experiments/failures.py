"""The last frames of replicas that failed, as extended XYZ for a quantum-chemistry code to label."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import pdist

from experiments import disk, processes, trajectories
from experiments.systems.base import System
from stablejax import dynamics
from stablejax.dynamics import Replica
from stablejax.integrators import Integrator
from stablejax.stable import StableState
from stablejax.types import Array, Bool, Criterion, Frame, stateful

if TYPE_CHECKING:
    from ase import Atoms

OFFSETS_FS = {"before": (-20.0, -10.0), "at": (0.0,), "after": (10.0,)}
"""Times of the frames that are kept, relative to the violation."""
SAME_FRAME_A = 0.2
"""Two failures of the same atoms whose distances differ by less than this are one."""


class Point(NamedTuple):
    """What a replayed replica is written from."""

    frame: Frame
    involved: Bool[Array, "*replica atom"]  # atoms that the value of the criterion depends on
    step: Array
    is_finite: Array


class FailureFile:
    """At most a number of failures in one file, each with the frames before, at and after the violation.

    A failure is kept once: not again for the same replica, nor where it looks like another one.
    """

    def __init__(self, path: Path, *, max_failures: int):
        self._path, self._max_failures = path, max_failures
        self._frames = read(path)

    @property
    def room(self) -> int:
        """How many more failures are kept."""
        return self._max_failures - len({frame.info["replica"] for frame in self._frames})

    def add(self, failures: list[list[Atoms]]) -> None:
        """Write the frames of failures beside those that are kept."""
        before = len(self._frames)
        for frames in failures:
            if self.room and not any(_is_same(frames, kept) for kept in self._at_violation()):
                self._frames += frames
        if len(self._frames) > before and processes.is_first():
            text = io.StringIO()
            _write(text, self._frames)
            disk.write_text(self._path, text.getvalue())

    def _at_violation(self) -> list[Atoms]:
        return [frame for frame in self._frames if frame.info["when"] == "at"]


class Replayer(NamedTuple):
    """Simulates on through violations of a criterion, under `jit`."""

    run: Callable[..., tuple[Replica, Point]]  # (prepared, replicas, until_step [replica]) -> (replicas, point)
    criterion_name: str


def replayer(system: System, integrator: Integrator, criterion: Criterion, criterion_name: str) -> Replayer:
    """Repeats what replicas did, and goes on.

    Args:
      system: what is simulated.
      integrator: that the replicas were simulated with.
      criterion: that they failed by.
      criterion_name: written beside each frame.
    """
    criterion = stateful(criterion)

    def one(prepared, given):
        replica, until_step = given
        replica = dynamics.advance(integrator, criterion, prepared, replica, until_step, freeze_above=float("inf"))
        frame = dynamics.frame_at(integrator, prepared, replica)
        slope = jax.grad(lambda frame: criterion.step(replica.criterion, frame)[1])(frame)
        moved = jnp.stack([jnp.any(leaf != 0, axis=-1) for leaf in (slope.position, slope.velocity, slope.force)])
        return replica, Point(frame, jnp.any(moved, axis=0), replica.step, replica.is_finite)

    run = system.execution.map_replicas(one, is_active=lambda given: ~given[0].is_frozen)
    replay = jax.jit(lambda prepared, replicas, until_step: run(prepared, (replicas, until_step)))
    return Replayer(replay, criterion_name)


def find(system: System, replay: Replayer, prepared: Any, before: Replica, after: Replica) -> list[list[Atoms]]:
    """Frames of the replicas that failed between two states, simulated once more from the first.

    Args:
      system: what is simulated.
      replay: from `replayer`.
      prepared: parameters, as the dynamics took them.
      before: a state.
      after: a later state of the same replicas.
    """
    has_failed, step, started = processes.to_host((after.is_unstable & ~before.is_unstable, after.step, before.step))
    failed = np.flatnonzero(has_failed).tolist()
    if not failed:
        return []
    replicas = before._replace(is_frozen=before.is_frozen | ~jnp.asarray(has_failed))
    found: dict[int, list[Atoms]] = {index: [] for index in failed}
    for when, offset_fs in ((when, offset) for when, offsets in OFFSETS_FS.items() for offset in offsets):
        until = step + round(offset_fs / system.timestep_fs)
        replicas, points = replay.run(prepared, replicas, jnp.asarray(np.where(has_failed, until, 0)))
        points = processes.to_host(points)
        for index in failed:
            point = jax.tree.map(lambda leaf, index=index: leaf[index], points)
            if started[index] < until[index] == point.step and (point.is_finite or when == "at"):
                info = {"replica": index, "when": when, "time_to_violation_fs": offset_fs}
                found[index].append(_atoms(system, point, info | {"criterion": replay.criterion_name}))
    return [frames for frames in found.values() if any(frame.info["when"] == "at" for frame in frames)]


def _atoms(system: System, point: Point, info: dict[str, Any]) -> Atoms:
    atoms = trajectories.atoms(system.data.dataset, point.frame.position)
    assert point.frame.energy is not None and point.frame.force is not None  # known in dynamics
    atoms.info |= info | {
        "step": int(point.step),
        "time_fs": int(point.step) * system.timestep_fs,
        "model_energy_eV": float(point.frame.energy) + system.data.offset,
    }
    atoms.arrays["involved"] = np.asarray(point.involved, bool)
    atoms.arrays["model_forces"] = np.asarray(point.frame.force, float)
    return atoms


class TrainingFailures:
    """Keeps the failures of simulation phases of StABlE training.

    Args:
      file: that they are kept in.
    """

    def __init__(self, file: FailureFile):
        self._file = file
        self._built: tuple[System, Callable, Replayer] | None = None

    def add(self, system: System, state: StableState) -> None:
        """Keep the replicas that failed in the last step of simulation.

        Args:
          system: what is simulated, with the neighbor lists of that step.
          state: after the step.
        """
        if not self._file.room:
            return
        if self._built is None or self._built[0] is not system:
            form = system.problem.potential.fast(system.table_intervals)
            integrator = system.thermostat(form, system.problem.mass, kT=system.problem.kT)
            replay = replayer(system, integrator, system.problem.criterion, system.train_criterion_name)
            self._built = system, jax.jit(form.prepare), replay
        _, prepare, replay = self._built
        before, after = state.simulation.checkpoint, state.simulation.replicas
        self._file.add(find(system, replay, prepare(state.params), before, after))


def _is_same(frames: list[Atoms], kept: Atoms) -> bool:
    (mine,) = [frame for frame in frames if frame.info["when"] == "at"]
    if mine.info["replica"] == kept.info["replica"]:
        return True
    if not np.array_equal(mine.arrays["involved"], kept.arrays["involved"]):
        return False
    return bool(np.abs(pdist(mine.positions) - pdist(kept.positions)).max() < SAME_FRAME_A)


def read(path: Path) -> list[Atoms]:
    """Frames of a file; none where there is none."""
    from ase.io import read as read_frames

    return cast("list[Atoms]", read_frames(path, index=":", format="extxyz")) if path.exists() else []


def _write(file: io.StringIO, frames: list[Atoms]) -> None:
    from ase.io import write

    write(file, frames, format="extxyz")
