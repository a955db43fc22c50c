"""The Boltzmann estimator: derivatives of ensemble averages with respect to the parameters of the potential.

Everything here rests on one linear map. With probabilities p_i of the samples (1/N where no weights are given),

    ∂E[g]/∂θ = ⟨∂g/∂θ⟩ − 1/(k_B T) · 1/(1 − Σ p_i²) · Σ_i p_i (g_i − ḡ) ∂U_θ(x_i)/∂θ

which for equal weights and an observable that does not depend on θ is the paper's Equation 6, unbiased, with 1/(N − 1).
Contracted with the derivative of a loss (Equation 5) it is one reverse pass over one weighted sum of energies, and one
over the observable where it depends on θ: no per-sample gradient and no Jacobian is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax import _inputs
from stablejax._ensemble import Ensemble, Moments, Pass, Segments, deviations, is_concrete, stand_in
from stablejax._inputs import Counts
from stablejax.collective import like
from stablejax.reweighting import sample_energies
from stablejax.types import Array, Float


class Localized(NamedTuple):
    """Marks an energy function that gives one energy for each neighborhood of a sample; see `localized`."""

    energies_fn: Callable[..., Float[Array, " neighborhood"]]
    num_groups: int | None = None


class Parametric(NamedTuple):
    """Marks an observable that depends on the parameters; see `parametric`."""

    observable_fn: Callable[..., Any]


def localized(energies_fn: Callable[..., Float[Array, " neighborhood"]], *, num_groups: int | None = None) -> Localized:
    """For the estimator: every neighborhood of every sample counts as a sample (Equation 8).

    The observable then gives arrays with the neighborhood on axis 0, and mask and weight may be [sample, neighborhood].
    With one neighborhood of all atoms it is the global estimator. The equation treats all neighborhoods as independent
    draws from one distribution: kinds that differ have to be separated into groups, and correlations between
    neighborhoods are neglected.

    Args:
      energies_fn: `(*parameters, sample) -> U(γ)`, for each neighborhood the sum of its atom energies; see
        `neighborhoods.neighborhood_energies`. It has to be finite for all neighborhoods of a sample if any of them
        counts.
      num_groups: kinds of neighborhoods, each with a mean and a covariance of its own. The transforms then take
        `group`, [neighborhood] or [sample, neighborhood], from 0 to `num_groups` − 1, and the mean has an
        axis of groups, after that of states.
    """
    return Localized(energies_fn, num_groups)


def parametric(observable_fn: Callable[..., Any]) -> Parametric:
    """For the estimator: an observable `(*parameters, sample) -> g` that depends on the parameters itself.

    The derivative of its mean has ⟨∂g/∂θ⟩ in addition to the covariance.

    >>> import jax, jax.numpy as jnp
    >>> energy = lambda k, x: 0.5 * k * x**2
    >>> samples = jax.random.normal(jax.random.key(0), (100_000,)) / 2  # at k = 4 and kT = 1
    >>> mean = expectation(energy, parametric(energy), kT=1.0)  # ⟨U⟩ = kT/2, whatever k
    >>> print(f"{mean(4.0, samples):.2f} {abs(jax.grad(mean)(4.0, samples)):.2f}")
    0.50 0.00

    Args:
      observable_fn: takes the same arguments as the energy function.
    """
    return Parametric(observable_fn)


EnergyFn = Callable[..., Float[Array, ""]] | Localized
Observable = Callable[[Any], Any] | Parametric
Temperature = float | Sequence[float] | Float[Array, "..."]


def expectation(
    energy_fn: EnergyFn, observable_fn: Observable, *, kT: Temperature, chunk_size: int | None = None
) -> Callable[..., Any]:
    """The mean of an observable over samples of exp(−U_θ/k_B T), differentiable in the parameters of U.

    The value is the (weighted) sample mean, the derivative the Boltzmann estimator (Equation 6). Forward and reverse
    mode both work, also under `jit`, `vmap` and `scan`: `jax.grad` differentiates any function of the mean, and
    `jax.jacrev` gives the explicit Jacobian. Second derivatives are refused. Values that energy or observable close
    over are treated as parameters too. kT may be traced; nothing is differentiated with respect to it.

    >>> import jax, jax.numpy as jnp
    >>> samples = jax.random.normal(jax.random.key(0), (100_000,)) / 2  # of ½ k x² with k = 4 and kT = 1
    >>> mean = expectation(lambda k, x: 0.5 * k * x**2, jnp.square, kT=1.0)
    >>> print(f"{mean(4.0, samples):.2f} {jax.grad(mean)(4.0, samples):.2f}")  # kT/k and -kT/k²
    0.25 -0.06

    Args:
      energy_fn: `(*parameters, sample) -> U`, scalar, in the unit of kT; or `localized`.
      observable_fn: `sample -> g`, a pytree of arrays; or `parametric`.
      kT: k_B T of the samples; or one for each thermodynamic state, and the mean then has the state on axis 0.
      chunk_size: samples that are evaluated together; bounds the memory. None: all.

    Returns:
      `(*parameters, samples, *, mask=None, weight=None, state=None, group=None) -> mean of g`. `samples` is a pytree
      with the sample on axis 0 of every leaf, and constant. `mask` [sample], boolean: samples with False are excluded
      from the mean and from N, and may be NaN. `weight` [sample]: not negative, on any scale. `state` [sample]:
      index into `kT`. `group`: see `localized`. The derivative is NaN where fewer than 2 samples of a state count.

    Raises:
      ValueError: kT is not positive; fewer than 2 samples; samples, mask, weight or state are inconsistent; the
        energy is not scalar; parameters are complex; a second derivative is asked for.
    """
    _inputs.checked_temperatures("expectation", kT)
    made = _Estimator("expectation", energy_fn, observable_fn, kT, chunk_size)

    def expectation_fn(*parameters_and_samples, mask=None, weight=None, state=None, group=None):
        parameters, samples = parameters_and_samples[:-1], parameters_and_samples[-1]
        samples, _ = _inputs.checked_samples("expectation", samples, is_shared=False)
        estimator, closed_over = _with_closures(made, parameters, samples)
        parameters = (*parameters, *closed_over)
        samples, ensemble = _prepared(estimator, parameters, samples, Counts(mask, weight, state, group))
        return estimator.segments.shown(_differentiable_mean(estimator)(parameters, samples, ensemble))

    return expectation_fn


def boltzmann_value_and_grad(
    loss_fn: Callable[[Any], Any],
    energy_fn: EnergyFn,
    observable_fn: Observable,
    *,
    kT: Temperature,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    chunk_size: int | None = None,
    axis_name: str | None = None,
    excludes_non_finite: bool = False,
    crosses_halves: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Value and gradient of a loss of ensemble averages; follows the calling convention of `jax.value_and_grad`.

    The chain rule of Equation 5 with the estimator of Equation 6, contracted before any Jacobian is formed: the
    gradient of `loss_fn(expectation(...)(*parameters, samples))`, accumulated over chunks of samples.

    The Jacobian is unbiased, its product with the derivative of the loss is not, since both come from the same samples:
    for a squared residual the bias is their covariance, of order 1/N. With `crosses_halves` the derivative of the loss
    comes from one half of the samples and the Jacobian from the other, averaged over both assignments: unbiased for a
    quadratic loss, at about the same standard deviation. It is not the default because the paper uses the plain form,
    and because the halves have to be independent of each other.

    >>> import jax, jax.numpy as jnp
    >>> samples = jax.random.normal(jax.random.key(0), (100_000,)) / 2
    >>> fit = boltzmann_value_and_grad(lambda m: (m - 0.2) ** 2, lambda k, x: 0.5 * k * x**2, jnp.square, kT=1.0)
    >>> loss, gradient = fit(4.0, samples)
    >>> print(f"{loss:.3f} {gradient:.3f}")  # (1/k - 0.2)² and -2 (1/k - 0.2) / k²
    0.003 -0.006

    Args:
      loss_fn: mean observable -> scalar; or `(scalar, auxiliary data)`, see `has_aux`.
      energy_fn: `(*parameters, sample) -> U`, scalar, in the unit of kT; or `localized`.
      observable_fn: `sample -> g`, a pytree of arrays, evaluated twice for each sample; or `parametric`.
      kT: see `expectation`.
      argnums: which parameters to differentiate.
      has_aux: `loss_fn` gives a pair, of which the first is differentiated.
      chunk_size: samples that are differentiated together; bounds the memory. None: all.
      axis_name: mapped axis over which samples are sharded; mean, N and gradient are then over all shards.
      excludes_non_finite: exclude samples whose energy is not finite, at the cost of one more pass over the energies.
      crosses_halves: see above. The halves are the first and the second half of all samples, unless `half` is given.

    Returns:
      `(*parameters, samples, *, mask=None, weight=None, state=None, group=None, half=None) -> (value, gradient)`; see
      `expectation`. `half` [sample], 0 or 1. Where the energy of a sample that counts is not finite, the gradient is
      NaN under `jit`.

    Raises:
      ValueError: as `expectation`; parameters in `argnums` are not floating-point; the energy of a sample that counts
        is not finite (outside of `jit`, where its index is named).
    """
    name = "boltzmann_value_and_grad"
    _inputs.checked_temperatures(name, kT)
    made = _Estimator(name, energy_fn, observable_fn, kT, chunk_size, axis_name, num_halves=1 + crosses_halves)

    def value_and_grad(
        *parameters_and_samples, mask=None, weight=None, state=None, group=None, half=None
    ) -> tuple[Any, Any]:
        parameters, samples = parameters_and_samples[:-1], parameters_and_samples[-1]
        _inputs.checked_differentiable(name, parameters, argnums)
        parameters = _only_once(parameters)
        samples, ensemble = _prepared(made, parameters, samples, Counts(mask, weight, state, group, half))
        if excludes_non_finite:
            samples, ensemble = _without_non_finite(made, parameters, samples, ensemble)
        moments = made.moments(parameters, samples, ensemble)
        value, cotangent = made.slope(loss_fn, moments, has_aux=has_aux)

        def weighted_gradient(samples, ensemble):
            return made.weighted_gradient(parameters, argnums, samples, ensemble, moments, cotangent)

        sums = made.sum.over_chunks(weighted_gradient, samples, ensemble)
        gradient, num_broken = made.sum.over_devices(sums)
        _check_finite(made, num_broken, parameters, samples)
        return value, jax.tree.map(lambda leaf: jnp.where(num_broken > 0, jnp.nan, leaf), gradient)

    return value_and_grad


