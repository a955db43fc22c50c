"""Trajectories of an evaluation as extended XYZ, one file for each replica, as ASE and viewers read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments import disk
from experiments.data.loaders import Dataset

if TYPE_CHECKING:
    from ase import Atoms


def atoms(dataset: Dataset, position) -> Atoms:
    """A frame of the system of a data set.

    Args:
      dataset: provides elements and cell.
      position: [atom, 3] Å, not wrapped into the cell.
    """
    from ase import Atoms

    frame = Atoms(numbers=dataset.species, positions=np.asarray(position, float))
    if dataset.cell is not None:
        frame.set_cell(dataset.cell)
        frame.pbc = True
        frame.info["wrapped"] = False
    return frame


class TrajectoryFiles:
    """Stable frames of the first replicas of an evaluation, appended chunk by chunk.

    Args:
      folder: that the files are in.
      phase: in their names, `trajectory_PHASE_REPLICA.xyz`.
      num_replicas: that are kept.
      dataset: provides elements and cell.
      frame_spacing_fs: of the frames.
    """

    def __init__(self, folder: Path, phase: str, *, num_replicas: int, dataset: Dataset, frame_spacing_fs: float):
        self._paths = [folder / f"trajectory_{phase}_{replica}.xyz" for replica in range(num_replicas)]
        self._dataset, self._frame_spacing_fs = dataset, frame_spacing_fs

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file: what a checkpoint keeps, to go on from."""
        return [path.stat().st_size if path.exists() else 0 for path in self._paths]

    def resume_at(self, sizes: Sequence[int]) -> None:
        """Drop what was written after a checkpoint, and is written again."""
        for path, size in zip(self._paths, sizes, strict=True):
            with disk.writing(path), path.open("ab") as file:
                file.truncate(size)

    def add(self, position: np.ndarray, is_valid: np.ndarray, *, num_frames: int) -> None:
        """Append the frames of a chunk.

        Args:
          position: [replica, frame, atom, 3] Å, of as many replicas as are kept.
          is_valid: [replica, frame] False from the violation on.
          num_frames: that were before the chunk.
        """
        from ase.io import write

        for replica, path in enumerate(self._paths):
            frames = []
            for index in np.flatnonzero(is_valid[replica]):
                frame = atoms(self._dataset, position[replica, index])
                time_fs = (num_frames + int(index) + 1) * self._frame_spacing_fs
                frame.info |= {"replica": replica, "time_fs": time_fs}
                frames.append(frame)
            if frames:
                with disk.writing(path):
                    write(path, frames, format="extxyz", append=True)
