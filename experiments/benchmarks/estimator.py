"""Time and memory of the Boltzmann gradient against per-sample gradients and the Jacobian, in one run.

    python -m experiments.benchmarks.estimator
    python -m experiments.benchmarks.estimator --json estimator.json --num_samples=40,640

SchNet of the paper's size, aspirin, h(r) on 500 bins. Per-sample gradients are those of `vmap(grad)`, of all samples at
once and in chunks; the Jacobian is the matrix [bin, parameter] made from them. Times are medians of interleaved
calls; memory is the peak of the compiled program, arguments and result included.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, memory
from experiments.benchmarks import records
from experiments.benchmarks.timing import measure

NUM_BINS = 500
KT = 0.0431
PLAIN = "summed_energy"
"""The baseline that is a lower bound: one plain gradient of the summed energy."""
DATA = Path(__file__).resolve().parents[1] / "data" / "aspirin_gfn2.npz"


def methods(energy_fn, observable_fn, loss_fn, chunk_size: int) -> dict[str, Callable[..., Any]]:
    """`(params, samples) -> gradient` by name."""
    from stablejax import boltzmann_grad

    def centered(samples):
        observable = jax.lax.map(observable_fn, samples, batch_size=chunk_size)
        mean = observable.mean(axis=0)
        deviation = observable - mean
        # Twice, since the rounding error of the mean matters, as in `boltzmann_grad`.
        return mean, (deviation - deviation.mean(axis=0)) / (len(samples) - 1)

    def per_sample_gradients(params, samples, batch_size):
        return jax.lax.map(lambda x: jax.grad(energy_fn)(params, x), samples, batch_size=batch_size)

    def covariance(deviation, gradients):
        return jax.tree.map(lambda leaf: -jnp.tensordot(deviation.T, leaf, axes=1) / KT, gradients)

    def per_sample(params, samples, batch_size):
        mean, deviation = centered(samples)
        gradients = per_sample_gradients(params, samples, batch_size)
        return covariance(deviation @ jax.grad(loss_fn)(mean), gradients)

    def jacobian(params, samples):
        mean, deviation = centered(samples)
        matrix = covariance(deviation, per_sample_gradients(params, samples, len(samples)))
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
        "per_sample": lambda params, samples: per_sample(params, samples, len(samples)),
        "per_sample_chunked": lambda params, samples: per_sample(params, samples, chunk_size),
        "jacobian": jacobian,
        PLAIN: summed_energy,
    }


def relative_difference(gradient, reference) -> float:
    """‖a − b‖ / ‖b‖ over all leaves."""
    norm = lambda tree: np.sqrt(sum(np.sum(np.asarray(leaf, float) ** 2) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    return float(norm(jax.tree.map(jnp.subtract, gradient, reference)) / norm(reference))


def run(num_samples: list[int], chunk_size: int, repeats: int) -> list[dict]:
    """Rows of the record."""
    from stablejax import bind
    from stablejax.models.schnet import SchNet
    from stablejax.observables import structure
    from stablejax.space import all_pairs
    from stablejax.types import Frame

    with np.load(DATA) as file:
        species, frames = file["z"], file["R"].astype(np.float32)
    potential = bind(SchNet(), species)
    params = jax.jit(potential.init)(jax.random.key(0))
    center = structure.bin_centers(10.0, 10.0 / NUM_BINS)
    h_r = structure.interatomic_distances(all_pairs(len(species)), center, smearing=0.02)
    observable_fn = lambda position: h_r(Frame(position))  # noqa: E731
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
            rows.append({"metric": "peak_memory_bytes", "value": memory.program_bytes(fn), "unit": "B", **where})
            if name in gradients and name != "boltzmann_grad":
                difference = relative_difference(gradients["boltzmann_grad"], gradients[name])
                rows.append({"metric": "relative_difference", "value": difference, "rival": name, "num_samples": count})
        ours = times["boltzmann_grad"]
        for baseline in ("per_sample", "per_sample_chunked", "jacobian"):
            rows.append({"metric": f"speedup_vs_{baseline}", "value": times[baseline] / ours, "num_samples": count})
        rows.append({"metric": "cost_vs_summed_energy_gradient", "value": ours / times[PLAIN], "num_samples": count})
        records.show(rows, num_samples=count)
    return rows


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "", repeats=5)
    parser.add_argument("--num_samples", type=records.numbers, default=[40, 640, 2560], help="numbers of samples N")
    parser.add_argument("--chunk_size", type=int, default=8, help="samples that are differentiated together")
    given = parser.parse_args()
    if bad := [number for number in given.num_samples if number > given.chunk_size and number % given.chunk_size]:
        parser.error(f"--num_samples has to be multiples of --chunk_size = {given.chunk_size}, got {bad}.")
    cli.configure(host_devices=1)
    rows = run(given.num_samples, given.chunk_size, given.repeats)
    records.keep(given, "benchmarks.estimator", rows, num_bins=NUM_BINS)


if __name__ == "__main__":
    main()
