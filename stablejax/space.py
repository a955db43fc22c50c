"""Open boundaries or a periodic cell: distances without singular gradients, nearest images, and their range."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.types import Array, Cell, Float, Int, Position


class Pairs(NamedTuple):
    """Undirected pairs of atoms: each pair once, `first` and `second` exchangeable.

    Padding has the number of atoms for both, one past the last: it is read as the last atom and written nowhere.
    """

    first: Int[Array, " pair"]
    second: Int[Array, " pair"]


class Space(NamedTuple):
    """Boundary conditions; made by `periodic`, or `OPEN`.

    The nearest image of a vector is found in a cell of short lattice vectors, by rounding, which is exact for vectors
    shorter than half the smallest height of that cell: `reach`.
    """

    cell: Cell | None = None  # lattice vectors in rows, Å; None: open boundaries
    reduced: Cell | None = None  # the same lattice by its shortest vectors, Å

    @property
    def is_periodic(self) -> bool:
        """Whether there is a cell."""
        return self.cell is not None

    @property
    def reach(self) -> float | Float[Array, ""]:
        """Distance up to which the nearest image is found and unique, Å: infinite in open boundaries."""
        if self.reduced is None:
            return np.inf
        return 0.5 / _norms(_inverse(self.reduced), axis=0).max()

    @property
    def volume(self) -> float | Float[Array, ""]:
        """Of the cell, Å³: infinite in open boundaries."""
        if self.cell is None:
            return np.inf
        xnp: Any = np if isinstance(self.cell, np.ndarray) else jnp
        return abs(xnp.linalg.det(self.cell))

    def check_reach(self, what: str, distance: float) -> None:
        """Refuse a distance at which an atom would see two images of another. A traced cell is not checked.

        Args:
          what: name of the caller, for the message.
          distance: the largest that is needed, Å; for a list cutoff plus skin.

        Raises:
          ValueError: the distance exceeds `reach`.
        """
        # A cell of edge L reaches L/2, which rounding of its inverse must not refuse.
        if isinstance(self.reduced, jax.core.Tracer) or distance <= self.reach * (1 + 1e-9):
            return
        raise ValueError(
            f"`{what}`: expected distances of at most {self.reach:.3f} Å, half the smallest height of the cell, got "
            f"{distance:g} Å: an atom would see two images of another; use a larger cell or a shorter cutoff."
        )

    def nearest_image(self, vector: Float[Array, "pair 3"]) -> Float[Array, "pair 3"]:
        """Vectors to the nearest periodic image, Å, where they are shorter than `reach`. Differentiable.

        Args:
          vector: Å.
        """
        if self.reduced is None:
            return vector
        shift = lax.stop_gradient(jnp.round(_combined(vector, _inverse(self.reduced))))
        return vector - _combined(shift, self.reduced)

    def vectors(self, position: Position, pairs: Pairs) -> Float[Array, "pair 3"]:
        """Vectors from the first to the second atom of each pair, Å. Differentiable.

        Args:
          position: wrapped or not, Å.
          pairs: of atoms.
        """
        return self.nearest_image(position[pairs.second] - position[pairs.first])

    def distances(self, position: Position, pairs: Pairs) -> Float[Array, " pair"]:
        """Distances of the pairs, Å. Differentiable, also at 0.

        Args:
          position: wrapped or not, Å.
          pairs: of atoms.
        """
        return safe_norm(self.vectors(position, pairs))

    def wrap(self, position: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
        """Positions moved into the cell, atom by atom, Å."""
        if self.cell is None:
            return position
        xnp, matmul = _arithmetic(position, self.cell)
        return position - matmul(xnp.floor(matmul(position, _inverse(self.cell))), self.cell)

    def unwrap(self, position: Float[Array, "frame atom 3"]) -> Float[Array, "frame atom 3"]:
        """Consecutive frames without the jumps due to wrapping, Å: continuous motion from the first frame.

        Correct where no atom moves further than `reach` from frame to frame.
        """
        if self.reduced is None:
            return position
        xnp, matmul = _arithmetic(position, self.reduced)
        # Counts of lattice vectors are integers: their sums over many frames are exact.
        jump = xnp.round(matmul(position[1:] - position[:-1], _inverse(self.reduced)))
        shift = xnp.concatenate([xnp.zeros_like(position[:1]), xnp.cumsum(jump, axis=0)])
        return (position - matmul(shift, self.reduced)).astype(position.dtype)


OPEN = Space()
"""Open boundaries: no images."""


# The shape of `cell` is checked inside, so the annotation leaves it open: our error names it with and without the hook.
def periodic(cell: Float[Array, "..."]) -> Space:
    """A periodic cell of any shape.

    A concrete cell is reduced to its shortest lattice vectors (Minkowski; Semaev 2001), so that a skewed description of
    a lattice reaches as far as any other. A traced cell is taken as it is.

    Args:
      cell: lattice vectors in rows, Å.

    Raises:
      ValueError: another shape; vectors that span no volume.
    """
    if np.shape(cell) != (3, 3):
        raise ValueError(
            f"`periodic`: expected the three lattice vectors in rows, [3, 3], got shape {np.shape(cell)}: write a box "
            "of edges a, b, c as np.diag([a, b, c])."
        )
    if isinstance(cell, jax.core.Tracer):
        return Space(cell, cell)
    cell = np.asarray(cell, float)
    if not abs(np.linalg.det(cell)) > 1e-9:
        raise ValueError(
            f"`periodic`: expected lattice vectors that span a volume, got {cell.tolist()}: check the cell."
        )
    return Space(cell, _reduced(cell))


def safe_norm(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch"]:
    """Euclidean norm over the last axis, with gradient 0 (not NaN) where the vector is 0."""
    squared = jnp.sum(vector * vector, axis=-1)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))


def all_pairs(num_atoms: int) -> Pairs:
    """All pairs i < j.

    Raises:
      ValueError: fewer than 2 atoms.
    """
    if num_atoms < 2:
        raise ValueError(f"`all_pairs`: `num_atoms` must be at least 2, got {num_atoms}: a pair needs two atoms.")
    first, second = np.triu_indices(num_atoms, k=1)
    return Pairs(first.astype(np.int32), second.astype(np.int32))


def pad_pairs(pairs: Pairs, num_pairs: int, *, num_atoms: int) -> Pairs:
    """The pairs, padded to `num_pairs`.

    Args:
      pairs: not padded.
      num_pairs: length of the result.
      num_atoms: of the system, the index that marks padding.

    Raises:
      ValueError: there are more pairs.
    """
    missing = num_pairs - len(pairs.first)
    if missing < 0:
        raise ValueError(
            f"`pad_pairs`: {len(pairs.first)} pairs do not fit into `num_pairs` = {num_pairs}: increase it."
        )
    return Pairs(*(jnp.pad(jnp.asarray(index), (0, missing), constant_values=num_atoms) for index in pairs))


def _arithmetic(*arrays) -> tuple[Any, Any]:
    """NumPy where all is on the host; else JAX, with products in full precision on accelerators."""
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np, np.matmul
    return jnp, partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _combined(coefficient, rows):
    # Not a matrix product: three columns make a slow one on a CPU, and accelerators round its factors.
    return sum(coefficient[:, row, None] * jnp.asarray(rows[row], coefficient.dtype) for row in range(3))


def _inverse(cell):
    return np.linalg.inv(cell) if isinstance(cell, np.ndarray) else jnp.linalg.inv(cell)


def _norms(matrix, *, axis: int):
    xnp: Any = np if isinstance(matrix, np.ndarray) else jnp
    return xnp.linalg.norm(matrix, axis=axis)


def _reduced(cell: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Vectors of the same lattice, none of which gets shorter by adding or subtracting the others."""
    cell, is_shorter = cell.copy(), True
    while is_shorter:
        is_shorter = False
        for row in range(3):
            others = np.delete(cell, row, axis=0)
            options = cell[row] + np.array(list(product((0, 1, -1), repeat=2))) @ others
            best = options[np.argmin(np.linalg.norm(options, axis=1))]
            if np.linalg.norm(best) < np.linalg.norm(cell[row]) * (1 - 1e-12):
                cell[row], is_shorter = best, True
    return cell
