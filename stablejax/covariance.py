"""Weighted covariances of energies and observables, chunk by chunk: the ground of the Boltzmann estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.collective import like, mean_of_devices
from stablejax.reweighting import sample_energies
from stablejax.types import Array, Float, Int


class Localized(NamedTuple):
    """Marks an energy function that gives one energy for each neighborhood of a sample; see `localized`."""

    energies_fn: Callable[..., Float[Array, " neighborhood"]]


class Ensemble(NamedTuple):
    """How samples count. The neighborhood axis has length 1 where the estimator is global."""

    weight: Float[Array, "sample neighborhood"]  # not normalized; 0: as if it were not there
    state: Int[Array, " sample"]


class Moments(NamedTuple):
    mean: Any  # ḡ, [state, ...]
    residual: Any  # what rounding left of the mean: the deviations from ḡ + residual sum to 0
    weight: Float[Array, " state"]  # Σ w
    correction: Float[Array, " state"]  # 1 − Σ p²


class Estimator(NamedTuple):
    """What the transforms share, for one energy and observable. Observables inside have [sample, neighborhood]."""

    name: str
    energy_fn: Callable | Localized
    observable_fn: Callable
    temperatures: tuple[np.ndarray, bool]  # kT of each state; whether there are states
    chunk_size: int | None
    axis_name: str | None = None

    @property
    def kT(self):
        return self.temperatures[0]

    @property
    def is_local(self):
        return isinstance(self.energy_fn, Localized)

    def energy(self, *parameters_and_sample):
        """Of one sample, `(*parameters, sample)`: a scalar, or [neighborhood]."""
        fn = self.energy_fn.energies_fn if isinstance(self.energy_fn, Localized) else self.energy_fn
        return fn(*parameters_and_sample)

    def energies(self, parameters, samples):
        return self._by_neighborhood(jax.vmap(lambda sample: self.energy(*parameters, sample))(samples))

    def observables(self, samples):
        return self._by_neighborhood(jax.vmap(self.observable_fn)(samples))

    def by_state(self, ensemble, weight, values):
        """Σ w x over the neighborhoods and samples of each state."""
        per_sample = jnp.einsum("sn,sn...->s...", weight, values, precision=lax.Precision.HIGHEST)
        return jax.ops.segment_sum(per_sample, ensemble.state, num_segments=len(self.kT))

    def moments(self, samples, ensemble):
        """Over all samples, those of other devices included, in one all-reduce."""
        counts = ensemble.weight
        sums = self.by_state(ensemble, counts, jnp.ones_like(counts)), self.by_state(ensemble, counts, counts)

        def mean_deviation(mean):
            def one(samples, ensemble):
                parts = self._deviations(samples, ensemble, mean)
                return jax.tree.map(lambda g: self.by_state(ensemble, ensemble.weight, g), parts)

            safe = jnp.where(sums[0] > 0, sums[0], 1)  # a device may have no sample that counts
            return jax.tree.map(lambda g: g / like(safe, g), self.sum(one, samples, ensemble))

        shape = jax.eval_shape(self.observables, samples)
        zero = jax.tree.map(lambda g: jnp.zeros((len(self.kT), *g.shape[2:]), g.dtype), shape)
        mean = mean_deviation(zero)
        residual = mean_deviation(mean)
        if self.axis_name is None:
            weight, squares = sums
            mean, residual = (jax.tree.map(lambda g: _nan_where(weight == 0, g), x) for x in (mean, residual))
        else:
            weight, squares, mean, residual = mean_of_devices(*sums, mean, residual, axis_name=self.axis_name)
        return lax.stop_gradient(Moments(mean, residual, weight, 1 - squares / weight**2))

    def _deviations(self, samples, ensemble, mean):
        """Deviations g − ḡ of what counts, 0 of the rest."""
        is_counted = ensemble.weight > 0

        def one(g, mean):
            return jnp.where(like(is_counted, g), g - mean[ensemble.state][:, None], 0)

        return jax.tree.map(one, self.observables(samples), mean)

    def coefficients(self, samples, ensemble, moments):
        """−1/(k_B T) · 1/(1 − Σ p²) · p_i (g_i − ḡ) for every sample and neighborhood."""
        scale = -1 / (jnp.asarray(self.kT, moments.weight.dtype) * moments.correction * moments.weight)
        weight = ensemble.weight * scale[ensemble.state][:, None]

        def one(deviation, residual):
            # A sum of weights that is not 0 would multiply the mean of ∂U/∂θ, far larger than its covariance.
            return lax.stop_gradient(like(weight, deviation) * (deviation - residual[ensemble.state][:, None]))

        return jax.tree.map(one, self._deviations(samples, ensemble, moments.mean), moments.residual)

    def contract(self, ensemble, coefficients, cotangent):
        """Σ over the observable of v · c: the weight of each sample's energy."""

        def one(c, v):
            return jnp.sum((c * v[ensemble.state][:, None]).reshape(*c.shape[:2], -1), axis=-1)

        return sum(jax.tree.leaves(jax.tree.map(one, coefficients, cotangent)))

    def sum(self, fn, samples, ensemble):
        """Σ over chunks of `fn(samples, ensemble)`, one chunk after the other."""
        num_samples = len(ensemble.weight)
        if self.chunk_size is None or self.chunk_size >= num_samples:
            return fn(samples, ensemble)
        num_chunks = -(-num_samples // self.chunk_size)
        # The last chunk is filled up with the first sample, at weight 0.
        position = np.arange(num_chunks * self.chunk_size)
        index = np.where(position < num_samples, position, 0).reshape(num_chunks, self.chunk_size)

        def chunk(index, is_real):
            part, counted = jax.tree.map(lambda leaf: leaf[index], (samples, ensemble))
            return fn(part, counted._replace(weight=jnp.where(is_real[:, None], counted.weight, 0)))

        chunks = jnp.asarray(index), jnp.asarray(position < num_samples).reshape(index.shape)
        shape = jax.eval_shape(chunk, *jax.tree.map(lambda leaf: leaf[0], chunks))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        return lax.scan(lambda total, one: (jax.tree.map(jnp.add, total, chunk(*one)), None), zero, chunks)[0]

    def total(self, tree):
        return tree if self.axis_name is None else lax.psum(tree, self.axis_name)

    def shown(self, mean):
        """The mean as the caller sees it: without an axis of states where there are none."""
        return mean if self.temperatures[1] else jax.tree.map(lambda g: g[0], mean)

    def with_states(self, cotangent):
        return cotangent if self.temperatures[1] else jax.tree.map(lambda v: v[None], cotangent)

    def prepare(self, parameters, samples, mask, weight, state) -> tuple[Any, Ensemble]:
        """Samples as constants, and how they count."""
        num_samples = _num_samples(self.name, samples, is_shared=self.axis_name is not None)
        samples = lax.stop_gradient(samples)
        shape = (num_samples, self._num_neighborhoods(parameters, samples))
        counts = jnp.ones(shape)
        for name, given in (("mask", mask), ("weight", weight)):
            if given is not None:
                counts = counts * _per_sample(f"`{self.name}`: `{name}`", given, shape)
        if _is_concrete(counts) and not np.all(np.asarray(counts) >= 0):
            raise ValueError(f"`{self.name}`: `weight` must not be negative or NaN: leave such samples out by `mask`.")
        ensemble = Ensemble(lax.stop_gradient(counts), self._states(state, num_samples))
        return (samples if mask is None and weight is None else _stand_in(samples, counts)), ensemble

    def without_non_finite(self, parameters, samples, ensemble):
        """Samples and ensemble in which those whose energy is not finite do not count."""
        is_finite = jnp.all(jnp.isfinite(self._all_energies(parameters, samples)), axis=1, keepdims=True)
        weight = jnp.where(is_finite, ensemble.weight, 0)
        return _stand_in(samples, weight), ensemble._replace(weight=weight)

    def check_finite(self, num_broken, parameters, samples):
        """Name the samples whose energy is not finite, where arrays are concrete."""
        if not _is_concrete(num_broken) or num_broken == 0:
            return
        is_broken = ~jnp.isfinite(self._all_energies(parameters, samples))
        indices = np.flatnonzero(np.asarray(is_broken).any(axis=1))
        raise ValueError(
            f"`{self.name}`: the energies of {len(indices)} samples are not finite, the first of them "
            f"{', '.join(map(str, indices[:5]))}: leave them out by `mask`, or set `excludes_non_finite`."
        )

    def check_differentiable(self, parameters, argnums):
        """Parameters in `argnums` are there and real floating-point numbers."""
        for argnum in (argnums,) if isinstance(argnums, int) else argnums:
            if not -len(parameters) <= argnum < len(parameters):
                raise ValueError(
                    f"`{self.name}`: `argnums` has {argnum}, but `samples` come after {len(parameters)} parameters."
                )
            for path, leaf in jax.tree_util.tree_leaves_with_path(parameters[argnum]):
                dtype = jnp.result_type(leaf)
                if not jnp.issubdtype(dtype, jnp.floating):
                    raise ValueError(
                        f"`{self.name}`: expected real floating-point parameters, got {dtype} at parameter {argnum}"
                        f"{jax.tree_util.keystr(path)}: convert it, or leave it out of `argnums`."
                    )

    def _all_energies(self, parameters, samples):
        energies = sample_energies(self.energy, chunk_size=self.chunk_size)(*parameters, samples)
        return self._by_neighborhood(energies)

    def _by_neighborhood(self, values):
        return values if self.is_local else jax.tree.map(lambda leaf: leaf[:, None], values)

    def _num_neighborhoods(self, parameters, samples) -> int:
        """From the shapes of energy and observable, which have to agree."""
        for leaf in jax.tree.leaves(parameters):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
                raise ValueError(
                    f"`{self.name}`: complex parameters are not supported: use their real and imaginary parts."
                )
        sample = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), samples)
        shape = jax.eval_shape(self.energy, *parameters, sample).shape
        if not self.is_local:
            if shape != ():
                raise ValueError(
                    f"`{self.name}`: the energy of one sample has to be a scalar, got shape {shape}: sum it, or wrap "
                    "the function in `localized` if it gives one energy for each neighborhood."
                )
            return 1
        if len(shape) != 1:
            raise ValueError(
                f"`{self.name}`: a localized energy function gives [neighborhood] for one sample, got shape {shape}."
            )
        for leaf in jax.tree.leaves(jax.eval_shape(self.observable_fn, sample)):
            if leaf.shape[:1] != shape:
                raise ValueError(
                    f"`{self.name}`: observables need the {shape[0]} neighborhoods on axis 0, got shape {leaf.shape}."
                )
        return shape[0]

    def _states(self, state, num_samples):
        kT, has_states = self.temperatures
        if has_states != (state is not None):
            raise ValueError(
                f"`{self.name}`: `state` goes with one kT for each thermodynamic state, got "
                f"{'no `state`' if has_states else 'a single kT'}: give both or neither."
            )
        if state is None:
            return jnp.zeros(num_samples, jnp.int32)
        state = jnp.asarray(state)
        if state.shape != (num_samples,) or not jnp.issubdtype(state.dtype, jnp.integer):
            raise ValueError(
                f"`{self.name}`: `state` needs {num_samples} integers, got shape {state.shape} of {state.dtype}."
            )
        if _is_concrete(state) and not np.all((np.asarray(state) >= 0) & (np.asarray(state) < len(kT))):
            raise ValueError(f"`{self.name}`: `state` has to be from 0 to {len(kT) - 1}, one for each kT.")
        return state


