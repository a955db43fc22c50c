"""Trajectories of an evaluation, as ASE reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.io import read

from experiments.data.loaders import Dataset
from experiments.trajectories import TrajectoryFiles

CELL = np.array([[4.0, 0, 0], [1, 5, 0], [0, 0, 6]])


def files(folder):
    dataset = Dataset(np.array([8, 1]), *[np.zeros(0)] * 3, None, None, None, cell=CELL)
    return TrajectoryFiles(folder, "after", num_replicas=2, dataset=dataset, frame_spacing_fs=10.0)


def chunk(number):
    """Of two replicas, three frames in which every coordinate tells which it is; the second fails in chunk 1."""
    frame = np.arange(3)[:, None, None] + 3 * number
    position = np.stack([np.broadcast_to(frame, (3, 2, 3)), 100.0 + np.broadcast_to(frame, (3, 2, 3))])
    return position, np.array([[True] * 3, [number == 0] * 3])


def read_all(path) -> Any:
    return read(path, index=":")


def test_stable_frames_of_each_replica_stand_in_a_file_of_its_own(tmp_path):
    kept = files(tmp_path)
    for number in range(2):
        kept.add(*chunk(number), num_frames=3 * number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trajectory_after_0.xyz", "trajectory_after_1.xyz"]
    first, second = (read_all(tmp_path / f"trajectory_after_{replica}.xyz") for replica in range(2))
    assert [frame.info["time_fs"] for frame in first] == [10, 20, 30, 40, 50, 60]
    assert [frame.positions[1, 2] for frame in first] == [0, 1, 2, 3, 4, 5]
    assert [frame.positions[0, 0] for frame in second] == [100, 101, 102]  # until its failure
    assert {frame.info["replica"] for frame in second} == {1}
    np.testing.assert_array_equal(first[0].numbers, [8, 1])
    np.testing.assert_allclose(first[0].cell, CELL)
    assert first[0].pbc.all() and not first[0].info["wrapped"]


def test_frames_after_a_checkpoint_are_written_once(tmp_path):
    kept = files(tmp_path)
    kept.add(*chunk(0), num_frames=0)
    sizes = kept.sizes
    kept.add(*chunk(1), num_frames=3)
    again = files(tmp_path)
    again.resume_at(sizes)
    again.add(*chunk(1), num_frames=3)
    assert len(read_all(tmp_path / "trajectory_after_0.xyz")) == 6
    again.resume_at([0, 0])
    assert again.sizes == [0, 0]
