"""The Boltzmann estimator: derivatives of ensemble averages with respect to the parameters of the potential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from stablejax.types import Array, Bool, EnergyFn, Float, ObservableFn, Params


def expectation(
    energy_fn: EnergyFn, observable_fn: ObservableFn, *, kT: float, chunk_size: int | None = None
) -> Callable[..., Any]:
    """The mean of an observable over samples of exp(−U_θ/k_B T), differentiable with respect to θ.

    Its value is the sample mean, its derivative the N-sample Boltzmann estimator (Equation 6), unbiased:

        ∂E[g]/∂θ = −1/(k_B T) · 1/(N−1) · Σ_i (g_i − ḡ) ∂U_θ(x_i)/∂θ

    Forward and reverse mode both work; neither forms a per-sample gradient or a Jacobian. The samples are constants:
    nothing is differentiated through whatever produced them.

    Args:
      energy_fn: `(params, sample) -> U`, scalar, in the unit of kT.
      observable_fn: `sample -> g`, a pytree of arrays.
      kT: k_B T of the samples.
      chunk_size: samples looked at together; bounds the memory of the observable. None: all.

    Returns:
      `(params, samples, mask=None) -> mean of g`. `samples` has the sample on axis 0 of every leaf; samples with mask
      False count as nothing, neither in the mean nor in N. Where fewer than 2 count, the derivative is NaN.

    Raises:
      ValueError: kT is not positive; fewer than 2 samples; sample axes that differ.
    """
    _check_kT("expectation", kT)

    @jax.custom_jvp
    def mean(params, centred, average, samples):
        del params, centred, samples
        return average

    @mean.defjvp
    def mean_jvp(primals, tangents):
        params, centred, average, samples = primals
        # A linear function of the tangent: JAX transposes it into one reverse pass over one weighted sum of energies.
        energies = lambda p: jax.vmap(energy_fn, (None, 0))(p, samples)  # noqa: E731
        energy_tangent = jax.jvp(energies, (params,), (tangents[0],))[1]
        return average, jax.tree.map(lambda c: jnp.tensordot(energy_tangent, c, axes=1) / -kT, centred)

    def expectation_fn(params: Params, samples: Any, mask: Bool[Array, " sample"] | None = None):
        samples, mask = _counted("expectation", samples, mask)
        average, centred = _mean_and_centred(_over_samples(observable_fn, samples, chunk_size), mask)
        return mean(params, centred, average, samples)

    return expectation_fn


def boltzmann_grad(
    loss_fn: Callable[[Any], Float[Array, ""]],
    energy_fn: EnergyFn,
    observable_fn: ObservableFn,
    *,
    kT: float,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> Callable[..., tuple[Float[Array, ""], Params]]:
    """Turns a loss of an ensemble average into its value and its gradient with respect to the potential's parameters.

    The chain rule of Equation 5 with the Boltzmann estimator of Equation 6, contracted before anything is formed: with
    v = ∂L/∂E[g] and c_i = v·(g_i − ḡ),

        dL/dθ = −1/(k_B T) · 1/(N−1) · Σ_i c_i ∂U_θ(x_i)/∂θ

    is one reverse pass over one weighted sum of energies, the gradient of `loss_fn(expectation(...)(θ))`.

    Args:
      loss_fn: mean observable -> scalar.
      energy_fn: `(params, sample) -> U`, scalar, in the unit of kT.
      observable_fn: `sample -> g`, a pytree of arrays.
      kT: k_B T of the samples.
      chunk_size: samples whose energies are differentiated together; bounds the memory, whatever N. None: all.
      axis_name: mapped axis over which samples are shared; mean, N and gradient are then those of all of them.

    Returns:
      `(params, samples, mask=None) -> (loss, gradient)`; see `expectation` for `samples` and `mask`.

    Raises:
      ValueError: kT is not positive; fewer than 2 samples; sample axes that differ.
    """
    _check_kT("boltzmann_grad", kT)

    def value_and_grad(params: Params, samples: Any, mask: Bool[Array, " sample"] | None = None):
        samples, mask = _counted("boltzmann_grad", samples, mask, is_shared=axis_name is not None)
        observable = _over_samples(observable_fn, samples, chunk_size)
        average, centred = _mean_and_centred(observable, mask, axis_name)
        loss, cotangent = jax.value_and_grad(loss_fn)(average)
        weights = jax.tree.map(lambda v, c: jnp.tensordot(c, v, axes=v.ndim) / -kT, cotangent, centred)
        gradient = _weighted_gradient(energy_fn, params, samples, sum(jax.tree.leaves(weights)), chunk_size)
        return loss, gradient if axis_name is None else lax.psum(gradient, axis_name)

    return value_and_grad


def _weighted_gradient(energy_fn, params, samples, weight, chunk_size):
    """∂/∂θ of Σ_i w_i U_θ(x_i), a chunk at a time."""

    def gradient(chunk, chunk_weight):
        weighted = lambda p: jnp.vdot(chunk_weight, jax.vmap(energy_fn, (None, 0))(p, chunk))  # noqa: E731
        return jax.grad(weighted)(params)

    num_samples = len(weight)
    if chunk_size is None or chunk_size >= num_samples:
        return gradient(samples, weight)
    num_chunks = -(-num_samples // chunk_size)
    # The last chunk is filled up with the first sample, at weight 0.
    index = jnp.where(jnp.arange(num_chunks * chunk_size) < num_samples, jnp.arange(num_chunks * chunk_size), 0)
    padded_weight = jnp.where(jnp.arange(num_chunks * chunk_size) < num_samples, weight[index], 0)

    def add_chunk(total, chunk):
        chunk_index, chunk_weight = chunk
        part = gradient(jax.tree.map(lambda leaf: leaf[chunk_index], samples), chunk_weight)
        return jax.tree.map(jnp.add, total, part), None

    shape = (num_chunks, chunk_size)
    zero = jax.tree.map(jnp.zeros_like, params)
    return lax.scan(add_chunk, zero, (index.reshape(shape), padded_weight.reshape(shape)))[0]


def _over_samples(fn, samples, chunk_size):
    return jax.vmap(fn)(samples) if chunk_size is None else lax.map(fn, samples, batch_size=chunk_size)


def _mean_and_centred(observable, mask, axis_name=None):
    """ḡ, and (g_i − ḡ)/(N − 1) with 0 for the samples that do not count."""
    total = lambda x: x if axis_name is None else lax.psum(x, axis_name)  # noqa: E731
    count = total(jnp.sum(mask))

    def masked(g):
        return mask.reshape((-1,) + (1,) * (g.ndim - 1))

    average = jax.tree.map(lambda g: total(jnp.sum(jnp.where(masked(g), g, 0), axis=0)) / count, observable)
    centred = jax.tree.map(lambda g, m: jnp.where(masked(g), g - m, 0) / (count - 1), observable, average)
    return average, centred


def _counted(name, samples, mask, *, is_shared=False):
    """Samples as constants, and their mask; those that do not count are replaced by one that does."""
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(samples)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"`{name}`: every leaf of `samples` needs the sample on axis 0, got sizes {sorted(map(str, sizes))}: "
            "give all leaves the same leading axis."
        )
    (num_samples,) = sizes
    if num_samples < 2 and not is_shared:
        raise ValueError(f"`{name}`: the estimator needs at least 2 samples, got {num_samples}: pass more samples.")
    samples = lax.stop_gradient(samples)
    if mask is None:
        return samples, jnp.ones(num_samples, bool)
    mask = jnp.asarray(mask, bool)
    if mask.shape != (num_samples,):
        raise ValueError(f"`{name}`: `mask` needs shape ({num_samples},), got {mask.shape}: one entry per sample.")
    # What does not count may be anything, NaN included, and 0 · NaN would count.
    stand_in = jnp.where(mask, jnp.arange(num_samples), jnp.argmax(mask))
    return jax.tree.map(lambda leaf: leaf[stand_in], samples), mask


def _check_kT(name, kT):
    if not kT > 0:
        raise ValueError(f"`{name}`: `kT` must be positive, got {kT}: pass k_B T in the unit of the energy.")
