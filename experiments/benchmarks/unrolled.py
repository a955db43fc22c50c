"""The Boltzmann estimator against differentiation through the simulation, as the trajectory grows.

    python -m experiments.benchmarks.unrolled
    python -m experiments.benchmarks.unrolled --json unrolled.json --num_steps=100,1000

A particle in a double well of depth θ, Langevin dynamics from exact Boltzmann samples, and ∂E[x²]/∂θ, whose exact value
quadrature gives. Both methods use the same trajectories: one backpropagates through them, the other uses their frames.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, memory
from experiments.benchmarks import records
from experiments.benchmarks.timing import measure

KT, DEPTH = 0.4, 1.0
STEPS_PER_FRAME = 10
MASS = np.ones(1, np.float32)


def energy(depth, position):
    """A double well along x, harmonic along y and z."""
    x, y, z = position[0]
    return depth * (x**2 - 1) ** 2 + 0.5 * (y**2 + z**2)


def observable(position):
    """x²."""
    return position[0, 0] ** 2


def exact_mean(depth, grid):
    """E[x²] by quadrature, and the probability of each point of the grid."""
    probability = jax.nn.softmax(-depth * (grid**2 - 1) ** 2 / KT)
    return jnp.sum(probability * grid**2), probability


def methods(num_steps: int) -> dict[str, Callable[..., jax.Array]]:
    """`(depth, keys, start) -> gradient` by name, from one trajectory for each key and start."""
    from stablejax import expectation, from_energy, integrators

    # Low friction: neighboring trajectories diverge, as those of molecules do.
    integrator = integrators.langevin(from_energy(energy, num_atoms=1), MASS, kT=KT, timestep=0.05, friction=0.02)

    def trajectory(depth, key, start):
        def frame(state, _):
            state = jax.lax.scan(lambda s, _: (integrator.step(s, depth, None), None), state, None, STEPS_PER_FRAME)[0]
            return state, state.position

        return jax.lax.scan(frame, integrator.init(key, start, depth, None), None, num_steps // STEPS_PER_FRAME)[1]

    def frames(depth, keys, start):
        position = jax.vmap(trajectory, (None, 0, 0))(depth, keys, start)
        return position.reshape(-1, *position.shape[2:])

    def direct(depth, keys, start):
        return jax.grad(lambda d: jnp.mean(jax.vmap(observable)(frames(d, keys, start))))(depth)

    def boltzmann(depth, keys, start):
        return jax.grad(expectation(energy, observable, kT=KT))(depth, frames(depth, keys, start))

    return {"boltzmann": boltzmann, "direct": direct}


def run(num_steps: list[int], num_replicas: int, num_estimates: int, repeats: int) -> list[dict]:
    """Rows of the record."""
    grid = jnp.linspace(-3.0, 3.0, 20_001)
    exact, probability = jax.grad(exact_mean, has_aux=True)(DEPTH, grid)
    rows = [{"metric": "exact_gradient", "value": float(exact)}]
    for steps in num_steps:
        keys = jax.random.split(jax.random.key(steps), (num_estimates, num_replicas))
        first, second = jax.random.split(jax.random.key(steps + 1))
        x = jax.random.choice(first, grid, keys.shape, p=probability)
        yz = jnp.sqrt(KT) * jax.random.normal(second, (*keys.shape, 2))
        start = jnp.concatenate([x[..., None], yz], axis=-1)[:, :, None, :]
        compiled = {name: jax.jit(fn).lower(DEPTH, keys[0], start[0]).compile() for name, fn in methods(steps).items()}
        times = measure(compiled, (DEPTH, keys[0], start[0]), repeats)
        for name, fn in compiled.items():
            estimates = np.array([fn(DEPTH, *one) for one in zip(keys, start, strict=True)], np.float64)
            where = {"method": name, "num_steps": steps}
            spread = float(np.std(estimates, ddof=1))
            rows.append({"metric": "gradient_bias", "value": float(np.mean(estimates) - exact), **where})
            rows.append({"metric": "gradient_bias_standard_error", "value": spread / num_estimates**0.5, **where})
            rows.append({"metric": "gradient_spread", "value": spread, **where})
            rows.append({"metric": "time_s", "value": times[name], "unit": "s", **where})
            rows.append({"metric": "peak_memory_bytes", "value": memory.program_bytes(fn), "unit": "B", **where})
        records.show(rows, num_steps=steps)
    return rows


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "", repeats=3)
    lengths = [100, 300, 1000, 3000, 10_000]
    parser.add_argument("--num_steps", type=records.numbers, default=lengths, help="lengths of the trajectories")
    parser.add_argument("--num_replicas", type=int, default=32, help="trajectories of one estimate")
    parser.add_argument("--num_estimates", type=int, default=100, help="estimates, for bias and spread")
    given = parser.parse_args()
    if bad := [number for number in given.num_steps if number < 1 or number % STEPS_PER_FRAME]:
        parser.error(f"--num_steps has to be multiples of {STEPS_PER_FRAME}, got {bad}.")
    cli.configure(host_devices=1)
    rows = run(given.num_steps, given.num_replicas, given.num_estimates, given.repeats)
    records.keep(given, "benchmarks.unrolled", rows)


if __name__ == "__main__":
    main()
