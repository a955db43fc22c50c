"""Energy and forces of a potential as a compiled function in a file, which a program runs without this library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import export

from stablejax.potential import Potential
from stablejax.types import Array, Float, Params, Position

PLATFORMS = ("cpu", "cuda", "tpu")


def to_bytes(potential: Potential, params: Params, *, platforms: Sequence[str] = PLATFORMS) -> bytes:
    """`position -> (energy, forces)`, eV and eV/Å, as StableHLO with the parameters in it.

    `jax.export.deserialize(data).call(position)` runs it, where only JAX is installed. Energies are relative to the
    potential's offset.

    >>> import jax
    >>> from stablejax import SchNet, bind
    >>> potential = bind(SchNet(num_blocks=1), [8, 1, 1])
    >>> params, position = potential.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 3))
    >>> energy, forces = from_bytes(to_bytes(potential, params))(position)
    >>> bool(abs(energy - potential.energy(params, position)) < 1e-5)
    True

    Args:
      potential: any.
      params: θ.
      platforms: that it can run on.
    """
    shape = jax.ShapeDtypeStruct((potential.num_atoms, 3), jnp.result_type(float))
    compiled = jax.jit(lambda position: potential.energy_and_forces(params, position))
    return bytes(export.export(compiled, platforms=tuple(platforms))(shape).serialize())


def from_bytes(data: bytes) -> Callable[[Position], tuple[Float[Array, ""], Float[Array, "atom 3"]]]:
    """The function in the bytes: `position -> (energy, forces)`, eV and eV/Å.

    Args:
      data: from `to_bytes`.
    """
    return export.deserialize(bytearray(data)).call
