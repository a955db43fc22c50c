"""Samples of one potential as samples of another, and choices among samples: what gives samples their weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from stablejax.types import Array, Bool, Float, Int, Key


def perturbation_weights(
    energy: Float[Array, " sample"], sampled_energy: Float[Array, " sample"], *, kT: float | Float[Array, " sample"]
) -> Float[Array, " sample"]:
    """Weights w_i ∝ exp(−(U_θ(x_i) − U_θ₀(x_i))/k_B T) that make samples of θ₀ count as samples of θ.

    Thermodynamic perturbation, as DiffTRe trains with (Thaler and Zavadlav, Nat. Commun. 12, 6884, 2021). Passed as
    `weight` to `expectation` or `boltzmann_grad` they give mean and derivative at θ; at θ = θ₀ they are 1 and change
    nothing. The largest is 1, so nothing overflows. They are constants to JAX: the estimator knows the derivative.

    Args:
      energy: U_θ of the samples, in the unit of kT.
      sampled_energy: U_θ₀, of the potential that they were sampled with.
      kT: k_B T, one for all or one for each sample.
    """
    exponent = lax.stop_gradient(-(energy - sampled_energy) / kT)
    return jnp.exp(exponent - jnp.max(exponent))


def effective_sample_size(
    weight: Float[Array, " sample"], mask: Bool[Array, " sample"] | None = None
) -> Float[Array, ""]:
    """N_eff = (Σ w)² / Σ w² (Kish): how many samples of equal weight would be worth as much."""
    weight = weight if mask is None else jnp.where(mask, weight, 0)
    return jnp.sum(weight) ** 2 / jnp.sum(weight**2)


def sample_energies(
    energy_fn: Callable[..., Float[Array, ""]], *, chunk_size: int | None = None
) -> Callable[..., Float[Array, " sample"]]:
    """`(*parameters, samples) -> U [sample]`, a chunk at a time."""

    def energies(*parameters_and_samples):
        *parameters, samples = parameters_and_samples
        num_samples = len(jax.tree.leaves(samples)[0])
        return lax.map(lambda sample: energy_fn(*parameters, sample), samples, batch_size=chunk_size or num_samples)

    return energies


def balanced_subsample(
    key: Key, value: Float[Array, " sample"], edges: Float[Array, " edge"], *, num_per_bin: int
) -> tuple[Int[Array, " chosen"], Bool[Array, " chosen"]]:
    """The same number of samples from each bin of a value, without replacement (A.6, for the water system).

    Rare samples, as strongly stretched bonds, then count as much as common ones. The chosen are not distributed as the
    ensemble is, so their mean observable is not the ensemble's: that is the paper's choice, and biased.

    Args:
      key: PRNG key.
      value: what is binned. A NaN is in no bin.
      edges: ascending; a bin has its lower edge and not its upper. Samples outside are not chosen.
      num_per_bin: n.

    Returns:
      Index of n · (number of bins) samples, in the order of the bins, and a mask: False where a bin has fewer than n.

    Raises:
      ValueError: fewer than 2 edges; n is under 1 or over the number of samples.
    """
    num_bins, num_samples = len(edges) - 1, len(value)
    if num_bins < 1 or not 1 <= num_per_bin <= num_samples:
        raise ValueError(
            f"`balanced_subsample`: needs at least 2 `edges` and 1 <= num_per_bin <= {num_samples} samples, got "
            f"{num_bins + 1} edges and num_per_bin = {num_per_bin}."
        )
    in_bin = (value >= edges[:-1, None]) & (value < edges[1:, None])
    # In random order, those of the bin first.
    order = jnp.where(in_bin, jax.random.uniform(key, (num_samples,)), 2.0)
    index = jnp.argsort(order, axis=1)[:, :num_per_bin]
    return index.reshape(-1), jnp.take_along_axis(in_bin, index, axis=1).reshape(-1)
