"""Error measures of simulated averages against a reference, and confidence intervals of means over replicas."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from stablejax.types import Float


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    num: int  # number of values


def mean_absolute_error(found: Float[np.ndarray, "*shape"], reference: Float[np.ndarray, "*shape"]) -> float:
    """Mean of |found − reference| over all entries.

    Args:
      found: any array.
      reference: of the same shape.
    """
    return float(np.abs(found - reference).mean())


def spurious_peak(found: Float[np.ndarray, "*shape"], reference: Float[np.ndarray, "*shape"]) -> float:
    """Largest value where the reference is exactly 0: a peak of a distribution where there should be nothing.

    Args:
      found: any array.
      reference: of the same shape.
    """
    return float(np.max(found, where=reference == 0, initial=0.0))


def mean_ratio(found: Float[np.ndarray, "*shape"], reference: Float[np.ndarray, "*shape"]) -> float:
    """Mean of found / reference over all entries: 1 for equal ones.

    Args:
      found: any array.
      reference: of the same shape, positive.
    """
    return float(np.mean(found / reference))


def total_variation_distance(found: Float[np.ndarray, "*shape"], reference: Float[np.ndarray, "*shape"]) -> float:
    """½ Σ |p − q| of two histograms of fractions: 0 for equal, 1 for disjoint ones.

    Args:
      found: fractions, which sum to 1.
      reference: of the same shape.
    """
    return 0.5 * float(np.abs(found - reference).sum())


def errors_of_replicas(
    curves: Float[np.ndarray, "replica lag"], reference: Float[np.ndarray, " lag"]
) -> Float[np.ndarray, " whole"]:
    """Mean absolute error of the curve of each replica; those that contain a NaN are left out.

    Args:
      curves: for example velocity autocorrelation functions; NaN where a replica was not stable for a window.
      reference: their mean in the reference.
    """
    return np.abs(curves - reference).mean(axis=1)[np.isfinite(curves).all(axis=1)]


def mean_interval(values: Float[np.ndarray, " replica"]) -> Interval | None:
    """Mean over independent values with Student's 95 % interval; None where fewer than two are finite.

    Args:
      values: of replicas; what is not finite is left out.
    """
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half), len(values))
