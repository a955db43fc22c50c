"""Samples of the last epochs as samples of the present potential: a bounded buffer, reweighted by MBAR.

Shirts and Chodera, J. Chem. Phys. 129, 124105 (2008), Equations 9, 11 and 13: the samples of all states together are
weighted as those of their mixture, so that samples of parameters far from the present ones count next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stablejax.reweighting import mixture_energy
from stablejax.types import Array, Bool, Float, Params
from stablejax.updates import Seen


class Buffer(NamedTuple):
    """What the last epochs gave, the latest first; before there are as many, samples that do not count."""

    params: Params  # [epoch, ...], that the samples are of
    samples: Any  # a pytree [epoch, sample, ...]
    mask: Bool[Array, "epoch sample *neighborhood"]  # which count
    is_stable: Bool[Array, "epoch sample"]  # which are of replicas that did not fail in the epoch


def empty(num_epochs: int, params: Params, samples: Any, mask: Any) -> Buffer:
    """A buffer without a sample that counts.

    Args:
      num_epochs: that it holds.
      params: of the potential.
      samples: shapes of those of an epoch.
      mask: its shape.
    """

    def zeros(leaf) -> Array:
        return jnp.zeros((num_epochs, *leaf.shape), leaf.dtype)

    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_epochs, *leaf.shape)), params)
    every = jnp.zeros((num_epochs, *mask.shape), bool)
    return Buffer(copies, jax.tree.map(zeros, samples), every, jnp.zeros(every.shape[:2], bool))


def pushed(buffer: Buffer, params: Params, seen: Seen) -> Buffer:
    """The buffer with an epoch more, and without the oldest.

    Args:
      buffer: of the epochs before.
      params: that the samples are of.
      seen: of the epoch alone.
    """
    new = Buffer(params, seen.samples, seen.mask, seen.is_stable)
    return jax.tree.map(lambda old, one: jnp.concatenate([one[None].astype(old.dtype), old[:-1]]), buffer, new)


def joined(
    buffer: Buffer,
    params: Params,
    seen: Seen,
    energies_fn: Callable[[Params, Any], Float[Array, " sample"]],
    *,
    kT: float | Float[Array, ""],
) -> Seen:
    """What an epoch and those of the buffer give together to learn from, the epoch's own samples first.

    Args:
      buffer: of the epochs before.
      params: that the epoch's samples are of.
      seen: of the epoch alone.
      energies_fn: `(params, samples) -> eV`.
      kT: k_B T, eV.
    """
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), buffer._replace(params=None))

    def all_of(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda one, others: jnp.concatenate([one, others.astype(one.dtype)]), new, old)

    together = seen._replace(
        samples=all_of(seen.samples, flat.samples),
        mask=all_of(seen.mask, flat.mask),
        is_stable=all_of(seen.is_stable, flat.is_stable),
    )
    num_epochs = len(buffer.mask)
    of_epoch = [params] + [jax.tree.map(lambda leaf, k=k: leaf[k], buffer.params) for k in range(num_epochs)]
    energies = jnp.stack([energies_fn(one, together.samples) for one in of_epoch])
    counted = together.is_counted
    num_samples = jnp.sum(counted.reshape(num_epochs + 1, -1), axis=1)
    return together._replace(sampled_energy=mixture_energy(energies, num_samples, counted, kT=kT))
