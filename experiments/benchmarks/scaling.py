"""What a learning epoch costs as devices are added: measured on those of this machine, computed for many more.

    python -m experiments.benchmarks.scaling
    python -m experiments.benchmarks.scaling --devices 1,2 --replicas 32

SchNet of the paper's size on aspirin. An epoch simulates all replicas for t steps, differentiates the energies of their
frames, and differentiates L_QM on a batch of labeled frames. Replicas and frames are shared between the devices, the
labeled batch is not: every device does all of it. Parts are timed one by one and by turns.

Computed rows share the parts that can be shared and add two all-reduces, with the latency and bandwidth of the command
line: a ring for the bytes, a tree for the latency. Either the replicas are shared, or there are as many for each device
as there were for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from experiments import runtime
from experiments.benchmarks import records
from experiments.benchmarks.timing import measure

TIMED_STEPS = 100
"""Of dynamics; the time of t steps follows in proportion."""


def parts(given, num_devices: int) -> tuple[dict[str, Callable], dict[str, float]]:
    """Compiled parts of an epoch, and how many floats its two all-reduces carry."""
    from experiments import aspirin, systems
    from experiments.configs import aspirin as defaults
    from stablejax import boltzmann, dynamics, losses, parallel, units

    config = defaults.get_config()
    system = aspirin.build(config)
    mesh = parallel.replica_mesh(jax.devices()[:num_devices])
    params = jax.jit(system.potential.init)(jax.random.key(0))
    prepared = jax.jit(system.md_form.prepare)(params)
    integrator, criterion = system.integrator, lambda position: jnp.max(position) - 1e3
    mapped = partial(parallel.map_replicas, batch_size=1, mesh=mesh)

    def simulate(prepared, start):
        replica = dynamics.init_replica(integrator, start[0], prepared, start[1])
        return dynamics.advance(integrator, criterion, prepared, replica, TIMED_STEPS)

    value_and_grad = boltzmann.boltzmann_value_and_grad(
        losses.observable_loss(system.reference, system.observable_weight),
        system.potential.energy,
        system.observable_fn,
        kT=units.thermal_energy(config.md.temperature_K),
        chunk_size=8,
        axis_name=parallel.REPLICA_AXIS,
    )
    replicated, shared = PartitionSpec(), PartitionSpec(parallel.REPLICA_AXIS)
    gradient = jax.shard_map(
        lambda params, samples: value_and_grad(params, samples)[1],
        mesh=mesh,
        in_specs=(replicated, shared),
        out_specs=replicated,
        check_vma=False,
    )
    position = systems.start_positions(system, system.split.train, given.replicas)
    keys = jax.random.split(jax.random.key(0), given.replicas)
    samples = systems.start_positions(system, system.split.test, given.samples)
    frames = systems.labeled(system, np.resize(system.split.train, given.qm_frames))
    floats = {
        "observable": 2 * sum(leaf.size for leaf in jax.tree.leaves(system.reference)) + 3,
        "gradient": sum(leaf.size for leaf in jax.tree.leaves(params)) + 1,
    }
    programs = {
        "simulate": (mapped(simulate), (prepared, (keys, position))),
        "gradient": (gradient, (params, samples)),
        "qm_gradient": (jax.grad(lambda *a: system.qm_loss(*a)[0]), (params, frames)),
    }
    compiled = {
        name: (jax.jit(fn).lower(*arguments).compile(), arguments) for name, (fn, arguments) in programs.items()
    }
    return {name: partial(fn, *arguments) for name, (fn, arguments) in compiled.items()}, floats


def run(given) -> list[dict]:
    """Rows of the record."""
    fns: dict[str, Callable] = {}
    floats: dict[str, float] = {}
    for num_devices in given.devices:
        made, floats = parts(given, num_devices)
        fns |= {f"{name} {num_devices}": fn for name, fn in made.items()}
    sampled = given.steps / given.stride * given.replicas
    in_epoch = {"simulate": given.steps / TIMED_STEPS, "gradient": sampled / given.samples, "qm_gradient": 1.0}
    rows: list[dict] = []
    for label, seconds in measure(fns, (), given.repeats).items():
        part, devices = label.split()
        value = seconds * in_epoch[part]
        rows.append({"metric": "time_s", "value": value, "unit": "s", "part": part, "devices": int(devices)})
    rows += [
        {"metric": "all_reduce_bytes", "value": 4 * size, "unit": "B", "of": name} for name, size in floats.items()
    ]
    alone = {row["part"]: row["value"] for row in rows if row.get("devices") == 1}
    shared = alone["simulate"] + alone["gradient"]
    for devices in given.computed:
        talking = sum(
            all_reduce_s(4 * size, devices, given.latency_us, given.gigabytes_per_s) for size in floats.values()
        )
        rows.append({"metric": "all_reduce_s", "value": talking, "unit": "s", "devices": devices, "computed": True})
        epochs = {"replicas for each device": shared + alone["qm_gradient"] + talking}
        if devices <= given.replicas:
            epochs["replicas shared"] = shared / devices + alone["qm_gradient"] + talking
        for how, seconds in epochs.items():
            work = (shared * devices if how != "replicas shared" else shared) + alone["qm_gradient"]
            where = {"devices": devices, "how": how, "computed": True}
            rows += [
                {"metric": "epoch_s", "value": seconds, "unit": "s", **where},
                {"metric": "parallel_efficiency", "value": work / (devices * seconds), **where},
            ]
    records.show(rows)
    return rows


def all_reduce_s(num_bytes: float, devices: int, latency_us: float, gigabytes_per_s: float) -> float:
    """Time of one all-reduce: every byte crosses the slowest link twice, latency once for each level of a tree."""
    if devices == 1:
        return 0.0
    return (
        2 * math.ceil(math.log2(devices)) * latency_us * 1e-6
        + 2 * num_bytes * (1 - 1 / devices) / gigabytes_per_s / 1e9
    )


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "", repeats=5)
    parser.add_argument("--devices", type=records.numbers, default=[1, 2], help="that are measured; 1 among them")
    parser.add_argument(
        "--computed", type=records.numbers, default=[1, 2, 8, 32, 128, 1024, 4096], help="numbers of devices"
    )
    parser.add_argument("--replicas", type=int, default=128, help="R")
    parser.add_argument("--steps", type=int, default=2000, help="t of an epoch")
    parser.add_argument("--stride", type=int, default=100, help="S, steps between samples")
    parser.add_argument("--samples", type=int, default=160, help="whose gradient is timed")
    parser.add_argument("--qm_frames", type=int, default=40, help="of the labeled batch")
    parser.add_argument("--latency_us", type=float, default=20.0, help="of a message between two devices")
    parser.add_argument("--gigabytes_per_s", type=float, default=5.0, help="of the slowest link")
    given = parser.parse_args()
    if 1 not in given.devices:
        parser.error("--devices needs 1, which the others are compared with.")
    runtime.configure(host_devices=max(given.devices))
    records.keep(given, "benchmarks.scaling", run(given))


if __name__ == "__main__":
    main()