def boltzmann_grad(
    loss_fn: Callable[[Any], Any],
    energy_fn: EnergyFn,
    observable_fn: Observable,
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

    def grad(*parameters_and_samples, **counts):
        value, gradient = value_and_grad(*parameters_and_samples, **counts)
        return (gradient, value[1]) if has_aux else gradient

    return grad


def _differentiable_mean(estimator: _Estimator) -> Callable[..., Any]:
    """`(parameters, samples, ensemble) -> mean [segment, ...]` with the estimator as its derivative."""

    @jax.custom_jvp
    def mean(parameters, samples, ensemble, moments):
        del parameters, samples, ensemble
        return moments.mean

    @mean.defjvp
    def mean_jvp(primals, tangents):
        parameters, samples, ensemble, moments = primals

        # Linear in the tangent, so JAX transposes it into one reverse pass, with one chunk in memory at a time.
        @jax.checkpoint
        def terms(parameters, samples, ensemble):
            return estimator.terms(parameters, samples, ensemble, moments)

        def total(parameters):
            return estimator.sum.over_chunks(lambda *chunk: terms(parameters, *chunk), samples, ensemble)

        return moments.mean, jax.jvp(total, (_only_once(parameters),), (tangents[0],))[1]

    def with_moments(parameters, samples, ensemble):
        moments = estimator.moments(lax.stop_gradient(parameters), samples, ensemble)
        return mean(parameters, samples, ensemble, moments)

    return with_moments


@jax.custom_jvp
def _only_once(parameters: Any) -> Any:
    """The identity, which refuses to be differentiated: a derivative of the estimator would silently miss terms."""
    return parameters


@_only_once.defjvp
def _only_once_jvp(*_):
    raise ValueError(
        "`boltzmann`: expected first derivatives only, got a derivative of the estimator: covariances also depend on "
        "the parameters, through third moments that are not estimated here."
    )


class _Estimator(NamedTuple):
    """Equations 6 and 8 for one energy and observable. Inside, observables lead with [sample, neighborhood]."""

    name: str
    energy_fn: EnergyFn
    observable_fn: Observable
    kT: Any
    chunk_size: int | None
    axis_name: str | None = None
    num_halves: int = 1

    @property
    def is_local(self) -> bool:
        return isinstance(self.energy_fn, Localized)

    @property
    def segments(self) -> Segments:
        kT, has_states = _inputs.checked_temperatures(self.name, self.kT)
        groups = self.energy_fn.num_groups if isinstance(self.energy_fn, Localized) else None
        return Segments(len(kT), groups or 1, has_states, groups is not None, self.num_halves)

    @property
    def sum(self) -> Pass:
        return Pass(self.segments.total, self.chunk_size, self.axis_name)

    def energies(self, parameters, samples):
        return self._by_neighborhood(jax.vmap(lambda sample: self._energy(*parameters, sample))(samples))

    def observables(self, parameters, samples):
        return self._by_neighborhood(jax.vmap(lambda sample: self._observable(*parameters, sample))(samples))

    def moments(self, parameters, samples, ensemble) -> Moments:
        return self.sum.moments(lambda some: self.observables(parameters, some), samples, ensemble)

    def coefficients(self, parameters, samples, ensemble: Ensemble, moments: Moments):
        """−1/(k_B T) · 1/(1 − Σ p²) · p_i (g_i − ḡ) for every sample and neighborhood."""
        kT, _ = _inputs.checked_temperatures(self.name, self.kT)
        kT = jnp.repeat(jnp.asarray(kT, moments.weight.dtype), self.segments.total // len(kT))
        scale = -1 / (kT * moments.correction * moments.weight)
        weight = ensemble.weight * scale[ensemble.segment]

        def one(deviation, residual):
            # A sum of weights that is not 0 would multiply the mean of ∂U/∂θ, far larger than its covariance.
            return lax.stop_gradient(like(weight, deviation) * (deviation - residual[ensemble.segment]))

        found = deviations(self.observables(parameters, samples), ensemble, moments.mean)
        return jax.tree.map(one, found, moments.residual)

    def terms(self, parameters, samples, ensemble: Ensemble, moments: Moments):
        """Sums over each segment whose derivative with respect to the parameters is that of the mean."""
        coefficients = self.coefficients(lax.stop_gradient(parameters), samples, ensemble, moments)
        energies = self.energies(parameters, samples)
        by_segment = self.sum.by_segment
        terms = jax.tree.map(lambda c: by_segment(ensemble, energies, c), coefficients)
        if not isinstance(self.observable_fn, Parametric):
            return terms
        share = lax.stop_gradient(self._share(ensemble, moments))
        own = jax.tree.map(
            lambda g: by_segment(ensemble, share, jnp.where(like(share > 0, g), g, 0)),
            self.observables(parameters, samples),
        )
        return jax.tree.map(jnp.add, terms, own)

    def slope(self, loss_fn, moments: Moments, *, has_aux: bool):
        """Value of the loss, and its derivative with respect to the mean of each segment."""
        value_and_grad = jax.value_and_grad(lambda mean: loss_fn(self.segments.shown(mean)), has_aux=has_aux)
        if self.num_halves == 1:
            return value_and_grad(moments.mean)
        by_half = lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:])  # noqa: E731
        weight = by_half(moments.weight)
        share = weight / jnp.sum(weight, axis=1, keepdims=True)
        whole = jax.tree.map(lambda m: jnp.sum(like(share, by_half(m)) * by_half(m), axis=1), moments.mean)
        value, _ = value_and_grad(whole)
        first, second = (
            value_and_grad(jax.tree.map(lambda m, half=half: by_half(m)[:, half], moments.mean))[1] for half in (0, 1)
        )
        # The slope at one half multiplies the covariance of the other, with weight ½.
        crossed = jax.tree.map(lambda a, b: 0.5 * jnp.stack([b, a], axis=1), first, second)
        return value, jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), crossed)

    def weighted_gradient(self, parameters, argnums, samples, ensemble: Ensemble, moments: Moments, cotangent):
        """Gradient of Σ_i (v · c_i) U_θ(x_i), and 1 where any energy is not finite, 0 otherwise."""
        coefficients = self.coefficients(parameters, samples, ensemble, moments)
        weight = _contract(ensemble, coefficients, cotangent)
        share = self._share(ensemble, moments)

        def weighted_sum(*parameters):
            energies = self.energies(parameters, samples)
            total = jnp.sum(weight * energies)
            if isinstance(self.observable_fn, Parametric):
                own = jax.tree.map(
                    lambda g: jnp.where(like(share > 0, g), like(share, g) * g, 0),
                    self.observables(parameters, samples),
                )
                total += jnp.sum(_contract(ensemble, own, cotangent))
            return total, jnp.all(jnp.isfinite(energies))

        gradient, is_finite = jax.grad(weighted_sum, argnums=argnums, has_aux=True)(*parameters)
        return gradient, jnp.sum(~is_finite)

    def _energy(self, *parameters_and_sample):
        """Energy of one sample, `(*parameters, sample)`: a scalar, or [neighborhood]."""
        fn = self.energy_fn.energies_fn if isinstance(self.energy_fn, Localized) else self.energy_fn
        return fn(*parameters_and_sample)

    def _observable(self, *parameters_and_sample):
        """Observable of one sample, `(*parameters, sample)`."""
        if isinstance(self.observable_fn, Parametric):
            return self.observable_fn.observable_fn(*parameters_and_sample)
        return self.observable_fn(parameters_and_sample[-1])

    def _share(self, ensemble: Ensemble, moments: Moments) -> Float[Array, "sample neighborhood"]:
        """p_i within the segment."""
        return ensemble.weight / moments.weight[ensemble.segment]

    def _by_neighborhood(self, values):
        return values if self.is_local else jax.tree.map(lambda leaf: leaf[:, None], values)


