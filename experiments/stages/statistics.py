"""Statistics of an evaluation: those of a chunk of simulation, and their sums on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from stablejax.types import Array


class ChunkStatistics(NamedTuple):
    """Statistics of one chunk of simulation."""

    num_frames: Array  # [replica] stable frames
    num_overflows: Array  # [] replicas paused by an overflow of their neighbor list: the chunk has to be repeated
    total: dict[str, Array]  # [replica, ...] observables, summed over them
    is_whole: Array  # [replica] stable for the whole chunk, so that its motion counts
    motion: dict[str, Array]  # [replica, lag]
    position: Array  # [kept replica, frame, atom, 3] Å, of replicas whose trajectory is kept
    is_valid: Array  # [kept replica, frame] False from the violation on


class Totals(NamedTuple):
    """Statistics of the chunks so far, summed in double precision on the host."""

    num_chunks: np.ndarray  # []
    num_frames: np.ndarray  # [replica] stable frames
    total: dict[str, np.ndarray]  # [replica, ...] observables, summed over them
    num_windows: np.ndarray  # [replica] whole chunks
    motion: dict[str, np.ndarray]  # [replica, lag] summed over them


def added(totals: Totals, stats: ChunkStatistics) -> Totals:
    """The totals with another chunk.

    Args:
      totals: of the chunks before.
      stats: of the chunk, in double precision on the host.
    """
    is_whole = np.asarray(stats.is_whole) > 0

    def of_whole_windows(total, windows):
        return total + np.where(is_whole[:, None], windows, 0.0)

    return Totals(
        totals.num_chunks + 1,
        totals.num_frames + stats.num_frames,
        jax.tree.map(np.add, totals.total, stats.total),
        totals.num_windows + is_whole,
        jax.tree.map(of_whole_windows, totals.motion, stats.motion),
    )


def of_replicas(stats: ChunkStatistics, is_counted: np.ndarray) -> ChunkStatistics:
    """The statistics of some of the replicas, those of the others as of replicas that have failed.

    Args:
      stats: of the chunk.
      is_counted: [replica].
    """

    def kept(values):
        return np.where(is_counted.reshape(-1, *[1] * (np.ndim(values) - 1)), values, 0)

    return stats._replace(
        num_frames=kept(stats.num_frames), total=jax.tree.map(kept, stats.total), is_whole=kept(stats.is_whole)
    )


def mean_motion(totals: Totals) -> dict[str, np.ndarray]:
    """[replica, lag] mean over the chunks that a replica completed; NaN for one without any."""
    num_windows = totals.num_windows[:, None]

    def mean(total):
        return np.divide(total, num_windows, out=np.full(total.shape, np.nan), where=num_windows > 0)

    return jax.tree.map(mean, totals.motion)


def mean_observables(totals: Totals) -> dict[str, np.ndarray]:
    """Means over the stable frames of all replicas."""
    return jax.tree.map(lambda total: total.sum(axis=0) / totals.num_frames.sum(), totals.total)


def standard_error(totals: Totals, name: str, measure_fn: Callable[[np.ndarray], float] = float) -> np.ndarray:
    """Standard error of a figure of the mean of an observable, by the jackknife over replicas; NaN for fewer than two.

    Args:
      totals: of an evaluation.
      name: of the observable.
      measure_fn: the figure of the mean.
    """
    has_frames = totals.num_frames > 0
    number, total = totals.num_frames[has_frames], totals.total[name][has_frames]
    num_replicas = len(number)
    if num_replicas < 2:
        return np.asarray(np.nan)
    without = [
        measure_fn((total.sum(axis=0) - one) / (number.sum() - count)) for one, count in zip(total, number, strict=True)
    ]
    return np.sqrt((num_replicas - 1) * np.var(without))
