"""Run by `test_devices` in a process with eight devices: the same work on one, two and eight of them, as JSON.

Gradients are of several draws of samples, and once more in double precision, since rounding differs between processors.
"""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from jaxtyping import install_import_hook

# As in any test run: annotations are checked.
with install_import_hook("stablejax", "beartype.beartype"):
    import tiny

    from experiments import systems
    from stablejax import boltzmann, dynamics, losses, parallel
    from stablejax.parallel import REPLICA_AXIS
    from stablejax.types import Frame

NUM_STEPS = 20
NUM_DRAWS = 4


def trajectories(system, params, mesh):
    """Last positions, first passages, and the gradient from the frames that `position` holds."""
    mapped = partial(parallel.map_replicas, batch_size=1, mesh=mesh)

    problem = system.problem
    form = problem.potential.fast(128)
    integrator, prepared = system.thermostat(form, problem.mass, kT=problem.kT), form.prepare(params)

    def one(prepared, start):
        replica = dynamics.init_replica(integrator, start[0], start[1], prepared)
        return dynamics.advance(integrator, problem.criterion, prepared, replica, NUM_STEPS)

    position = system.data.starts(system.data.split.train, 16)
    keys = jax.random.split(jax.random.key(0), 16)
    return jax.jit(mapped(one))(prepared, (keys, position))


def gradients(system, params, samples, mesh):
    """Of the observable loss, [draw][parameter]; the samples of a draw are shared between the devices."""
    problem = system.problem
    value_and_grad = boltzmann.boltzmann_value_and_grad(
        losses.observable_loss(problem.observables.reference, problem.observables.weight),
        problem.energies(),
        problem.observables.fn,
        kT=problem.kT,
        chunk_size=4,
        axis_name=REPLICA_AXIS,
    )
    replicated, shared = PartitionSpec(), PartitionSpec(REPLICA_AXIS)
    fn = jax.jit(
        jax.shard_map(
            lambda *given: ravel_pytree(value_and_grad(*given)[1])[0],
            mesh=mesh,
            in_specs=(replicated, shared),
            out_specs=replicated,
            check_vma=False,
        )
    )
    return [np.asarray(fn(params, Frame(position))).tolist() for position in samples]


def main():
    config = tiny.get_config()
    config.data.num_train = 128
    system = systems.build(config)
    params = jax.jit(system.problem.potential.init)(jax.random.key(1))
    # Not a power of 2, by which products would be exact.
    start = system.data.starts(system.data.split.train, 8 * 13)
    noise = jax.random.normal(jax.random.key(2), (NUM_DRAWS, *start.shape))
    samples = start + 0.02 * noise
    found = {}
    for num_devices in (1, 2, 8):
        mesh = parallel.replica_mesh(jax.devices()[:num_devices])
        replicas = trajectories(system, params, mesh)
        found[num_devices] = {
            "devices": len(replicas.md.position.sharding.device_set),
            "step": np.asarray(replicas.step).tolist(),
            "position": np.asarray(replicas.md.position).ravel().tolist(),
            "gradient": gradients(system, params, samples, mesh),
        }
    with jax.enable_x64(True):
        params, samples = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, float)), (params, samples))
        exact = gradients(system, params, samples, parallel.replica_mesh(jax.devices()[:1]))
    print(json.dumps({"devices": found, "exact": exact}))


if __name__ == "__main__":
    main()
