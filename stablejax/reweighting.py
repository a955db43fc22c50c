"""Reweighting: samples of one potential, or of one temperature, as samples of another."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp

from stablejax.types import Array, Bool, Float, Int


def perturbation_weights(
    energy: Float[Array, " sample"],
    sampled_energy: Float[Array, " sample"],
    *,
    kT: float | Float[Array, ""] | Float[Array, " sample"],
) -> Float[Array, " sample"]:
    """Weights w_i ∝ exp(−(U_θ(x_i) − U_θ₀(x_i))/k_B T) that turn samples of θ₀ into samples of θ.

    Thermodynamic perturbation, as DiffTRe trains with (Thaler and Zavadlav, Nat. Commun. 12, 6884, 2021). Passed as
    `weight` to `expectation` or `boltzmann_grad` they give mean and derivative at θ; at θ = θ₀ they are 1 and change
    nothing. The largest is 1, so nothing overflows. They are constants to JAX: the estimator already includes their
    derivative. A sample whose energy is not finite, in either potential, has the weight 0.

    Args:
      energy: U_θ of the samples, in the unit of kT.
      sampled_energy: U_θ₀, of the potential that they were sampled with.
      kT: k_B T, one for all or one for each sample.
    """
    return _normalized(-(energy - sampled_energy) / kT)


def temperature_weights(
    energy: Float[Array, " sample"], *, sampled_kT: float | Float[Array, ""], kT: float | Float[Array, ""]
) -> Float[Array, " sample"]:
    """Weights w_i ∝ exp(−U(x_i) (1/k_B T − 1/k_B T₀)) that turn samples at T₀ into samples at T (A.9).

    The largest is 1. `effective_sample_size` measures how many samples that leaves: few far from T₀.

    Args:
      energy: U of the samples, in the unit of kT.
      sampled_kT: k_B T₀ that they were sampled at.
      kT: k_B T that they are reweighted to.
    """
    return _normalized(-energy * (1 / kT - 1 / sampled_kT))


def mixture_energy(
    energy: Float[Array, "state sample"],
    num_samples: Int[Array, " state"],
    mask: Bool[Array, " sample"],
    *,
    kT: float | Float[Array, ""],
    num_iterations: int = 200,
) -> Float[Array, " sample"]:
    """The energy −k_B T ln Σ_k N_k exp(f_k − U_k(x)/k_B T) that samples of several states together are samples of.

    Passed as `sampled_energy` to `perturbation_weights` it gives the weights of MBAR (Shirts and Chodera, J. Chem.
    Phys. 129, 124105, 2008, Equations 9 and 13). The free energies f_k are those that agree with the samples (Equation
    11), by iteration; they are constants to JAX. With one state it is U up to a constant. States without a sample do
    not matter.

    Args:
      energy: U_k of every sample in every state, in the unit of kT.
      num_samples: N_k, of those that count.
      mask: which samples count; the energy of others is not used, and the result is not finite there.
      kT: k_B T of all states.
      num_iterations: the most of them; they end where no f_k changes by more than 1e-4.
    """
    is_used = mask & jnp.all(jnp.isfinite(energy), axis=0)
    reduced = lax.stop_gradient(jnp.where(is_used, energy, 0) / kT)
    mean = jnp.sum(reduced, axis=1, keepdims=True) / jnp.maximum(jnp.sum(is_used), 1)
    reduced = jnp.where(is_used, reduced - mean, 0)
    log_num = jnp.log(num_samples.astype(reduced.dtype))[:, None]  # -inf where there are none

    def log_density(free_energy) -> Float[Array, " sample"]:
        return logsumexp(log_num + free_energy[:, None] - reduced, axis=0)

    def improved(carried):
        free_energy, _, count = carried
        exponent = jnp.where(is_used, -reduced - log_density(free_energy), -jnp.inf)
        new = -logsumexp(exponent, axis=1)
        new = jnp.where(jnp.isfinite(new), new, 0)
        return new - new[0], jnp.max(jnp.abs(new - new[0] - free_energy)), count + 1

    def is_moving(carried) -> Bool[Array, ""]:
        return (carried[1] > 1e-4) & (carried[2] < num_iterations)

    start = jnp.zeros(len(energy), reduced.dtype), jnp.full((), jnp.inf, reduced.dtype), jnp.int32(0)
    free_energy, _, _ = lax.while_loop(is_moving, improved, start)
    return jnp.where(is_used, -kT * log_density(free_energy), jnp.inf)


def _normalized(exponent: Float[Array, " sample"]) -> Float[Array, " sample"]:
    exponent = lax.stop_gradient(exponent)
    is_finite = jnp.isfinite(exponent)
    largest = jnp.max(jnp.where(is_finite, exponent, -jnp.inf), initial=-jnp.inf)
    return jnp.where(is_finite, jnp.exp(exponent - jnp.where(jnp.isfinite(largest), largest, 0)), 0)


def effective_sample_size(
    weight: Float[Array, " sample"], mask: Bool[Array, " sample"] | None = None
) -> Float[Array, ""]:
    """N_eff = (Σ w)² / Σ w² (Kish): the equivalent number of samples of equal weight; 0 where all weights are 0.

    Args:
      weight: not negative, on any scale.
      mask: which count. None: all.
    """
    weight = weight if mask is None else jnp.where(mask, weight, 0)
    squares = jnp.sum(weight**2)
    return jnp.where(squares > 0, jnp.sum(weight) ** 2 / jnp.where(squares > 0, squares, 1), 0)


def sample_energies(
    energy_fn: Callable[..., Float[Array, "*neighborhood"]], *, chunk_size: int | None = None
) -> Callable[..., Float[Array, "sample *neighborhood"]]:
    """`(*parameters, samples) -> U [sample]`, or [sample, neighborhood], a chunk at a time.

    Args:
      energy_fn: `(*parameters, sample) -> U`.
      chunk_size: samples that are evaluated together. None: all.
    """

    def energies(*parameters_and_samples):
        *parameters, samples = parameters_and_samples
        num_samples = len(jax.tree.leaves(samples)[0])
        return lax.map(lambda sample: energy_fn(*parameters, sample), samples, batch_size=chunk_size or num_samples)

    return energies
