"""Smooth functions of a distance as tables of cubic pieces: the fast form of radial networks in molecular dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from stablejax.types import Array, Float


class RadialTable(NamedTuple):
    """Cubic Hermite pieces in power form on equal steps from 0 to the cutoff."""

    coefficient: Float[Array, "interval 4 channel"]
    spacing: Float[Array, ""]  # Å


def radial_table(
    radial_fn: Callable[[Float[Array, " r"]], Float[Array, "r channel"]], *, cutoff: float, num_intervals: int
) -> RadialTable:
    """Tabulate a function of distance from its values at equally spaced knots and its slopes there and halfway.

    The slope is the parabola through its three exact values in each interval, so it is continuous, with an error of at
    most √3 h³/216 · max|f⁗| with h = cutoff / num_intervals; the value is its integral, continuous to O(h⁵). Taking
    the slope from differences of float32 values instead would lose it to rounding as h falls.

    Args:
      radial_fn: maps distances, Å, to channels; differentiable.
      cutoff: end of the table, Å. Beyond it the table gives its last value.
      num_intervals: number of pieces.

    Raises:
      ValueError: fewer than one interval.
    """
    if num_intervals < 1:
        raise ValueError(f"`radial_table`: `num_intervals` must be at least 1, got {num_intervals}.")
    spacing = cutoff / num_intervals
    point = jnp.linspace(0.0, cutoff, 2 * num_intervals + 1)
    value, slope = jax.jvp(radial_fn, (point,), (jnp.ones_like(point),))
    slope = slope * spacing
    left, middle, right = slope[:-1:2], slope[1::2], slope[2::2]
    quadratic = 0.5 * (4 * middle - 3 * left - right)
    cubic = (2 / 3) * (left - 2 * middle + right)
    coefficient = jnp.stack([value[:-1:2], left, quadratic, cubic], axis=1)
    return RadialTable(coefficient, jnp.asarray(spacing, value.dtype))


@jax.custom_jvp
def evaluate(table: RadialTable, distance: Float[Array, " r"]) -> Float[Array, "r channel"]:
    """The tabulated function at `distance`, Å. Differentiable once, in distance and in the coefficients of the table.

    Args:
      table: from `radial_table`.
      distance: Å.
    """
    return _value_and_slope(table, distance)[0]


def _evaluate_jvp(primals, tangents):
    table, distance = primals
    moved, moved_distance = tangents
    value, slope = _value_and_slope(table, distance)
    tangent = jnp.zeros_like(value)
    if not isinstance(moved_distance, SymbolicZero):
        # A product with ones transposes into one with ones, which is a faster sum over channels.
        ones = jnp.ones((1, slope.shape[1]), slope.dtype)
        tangent = slope * jnp.matmul(moved_distance[:, None], ones, precision=lax.Precision.HIGHEST)
    if not isinstance(moved.coefficient, SymbolicZero):
        # The value is linear in the coefficients. In dynamics they are constants, and this term is absent.
        tangent += _value_and_slope(RadialTable(moved.coefficient, table.spacing), distance)[0]
    return value, tangent


evaluate.defjvp(_evaluate_jvp, symbolic_zeros=True)


def _value_and_slope(table, distance):
    scaled = distance / table.spacing
    last = table.coefficient.shape[0] - 1
    interval = jnp.clip(scaled.astype(jnp.int32), 0, last)
    u = jnp.minimum(scaled - interval, 1.0)
    rate = (scaled < last + 1) / table.spacing
    coefficient = table.coefficient[interval]
    one, zero = jnp.ones_like(u), jnp.zeros_like(u)
    power = jnp.stack([one, u, u * u, u * u * u], axis=1)
    power_slope = jnp.stack([zero, rate, 2 * u * rate, 3 * u * u * rate], axis=1)
    # Sums, not nested products: XLA does not recompute a sum at each use of its result.
    value = jnp.sum(power[:, :, None] * coefficient, axis=1)
    return value, jnp.sum(power_slope[:, :, None] * coefficient, axis=1)
