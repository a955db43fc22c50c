"""Many replicas at once: batched on a device, and sharded over devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from stablejax.types import Array, Bool

REPLICA_AXIS = "replica"
"""Name of the mesh axis over which replicas are sharded."""
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(REPLICA_AXIS)


class Execution(NamedTuple):
    """Where replicas run and how much of the work is done at once; results do not depend on it."""

    mesh: Mesh | None = None  # devices that share replicas and samples; None: one device
    batch_size: int | None = None  # replicas in a batch on a device; None: all
    chunk_size: int | None = None  # samples whose energies are differentiated together; None: all
    donates: bool = False  # buffers of a state of StABlE training are donated to the next: it cannot be used again

    @property
    def axis_name(self) -> str | None:
        """Of the mapped axis inside `over_samples`."""
        return None if self.mesh is None else REPLICA_AXIS

    def map_replicas(self, fn: Callable, *, is_active: Callable[[Any], Bool[Array, ""]] | None = None) -> Callable:
        """`fn(shared, one)` over replicas on axis 0.

        Args:
          fn: see `map_replicas`.
          is_active: see `map_replicas`.
        """
        return map_replicas(fn, batch_size=self.batch_size, mesh=self.mesh, is_active=is_active)

    def over_samples(self, fn: Callable, *, gives_samples: bool = False) -> Callable:
        """`fn(params, *samples)` with the samples sharded over devices; the result is that of all samples.

        Args:
          fn: its result is the same on all devices, by sums over `axis_name`, unless it `gives_samples`.
          gives_samples: the result has the samples on axis 0, and stays sharded.
        """
        if self.mesh is None:
            return fn
        out_specs = SHARDED if gives_samples else REPLICATED

        def shared(params, *samples):
            in_specs = (REPLICATED, *(SHARDED for _ in samples))
            run = jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
            return run(params, *samples)

        return shared


ONE_DEVICE = Execution()
"""All replicas in one batch, and all samples at once."""


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
      batch_size: replicas in one `vmap` on a device; batches run sequentially. None: all. 1 suits the caches of a CPU,
        None a GPU.
      mesh: devices to shard the replicas over, by their axis `replica`. Their number has to divide that of replicas.
      is_active: of one replica's pytree, whether `fn` has work to do, as `advance` has with a replica that is not
        frozen. On each device replicas with work are sorted to the front, so that the others share as few batches with
        them as possible; without `batch_size` the batches are of a half, a quarter or an eighth of the replicas, the
        smallest that divides them and holds those with work. None: all have work.
    """

    def mapped(shared, many):
        one_fn = lambda one: fn(shared, one)  # noqa: E731
        if is_active is None or batch_size == 1:
            return _in_batches(one_fn, batch_size, many)
        has_work = jax.vmap(is_active)(many)
        order = jnp.argsort(~has_work, stable=True)
        many = jax.tree.map(lambda leaf: leaf[order], many)
        if batch_size is None:
            widths = _widths(len(order))
            runs = [partial(_in_batches, one_fn, width) for width in widths]
            done = lax.switch(jnp.searchsorted(jnp.asarray(widths), jnp.sum(has_work)), runs, many)
        else:
            done = _in_batches(one_fn, batch_size, many)
        return jax.tree.map(lambda leaf: leaf[jnp.argsort(order)], done)

    if mesh is None:
        return mapped
    in_specs = (REPLICATED, SHARDED)
    sharded_fn = jax.shard_map(mapped, mesh=mesh, in_specs=in_specs, out_specs=SHARDED, check_vma=False)

    def checked(shared, many):
        num_replicas = jax.tree.leaves(many)[0].shape[0]
        if num_replicas % mesh.shape[REPLICA_AXIS]:
            raise ValueError(
                f"`map_replicas`: {num_replicas} replicas cannot be sharded evenly over {mesh.shape[REPLICA_AXIS]} "
                "devices: choose a multiple of the number of devices."
            )
        return sharded_fn(shared, many)

    return checked


def _widths(num_replicas: int) -> list[int]:
    """An eighth, a quarter, a half and all of them, where these are whole numbers: each width is compiled once."""
    return [num_replicas // parts for parts in (8, 4, 2, 1) if num_replicas % parts == 0]


def _in_batches(one_fn: Callable, batch_size: int | None, many):
    """`one_fn` of all on axis 0, sequentially over batches of that size. None: one batch."""
    if batch_size is None or batch_size == len(jax.tree.leaves(many)[0]):
        return jax.vmap(one_fn)(many)
    # A batch of one is a plain loop, in which frozen replicas are skipped.
    return lax.map(one_fn, many, batch_size=None if batch_size == 1 else batch_size)


def replica_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices, or those given, with one axis `replica`."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (REPLICA_AXIS,))