def _prepared(estimator: _Estimator, parameters, samples, counts: Counts) -> tuple[Any, Ensemble]:
    """Samples as constants, and their weights and segments."""
    return _inputs.prepared(
        estimator.name,
        (estimator._energy, estimator._observable),
        estimator.segments,
        parameters,
        samples,
        counts,
        is_local=estimator.is_local,
        axis_name=estimator.axis_name,
    )


def _with_closures(estimator: _Estimator, parameters, samples) -> tuple[_Estimator, list]:
    """The estimator with values that its functions close over as further parameters, and these values."""
    energy_fn, observable_fn, values = _inputs.without_closures(
        estimator._energy, estimator._observable, parameters, samples
    )
    if not values:
        return estimator, []
    marked = (
        estimator.energy_fn._replace(energies_fn=energy_fn) if isinstance(estimator.energy_fn, Localized) else energy_fn
    )
    return estimator._replace(energy_fn=marked, observable_fn=Parametric(observable_fn)), values


def _without_non_finite(estimator: _Estimator, parameters, samples, ensemble: Ensemble) -> tuple[Any, Ensemble]:
    """Samples and ensemble, with weight 0 for those whose energy is not finite."""
    is_finite = jnp.all(jnp.isfinite(_all_energies(estimator, parameters, samples)), axis=1, keepdims=True)
    weight = jnp.where(is_finite, ensemble.weight, 0)
    return stand_in(samples, weight), ensemble._replace(weight=weight)


def _check_finite(estimator: _Estimator, num_broken, parameters, samples) -> None:
    """Raise for samples whose energy is not finite, where arrays are concrete."""
    if not is_concrete(num_broken) or num_broken == 0:
        return
    is_broken = ~jnp.isfinite(_all_energies(estimator, parameters, samples))
    indices = np.flatnonzero(np.asarray(is_broken).any(axis=1))
    raise ValueError(
        f"`{estimator.name}`: the energies of {len(indices)} samples are not finite, the first of them "
        f"{', '.join(map(str, indices[:5]))}: leave them out by `mask`, or set `excludes_non_finite`."
    )


def _all_energies(estimator: _Estimator, parameters, samples):
    energies = sample_energies(estimator._energy, chunk_size=estimator.chunk_size)(*parameters, samples)
    return estimator._by_neighborhood(energies)


def _contract(ensemble: Ensemble, coefficients: Any, cotangent: Any) -> Float[Array, "sample neighborhood"]:
    """Σ over the observable of v · c."""

    def one(c, v):
        return jnp.sum((c * v[ensemble.segment]).reshape(*c.shape[:2], -1), axis=-1)

    return sum(jax.tree.leaves(jax.tree.map(one, coefficients, cotangent)), jnp.zeros(()))
