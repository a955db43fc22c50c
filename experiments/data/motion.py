"""Positions that float32 resolves, and trajectories without the jumps of wrapping."""

from __future__ import annotations

import numpy as np

from experiments.data.dataset import Dataset, log

FAR = 64.0
"""Å from the origin at which float32 still resolves 1e-5 Å."""
FOLLOWED = 0.8
"""Largest step of an atom between frames, relative to half the smallest height of the cell, that is followed."""


def centered(where: str, dataset: Dataset) -> Dataset:
    """The same frames near the origin, where they were far from it; positions are in float64 until here.

    All frames are moved by one vector, or each by its own where boundaries are open and they are far from each other.

    Args:
      where: the file, for messages.
      dataset: in Å.

    Raises:
      ValueError: they are too far from each other.
    """
    position = dataset.position
    if np.abs(position).max() > FAR:
        position = position - position[0].mean(axis=0)
        if np.abs(position).max() > FAR and dataset.cell is None:
            position = position - position.mean(axis=1, keepdims=True)
    if (largest := np.abs(position).max()) > 100 * FAR:
        frame = int(np.unravel_index(np.argmax(np.abs(position)), position.shape)[0])
        raise ValueError(
            f"{where}: frame {frame} has atoms {largest:.3g} Å from the first frame or from each other, which float32 "
            "does not resolve: check config.data.length_unit, or remove the frame."
        )
    return dataset._replace(position=position)


def unwrapped(where: str, dataset: Dataset) -> Dataset:
    """Wrapped trajectories made continuous in time, atom by atom; molecules may still be split by the cell.

    Where atoms move too far between frames to be followed, the frames have no dynamics: no spacing in time.

    Args:
      where: the file, for messages.
      dataset: with positions in Å.
    """
    if not dataset.is_wrapped or dataset.trajectory is None or dataset.frame_spacing_fs is None:
        return dataset
    space, position = dataset.space, dataset.position.copy()
    largest, frame = 0.0, 0
    for run in np.unique(dataset.trajectory):
        index = np.flatnonzero(dataset.trajectory == run)
        position[index] = space.unwrap(position[index])
        if len(index) > 1:
            step = np.linalg.norm(np.diff(position[index], axis=0), axis=-1).max(axis=1)
            if step.max() > largest:
                largest, frame = float(step.max()), int(index[np.argmax(step) + 1])
    if largest <= FOLLOWED * float(space.reach):
        return dataset._replace(position=position)
    log.warning(
        "note: %s: an atom moves by %.3g Å before frame %d, so that wrapped trajectories cannot be followed in time: "
        "the reference has no motion; save positions that are not wrapped.",
        *(where, largest, frame),
    )
    return dataset._replace(frame_spacing_fs=None)