def temperatures(name, kT) -> tuple[np.ndarray, bool]:
    values = np.atleast_1d(np.asarray(kT, float))
    if values.ndim > 1 or not np.all(values > 0):
        raise ValueError(f"`{name}`: `kT` must be positive, got {kT}: pass k_B T in the unit of the energy.")
    return values, np.ndim(kT) == 1


def _num_samples(name, samples, *, is_shared) -> int:
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(samples)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"`{name}`: every leaf of `samples` needs the sample on axis 0, got sizes {sorted(map(str, sizes))}: "
            "give all leaves the same leading axis."
        )
    (num_samples,) = sizes
    if num_samples < 2 and not is_shared:
        raise ValueError(f"`{name}`: the estimator needs at least 2 samples, got {num_samples}: pass more samples.")
    return num_samples


def _per_sample(what, given, shape):
    given = jnp.asarray(given)
    if given.shape not in (shape[:1], shape):
        raise ValueError(f"{what} needs shape {shape[:1]}, got {given.shape}: one entry per sample.")
    return given.reshape(shape[0], -1).astype(jnp.result_type(float))


def _stand_in(samples, weight):
    """What does not count may be anything, NaN included, and 0 · NaN would count: replaced by a sample that does."""
    is_counted = jnp.any(weight > 0, axis=1)
    index = jnp.where(is_counted, jnp.arange(len(weight)), jnp.argmax(is_counted))
    return jax.tree.map(lambda leaf: leaf[index], samples)


def _nan_where(is_empty, array):
    return jnp.where(like(is_empty, array), jnp.nan, array)


def _is_concrete(array) -> bool:
    return not isinstance(array, jax.core.Tracer)
