"""Many replicas at once: side by side on a device, and shared between devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from stablejax.types import Array, Bool

REPLICA_AXIS = "replica"
"""Name of the mesh axis over which replicas are sharded."""


def map_replicas(
    fn: Callable,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    is_active: Callable[[Any], Bool[Array, ""]] | None = None,
) -> Callable:
    """`fn(shared, one)` over axis 0 of `many`: `(shared, many) -> stacked`.

    Args:
      fn: function of what all replicas share and of one replica's pytree.
      batch_size: replicas that run side by side on a device (`vmap`); the others follow in turn. None: all.
        1 suits the caches of a CPU, None a GPU.
      mesh: devices to share the replicas between, by their axis `replica`. Their number has to divide the replicas'.
      is_active: of one replica's pytree, whether `fn` has work to do, as `advance` has with a replica that is not
        frozen. Replicas without work are put side by side, so that nobody waits for others beside them: on each device,
        those with work run on a half, a quarter or an eighth of the width where they fit. None: all have work.
    """

    def in_order(shared, many):
        one_fn = lambda one: fn(shared, one)  # noqa: E731
        if batch_size is None:
            return jax.vmap(one_fn)(many)
        # A batch of one is a plain loop, in which frozen replicas are skipped.
        return lax.map(one_fn, many, batch_size=None if batch_size == 1 else batch_size)

    def mapped(shared, many):
        if is_active is None or batch_size == 1:
            return in_order(shared, many)
        has_work = jax.vmap(is_active)(many)
        order = jnp.argsort(~has_work, stable=True)
        many = jax.tree.map(lambda leaf: leaf[order], many)
        if batch_size is None:
            widths = _widths(len(order))
            runs = [partial(_run_apart, partial(in_order, shared), width) for width in widths]
            done = lax.switch(jnp.searchsorted(jnp.asarray(widths), jnp.sum(has_work)), runs, many)
        else:
            done = in_order(shared, many)
        return jax.tree.map(lambda leaf: leaf[jnp.argsort(order)], done)

    if mesh is None:
        return mapped
    replicated, sharded = PartitionSpec(), PartitionSpec(REPLICA_AXIS)
    sharded_fn = jax.shard_map(mapped, mesh=mesh, in_specs=(replicated, sharded), out_specs=sharded, check_vma=False)

    def checked(shared, many):
        num_replicas = jax.tree.leaves(many)[0].shape[0]
        if num_replicas % mesh.shape[REPLICA_AXIS]:
            raise ValueError(
                f"`map_replicas`: {num_replicas} replicas cannot be shared evenly by {mesh.shape[REPLICA_AXIS]} "
                "devices: choose a multiple of the number of devices."
            )
        return sharded_fn(shared, many)

    return checked


def _widths(num_replicas: int) -> list[int]:
    """An eighth, a quarter, a half and all of them, rounded up, each once."""
    return sorted({-(-num_replicas // parts) for parts in (8, 4, 2, 1)})


def _run_apart(fn: Callable, width: int, many):
    """`fn` of the first `width` and of the rest, one after the other."""
    if width == jax.tree.leaves(many)[0].shape[0]:
        return fn(many)
    first, rest = jax.tree.map(lambda leaf: leaf[:width], many), jax.tree.map(lambda leaf: leaf[width:], many)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), fn(first), fn(rest))


def replica_mesh(devices: list | None = None) -> Mesh:
    """All devices, or those given, in a row named `replica`."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (REPLICA_AXIS,))
