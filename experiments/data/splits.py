"""Frames for training, validation and test, and for references, of which none is another one moved."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from experiments.data.dataset import Dataset, nearest_images
from stablejax.space import Pairs

SAME_FRAME = 1e-4
"""Frames whose distances between atoms all differ by less than this, Å, are the same: float32 and text resolve 1e-5."""
BLOCK = 4096
"""Frames that are compared with those of the test at a time."""


class Split(NamedTuple):
    """Indices of disjoint frames."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(dataset: Dataset, *, num_train: int, num_validation: int, num_test: int, seed: int) -> Split:
    """Disjoint random frames for training, validation and test.

    Where the data set states the trajectory of each frame, a quarter of the trajectories (at least one) is held out and
    test frames come from there only, so that they are not close in time to training frames.

    Raises:
      ValueError: too few frames, or the same frame in training and test.
    """
    rng = np.random.default_rng(seed)
    frames = np.arange(len(dataset.position))
    if (is_held_out := of_held_out_trajectories(dataset)) is not None:
        learnable, testable = rng.permutation(frames[~is_held_out]), rng.permutation(frames[is_held_out])
    else:
        permuted = rng.permutation(frames)
        learnable, testable = permuted[: len(frames) - num_test], permuted[len(frames) - num_test :]
    wanted = num_train + num_validation
    if min(num_train, num_validation, num_test) < 1 or wanted > len(learnable) or num_test > len(testable):
        raise ValueError(
            f"asked for {num_train} training, {num_validation} validation and {num_test} test frames, but there are "
            f"{len(learnable)} to learn from and {len(testable)} to test on: change config.data.num_train, "
            "num_validation or num_test."
        )
    chosen = Split(learnable[:num_train], learnable[num_train:wanted], testable[:num_test])
    _check_test_is_new(dataset, chosen.test, learnable)
    return chosen


def of_held_out_trajectories(dataset: Dataset) -> np.ndarray | None:
    """Whether each frame is of a trajectory that is held out, which is a quarter of them; None without trajectories.

    Args:
      dataset: all frames.
    """
    if dataset.trajectory is None or len(runs := np.unique(dataset.trajectory)) < 2:
        return None
    return np.isin(dataset.trajectory, runs[-max(1, len(runs) // 4) :])


def reference_frames(dataset: Dataset, split: Split, *, num: int, seed: int) -> np.ndarray:
    """Indices of the frames that references of observables are means over: no test frames, nor their trajectories.

    Where the data set states the trajectory of each frame, all frames of trajectories with test frames are left out.
    Labels of these frames are not used: a simulation without energies and forces serves as well.

    Args:
      dataset: all frames.
      split: its test frames are left out.
      num: frames to draw; 0: all that remain.
      seed: of the run.

    Raises:
      ValueError: fewer frames remain.
    """
    is_held_out = np.zeros(len(dataset.position), bool)
    is_held_out[split.test] = True
    if dataset.trajectory is not None and len(np.unique(dataset.trajectory)) > 1:
        is_held_out = np.isin(dataset.trajectory, dataset.trajectory[split.test])
    left = np.flatnonzero(~is_held_out)
    if num > len(left):
        raise ValueError(
            f"config.data.num_reference asks for {num} frames, but only {len(left)} are not held out for the test: "
            "ask for fewer, or for 0, which takes all of them."
        )
    return np.sort(np.random.default_rng([seed, 2]).permutation(left)[:num]) if num else left


def check_bonds_kept(dataset: Dataset, bonds: Pairs, *, threshold: float) -> None:
    """Raise if a bond of the reference itself deviates by more than the threshold.

    Args:
      dataset: the reference.
      bonds: as found in it.
      threshold: largest allowed deviation of a bond from its median length, Å.
    """
    length = np.linalg.norm(dataset.position[:, bonds.first] - dataset.position[:, bonds.second], axis=-1)
    deviation = np.abs(length - np.median(length, axis=0))
    frame, bond = np.unravel_index(np.argmax(deviation), deviation.shape)
    if deviation[frame, bond] > threshold:
        raise ValueError(
            f"frame {frame}: the bond {bonds.first[bond]}-{bonds.second[bond]} is {length[frame, bond]:.2f} Å long, "
            f"its median is {np.median(length[:, bond]):.2f} Å: the atoms change their order between "
            "frames or the bond breaks in the reference; give every frame the same order of atoms, or remove the frame."
        )


def _check_test_is_new(dataset: Dataset, test: np.ndarray, others: np.ndarray) -> None:
    """Refuse a test frame that is learned from or in the reference, also where it was rotated or translated."""
    for block in np.array_split(others, -(-len(others) // BLOCK)):
        if dataset.position.shape[1] > 2:
            distance = cdist(_shape(dataset, test), _shape(dataset, block), "chebyshev")
            row, column = np.unravel_index(np.argmin(distance), distance.shape)
            is_same = distance[row, column] < SAME_FRAME
        else:  # Two molecules of one bond have the same length by chance.
            same = (dataset.position[test][:, None] == dataset.position[block]).all(axis=(2, 3))
            row, column = np.unravel_index(np.argmax(same), same.shape)
            is_same = same[row, column]
        if is_same:
            raise ValueError(
                f"frame {block[column]} is the same as frame {test[row]}, rotations and translations aside, which is "
                "held out for the test: errors on it, and averages against references with the other, would mean "
                "nothing; remove duplicate frames from the data set."
            )


def _shape(dataset: Dataset, index: np.ndarray) -> np.ndarray:
    """Distances of all atoms from the first two, [frame, 2 · atom] Å: what rotations and translations leave."""
    position = dataset.position[index].astype(float)
    vector = nearest_images(position[:, None] - position[:, :2, None], dataset.space)
    return np.linalg.norm(vector, axis=-1).reshape(len(index), -1)
