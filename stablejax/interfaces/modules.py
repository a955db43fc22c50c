"""Models of other libraries as potentials: Flax linen and nnx, Equinox, or any function of a pytree.

PyTorch models stay outside: their energies cannot be differentiated by JAX. Most have a port to JAX that can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from stablejax.energy_functions import from_energy
from stablejax.forms import merged
from stablejax.potential import Potential
from stablejax.space import OPEN, Space
from stablejax.types import Params

Rebuild = Callable[[Params], Any]


def from_module(
    module: Any,
    energy_fn: Callable[[Any, Any], Any],
    *,
    num_atoms: int,
    space: Space = OPEN,
    offset: float = 0.0,
    energy_unit: float = 1.0,
    length_unit: float = 1.0,
) -> tuple[Potential, Params]:
    """A potential and its parameters from a module of any of these libraries.

    >>> import jax.numpy as jnp
    >>> springs = {"stiffness": jnp.array(2.0), "name": "a well"}  # a pytree, as an Equinox module is one
    >>> potential, params = from_module(springs, lambda m, x: 0.5 * m["stiffness"] * jnp.sum(x**2), num_atoms=1)
    >>> print(potential.forces(params, jnp.array([[1.0, 0.0, 0.5]])))
    [[-2. -0. -1.]]

    Args:
      module: a Flax nnx module, a Flax linen module bound to its variables (`module.bind(variables)`), or a pytree
        whose floating-point arrays are its parameters, as an Equinox module is.
      energy_fn: `(module, position) -> energy` of one frame, in the units of the module; species, their order and
        boundaries are its business.
      num_atoms: of the system.
      space: the boundaries that the function assumes.
      offset: eV; see `potential.bind`.
      energy_unit: of the module, eV.
      length_unit: of the module, Å.

    Raises:
      ValueError: the module has no floating-point array.
    """
    params, rebuild = taken_apart(module)
    dtype = jnp.result_type(*jax.tree.leaves(params))

    def energy(params, position):
        own = position.astype(jnp.promote_types(dtype, position.dtype)) / length_unit
        return (energy_unit * jnp.sum(energy_fn(rebuild(params), own))).astype(position.dtype)

    return from_energy(energy, num_atoms=num_atoms, space=space, init=lambda _: params, offset=offset), params


def taken_apart(module: Any) -> tuple[Params, Rebuild]:
    """Parameters of a module, and what makes a module of parameters.

    Args:
      module: see `from_module`.

    Raises:
      ValueError: the module has no floating-point array.
    """
    params: Params
    if isinstance(module, nnx.Module):
        graph, params, *others = nnx.split(module, nnx.Param, ...)
        rebuild: Rebuild = lambda params: nnx.merge(graph, params, *others)  # noqa: E731
    elif isinstance(module, linen.Module):
        unbound, params = module.unbind() if module.scope is not None else (module, {})
        rebuild = unbound.bind
    else:
        params = jax.tree.map(lambda leaf: leaf if _is_trained(leaf) else None, module)
        rebuild = lambda params: merged(params, module)  # noqa: E731

    if not jax.tree.leaves(params):
        raise ValueError(
            f"`taken_apart`: expected a module with floating-point arrays, got {type(module).__name__} without any: "
            "bind a linen module to its variables, and initialize others."
        )
    return params, rebuild


def _is_trained(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
