"""Run by `test_harmonic` with four devices: a step of local learning on one, two and four of them, as JSON."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import install_import_hook

# As in any test run: annotations are checked.
with install_import_hook("stablejax", "beartype.beartype"):
    from stablejax import (
        Labeled,
        Learning,
        Observables,
        Optimization,
        Problem,
        Simulation,
        from_atom_energies,
        langevin,
        neighborhoods,
        parallel,
        periodic,
        stable,
        units,
    )
    from stablejax.learn import _counted
    from stablejax.observables import structure
    from stablejax.problem import Subsample
    from stablejax.space import Pairs

NUM, BOX, RATE = 6, 12.0, 1e-3
MOLECULE = np.repeat(np.arange(NUM), 2)
BONDS = Pairs(2 * np.arange(NUM), 2 * np.arange(NUM) + 1)


def make_problem():
    """Six dumbbells of unlike stretch in a periodic box."""
    space = periodic(BOX * np.eye(3))

    def atom_energies(log_k, position, pairs):
        is_bond = (pairs.first % 2 == 0) & (pairs.second == pairs.first + 1)
        half = jnp.where(is_bond, 0.25 * jnp.exp(log_k) * (space.distances(position, pairs) - 1.0) ** 2, 0.0)
        return jnp.zeros(2 * NUM).at[pairs.first].add(half).at[pairs.second].add(half)

    lengths = structure.molecule_bond_lengths(BONDS, MOLECULE, space=space)
    corner = np.argwhere(np.ones((1, 2, 3))) * 4.0
    position = np.stack([corner, corner + [1.0, 0, 0]], axis=1).reshape(2 * NUM, 3)
    frames = Labeled(jnp.asarray(position[None], jnp.float32), jnp.zeros(1), jnp.zeros((1, 2 * NUM, 3)))
    return Problem(
        potential=from_atom_energies(atom_energies, num_atoms=2 * NUM, cutoff=5.0, space=space),
        mass=jnp.full(2 * NUM, 10.0),
        kT=units.thermal_energy(300.0),
        criterion=lambda frame: jnp.float32(1.0) + 0 * frame.position[0, 0],
        observables=Observables(lambda frame: (lengths(frame) - 1.0) ** 2, jnp.float32(0.0), 1e4),
        frames=frames,
        energy_weight=0.0,
        force_weight=0.0,
        neighborhoods=neighborhoods.nearest_molecules(MOLECULE, num_molecules=1, space=space),
        subsample=Subsample(lambda frame: jnp.abs(lengths(frame) - 1.0), num_bins=8, per_bin=3),
    )


def main():
    problem = make_problem()
    thermostat = partial(langevin, timestep=units.FEMTOSECOND, friction=1.0)
    settings = stable.Settings(
        Simulation(thermostat, steps_per_epoch=40, max_unstable=0.5, table_intervals=0),
        Learning(Optimization(optax.sgd(RATE)), steps_per_frame=4, max_epochs=1),
        num_cycles=1,
    )
    start = jnp.tile(problem.frames.position, (8, 1, 1)) + 0.03 * jax.random.normal(jax.random.key(3), (8, 2 * NUM, 3))
    found = {}
    for num_devices in (1, 2, 4):
        execution = parallel.Execution(mesh=parallel.replica_mesh(jax.devices()[:num_devices]), chunk_size=7)
        training = stable.build(problem, settings, execution=execution)
        state = training.init(jax.random.key(0), jnp.float32(3.0), start)
        state, _ = training.simulate(state)
        after, info = training.learn(state, problem.frames)
        found[num_devices] = {
            "gradient": float(info.updates.observable_gradient_norm),
            "num_chosen": int(chosen(problem, start)),
            "num_molecules": 8 * NUM,
            "params": float(after.params),
        }
    print(json.dumps(found))


def chosen(problem, position):
    """Molecules that count, of frames on axis 0."""
    from stablejax import Frame

    mask = _counted(problem, jax.random.key(1), Frame(position), jnp.ones(len(position), bool))
    return mask.sum()


if __name__ == "__main__":
    main()
