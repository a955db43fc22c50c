"""Time and memory of the Boltzmann gradient against per-sample gradients and the Jacobian, in one run.

    python -m experiments.benchmarks.estimator
    python -m experiments.benchmarks.estimator --json estimator.json --num_samples=40,640

SchNet of the paper's size, aspirin, h(r) on 500 bins. Times are medians of calls that take turns; memory is what the
compiled program needs at its peak, arguments and result included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import runtime
from experiments.benchmarks import records

_NUM_SAMPLES = flags.DEFINE_list("num_samples", ["40", "640", "2560"], "numbers of samples N")
_CHUNK_SIZE = flags.DEFINE_integer("chunk_size", 40, "samples that are differentiated together, by all methods")
_REPEATS = flags.DEFINE_integer("repeats", 5, "calls of each method, in turn")
_JSON = flags.DEFINE_string("json", "", "file for the record")

NUM_BINS = 500
KT = 0.0431
PLAIN = "summed_energy"
"""The rival that is a lower bound: one plain gradient of the summed energy."""
DATA = Path(__file__).resolve().parents[1] / "data" / "aspirin_gfn2.npz"


def methods(energy_fn, observable_fn, loss_fn, chunk_size: int) -> dict[str, Callable[..., Any]]:
    """`(params, samples) -> gradient` by name."""
    from stablejax import boltzmann_grad

    energy_gradient = jax.grad(energy_fn)

    def centred(samples):
        observable = jax.lax.map(observable_fn, samples, batch_size=chunk_size)
        mean = observable.mean(axis=0)
        return mean, observable - mean

    def contracted(coefficient, gradients):
        return jax.tree.map(lambda leaf: -jnp.tensordot(coefficient, leaf, axes=1) / KT, gradients)

    def per_sample(params, samples):
        mean, deviation = centred(samples)
        gradients = jax.lax.map(lambda x: energy_gradient(params, x), samples, batch_size=chunk_size)
        return contracted(deviation @ jax.grad(loss_fn)(mean) / (len(samples) - 1), gradients)

    def jacobian(params, samples):
        mean, deviation = centred(samples)
        gradients = jax.lax.map(lambda x: energy_gradient(params, x), samples, batch_size=chunk_size)
        matrix = contracted(deviation.T / (len(samples) - 1), gradients)
        return jax.tree.map(lambda leaf: jnp.tensordot(jax.grad(loss_fn)(mean), leaf, axes=1), matrix)

    def summed_energy(params, samples):
        def add(total, chunk):
            summed = lambda p: jnp.sum(jax.vmap(energy_fn, (None, 0))(p, chunk))  # noqa: E731
            return jax.tree.map(jnp.add, total, jax.grad(summed)(params)), None

        size = min(chunk_size, len(samples))
        chunks = samples.reshape(-1, size, *samples.shape[1:])
        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), chunks)[0]

    return {
        "boltzmann_grad": boltzmann_grad(loss_fn, energy_fn, observable_fn, kT=KT, chunk_size=chunk_size),
        "per_sample": per_sample,
        "jacobian": jacobian,
        PLAIN: summed_energy,
    }


def measure(compiled: Mapping[str, Callable[..., Any]], arguments: tuple, repeats: int) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for fn in compiled.values():
        jax.block_until_ready(fn(*arguments))
    for _ in range(repeats):
        for name, fn in compiled.items():
            begun = time.perf_counter()
            jax.block_until_ready(fn(*arguments))
            times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(values)) for name, values in times.items()}


def peak_memory_bytes(compiled: jax.stages.Compiled) -> int:
    """What the program needs at its peak, as its compiler counts it, arguments and result included."""
    memory: Any = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


def relative_difference(gradient, reference) -> float:
    """‖a − b‖ / ‖b‖ over all leaves."""
    norm = lambda tree: np.sqrt(sum(np.sum(np.asarray(leaf, float) ** 2) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    return float(norm(jax.tree.map(jnp.subtract, gradient, reference)) / norm(reference))


def run(num_samples: list[int], chunk_size: int, repeats: int) -> list[dict]:
    """Rows of the record."""
    from stablejax import bind
    from stablejax.geometry import all_pairs
    from stablejax.models.schnet import SchNet
    from stablejax.observables import structure

    with np.load(DATA) as file:
        species, frames = file["z"], file["R"].astype(np.float32)
    potential = bind(SchNet(), species)
    params = jax.jit(potential.init)(jax.random.key(0))
    centre = structure.bin_centres(10.0, 10.0 / NUM_BINS)
    observable_fn = structure.interatomic_distances(all_pairs(len(species)), centre, smearing=0.02)
    reference = jax.vmap(observable_fn)(frames[:100]).mean(axis=0)
    loss_fn = lambda mean: jnp.sum((mean - reference) ** 2)  # noqa: E731

    rows = []
    for count in num_samples:
        samples = jnp.asarray(frames[np.linspace(0, len(frames) - 1, count).astype(int)])
        compiled = {
            name: jax.jit(fn).lower(params, samples).compile()
            for name, fn in methods(potential.energy, observable_fn, loss_fn, chunk_size).items()
        }
        times = measure(compiled, (params, samples), repeats)
        gradients = {name: fn(params, samples) for name, fn in compiled.items() if name != PLAIN}
        for name, fn in compiled.items():
            where = {"method": name, "num_samples": count}
            rows.append({"metric": "time_s", "value": times[name], "unit": "s", **where})
            rows.append({"metric": "peak_memory_bytes", "value": peak_memory_bytes(fn), "unit": "B", **where})
            if name in gradients and name != "boltzmann_grad":
                difference = relative_difference(gradients["boltzmann_grad"], gradients[name])
                rows.append({"metric": "relative_difference", "value": difference, "rival": name, "num_samples": count})
        ours = times["boltzmann_grad"]
        rows.append({"metric": "speedup_vs_per_sample", "value": times["per_sample"] / ours, "num_samples": count})
        rows.append({"metric": "speedup_vs_jacobian", "value": times["jacobian"] / ours, "num_samples": count})
        rows.append({"metric": "cost_vs_summed_energy_gradient", "value": ours / times[PLAIN], "num_samples": count})
        records.show(rows, num_samples=count)
    return rows


def main(_) -> None:
    """Run and write the record."""
    runtime.configure(host_devices=1)
    numbers = [int(number) for number in _NUM_SAMPLES.value]
    if bad := [number for number in numbers if number > _CHUNK_SIZE.value and number % _CHUNK_SIZE.value]:
        raise SystemExit(f"error: --num_samples has to be multiples of --chunk_size = {_CHUNK_SIZE.value}, got {bad}.")
    config = {"num_samples": numbers, "chunk_size": _CHUNK_SIZE.value, "repeats": _REPEATS.value, "num_bins": NUM_BINS}
    rows = run(numbers, _CHUNK_SIZE.value, _REPEATS.value)
    if _JSON.value:
        records.write(Path(_JSON.value), "benchmarks.estimator", config, rows)


if __name__ == "__main__":
    app.run(main)
