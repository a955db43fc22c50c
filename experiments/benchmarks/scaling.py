"""Cost of a learning epoch against the number of devices: measured on this machine, computed for many more.

    python -m experiments.benchmarks.scaling
    python -m experiments.benchmarks.scaling --devices 1,2 --replicas 32

SchNet of the paper's size on aspirin. An epoch simulates all replicas for t steps, differentiates the energies of their
frames, and differentiates L_QM on a batch of labeled frames. Replicas and frames are sharded over the devices, the
labeled batch is not: every device does all of it. Parts are timed separately, in interleaved calls.

Computed rows divide the sharded parts by the number of devices and add two all-reduces, with the latency and bandwidth
of the command line: a ring for the bytes, a tree for the latency. Either the replicas are shared (strong scaling), or
each device has as many as the single one had (weak scaling).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from experiments.benchmarks import records
from experiments.benchmarks.timing import measure

TIMED_STEPS = 100
"""Of dynamics; the time of t steps follows in proportion."""


def parts(given, num_devices: int) -> tuple[dict[str, Callable], dict[str, float]]:
    """Compiled parts of an epoch, and how many floats its two all-reduces carry."""
    from experiments import systems
    from experiments.configs import aspirin as defaults
    from stablejax import parallel
    from stablejax.types import Frame

    system = systems.build(defaults.get_config())
    problem, data = system.problem, system.data
    mesh = parallel.replica_mesh(jax.devices()[:num_devices])
    params = jax.jit(problem.potential.init)(jax.random.key(0))
    form = problem.potential.fast()
    position = data.starts(data.split.train, given.replicas)
    keys = jax.random.split(jax.random.key(0), given.replicas)
    samples = Frame(data.starts(data.split.test, given.samples))
    frames = data.labeled(np.resize(data.split.train, given.qm_frames))
    qm_loss = problem.qm_loss()
    programs = {
        "simulate": (simulation(system, form, mesh), (jax.jit(form.prepare)(params), (keys, position))),
        "gradient": (observable_gradient(problem, mesh), (params, samples)),
        "qm_gradient": (jax.grad(lambda *a: qm_loss(*a)[0]), (params, frames)),
    }
    compiled = {
        name: (jax.jit(fn).lower(*arguments).compile(), arguments) for name, (fn, arguments) in programs.items()
    }
    floats = {
        "observable": 2 * sum(leaf.size for leaf in jax.tree.leaves(problem.observables.reference)) + 3,
        "gradient": sum(leaf.size for leaf in jax.tree.leaves(params)) + 1,
    }
    return {name: partial(fn, *arguments) for name, (fn, arguments) in compiled.items()}, floats


def simulation(system, form, mesh) -> Callable:
    """Some steps of all replicas, sharded over the devices."""
    from stablejax import dynamics, parallel

    integrator = system.thermostat(form, system.problem.mass, kT=system.problem.kT)
    criterion = lambda frame: jnp.max(frame.position) - 1e3  # noqa: E731

    def simulate(prepared, start):
        replica = dynamics.init_replica(integrator, start[0], start[1], prepared)
        return dynamics.advance(integrator, criterion, prepared, replica, TIMED_STEPS)

    return parallel.map_replicas(simulate, batch_size=1, mesh=mesh)


def observable_gradient(problem, mesh) -> Callable:
    """Gradient of L_obs by the estimator, samples sharded over the devices."""
    from stablejax import boltzmann, losses, parallel

    value_and_grad = boltzmann.boltzmann_value_and_grad(
        losses.observable_loss(problem.observables.reference, problem.observables.weight),
        problem.energies(),
        problem.observables.fn,
        kT=problem.kT,
        chunk_size=8,
        axis_name=parallel.REPLICA_AXIS,
    )
    execution = parallel.Execution(mesh=mesh)
    return execution.over_samples(lambda params, samples: value_and_grad(params, samples)[1])


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
        reduce_s = sum(
            all_reduce_s(4 * size, devices, given.latency_us, given.gigabytes_per_s) for size in floats.values()
        )
        rows.append({"metric": "all_reduce_s", "value": reduce_s, "unit": "s", "devices": devices, "computed": True})
        epochs = {"replicas for each device": shared + alone["qm_gradient"] + reduce_s}
        if devices <= given.replicas:
            epochs["replicas shared"] = shared / devices + alone["qm_gradient"] + reduce_s
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
    parser.add_argument("--devices", type=records.numbers, default=[1, 2], help="measured, including 1")
    parser.add_argument("--computed", type=records.numbers, default=[1, 2, 8, 32, 128, 1024, 4096], help="computed")
    parser.add_argument("--replicas", type=int, default=128, help="R")
    parser.add_argument("--steps", type=int, default=2000, help="t of an epoch")
    parser.add_argument("--stride", type=int, default=100, help="S, steps between samples")
    parser.add_argument("--samples", type=int, default=160, help="samples whose gradient is timed")
    parser.add_argument("--qm_frames", type=int, default=40, help="frames of the labeled batch")
    parser.add_argument("--latency_us", type=float, default=20.0, help="latency of a message between two devices")
    parser.add_argument("--gigabytes_per_s", type=float, default=5.0, help="bandwidth of the slowest link")
    given = parser.parse_args()
    if 1 not in given.devices:
        parser.error("--devices needs 1, which the others are compared with.")
    cli.configure(host_devices=max(given.devices))
    records.keep(given, "benchmarks.scaling", run(given))


if __name__ == "__main__":
    main()
