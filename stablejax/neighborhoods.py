"""Local neighborhoods for the localized estimator (paper A.2, A.6): their atoms, and a balanced subsample of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from stablejax.space import OPEN, Space, safe_norm
from stablejax.types import Array, Bool, Float, Frame, Int, Key


def neighborhood_energies(
    atom_energy: Float[Array, " atom"], member: Bool[Array, "neighborhood atom"] | Int[Array, "neighborhood member"]
) -> Float[Array, " neighborhood"]:
    """U(γ) = Σ_{i ∈ γ} U_i (A.2) from the energies of the atoms.

    Args:
      atom_energy: eV.
      member: mask of the atoms of each neighborhood, or their indices, padded with −1.
    """
    member = jnp.asarray(member)
    if member.dtype == bool:
        return jnp.sum(jnp.where(member, atom_energy, 0), axis=1)
    return jnp.sum(jnp.where(member >= 0, atom_energy[member], 0), axis=1)


def nearest_molecules(
    molecule: Int[np.ndarray, " atom"], *, num_molecules: int, space: Space = OPEN
) -> Callable[[Frame], Int[Array, "molecule member"]]:
    """The atoms of each molecule and of those nearest to it, `num_molecules` in all, as indices.

    The distance of two molecules is that of their first atoms. Membership is a constant of the frame, not
    differentiated. The result is an argument of `neighborhood_energies`.

    Args:
      molecule: number of the molecule of each atom; see `topology.find_molecules`. All have the same number of atoms.
      num_molecules: in a neighborhood: 1 in the paper.
      space: in which distances are computed.

    Raises:
      ValueError: molecules differ in size; more molecules than there are.
    """
    sizes = np.bincount(molecule)
    if np.ptp(sizes):
        raise ValueError(
            f"`nearest_molecules`: all molecules must have the same number of atoms, got {sizes.min()} to "
            f"{sizes.max()}: pass neighborhoods of your own to `neighborhood_energies`."
        )
    if not 1 <= num_molecules <= len(sizes):
        raise ValueError(f"`nearest_molecules`: `num_molecules` must be 1 to {len(sizes)}, got {num_molecules}.")
    atoms = np.argsort(molecule, kind="stable").reshape(len(sizes), -1)

    def member_fn(frame: Frame) -> Int[Array, "molecule member"]:
        if num_molecules == 1:
            return jnp.asarray(atoms)
        first = lax.stop_gradient(frame.position[atoms[:, 0]])
        vector = first[None] - first[:, None]
        flat = vector.reshape(-1, 3)
        distance = safe_norm(space.nearest_image(flat)).reshape(vector.shape[:2])
        nearest = lax.top_k(-distance, num_molecules)[1]
        return jnp.asarray(atoms)[nearest].reshape(len(sizes), -1)

    return member_fn


def balanced_subsample(
    key: Key,
    value: Float[Array, "sample neighborhood"],
    mask: Bool[Array, "sample neighborhood"],
    *,
    num_bins: int,
    per_bin: int,
) -> tuple[Bool[Array, "sample neighborhood"], Float[Array, "sample neighborhood"]]:
    """At most `per_bin` neighborhoods from each of `num_bins` equal bins of a value, drawn at random (A.6).

    Instabilities are rare, so most neighborhoods look alike; this gives more weight to the others. The mean over the
    subsample is not that of the ensemble, unless it is taken with the weights.

    Args:
      key: PRNG key.
      value: for example the deviation of a molecule's mean bond length; not differentiated.
      mask: which count at all; those whose value is not finite do not.
      num_bins: between the smallest and the largest value: 100 in the paper.
      per_bin: 5 in the paper.

    Returns:
      Which are chosen, and the weight of each: the number of neighborhoods in its bin over the number chosen from it.
    """
    flat, counts = lax.stop_gradient(value).reshape(-1), mask.reshape(-1)
    counts &= jnp.isfinite(flat)
    low = jnp.min(jnp.where(counts, flat, jnp.inf))
    high = jnp.max(jnp.where(counts, flat, -jnp.inf))
    scaled = (flat - low) / jnp.where(high > low, high - low, 1.0)
    bins = jnp.where(counts, jnp.clip((scaled * num_bins).astype(jnp.int32), 0, num_bins - 1), num_bins)
    order = jnp.lexsort((jax.random.uniform(key, flat.shape), bins))
    in_order = bins[order]
    rank = jnp.arange(len(flat)) - jnp.searchsorted(in_order, in_order)
    chosen = jnp.zeros_like(counts).at[order].set((rank < per_bin) & (in_order < num_bins))
    population = jnp.zeros(num_bins + 1, flat.dtype).at[bins].add(1)
    weight = jnp.where(chosen, (population / jnp.clip(population, 1, per_bin))[bins], 0)
    return chosen.reshape(mask.shape), weight.reshape(mask.shape)
