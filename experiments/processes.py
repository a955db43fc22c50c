"""Runs of several processes: all compute the same program, the first one writes files and prints."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict


def join(settings: ConfigDict) -> None:
    """Become one of `settings.num_processes`; nothing where there is one. Before JAX computes anything.

    Raises:
      ValueError: a process number without a place, or no address to meet at.
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
    """What the first process found, so that all take the same way."""
    if jax.process_count() == 1:
        return fact
    return bool(multihost_utils.broadcast_one_to_all(np.array(fact)))


def smallest(number: float) -> float:
    """Of the numbers of all processes, so that what follows from it is the same in all."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.process_allgather(np.array(number, np.float32)).min())


def to_host(tree: Any) -> Any:
    """Arrays of all processes as NumPy arrays, whole in each. All processes have to call it."""
    leaves, structure = jax.tree.flatten(tree)
    # NumPy arrays stay as they are: JAX would take their double precision.
    is_apart = [isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves]
    if any(is_apart):
        everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("device",)), PartitionSpec())
        apart = [leaf for leaf, needed in zip(leaves, is_apart, strict=True) if needed]
        whole = iter(jax.jit(lambda some: some, out_shardings=everywhere)(apart))
        leaves = [next(whole) if needed else leaf for leaf, needed in zip(leaves, is_apart, strict=True)]
    return jax.tree.unflatten(structure, [_to_numpy(leaf) for leaf in leaves])


def is_key(leaf: Any) -> bool:
    """Whether an array, or what stands for its shape and type, is of PRNG keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
