"""A model with its radial filters read from one table, made once per set of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablejax import tabulate
from stablejax.models.protocol import RadialFilters
from stablejax.space import Pairs, safe_norm
from stablejax.tabulate import RadialTable
from stablejax.types import Array, Float, Int, Params

Prepared = tuple[Params, RadialTable]


def tabulated(
    model: RadialFilters, species: Int[Array, " atom"], *, num_intervals: int
) -> tuple[
    Callable[[Params], Prepared],
    Callable[[Prepared, Pairs, Float[Array, "pair 3"]], Float[Array, " atom"]],
]:
    """The filters of all layers concatenated in one table over distances, and the energies of atoms from it.

    Args:
      model: with radial filters.
      species: atomic numbers.
      num_intervals: of the table.

    Returns:
      `params -> prepared` and `(prepared, pairs, vector) -> [atom]`, eV.
    """

    def filters(params: Params, distance: Float[Array, " r"]) -> Any:
        return model.apply(params, distance, method="filters")

    def prepare(params: Params) -> Prepared:
        of_all = lambda distance: jnp.concatenate(filters(params, distance), axis=1)  # noqa: E731
        return params, tabulate.radial_table(of_all, cutoff=model.cutoff, num_intervals=num_intervals)

    def atom_energies(prepared: Prepared, pairs: Pairs, vector: Float[Array, "pair 3"]) -> Float[Array, " atom"]:
        params, table = prepared
        values = tabulate.evaluate(table, safe_norm(vector))
        sizes = [one.shape[1] for one in jax.eval_shape(filters, params, vector[:, 0])]
        split = jnp.split(values, np.cumsum(sizes)[:-1], axis=1)
        return model.apply(params, species, pairs, vector, split, method="energies_from_filters")

    return prepare, atom_energies
