"""Runs of several processes: all compute the same program, the first one writes files and prints."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict


def join(settings: ConfigDict) -> None:
    """Become one of `settings.num_processes`; a no-op for a single one. Call it before JAX computes anything.

    Raises:
      ValueError: the process number is out of range, or there is no coordinator address.
    """
    number, count = settings.process, settings.num_processes
    if not 0 <= number < max(count, 1):
        raise ValueError(
            f"config.cluster.process has to be one of 0 to {max(count, 1) - 1}, got {number}: "
            "give each of config.cluster.num_processes its own."
        )
    if count <= 1:
        return
    if not settings.coordinator:
        raise ValueError(
            f"config.cluster.num_processes = {count} needs config.cluster.coordinator, host:port of process 0."
        )
    jax.distributed.initialize(settings.coordinator, num_processes=count, process_id=number)


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def agree(fact: bool) -> bool:
    """The value on the first process, so that all take the same branch."""
    if jax.process_count() == 1:
        return fact
    return bool(multihost_utils.broadcast_one_to_all(np.array(fact)))


def first(number: int) -> int:
    """The number on the first process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.array(number, np.int32)))


def largest(number: int) -> int:
    """Maximum over all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number, np.int32)).max())


def smallest(number: float) -> float:
    """Minimum over all processes, so that decisions based on it are the same in all."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.process_allgather(np.array(number, np.float32)).min())


def to_host(tree: Any) -> Any:
    """Arrays of all processes as NumPy arrays, whole in each. All processes have to call it."""
    leaves, structure = jax.tree.flatten(tree)
    # NumPy arrays stay as they are: JAX would truncate double precision.
    is_remote = [isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves]
    if any(is_remote):
        everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("device",)), PartitionSpec())
        remote = [leaf for leaf, needed in zip(leaves, is_remote, strict=True) if needed]
        whole = iter(jax.jit(lambda some: some, out_shardings=everywhere)(remote))
        leaves = [next(whole) if needed else leaf for leaf, needed in zip(leaves, is_remote, strict=True)]
    return jax.tree.unflatten(structure, [_to_numpy(leaf) for leaf in leaves])


def is_key(leaf: Any) -> bool:
    """Whether an array, or its shape and type, is of PRNG keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
