"""Sums over samples in chunks, and averages over those of several devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from stablejax.types import Array, Float


def mean_of_devices(
    weight: Float[Array, " segment"], squares: Float[Array, " segment"], mean: Any, residual: Any, *, axis_name: str
) -> tuple[Any, Any, Any, Any]:
    """Moments of the samples of all devices from those of each, in one all-reduce.

    Each number is summed as an upper and a lower half of its digits. Sums of the upper halves are exact as long as the
    values of the devices have about the same magnitude, so the rounding error of the mean is known as well as on one
    device.

    Args:
      weight: sum of the weights of a device's samples.
      squares: sum of their squares.
      mean: pytree of [segment, ...], the mean of a device; anything finite where it has no sample.
      residual: rounding error of `mean`.
      axis_name: mapped axis of the devices.

    Returns:
      The same four for the samples of all devices.
    """

    def halves_of_sum(mean, residual):
        product, error = _exact_product(like(weight, mean), mean)
        upper, lower = _halves(product)
        return upper, lower + error + like(weight, mean) * residual

    parts = jax.tree.map(halves_of_sum, mean, residual)
    vector, split = ravel_pytree((_halves(weight), squares, parts))
    (upper_weight, lower_weight), squares, parts = split(lax.psum(vector, axis_name))
    weight = upper_weight + lower_weight
    weight_error = (upper_weight - weight) + lower_weight

    def mean_and_residual(upper, lower):
        by_weight, by_error = like(weight, upper), like(weight_error, upper)
        mean = (upper + lower) / by_weight
        product, error = _exact_product(by_weight, mean)
        return mean, ((upper - product) + (lower - error) - by_error * mean) / by_weight

    moved = jax.tree.map(lambda _, halves: mean_and_residual(*halves), mean, parts)
    mean, residual = jax.tree.transpose(jax.tree.structure(mean), jax.tree.structure((0, 0)), moved)
    return weight, squares, mean, residual


def _halves(x):
    """A number as the sum of two, each with half of its digits."""
    precision = jnp.finfo(x.dtype)
    upper = lax.reduce_precision(x, precision.nexp, precision.nmant // 2)
    return upper, x - upper


def _exact_product(a, b):
    """The product and its rounding error (Dekker, Numer. Math. 18, 224, 1971)."""
    product = a * b
    (upper_a, lower_a), (upper_b, lower_b) = _halves(a), _halves(b)
    return product, ((upper_a * upper_b - product) + upper_a * lower_b + lower_a * upper_b) + lower_a * lower_b


def like(factor, array):
    """`factor` with trailing axes of length 1, to broadcast against `array`.

    Args:
      factor: has at most as many axes as `array`.
      array: sets the number of axes.
    """
    return factor.reshape(factor.shape + (1,) * (array.ndim - factor.ndim))


def sum_over_chunks(fn: Callable[..., Any], num_samples: int, chunk_size: int | None) -> Any:
    """Σ over chunks of `fn(index, is_real)`, one after the other, which bounds the memory.

    Args:
      fn: of the numbers of the samples in a chunk, and which are real; the last chunk is filled up with the first.
      num_samples: in all.
      chunk_size: samples in each. None: all at once.
    """
    size = min(chunk_size or num_samples, num_samples)
    position = np.arange(-(-num_samples // size) * size)
    index = jnp.asarray(np.where(position < num_samples, position, 0).reshape(-1, size))
    chunks = index, jnp.asarray(position < num_samples).reshape(index.shape)
    if len(index) == 1:
        return fn(*(leaf[0] for leaf in chunks))
    shape = jax.eval_shape(fn, *(leaf[0] for leaf in chunks))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    return lax.scan(lambda total, one: (jax.tree.map(jnp.add, total, fn(*one)), None), zero, chunks)[0]
