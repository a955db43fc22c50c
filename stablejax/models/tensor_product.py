"""Tensor products of features with spherical harmonics, path by path (Batzner et al. 2022, as e3nn normalizes them).

Features are dicts of arrays [atom, 2l + 1, channel] by irreducible representation. The channel comes last, so that
every operation vectorizes over it; components of l = 1 are x, y, z.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from stablejax.models.edges import e3nn
from stablejax.types import Array, Float


class Irrep(NamedTuple):
    """Irreducible representation of O(3)."""

    degree: int  # l
    parity: int  # 1 or −1 under inversion

    def __str__(self) -> str:
        return f"{self.degree}{'e' if self.parity == 1 else 'o'}"


SCALAR = Irrep(0, 1)
Features = dict[Irrep, Array]  # [atom, 2l + 1, channel]


class Path(NamedTuple):
    """One path of the tensor product: source ⊗ harmonics of `degree` -> target."""

    source: Irrep
    degree: int
    target: Irrep


@cache
def _coupling(path: Path) -> np.ndarray:
    """[source m, harmonics m, target m]: Clebsch-Gordan coefficients, component normalization."""
    degrees = path.source.degree, path.degree, path.target.degree
    wigner = np.asarray(e3nn().clebsch_gordan(*degrees))
    if min(degrees) > 0:
        wigner = wigner.astype(np.float32).astype(np.float64)  # as weights trained with e3nn assume in every precision
    return wigner * np.sqrt(2 * path.target.degree + 1)


def coupled(path: Path, harmonics: Float[Array, "pair m"]) -> Float[Array, "pair source target"]:
    """The coupling of the path contracted with the harmonics of each pair: from m of the source to m of the target.

    Args:
      path: of the product.
      harmonics: of its degree.
    """
    return jnp.einsum("pj,ijk->pik", harmonics, jnp.asarray(_coupling(path), harmonics.dtype))


def product(
    coupled: Float[Array, "pair source target"], x: Float[Array, "pair source channel"]
) -> Float[Array, "pair target channel"]:
    """Features of each pair on a path.

    Args:
      coupled: of the path.
      x: features of the source.
    """
    return jnp.sum(coupled[..., None] * x[:, :, None, :], axis=1)
