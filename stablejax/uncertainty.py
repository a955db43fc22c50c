"""Statistical errors of samples and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from stablejax.collective import like
from stablejax.types import Array, Float, Int, Params


class Autocorrelation(NamedTuple):
    """Integrated autocorrelation time of the samples of a trajectory, in units of their spacing."""

    time: Float[Array, ""]  # integrated autocorrelation time τ, 0 for independent samples
    inefficiency: Float[Array, ""]  # statistical inefficiency g = 1 + 2τ
    num_effective: Float[Array, ""]  # all samples / g


# The shape of `series`, [trajectory, time], is checked inside, so the annotation leaves it open.
def autocorrelation(series: Float[Array, "..."]) -> Autocorrelation:
    """Integrated autocorrelation time τ = Σ_{t>0} C(t)/C(0) of equally spaced samples of one quantity.

    The sum ends where Geyer's initial positive sequence does (Stat. Sci. 7, 473, 1992): at the first pair of lags with
    C(2t) + C(2t + 1) ≤ 0. The mean is that of all trajectories, so disagreement between trajectories increases τ.

    Args:
      series: independent trajectories, each in order of time.

    Raises:
      ValueError: not two-dimensional, or fewer than 4 times.
    """
    if jnp.ndim(series) != 2 or series.shape[1] < 4:
        raise ValueError(
            f"`autocorrelation`: `series` needs shape [trajectory, time] with at least 4 times, got "
            f"{jnp.shape(series)}: put one trajectory in each row."
        )
    num_times = series.shape[1]
    deviation = series - jnp.mean(series)
    # Zero-padded, so that the correlation is not circular.
    spectrum = jnp.fft.rfft(deviation, n=2 * num_times, axis=1)
    correlation = jnp.mean(jnp.fft.irfft(jnp.abs(spectrum) ** 2, n=2 * num_times, axis=1)[:, :num_times], axis=0)
    correlation = correlation / jnp.arange(num_times, 0, -1)
    correlation = jnp.where(correlation[0] > 0, correlation / correlation[0], 0)
    pairs = correlation[: num_times // 2 * 2].reshape(-1, 2).sum(axis=1)
    is_before_end = jnp.cumprod(pairs > 0)
    time = jnp.maximum(jnp.sum(jnp.where(is_before_end, pairs, 0)) - 1, 0)
    inefficiency = 1 + 2 * time
    return Autocorrelation(time, inefficiency, series.size / inefficiency)


class JackknifeGradient(NamedTuple):
    """A gradient with its statistical error."""

    value: Any  # of the loss
    gradient: Params
    standard_error: Params
    signal_to_noise: Float[Array, ""]  # ‖gradient‖ / √Σ standard_error²


def jackknife_gradient(
    value_and_grad: Callable[..., tuple[Any, Params]], *, num_blocks: int
) -> Callable[..., JackknifeGradient]:
    """Standard error of a Boltzmann gradient by the delete-one-block jackknife.

    Samples of one block are left out together, so blocks should be independent of each other: whole replicas, or
    segments of a trajectory much longer than its autocorrelation time. The loss may be any function of the means.

    Args:
      value_and_grad: from `boltzmann_value_and_grad`, without auxiliary data. It is called once for each block.
      num_blocks: B.

    Returns:
      `(*parameters, samples, *, block, **counts) -> JackknifeGradient` with `block` [sample] from 0 to B − 1, and
      `counts` what `value_and_grad` takes (`mask`, `weight`, `state`, `group`); the mask may be [sample, neighborhood].

    Raises:
      ValueError: fewer than 2 blocks.
    """
    if num_blocks < 2:
        raise ValueError(f"`jackknife_gradient`: the jackknife needs at least 2 blocks, got {num_blocks}.")

    def jackknife(*parameters_and_samples, block: Int[Array, " sample"], mask=None, **counts) -> JackknifeGradient:
        block = jnp.asarray(block)
        mask = jnp.ones(len(block), bool) if mask is None else jnp.asarray(mask)
        value, gradient = value_and_grad(*parameters_and_samples, mask=mask, **counts)

        def leave_out(sums, index):
            # Differences from the full gradient: sums of its squares would lose them to cancellation.
            kept = mask & like(block != index, mask)
            _, without = value_and_grad(*parameters_and_samples, mask=kept, **counts)
            difference = jax.tree.map(jnp.subtract, without, gradient)
            total, squares = sums
            return (
                jax.tree.map(jnp.add, total, difference),
                jax.tree.map(lambda s, d: s + d * d, squares, difference),
            ), None

        zero = jax.tree.map(jnp.zeros_like, gradient)
        (total, squares), _ = lax.scan(leave_out, (zero, zero), jnp.arange(num_blocks))
        factor = (num_blocks - 1) / num_blocks
        variance = jax.tree.map(lambda t, s: factor * jnp.maximum(s - t * t / num_blocks, 0), total, squares)
        noise = jnp.sqrt(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(variance)))
        return JackknifeGradient(value, gradient, jax.tree.map(jnp.sqrt, variance), optax.tree.norm(gradient) / noise)

    return jackknife


def cosine(first: Params, second: Params) -> Float[Array, ""]:
    """Cosine of the angle between two gradients: −1 where they are opposed, 0 where one of them is 0.

    Args:
      first: pytree of arrays.
      second: of the same structure.
    """
    norms = optax.tree.norm(first) * optax.tree.norm(second)
    return optax.tree.vdot(first, second) / jnp.where(norms == 0, 1, norms)


def samples_needed(num_samples: int, signal_to_noise: float | Float[Array, ""], *, wanted: float) -> Float[Array, ""]:
    """Samples after which the signal-to-noise ratio would be `wanted`, since noise falls as 1/√N.

    Args:
      num_samples: that gave the ratio.
      signal_to_noise: ‖gradient‖ over its standard error.
      wanted: target ratio; where the present one is as large, no more samples are needed.
    """
    return num_samples * jnp.maximum(wanted / signal_to_noise, 1) ** 2
