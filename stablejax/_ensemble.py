"""Internals of `boltzmann`: weights of samples, chunks, and sums over devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stablejax.collective import like, mean_of_devices, sum_over_chunks
from stablejax.types import Array, Float, Int


class Ensemble(NamedTuple):
    """Weights and segments of samples. The neighborhood axis has length 1 where the estimator is global.

    Each segment has its own mean: a thermodynamic state, a kind of neighborhood, a half of the samples.
    """

    weight: Float[Array, "sample neighborhood"]  # not normalized; 0: excluded
    segment: Int[Array, "sample #neighborhood"]


class Moments(NamedTuple):
    """Moments of the observables in each segment."""

    mean: Any  # ḡ, [segment, ...]
    residual: Any  # rounding error of the mean: the deviations from ḡ + residual sum to 0
    weight: Float[Array, " segment"]  # Σ w
    correction: Float[Array, " segment"]  # 1 − Σ p²


class Segments(NamedTuple):
    """Numbers of states, groups and halves, in the order of their axes, and which of them the caller gave."""

    num_states: int
    num_groups: int
    has_states: bool
    has_groups: bool
    num_halves: int = 1

    @property
    def total(self) -> int:
        return self.num_states * self.num_groups * self.num_halves

    def number(
        self,
        state: Int[Array, "sample 1"],
        group: Int[Array, "sample #neighborhood"],
        half: Int[Array, "sample 1"],
    ) -> Int[Array, "sample #neighborhood"]:
        """Segment of each sample, or of each of its neighborhoods."""
        return ((state * self.num_groups + group) * self.num_halves + half).astype(jnp.int32)

    def shown(self, mean: Any) -> Any:
        """[state, group, ...] as returned to the caller: without axes that were not requested."""
        kept = [n for n, has in ((self.num_states, self.has_states), (self.num_groups, self.has_groups)) if has]
        return jax.tree.map(lambda g: g.reshape(*kept, *g.shape[1:]), mean)


class Pass(NamedTuple):
    """How a sum over all samples is taken."""

    num_segments: int
    chunk_size: int | None
    axis_name: str | None

    def over_chunks(self, fn: Callable[[Any, Ensemble], Any], samples: Any, ensemble: Ensemble) -> Any:
        """Σ over chunks of `fn(samples, ensemble)`, evaluated sequentially."""
        num_samples = len(ensemble.weight)
        if self.chunk_size is None or self.chunk_size >= num_samples:
            return fn(samples, ensemble)

        def chunk(index, is_real):
            part, counted = jax.tree.map(lambda leaf: leaf[index], (samples, ensemble))
            return fn(part, counted._replace(weight=jnp.where(is_real[:, None], counted.weight, 0)))

        return sum_over_chunks(chunk, num_samples, self.chunk_size)

    def over_devices(self, tree: Any) -> Any:
        return tree if self.axis_name is None else lax.psum(tree, self.axis_name)

    def by_segment(self, ensemble: Ensemble, weight, values) -> Float[Array, "segment ..."]:
        """Σ w x over the neighborhoods and samples of each segment."""
        if ensemble.segment.shape[1] == 1:
            per_sample = jnp.einsum("sn,sn...->s...", weight, values, precision=lax.Precision.HIGHEST)
            return jax.ops.segment_sum(per_sample, ensemble.segment[:, 0], num_segments=self.num_segments)
        terms = like(weight, values) * values
        flat = terms.reshape(-1, *terms.shape[2:])
        return jax.ops.segment_sum(flat, ensemble.segment.reshape(-1), num_segments=self.num_segments)

    def moments(self, observables_fn: Callable[[Any], Any], samples: Any, ensemble: Ensemble) -> Moments:
        """Moments over the samples of all devices, in one all-reduce.

        Args:
          observables_fn: samples -> pytree of [sample, neighborhood, ...].
          samples: pytree.
          ensemble: their weights and segments.
        """
        counts = ensemble.weight
        sums = (
            self.by_segment(ensemble, counts, jnp.ones_like(counts)),
            self.by_segment(ensemble, counts, counts),
        )

        def mean_deviation(mean):
            def one(samples, ensemble):
                parts = deviations(observables_fn(samples), ensemble, mean)
                return jax.tree.map(lambda g: self.by_segment(ensemble, ensemble.weight, g), parts)

            safe = jnp.where(sums[0] > 0, sums[0], 1)  # a device may have no sample of nonzero weight
            return jax.tree.map(lambda g: g / like(safe, g), self.over_chunks(one, samples, ensemble))

        shape = jax.eval_shape(observables_fn, samples)
        zero = jax.tree.map(lambda g: jnp.zeros((self.num_segments, *g.shape[2:]), g.dtype), shape)
        mean = mean_deviation(zero)
        residual = mean_deviation(mean)
        if self.axis_name is None:
            weight, squares = sums
            mean, residual = (jax.tree.map(lambda g: _nan_where(weight == 0, g), x) for x in (mean, residual))
        else:
            weight, squares, mean, residual = mean_of_devices(*sums, mean, residual, axis_name=self.axis_name)
        return lax.stop_gradient(Moments(mean, residual, weight, 1 - squares / weight**2))


def deviations(observables: Any, ensemble: Ensemble, mean: Any) -> Any:
    """Deviations g − ḡ of samples of nonzero weight, 0 for the others."""
    is_counted = ensemble.weight > 0

    def one(g, mean):
        return jnp.where(like(is_counted, g), g - mean[ensemble.segment], 0)

    return jax.tree.map(one, observables, mean)


def stand_in(samples: Any, weight: Float[Array, "sample neighborhood"]) -> Any:
    """Samples with those of weight 0, which may hold NaN (0 · NaN is NaN), replaced by one of nonzero weight."""
    is_counted = jnp.any(weight > 0, axis=1)
    index = jnp.where(is_counted, jnp.arange(len(weight)), jnp.argmax(is_counted))
    return jax.tree.map(lambda leaf: leaf[index], samples)


def is_concrete(array: Any) -> bool:
    """Whether it has values, rather than being a tracer."""
    return not isinstance(array, jax.core.Tracer)


def global_index(num_samples: int, axis_name: str | None) -> tuple[Int[Array, " sample"], int]:
    """Position of each sample among those of all devices, and how many there are."""
    local = jnp.arange(num_samples)
    if axis_name is None:
        return local, num_samples
    return local + num_samples * lax.axis_index(axis_name), num_samples * lax.axis_size(axis_name)


def _nan_where(is_empty, array):
    return jnp.where(like(is_empty, array), jnp.nan, array)
