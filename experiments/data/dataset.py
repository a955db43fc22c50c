"""A data set as the stages use it, in internal units."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from stablejax.space import OPEN, Space, periodic

log = logging.getLogger("experiments.data")


class Dataset(NamedTuple):
    """Labeled frames of one system, in eV, Å and amu."""

    species: np.ndarray  # [atom] atomic numbers
    position: np.ndarray  # [frame, atom, 3] float32, Å
    energy: np.ndarray  # [frame] float64, eV
    force: np.ndarray  # [frame, atom, 3] float32, eV/Å
    velocity: np.ndarray | None  # [frame, atom, 3] float32, internal units; None: not in the file
    trajectory: np.ndarray | None  # [frame] number of the trajectory; frames of one are consecutive
    frame_spacing_fs: float | None
    cell: np.ndarray | None = None  # [3, 3] lattice vectors in rows, Å; None: open boundaries
    is_wrapped: bool = False  # positions are moved into the cell, atom by atom
    motion: dict[str, np.ndarray] | None = None  # [window, lag] curves of the reference's dynamics; see `evaluation`
    motion_spacing_fs: float | None = None
    mass: np.ndarray | None = None  # [atom] float32; None: those of the elements
    temperature_K: float | None = None  # that the simulation was at, where the file states it
    state: dict[str, Any] | None = None  # total charge and multiplicity, where the file states them; only compared

    @property
    def space(self) -> Space:
        """Boundaries of the system."""
        return OPEN if self.cell is None else periodic(self.cell)


class Keys(NamedTuple):
    """Names of entries of the file; empty: the known ones."""

    energy: str = ""
    force: str = ""
    mass: str = ""


@contextmanager
def located(where: str) -> Iterator[None]:
    """An exception inside carries the place in the file where it was raised."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


def nearest_images(vector: np.ndarray, space: Space) -> np.ndarray:
    """Vectors to nearest periodic images in double precision, as they are in open boundaries.

    Args:
      vector: [..., 3] Å.
      space: of the data set.
    """
    if space.reduced is None:
        return vector
    return vector - np.round(vector @ np.linalg.inv(space.reduced)) @ space.reduced
