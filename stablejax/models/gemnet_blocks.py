"""Blocks of GemNet-T: messages between directed edges, and their contributions to atoms and energies."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stablejax.models.edges import Edges, sum_over_other_edges
from stablejax.types import Array, Float

_ROOT_HALF = 0.5**0.5


class Shared(NamedTuple):
    """What all blocks share: weights of the angular basis, and projections of the radial one."""

    circular: Float[Array, "degree radial circular"]
    triplet: Float[Array, "edge small"]
    atom: Float[Array, "edge small"]
    output: Float[Array, "edge small"]


class Scales(NamedTuple):
    """Scale factors of a block."""

    radial_product: Float[Array, ""]
    triplet_sum: Float[Array, ""]
    atom_update: Float[Array, ""]
    output: Float[Array, ""]


def scaled_silu(x: Array) -> Array:
    return jax.nn.silu(x) / 0.6


def he_orthogonal(key, shape, dtype=jnp.float32):
    """Orthogonal, every output then standardized over its inputs and scaled by 1/√fan_in; outputs are the last axis.

    Args:
      key: PRNG key.
      shape: of the weights.
      dtype: of the weights.
    """
    fan_in = int(np.prod(shape[:-1]))
    matrix = nn.initializers.orthogonal()(key, (fan_in, shape[-1]), dtype)
    deviation = matrix - jnp.mean(matrix, axis=0)
    return (deviation / jnp.sqrt((jnp.var(matrix, axis=0, ddof=1) + 1e-6) * fan_in)).reshape(shape)


def linear(size: int, name: str) -> nn.Dense:
    """A layer without bias.

    Args:
      size: outputs.
      name: of its parameters.
    """
    return nn.Dense(size, use_bias=False, kernel_init=he_orthogonal, name=name)


def _dense(x: Float[Array, "n feature"], size: int, name: str) -> Float[Array, "n size"]:
    """Linear, then the activation."""
    return scaled_silu(linear(size, name)(x))


def _add(x: Array, y: Array) -> Array:
    return (x + y) * _ROOT_HALF


def _observe(module: nn.Module, name: str, x, weight, reference, reference_weight) -> None:
    """Keep the variance of x over that of a reference, for `fit_scales`; a no-op unless the collection is mutable."""
    if not module.is_initializing():
        module.sow("variance_ratio", name, _variance(x, weight) / _variance(reference, reference_weight))


def _variance(x: Float[Array, "n feature"], weight: Float[Array, " n"] | None) -> Float[Array, ""]:
    """Over axis 0, the mean over the features."""
    weight = jnp.ones(len(x)) if weight is None else weight
    mean = jnp.average(x, axis=0, weights=weight)
    return jnp.mean(jnp.average((x - mean) ** 2, axis=0, weights=weight))


class Residual(nn.Module):
    """Two layers with a skip connection."""

    @nn.compact
    def __call__(self, x: Float[Array, "n feature"]) -> Float[Array, "n feature"]:
        size = x.shape[-1]
        return _add(x, _dense(_dense(x, size, "dense_0"), size, "dense_1"))


class WithAtoms(nn.Module):
    """A layer over the concatenated features of source, target and edge; those of atoms are multiplied per atom."""

    size: int

    @nn.compact
    def __call__(self, atom, x, edges: Edges) -> Float[Array, "edge size"]:
        width = atom.shape[-1]
        kernel = self.param("kernel", he_orthogonal, (2 * width + x.shape[-1], self.size))
        source, target, own = jnp.split(kernel, [width, 2 * width])
        return scaled_silu((atom @ source)[edges.source] + (atom @ target)[edges.target] + x @ own)


class AtomSum(nn.Module):
    """Messages of the edges that end at an atom, weighted by distance, then a residual network."""

    size: int

    @nn.compact
    def __call__(self, message, radial, scale, edges: Edges) -> Float[Array, "atom size"]:
        x = edges.sum_at_target(message * linear(message.shape[-1], "radial")(radial)) * scale
        _observe(self, "sum", x, None, message, edges.is_near)
        x = _dense(x, self.size, "dense")
        return Residual(name="residual_1")(Residual(name="residual_0")(x))


class Triplets(nn.Module):
    """Messages from the other edges of the target, by the angle between them."""

    triplet_size: int
    bilinear_size: int

    @nn.compact
    def __call__(self, message, scales: Scales, shared: Shared, edges: Edges) -> Float[Array, "edge feature"]:
        size = message.shape[-1]
        sent = _dense(message, size, "dense")
        x = sent * linear(size, "radial")(shared.triplet) * scales.radial_product
        _observe(self, "radial_product", x, edges.is_near, sent, edges.is_near)
        sent = _dense(x, self.triplet_size, "down")
        shape = (shared.circular.shape[-1], self.triplet_size, self.bilinear_size)
        weight = jnp.einsum("lri,iko->lkro", shared.circular, self.param("bilinear", he_orthogonal, shape))
        x = sum_over_other_edges(sent, weight, edges) * scales.triplet_sum
        num_triplets = edges.is_near * (edges.sum_at_target(edges.is_near)[edges.target] - 1)
        _observe(self, "triplet_sum", x, edges.is_near, sent, num_triplets)
        forward, backward = _dense(x, size, "up"), _dense(x, size, "up_reverse")
        return _add(forward, edges.reverse(backward))


class Output(nn.Module):
    """Energies of the atoms from messages."""

    size: int

    @nn.compact
    def __call__(self, message, scale, shared: Shared, edges: Edges) -> Float[Array, " atom"]:
        x = AtomSum(self.size, name="sum")(message, shared.output, scale, edges)
        return linear(1, "energy")(x)[:, 0]


class Block(nn.Module):
    """Update of messages, atoms and their energies."""

    triplet_size: int
    bilinear_size: int

    @nn.compact
    def __call__(self, state, scales: Scales, shared: Shared, edges: Edges):
        atom, message, energy = state
        size = message.shape[-1]
        triplets = Triplets(self.triplet_size, self.bilinear_size, name="triplets")
        x = _add(_dense(message, size, "dense"), triplets(message, scales, shared, edges))
        message = _add(message, Residual(name="before_skip")(x))
        message = Residual(name="after_skip")(message)
        update = AtomSum(atom.shape[-1], name="atom_update")
        atom = _add(atom, update(message, shared.atom, scales.atom_update, edges))
        x = WithAtoms(size, name="concat")(atom, message, edges)
        message = _add(message, Residual(name="residual")(x))
        energy = energy + Output(atom.shape[-1], name="output")(message, scales.output, shared, edges)
        return (atom, message, energy), None
