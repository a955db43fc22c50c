"""A molecule of springs: data, model and liquid of which everything is known in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stablejax import units

STIFFNESS, LENGTH = 30.0, 1.1  # eV/Å², Å
TEMPERATURE_K = 300.0
KT = units.thermal_energy(TEMPERATURE_K)
SPECIES = np.array([8, 6, 7])
OFFSET = -2000.0  # eV


class Springs(nn.Module):
    """½ k (r − r₀)² of every pair, half of it on either atom; k = exp(log_k) starts too soft."""

    cutoff: float = 6.0
    elements: tuple[int, ...] = tuple(range(1, 100))
    start: float = 20.0

    @nn.compact
    def __call__(self, species, pairs, vector):
        log_k = self.param("log_k", lambda _: jnp.log(jnp.float32(self.start)))
        half = 0.25 * jnp.exp(log_k) * (jnp.sqrt(jnp.sum(vector**2, axis=-1)) - LENGTH) ** 2
        return jnp.zeros(len(species)).at[pairs.first].add(half).at[pairs.second].add(half)


def triangle() -> np.ndarray:
    """At rest, [3, 3]."""
    return LENGTH * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.75**0.5, 0]])


def energy(position) -> jax.Array:
    """EV."""
    first, second = np.triu_indices(3, k=1)
    distance = jnp.linalg.norm(position[first] - position[second], axis=-1)
    return 0.5 * STIFFNESS * jnp.sum((distance - LENGTH) ** 2)


def write_data(path, *, num_frames: int = 240, num_trajectories: int = 4) -> None:
    """Thermal frames far from the origin, in kcal/mol and bohr, several trajectories one after the other."""
    rng = np.random.default_rng(0)
    # Displacements whose changes of length have the variance kT/k: each atom moves along two bonds.
    noise = np.sqrt(KT / STIFFNESS / 2) * rng.normal(size=(num_frames, 3, 3))
    position = triangle() + noise + 5.0
    energies = np.asarray(jax.vmap(energy)(jnp.asarray(position)), float) + OFFSET
    force = -np.asarray(jax.vmap(jax.grad(energy))(jnp.asarray(position)), float)
    factor = units.KCAL_PER_MOL
    np.savez(
        path,
        z=SPECIES,
        R=position / units.BOHR,
        E=energies / factor,
        F=force / factor * units.BOHR,
        trajectory=np.repeat(np.arange(num_trajectories), num_frames // num_trajectories),
    )
