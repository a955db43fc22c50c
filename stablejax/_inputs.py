"""Internals of `boltzmann`: what a caller gives, checked, as samples with weights and segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax._ensemble import Ensemble, Segments, global_index, is_concrete, stand_in
from stablejax.types import Array, Float, Int, Shaped


class Counts(NamedTuple):
    """Which samples count, and for what; see `boltzmann.expectation`. None: not given."""

    mask: Any = None
    weight: Any = None
    state: Any = None
    group: Any = None
    half: Any = None


def prepared(
    name: str,
    functions: tuple[Callable, Callable],
    segments: Segments,
    parameters: tuple,
    samples: Any,
    counts: Counts,
    *,
    is_local: bool,
    axis_name: str | None,
) -> tuple[Any, Ensemble]:
    """Samples as constants, and their weights and segments.

    Args:
      name: of the public function, for messages.
      functions: energy and observable, `(*parameters, sample)`.
      segments: that the caller's options ask for.
      parameters: of both functions.
      samples: pytree with the sample on axis 0.
      counts: what the caller gave.
      is_local: the energy function gives [neighborhood].
      axis_name: mapped axis over which samples are sharded.
    """
    samples, num_samples = checked_samples(name, samples, is_shared=axis_name is not None)
    sample = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), samples)
    whole = num_samples, checked_shapes(name, *functions, (*parameters, sample), is_local=is_local)
    weight = checked_counts(name, counts.mask, counts.weight, whole)
    group, half = counts.group, counts.half
    if group is not None and jnp.ndim(group) == 1:
        group = jnp.broadcast_to(jnp.asarray(group), whole)
    if segments.num_halves == 2 and half is None:
        position, total = global_index(num_samples, axis_name)
        half = (2 * position >= total).astype(jnp.int32)
    ensemble = Ensemble(
        weight,
        segments.number(
            checked_index(name, "state", counts.state, segments.num_states if segments.has_states else None, whole[:1]),
            checked_index(name, "group", group, segments.num_groups if segments.has_groups else None, whole),
            checked_index(name, "half", half, 2 if segments.num_halves == 2 else None, whole[:1]),
        ),
    )
    return (samples if counts.mask is None and counts.weight is None else stand_in(samples, weight)), ensemble


def without_closures(
    energy_fn: Callable, observable_fn: Callable, parameters: tuple, samples: Any
) -> tuple[Callable, Callable, list]:
    """Both functions of one sample with the values that they close over as further parameters, and these values."""
    sample = jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], samples)
    energy, energy_values = jax.closure_convert(energy_fn, *parameters, sample)
    observable, values = jax.closure_convert(observable_fn, *parameters, sample)
    num, num_energy = len(parameters), len(parameters) + len(energy_values)

    def pure_energy_fn(*given):
        return energy(*given[:num], given[-1], *given[num:num_energy])

    def pure_observable_fn(*given):
        return observable(*given[:num], given[-1], *given[num_energy:-1])

    return pure_energy_fn, pure_observable_fn, [*energy_values, *values]


def checked_temperatures(name: str, kT: Any) -> tuple[Float[Array, " state"], bool]:
    """k_B T of each thermodynamic state, and whether `kT` has an axis of states."""
    values = kT if isinstance(kT, jax.Array) else np.asarray(kT, float)
    if values.ndim > 1 or (is_concrete(values) and not np.all(np.asarray(values) > 0)):
        raise ValueError(f"`{name}`: `kT` must be positive, got {kT}: pass k_B T in the unit of the energy.")
    return values.reshape(-1), values.ndim == 1


def checked_samples(name: str, samples: Any, *, is_shared: bool) -> tuple[Any, int]:
    """Samples as JAX constants, and their number."""
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(samples)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"`{name}`: every leaf of `samples` needs the sample on axis 0, got sizes {sorted(map(str, sizes))}: "
            "give all leaves the same leading axis."
        )
    (num_samples,) = sizes
    if num_samples < 2 and not is_shared:
        raise ValueError(f"`{name}`: the estimator needs at least 2 samples, got {num_samples}: pass more samples.")
    return lax.stop_gradient(jax.tree.map(jnp.asarray, samples)), num_samples


def checked_counts(name: str, mask: Any, weight: Any, shape: tuple[int, int]) -> Float[Array, "sample neighborhood"]:
    """Weights of the samples, 0 where the mask is False."""
    counts = jnp.ones(shape)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != bool:
            raise ValueError(
                f"`{name}`: expected a boolean `mask`, got {mask.dtype}: compare it with 0, or pass it as `weight`."
            )
        counts = counts * _per_sample(f"`{name}`: `mask`", mask, shape)
    if weight is not None:
        counts = counts * _per_sample(f"`{name}`: `weight`", jnp.asarray(weight), shape)
    if is_concrete(counts) and not np.all(np.asarray(counts) >= 0):
        raise ValueError(f"`{name}`: `weight` must not be negative or NaN: leave such samples out by `mask`.")
    return lax.stop_gradient(counts)


PARTNERS = {
    "state": "one kT for each thermodynamic state",
    "group": "`num_groups` of `localized`",
    "half": "`crosses_halves`",
}
"""The option that each index requires."""


def checked_index(
    name: str, what: str, given: Any, number: int | None, shape: tuple[int, ...]
) -> Int[Array, "sample neighborhood"]:
    """Indices from 0 to `number` − 1 as [sample, 1] or [sample, neighborhood]; zeros where none are requested."""
    if (number is not None) != (given is not None):
        raise ValueError(
            f"`{name}`: `{what}` goes with {PARTNERS[what]}, got {'no' if given is None else 'only'} `{what}`: give "
            "both or neither."
        )
    if given is None:
        return jnp.zeros((shape[0], 1), jnp.int32)
    given = jnp.asarray(given)
    if given.shape != shape or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"`{name}`: `{what}` needs integers of shape {shape}, got shape {given.shape} of "
            f"{given.dtype}: one entry each."
        )
    if is_concrete(given) and not np.all((np.asarray(given) >= 0) & (np.asarray(given) < number)):
        raise ValueError(f"`{name}`: `{what}` has to be from 0 to {(number or 0) - 1}: count from 0.")
    return given[:, None] if given.ndim == 1 else given


def _per_sample(what: str, given: Shaped[Array, "..."], shape: tuple[int, int]):
    if given.shape not in (shape[:1], shape):
        raise ValueError(f"{what} needs shape {shape[:1]}, got {given.shape}: one entry per sample.")
    return given.reshape(shape[0], -1).astype(jnp.result_type(float))


def checked_differentiable(name: str, parameters: tuple, argnums: Any) -> None:
    """Refuse `argnums` beyond the parameters, and parameters in it that are not real floating-point numbers."""
    for argnum in (argnums,) if isinstance(argnums, int) else argnums:
        if not -len(parameters) <= argnum < len(parameters):
            raise ValueError(
                f"`{name}`: `argnums` has {argnum}, but `samples` come after {len(parameters)} parameters."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters[argnum]):
            dtype = jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(
                    f"`{name}`: expected real floating-point parameters, got {dtype} at parameter {argnum}"
                    f"{jax.tree_util.keystr(path)}: convert it, or leave it out of `argnums`."
                )


def checked_shapes(name: str, energy_fn: Callable, observable_fn: Callable, given: tuple, *, is_local: bool) -> int:
    """Number of neighborhoods, 1 for the global estimator, from the shapes of energy and observable of one sample."""
    for leaf in jax.tree.leaves(given):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(f"`{name}`: complex parameters are not supported: use their real and imaginary parts.")
    shape = jax.eval_shape(energy_fn, *given).shape
    if not is_local:
        if shape != ():
            raise ValueError(
                f"`{name}`: the energy of one sample has to be a scalar, got shape {shape}: sum it, or wrap the "
                "function in `localized` if it gives one energy for each neighborhood."
            )
        return 1
    if len(shape) != 1:
        raise ValueError(
            f"`{name}`: a localized energy function gives [neighborhood] for one sample, got shape {shape}: sum over "
            "the atoms of each."
        )
    for leaf in jax.tree.leaves(jax.eval_shape(observable_fn, *given)):
        if leaf.shape[:1] != shape:
            raise ValueError(
                f"`{name}`: observables need the {shape[0]} neighborhoods on axis 0, got shape {leaf.shape}: give one "
                "value for each."
            )
    return shape[0]
