"""Curves of the reference's motion, which those of simulations are compared with."""

from __future__ import annotations

import logging

import jax
import numpy as np

from experiments.stages.evaluate import Schedule
from experiments.systems.base import System
from stablejax.types import Frame

log = logging.getLogger("experiments.evaluate")


def motion(schedule: Schedule, system: System) -> dict[str, np.ndarray]:
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
