"""The fast form of the potential against the exact one: forces, conservation of energy, and first passage.

    python -m experiments.benchmarks.md_accuracy

SchNet, pretrained on aspirin as in the default experiment. Both forms start from the same frames:

- at 500 K (Nosé–Hoover), the largest difference of forces over every geometry that the fast form visits, each replica
  until it is unstable or has run for `--force_ps`;
- without a thermostat, the drift of the total energy (slope of a linear fit) and the standard deviation around the fit;
- first-passage times of both, with different noise, and the log-rank test between them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from experiments.benchmarks import records

STEPS_PER_FRAME = 10


def forms(system) -> dict[str, Any]:
    """The form that is simulated, and the exact model."""
    exact = system.problem.potential
    return {"fast": exact.fast(), "exact": exact}


def force_difference(system, params, position, num_steps: int):
    """Largest force difference over all geometries, eV/Å, and how many geometries were visited."""
    from experiments.benchmarks import md_methods
    from stablejax import dynamics

    both = forms(system)
    engine = md_methods.integrator(both["fast"], system.data.dataset.species)

    def one(shared, start):
        tables, params = shared
        key, position = start

        def step(carry, _):
            replica, worst = carry
            replica = dynamics.advance(engine, system.evaluation.criterion, tables, replica, replica.step + 1)
            at = replica.md.position
            exact = jax.grad(both["exact"].prepared_energy, argnums=1)(params, at)
            difference = jnp.abs(jax.grad(both["fast"].prepared_energy, argnums=1)(tables, at) - exact)
            return (replica, jnp.maximum(worst, jnp.max(difference))), None

        begin = dynamics.init_replica(engine, key, position, tables), jnp.float32(0)
        (replica, worst), _ = jax.lax.scan(step, begin, None, num_steps)
        return worst, replica.step

    keys = jax.random.split(jax.random.key(0), len(position))
    shared = jax.jit(both["fast"].prepare)(params), params
    worst, steps = jax.jit(system.execution.map_replicas(one))(shared, (keys, position))
    return float(worst.max()), int(steps.sum())


def total_energies(system, params, position, form, num_steps: int) -> np.ndarray:
    """Total energy [replica, frame] without a thermostat, eV."""
    from jax_md import quantity, simulate, space

    from experiments.benchmarks import md_methods
    from stablejax import integrators, units

    kT = units.thermal_energy(md_methods.TEMPERATURE_K)
    _, shift_fn = space.free()
    prepared = jax.jit(form.prepare)(params)

    def one(prepared, start):
        key, position = start
        init, step = simulate.nve(
            lambda x, **_: form.prepared_energy(prepared, x), shift_fn, md_methods.TIMESTEP_FS * units.FEMTOSECOND
        )
        state = init(key, position, kT=kT, mass=system.problem.mass)
        velocity = integrators.maxwell_boltzmann(key, system.problem.mass, kT=kT, position=position)
        state = state.set(momentum=system.problem.mass[:, None] * velocity)

        def frame(state, _):
            state = jax.lax.fori_loop(0, STEPS_PER_FRAME, lambda _, s: step(s), state)
            kinetic = quantity.kinetic_energy(momentum=state.momentum, mass=state.mass)
            return state, form.prepared_energy(prepared, state.position) + kinetic

        return jax.lax.scan(frame, state, None, num_steps // STEPS_PER_FRAME)[1]

    keys = jax.random.split(jax.random.key(1), len(position))
    return np.asarray(jax.jit(system.execution.map_replicas(one))(prepared, (keys, position)), np.float64)


def drift_and_spread(energy: np.ndarray, duration_ps: float) -> tuple[float, float]:
    """Medians over replicas: |slope|, meV/ps, and standard deviation around the line, meV."""
    time = np.linspace(0, duration_ps, energy.shape[1])
    slope, offset = np.polyfit(time, energy.T, 1)
    spread = (energy - np.outer(slope, time) - offset[:, None]).std(axis=1)
    return 1000 * float(np.median(np.abs(slope))), 1000 * float(np.median(spread))


def first_passage(system, params, position, form, num_steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Time of each replica, ps, and whether it failed."""
    from experiments.benchmarks import md_methods
    from stablejax import dynamics

    engine = md_methods.integrator(form, system.data.dataset.species)

    def one(prepared, start):
        replica = dynamics.init_replica(engine, start[0], start[1], prepared)
        return dynamics.advance(engine, system.evaluation.criterion, prepared, replica, num_steps)

    keys = jax.random.split(jax.random.key(seed), len(position))
    replicas = jax.jit(system.execution.map_replicas(one))(jax.jit(form.prepare)(params), (keys, position))
    return np.asarray(replicas.step) * md_methods.TIMESTEP_FS / 1000, np.asarray(replicas.is_unstable)


def run(given) -> list[dict]:
    """Rows of the record."""
    from experiments.benchmarks.md_methods import TIMESTEP_FS
    from experiments.benchmarks.md_throughput import pretrained_aspirin
    from stablejax import survival

    system, params = pretrained_aspirin()
    position = system.data.starts(system.data.split.test, given.replicas)
    steps_per_ps = round(1000 / TIMESTEP_FS)
    worst, visited = force_difference(
        system, params, position[: given.force_replicas], round(given.force_ps * steps_per_ps)
    )
    rows: list[dict] = [
        {"metric": "max_force_error_eV_per_A", "value": worst, "unit": "eV/Å", "geometries": visited},
    ]
    passages = {}
    for seed, (name, form) in enumerate(forms(system).items()):
        energy = total_energies(system, params, position, form, round(given.nve_ps * steps_per_ps))
        drift, spread = drift_and_spread(energy, given.nve_ps)
        passages[name] = first_passage(
            system, params, position, form, round(given.horizon_ps * steps_per_ps), seed=2 + seed
        )
        median = survival.median_first_passage(*passages[name])
        rows += [
            {"metric": "energy_drift_meV_per_ps", "value": drift, "unit": "meV/ps", "method": name},
            {"metric": "energy_spread_meV", "value": spread, "unit": "meV", "method": name},
            {
                "metric": "median_first_passage_ps",
                "value": median.value,
                "low": median.low,
                "high": median.high,
                "unit": "ps",
                "censored": median.is_censored,
                "method": name,
            },
        ]
    rows.append({"metric": "logrank_p", "value": survival.logrank_p(passages["fast"], passages["exact"])})
    records.show(rows)
    return rows


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "")
    parser.add_argument("--replicas", type=int, default=64, help="number of replicas, in NVE and first passage")
    parser.add_argument("--force_replicas", type=int, default=4, help="replicas in the comparison of forces")
    parser.add_argument("--force_ps", type=float, default=10.0, help="longest simulation of each of them")
    parser.add_argument("--nve_ps", type=float, default=1.0)
    parser.add_argument("--horizon_ps", type=float, default=5.0, help="horizon of first passage")
    given = parser.parse_args()
    cli.configure(host_devices=0)
    records.keep(given, "benchmarks.md_accuracy", run(given))


if __name__ == "__main__":
    main()
