"""The Boltzmann estimator: derivatives of ensemble averages with respect to the parameters of the potential.

Everything here rests on one linear map. With probabilities p_i of the samples (1/N where no weights are given),

    ∂E[g]/∂θ = −1/(k_B T) · 1/(1 − Σ p_i²) · Σ_i p_i (g_i − ḡ) ∂U_θ(x_i)/∂θ

which for equal weights is the paper's Equation 6, unbiased, with 1/(N − 1). Contracted with the derivative of a loss it
is one reverse pass over one weighted sum of energies: no per-sample gradient and no Jacobian is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stablejax.covariance import Estimator, Localized, temperatures
from stablejax.types import Array, Bool, Float, Int


def localized(energies_fn: Callable[..., Float[Array, " neighborhood"]]) -> Localized:
    """For the estimator: every neighborhood of every sample counts as one (Equation 8).

    The observable then gives arrays with the neighborhood on axis 0, and mask and weight may be
    [sample, neighborhood]. With one neighborhood of all atoms it is the global estimator.

    Args:
      energies_fn: `(*parameters, sample) -> U(γ)`, for each neighborhood the sum of its atom energies; see
        `neighborhood_energies`. It has to be finite for all neighborhoods of a sample of which any counts.
    """
    return Localized(energies_fn)


def neighborhood_energies(
    atom_energy: Float[Array, " atom"], member: Bool[Array, "neighborhood atom"] | Int[Array, "neighborhood member"]
) -> Float[Array, " neighborhood"]:
    """U(γ) = Σ_{i ∈ γ} U_i (A.2) from the energies of the atoms.

    Args:
      atom_energy: eV.
      member: mask of the atoms of each neighborhood, or their indices, padded with −1.
    """
    member = jnp.asarray(member)
    if member.dtype == bool:
        return jnp.sum(jnp.where(member, atom_energy, 0), axis=1)
    return jnp.sum(jnp.where(member >= 0, atom_energy[member], 0), axis=1)


def expectation(
    energy_fn: Callable[..., Float[Array, ""]] | Localized,
    observable_fn: Callable[[Any], Any],
    *,
    kT: float | Sequence[float],
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """The mean of an observable over samples of exp(−U_θ/k_B T), differentiable in the parameters of U.

    The value is the (weighted) sample mean, the derivative the Boltzmann estimator (Equation 6). Forward and reverse
    mode both work, under `jit`, `vmap` and `scan` too, so that `jax.grad` of any function of it does, and `jax.jacrev`
    of it is the explicit Jacobian. Higher derivatives are not those of the mean.

    >>> import jax, jax.numpy as jnp
    >>> samples = jax.random.normal(jax.random.key(0), (100_000,)) / 2  # of ½ k x² with k = 4 and kT = 1
    >>> mean = expectation(lambda k, x: 0.5 * k * x**2, jnp.square, kT=1.0)
    >>> print(f"{mean(4.0, samples):.2f} {jax.grad(mean)(4.0, samples):.2f}")  # kT/k and -kT/k²
    0.25 -0.06

    Args:
      energy_fn: `(*parameters, sample) -> U`, scalar, in the unit of kT; or `localized`.
      observable_fn: `sample -> g`, a pytree of arrays.
      kT: k_B T of the samples; or one for each thermodynamic state, and the mean then has the state on axis 0.
      chunk_size: samples that are looked at together; bounds the memory. None: all.

    Returns:
      `(*parameters, samples, *, mask=None, weight=None, state=None) -> mean of g`. `samples` is a pytree with the
      sample on axis 0 of every leaf, and constant. `mask` [sample]: what is False counts as nothing, neither in the
      mean nor in N, and may be NaN. `weight` [sample]: not negative, on any scale. `state` [sample]: index into `kT`.
      The derivative is NaN where fewer than 2 samples of a state count.

    Raises:
      ValueError: kT is not positive; fewer than 2 samples; samples, mask, weight or state do not fit each other; the
        energy is not scalar; parameters are complex.
    """
    estimator = Estimator("expectation", energy_fn, observable_fn, temperatures("expectation", kT), chunk_size)

    @jax.custom_jvp
    def mean(parameters, samples, ensemble, moments):
        del parameters, samples, ensemble
        return moments.mean

    @mean.defjvp
    def mean_jvp(primals, tangents):
        parameters, samples, ensemble, moments = primals

        # Linear in the tangent, so JAX transposes it into one reverse pass, of which a chunk is kept at a time.
        @jax.checkpoint
        def weighted_energies(parameters, samples, ensemble):
            energies = estimator.energies(parameters, samples)
            coefficients = estimator.coefficients(samples, ensemble, moments)
            return jax.tree.map(lambda c: estimator.by_state(ensemble, energies, c), coefficients)

        def total(parameters):
            return estimator.sum(lambda *chunk: weighted_energies(parameters, *chunk), samples, ensemble)

        return moments.mean, jax.jvp(total, (parameters,), (tangents[0],))[1]

    def expectation_fn(*parameters_and_samples, mask=None, weight=None, state=None):
        parameters, samples = parameters_and_samples[:-1], parameters_and_samples[-1]
        samples, ensemble = estimator.prepare(parameters, samples, mask, weight, state)
        return estimator.shown(mean(parameters, samples, ensemble, estimator.moments(samples, ensemble)))

    return expectation_fn


def boltzmann_value_and_grad(
    loss_fn: Callable[[Any], Any],
    energy_fn: Callable[..., Float[Array, ""]] | Localized,
    observable_fn: Callable[[Any], Any],
    *,
    kT: float | Sequence[float],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    excludes_non_finite: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Value and gradient of a loss of ensemble averages, as `jax.value_and_grad` would give them.

    The chain rule of Equation 5 with the estimator of Equation 6, contracted before anything is formed: the gradient of
    `loss_fn(expectation(...)(*parameters, samples))`, accumulated over chunks of samples.

    >>> import jax, jax.numpy as jnp
    >>> samples = jax.random.normal(jax.random.key(0), (100_000,)) / 2
    >>> fit = boltzmann_value_and_grad(lambda m: (m - 0.2) ** 2, lambda k, x: 0.5 * k * x**2, jnp.square, kT=1.0)
    >>> loss, gradient = fit(4.0, samples)
    >>> print(f"{loss:.3f} {gradient:.3f}")  # (1/k - 0.2)² and -2 (1/k - 0.2) / k²
    0.003 -0.006

    Args:
      loss_fn: mean observable -> scalar; or `(scalar, auxiliary data)`, see `has_aux`.
      energy_fn: `(*parameters, sample) -> U`, scalar, in the unit of kT; or `localized`.
      observable_fn: `sample -> g`, a pytree of arrays. It is evaluated twice for each sample.
      kT: see `expectation`.
      argnums: which parameters to differentiate.
      has_aux: `loss_fn` gives a pair, of which the first is differentiated.
      chunk_size: samples that are differentiated together; bounds the memory. None: all.
      axis_name: mapped axis over which samples are shared; mean, N and gradient are then those of all of them.
      excludes_non_finite: samples whose energy is not finite count as nothing, for one more pass over the energies.

    Returns:
      `(*parameters, samples, *, mask=None, weight=None, state=None) -> (value, gradient)`; see `expectation`. Where the
      energy of a sample that counts is not finite, the gradient is NaN under `jit`.

    Raises:
      ValueError: as `expectation`; parameters in `argnums` are not floating-point; the energy of a sample that counts
        is not finite (outside of `jit`, where its index is named).
    """
    name = "boltzmann_value_and_grad"
    estimator = Estimator(name, energy_fn, observable_fn, temperatures(name, kT), chunk_size, axis_name)

    def value_and_grad(*parameters_and_samples, mask=None, weight=None, state=None):
        parameters, samples = parameters_and_samples[:-1], parameters_and_samples[-1]
        estimator.check_differentiable(parameters, argnums)
        samples, ensemble = estimator.prepare(parameters, samples, mask, weight, state)
        if excludes_non_finite:
            samples, ensemble = estimator.without_non_finite(parameters, samples, ensemble)
        moments = estimator.moments(samples, ensemble)
        value, cotangent = jax.value_and_grad(loss_fn, has_aux=has_aux)(estimator.shown(moments.mean))
        cotangent = estimator.with_states(cotangent)

        def weighted_gradient(samples, ensemble):
            coefficients = estimator.coefficients(samples, ensemble, moments)
            weight = estimator.contract(ensemble, coefficients, cotangent)

            def weighted_energy(*parameters):
                energies = estimator.energies(parameters, samples)
                return jnp.sum(weight * energies), jnp.all(jnp.isfinite(energies))

            gradient, is_finite = jax.grad(weighted_energy, argnums=argnums, has_aux=True)(*parameters)
            return gradient, jnp.sum(~is_finite)

        gradient, num_broken = estimator.total(estimator.sum(weighted_gradient, samples, ensemble))
        estimator.check_finite(num_broken, parameters, samples)
        return value, jax.tree.map(lambda leaf: jnp.where(num_broken > 0, jnp.nan, leaf), gradient)

    return value_and_grad


def boltzmann_grad(
    loss_fn: Callable[[Any], Any],
    energy_fn: Callable[..., Float[Array, ""]] | Localized,
    observable_fn: Callable[[Any], Any],
    *,
    has_aux: bool = False,
    **options,
) -> Callable[..., Any]:
    """Gradient of a loss of ensemble averages, as `jax.grad` would give it; see `boltzmann_value_and_grad`.

    Args:
      loss_fn: see `boltzmann_value_and_grad`.
      energy_fn: likewise.
      observable_fn: likewise.
      has_aux: the function returns `(gradient, auxiliary data)`.
      options: as in `boltzmann_value_and_grad`.
    """
    value_and_grad = boltzmann_value_and_grad(loss_fn, energy_fn, observable_fn, has_aux=has_aux, **options)

    def grad(*parameters_and_samples, mask=None, weight=None, state=None):
        value, gradient = value_and_grad(*parameters_and_samples, mask=mask, weight=weight, state=state)
        return (gradient, value[1]) if has_aux else gradient

    return grad
