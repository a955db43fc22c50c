"""Directions of edges between atoms, and sums over the edges that end at an atom."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from stablejax._imports import imported
from stablejax.space import Pairs, safe_norm
from stablejax.types import Array, Float, Int

MAX_TILE = 64
"""Slots of a tile where the edges are not known at trace time."""


def e3nn() -> Any:
    """`e3nn_jax`, imported where it is needed: that takes longer than the import of everything else together."""
    return imported("e3nn_jax")


def spherical_harmonics(
    vector: Float[Array, "pair 3"], *, max_degree: int, normalization: str
) -> list[Float[Array, "pair _"]]:
    """Real spherical harmonics of the direction, of each degree from 0; those of degree 1 are in the order x, y, z.

    Args:
      vector: of any length; where it is 0 the harmonics of degree 1 and up are 0.
      max_degree: largest l.
      normalization: component (squares sum to 2l + 1) or integral (orthonormal on the sphere).
    """
    length = safe_norm(vector)
    unit = vector / jnp.where(length == 0, 1.0, length)[:, None]
    library = e3nn()
    degrees = [library.Irrep(degree, (-1) ** degree) for degree in range(max_degree + 1)]
    found = library.spherical_harmonics(degrees, unit, normalize=False, normalization=normalization)
    return [chunk[:, 0, :] for chunk in found.chunks]


@struct.dataclass
class Tiles:
    """Slots for edges such that all edges of a tile end at one atom: contractions per atom become batched products.

    An atom with many edges may have several tiles. Empty slots hold zeros.
    """

    slot: Int[Array, " edge"]  # index among all slots; past the last for padding
    atom: Int[Array, " tile"]
    size: int = struct.field(pytree_node=False)

    def spread(self, x: Float[Array, "edge n"]) -> Float[Array, "tile slot n"]:
        slots = jnp.zeros((len(self.atom) * self.size, x.shape[-1]), x.dtype)
        slots = slots.at[self.slot].set(x, mode="drop", unique_indices=True)
        return slots.reshape(len(self.atom), self.size, x.shape[-1])

    def collect(self, x: Float[Array, "tile slot n"]) -> Float[Array, "edge n"]:
        return jnp.reshape(x, (-1, x.shape[-1])).at[self.slot].get(mode="fill", fill_value=0)


@struct.dataclass
class Edges:
    """Each pair as two edges, source -> target: first -> second and, in the second half, the reverse."""

    source: Int[Array, " edge"]
    target: Int[Array, " edge"]
    radial: Float[Array, "edge radial"]
    harmonics: Float[Array, "tile slot m"]  # of all degrees, orthonormal
    directed: Float[Array, "tile slot product"]  # their products with the radial basis
    tiles: Tiles
    is_near: Float[Array, " edge"]  # 1 within the cutoff, 0 beyond and in padding
    num_atoms: int = struct.field(pytree_node=False)

    def sum_at_target(self, x: Float[Array, "edge *n"]) -> Float[Array, "atom *n"]:
        return jax.ops.segment_sum(x, self.target, num_segments=self.num_atoms)

    def reverse(self, x: Float[Array, "edge n"]) -> Float[Array, "edge n"]:
        """For each edge, the value of the reversed edge."""
        half = len(x) // 2
        return jnp.concatenate([x[half:], x[:half]])


def make_edges(
    pairs: Pairs,
    vector: Float[Array, "pair 3"],
    radial: Float[Array, "pair radial"],
    *,
    num_atoms: int,
    max_degree: int,
    cutoff: float,
) -> Edges:
    """Edges of the pairs.

    Args:
      pairs: padded or not.
      vector: of the pairs, Å.
      radial: radial basis of the pairs.
      num_atoms: number of atoms.
      max_degree: of the spherical harmonics.
      cutoff: Å.
    """
    xnp: Any = jnp if isinstance(pairs.first, jax.core.Tracer) else np
    source, target = xnp.concatenate(list(pairs)), xnp.concatenate(list(pairs)[::-1])
    tiles = make_tiles(target, num_atoms)
    of_degree = spherical_harmonics(vector, max_degree=max_degree, normalization="integral")
    parity = np.concatenate([np.full(2 * degree + 1, (-1.0) ** degree) for degree in range(max_degree + 1)])
    of_pairs = jnp.concatenate(of_degree, axis=-1)
    harmonics = tiles.spread(jnp.concatenate([of_pairs, of_pairs * parity.astype(of_pairs.dtype)]))
    radial = jnp.concatenate([radial, radial])
    is_near = (safe_norm(vector) < cutoff) & (pairs.first < num_atoms)
    directed = harmonics[..., :, None] * tiles.spread(radial)[..., None, :]
    return Edges(
        source=source,
        target=target,
        radial=radial,
        harmonics=harmonics,
        directed=directed.reshape(*directed.shape[:2], -1),
        tiles=tiles,
        is_near=jnp.tile(is_near.astype(vector.dtype), 2),
        num_atoms=num_atoms,
    )


def make_tiles(target: Int[Array, " edge"], num_atoms: int) -> Tiles:
    """Tiles for edges that end at these atoms.

    Edges known at trace time, such as those of all pairs of a molecule, take one tile per atom. Otherwise there are as
    many tiles, of at most `MAX_TILE` slots, as edges could need in the worst case.

    Args:
      target: atom that each edge ends at; `num_atoms` for padding.
      num_atoms: of the system.
    """
    is_known = isinstance(target, np.ndarray)
    xnp: Any = np if is_known else jnp
    order = xnp.argsort(target, stable=True)
    target = target[order]
    first_edge = xnp.searchsorted(target, np.arange(num_atoms + 1))
    degree = xnp.diff(first_edge)
    if is_known:
        size = -(-max(int(degree.max()), 1) // 8) * 8  # matrix products are slow for other sizes
        num_tiles, tiles_of_atom = num_atoms, np.ones(num_atoms, int)
        atom: Any = np.arange(num_atoms)
    else:
        size = min(MAX_TILE, max(num_atoms - 1, 1))
        num_tiles, tiles_of_atom = len(target) // size + num_atoms, -(-degree // size)
        atom = jnp.repeat(jnp.arange(num_atoms), tiles_of_atom, total_repeat_length=num_tiles)
    first_tile = xnp.concatenate([xnp.cumsum(tiles_of_atom) - tiles_of_atom, np.array([num_tiles])])
    slot = first_tile[target] * size + np.arange(len(target)) - first_edge[target]
    return Tiles(slot[xnp.argsort(order)], atom, size)


def sum_over_other_edges(
    x: Float[Array, "edge feature"], weight: Float[Array, "degree feature radial out"], edges: Edges
) -> Float[Array, "edge out"]:
    """Σ_b Σ_lkr Y_l(cos angle) x_bk radial_r w_lkro over the other edges b of an edge's target.

    Y_l is √((2l + 1)/4π) P_l. By the addition theorem Y_l of the angle is a sum of products of harmonics of either
    edge, so the sum over b and the product with the weights are computed once per atom.

    Args:
      x: features of the edges.
      weight: w.
      edges: from `make_edges`.
    """
    num_degrees, *_, num_out = weight.shape
    norm = [(4 * np.pi / (2 * degree + 1)) ** 0.5 for degree in range(num_degrees)]
    tiles = edges.tiles
    at_tile = jnp.einsum("tpm,tpk->tmk", edges.harmonics, tiles.spread(x))
    at_atom = jax.ops.segment_sum(at_tile, tiles.atom, num_segments=edges.num_atoms)[tiles.atom]
    weighted = [
        jnp.einsum("tmk,kro->tmro", at_atom[:, degree**2 : (degree + 1) ** 2], norm[degree] * weight[degree])
        for degree in range(num_degrees)
    ]
    at_tile = jnp.concatenate(weighted, axis=1).reshape(len(tiles.atom), -1, num_out)
    summed = tiles.collect(jnp.einsum("tpd,tdo->tpo", edges.directed, at_tile))
    of_itself = sum(weight[degree] / norm[degree] for degree in range(num_degrees))
    own = (x[:, :, None] * edges.radial[:, None, :]).reshape(len(x), -1)
    return summed - own @ of_itself.reshape(-1, num_out)
