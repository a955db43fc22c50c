"""Evaluation of stability: first-passage times with right censoring, and comparisons of them."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from scipy import stats

from stablejax.types import Bool, Float


class Survival(NamedTuple):
    """Kaplan–Meier estimate of the fraction still stable, a step function that is 1 at time 0."""

    time: Float[np.ndarray, " step"]  # times at which it falls, and the horizon
    stable: Float[np.ndarray, " step"]
    low: Float[np.ndarray, " step"]  # 95 % pointwise, log-log
    high: Float[np.ndarray, " step"]


class Median(NamedTuple):
    """Median first-passage time with its 95 % interval. A bound that was not reached is the horizon."""

    value: float
    low: float
    high: float
    is_censored: bool  # fewer than half failed: `value` is the horizon, a lower bound


class Ratio(NamedTuple):
    """Ratio of two medians with its 95 % interval."""

    value: float
    low: float
    high: float
    is_lower_bound: bool  # the later median was censored


def survival(time: Float[np.ndarray, " replica"], is_unstable: Bool[np.ndarray, " replica"]) -> Survival:
    """Kaplan–Meier survival of replicas observed until they failed or the simulation ended.

    Args:
      time: first-passage time, or the time at which a stable replica's simulation ended.
      is_unstable: whether it failed; False is right censoring.

    Raises:
      ValueError: the arrays are empty or differ in shape, or a time is negative.
    """
    time, is_unstable = _checked(time, is_unstable)
    function = stats.ecdf(_censored(time, is_unstable)).sf
    if is_unstable.any():
        with warnings.catch_warnings():
            # Where everybody has failed, and where nobody has, the interval is not defined: dealt with below.
            warnings.filterwarnings("ignore", message="The confidence interval is undefined", category=RuntimeWarning)
            interval = function.confidence_interval(method="log-log")
        low, high = interval.low.probabilities, interval.high.probabilities
    else:
        low = high = function.probabilities
    low = np.where(np.isnan(low), function.probabilities, low)
    high = np.where(np.isnan(high), function.probabilities, high)
    return Survival(
        np.concatenate([[0.0], function.quantiles]),
        np.concatenate([[1.0], function.probabilities]),
        np.concatenate([[1.0], low]),
        np.concatenate([[1.0], high]),
    )


def median_first_passage(time: Float[np.ndarray, " replica"], is_unstable: Bool[np.ndarray, " replica"]) -> Median:
    """Kaplan–Meier median with the interval of Brookmeyer and Crowley (where the pointwise band contains one half)."""
    curve = survival(time, is_unstable)
    horizon = float(np.max(time))

    def crossing(probability):
        below = np.flatnonzero(probability <= 0.5)
        return float(curve.time[below[0]]) if len(below) else horizon

    return Median(
        value=crossing(curve.stable),
        low=crossing(curve.low),
        high=crossing(curve.high),
        is_censored=not (curve.stable <= 0.5).any(),
    )


def logrank_p(before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]) -> float:
    """Two-sided p-value of the log-rank test between two sets of `(time, is_unstable)`.

    The sets are treated as independent; where they share starts and seeds this is conservative. Where nothing failed in
    either there is no evidence of a difference: 1.
    """
    before, after = _checked(*before), _checked(*after)
    if not (before[1].any() or after[1].any()):
        return 1.0
    result = stats.logrank(_censored(*before), _censored(*after))
    return float(result.pvalue)


def ratio_of_medians(
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    num_resamples: int = 2000,
) -> Ratio:
    """Median first passage after over before, with a percentile bootstrap over the replicas.

    Replicas are resampled in pairs, since both sets have the same starts. Where the later median is censored it counts
    as the horizon, so ratio and interval are lower bounds.

    Raises:
      ValueError: the sets differ in size, or stable replicas of one set were simulated for different times.
    """
    before, after = _checked(*before), _checked(*after)
    if len(before[0]) != len(after[0]):
        raise ValueError(
            f"`ratio_of_medians`: expected the same replicas before and after, got {len(before[0])} and "
            f"{len(after[0])}: evaluate both from the same starts."
        )
    for time, is_unstable in (before, after):
        if len(horizons := np.unique(time[~is_unstable])) > 1:
            raise ValueError(
                "`ratio_of_medians`: expected all stable replicas to be simulated for the same time, got from "
                f"{horizons[0]:g} to {horizons[-1]:g}: cut all at the shortest."
            )
    resampled = np.random.default_rng(seed).integers(0, len(before[0]), (num_resamples, len(before[0])))
    ratios = _empirical_median(*after, resampled) / _empirical_median(*before, resampled)
    low, high = np.quantile(ratios, [0.025, 0.975])
    later = median_first_passage(*after)
    return Ratio(later.value / median_first_passage(*before).value, float(low), float(high), later.is_censored)


def _empirical_median(time, is_unstable, resampled):
    # All that were stable ended together, so Kaplan-Meier is the plain empirical curve.
    failed_at = np.where(is_unstable, time, np.inf)[resampled]
    needed = -(-len(time) // 2)
    return np.minimum(np.sort(failed_at, axis=1)[:, needed - 1], time[resampled].max(axis=1))


def _censored(time, is_unstable):
    return stats.CensoredData.right_censored(time, ~is_unstable)


def _checked(time, is_unstable):
    time, is_unstable = np.asarray(time, float), np.asarray(is_unstable, bool)
    if time.ndim != 1 or time.shape != is_unstable.shape or not len(time):
        raise ValueError(
            f"first-passage times and flags have to be one-dimensional and of one length, got {time.shape} and "
            f"{is_unstable.shape}."
        )
    if not (time >= 0).all():
        raise ValueError("first-passage times have to be non-negative numbers.")
    return time, is_unstable
