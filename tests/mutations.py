"""Faults put into the code one at a time, each of which some test has to find: `make mutations` prints the survivors.

    python tests/mutations.py            # all
    python tests/mutations.py median     # those whose name has the word in it

Each is put into a copy of the repository, where the tests that are to find it are run. A fault whose text is not found
any more has to be rewritten with the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """A fault, and where it is to be found."""

    name: str
    path: str
    old: str
    new: str
    tests: str  # arguments of pytest


MUTATIONS = [
    Mutation(
        "temperature of the estimator doubled",
        "stablejax/learn.py",
        "        problem.observables.fn,\n        kT=problem.kT,",
        "        problem.observables.fn,\n        kT=2 * problem.kT,",
        "tests/test_stable.py",
    ),
    Mutation(
        "weights of energies and forces exchanged",
        "stablejax/losses.py",
        "energy_weight * jnp.mean(energy_error**2) + force_weight * jnp.mean(force_error**2)",
        "force_weight * jnp.mean(energy_error**2) + energy_weight * jnp.mean(force_error**2)",
        "tests/test_pretrain.py tests/test_harmonic.py",
    ),
    Mutation(
        "errors of training frames reported as those of test frames",
        "experiments/stages/evaluate.py",
        "label_errors(evaluator.system, params, evaluator.system.data.split.test)",
        "label_errors(evaluator.system, params, evaluator.system.data.split.train)",
        "tests/test_stages.py",
    ),
    Mutation(
        "evaluation started from training frames",
        "experiments/stages/evaluate.py",
        "system.data.starts(system.data.split.test, schedule.num_replicas)",
        "system.data.starts(system.data.split.train, schedule.num_replicas)",
        "tests/test_stages.py",
    ),
    Mutation(
        "unit of the diffusivity off by ten",
        "stablejax/units.py",
        "SQUARE_ANGSTROM_PER_PICOSECOND = 10.0",
        "SQUARE_ANGSTROM_PER_PICOSECOND = 1.0",
        "tests/test_metrics.py",
    ),
    Mutation(
        "weight of the O-H length dropped",
        "experiments/systems/liquid.py",
        'weights = {"bond_length": length_weight}',
        'weights = {"bond_length": 1.0}',
        "tests/test_water.py -k distribution",
    ),
    Mutation(
        "plateau fed the other loss",
        "stablejax/learn.py",
        "value=update_info.observable_loss)",
        "value=update_info.qm_loss)",
        "tests/test_stable.py",
    ),
    Mutation(
        "earlier checkpoint of the last cycle kept",
        "stablejax/stable.py",
        "        ends.checkpoint,\n        ends.checkpoint,\n",
        "        ends.checkpoint,\n        state.simulation.earlier_checkpoint,\n",
        "tests/test_stable.py",
    ),
    Mutation(
        "end of a phase at a rate under the bound only",
        "stablejax/learn.py",
        "has_decayed = scale <= settings.min_rate_scale * (1 + 1e-5)",
        "has_decayed = scale < settings.min_rate_scale",
        "tests/test_stable.py",
    ),
    Mutation(
        "quarantined replicas counted the other way round",
        "experiments/report/record.py",
        '("num_quarantined", (~run.is_finite).sum(), None)',
        '("num_quarantined", run.is_finite.sum(), None)',
        "tests/test_report.py",
    ),
    Mutation(
        "optimizer kept after a gradient that is not finite",
        "stablejax/updates.py",
        "kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)",
        "kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, UpdateState(state.params, new.optimizer))",
        "tests/test_updates.py",
    ),
    Mutation(
        "samples reused after a gradient that is not finite",
        "stablejax/updates.py",
        "num_updates=moving.num_updates + is_finite, is_going=is_finite)",
        "num_updates=moving.num_updates + 1, is_going=jnp.bool(True))",
        "tests/test_updates.py",
    ),
    Mutation(
        "norm of the wrong gradient reported",
        "stablejax/updates.py",
        "qm_gradient_norm=optax.tree.norm(qm_gradient)",
        "qm_gradient_norm=optax.tree.norm(observable_gradient)",
        "tests/test_updates.py",
    ),
    Mutation(
        "friction doubled",
        "stablejax/dynamics.py",
        "kT=kT, gamma=friction)",
        "kT=kT, gamma=2 * friction)",
        "tests/test_dynamics.py -k friction",
    ),
    Mutation(
        "momentum not looked at",
        "stablejax/dynamics.py",
        "jnp.all(jnp.isfinite(md.position)) & jnp.all(jnp.isfinite(md.momentum)) &",
        "jnp.all(jnp.isfinite(md.position)) &",
        "tests/test_dynamics.py -k momentum",
    ),
    Mutation(
        "cell dropped in distances between molecules",
        "stablejax/observables/structure.py",
        "        distance = space.distances(frame.position, pairs)\n        nearest = jnp.full",
        "        distance = OPEN.distances(frame.position, pairs)\n        nearest = jnp.full",
        "tests/test_structure.py",
    ),
    Mutation(
        "cell dropped where bonds are found",
        "stablejax/topology.py",
        "jax.jit(lambda x: space.distances(x, pairs))",
        "jax.jit(lambda x: OPEN.distances(x, pairs))",
        "tests/test_topology.py",
    ),
    Mutation(
        "drift not weighted by mass",
        "stablejax/observables/transport.py",
        "return x - jnp.sum(mass * x, axis=1, keepdims=True) / jnp.sum(mass)",
        "return x - jnp.mean(x, axis=1, keepdims=True)",
        "tests/test_transport.py",
    ),
    Mutation(
        "Green-Kubo by rectangles",
        "stablejax/observables/transport.py",
        "np.trapezoid(np.asarray(correlation), dx=spacing, axis=-1) / 3",
        "np.sum(np.asarray(correlation), axis=-1) * spacing / 3",
        "tests/test_transport.py",
    ),
    Mutation(
        "bins set by neighborhoods that do not count",
        "stablejax/neighborhoods.py",
        "high = jnp.max(jnp.where(counts, flat, -jnp.inf))",
        "high = jnp.max(flat)",
        "tests/test_neighborhoods.py",
    ),
    Mutation(
        "lower end of the bins set by neighborhoods that do not count",
        "stablejax/neighborhoods.py",
        "low = jnp.min(jnp.where(counts, flat, jnp.inf))",
        "low = jnp.min(flat)",
        "tests/test_neighborhoods.py",
    ),
    Mutation(
        "median where fewer than half are stable",
        "stablejax/survival.py",
        "is_past = curve.stable <= 0.5",
        "is_past = curve.stable < 0.5",
        "tests/test_survival.py",
    ),
    Mutation(
        "rank of the median's interval off by one",
        "stablejax/survival.py",
        "first(curve.high < 0.5, math.inf)",
        "first(curve.high <= 0.75, math.inf)",
        "tests/test_survival.py",
    ),
    Mutation(
        "factor of the jackknife",
        "stablejax/uncertainty.py",
        "factor = (num_blocks - 1) / num_blocks",
        "factor = num_blocks / (num_blocks - 1)",
        "tests/test_uncertainty.py",
    ),
    Mutation(
        "autocorrelation not divided by the number of pairs",
        "stablejax/uncertainty.py",
        "correlation = correlation / jnp.arange(num_times, 0, -1)",
        "correlation = correlation / num_times",
        "tests/test_uncertainty.py",
    ),
    Mutation(
        "autocorrelation around the ends",
        "stablejax/uncertainty.py",
        "n=2 * num_times, axis=1)[:, :num_times]",
        "n=2 * num_times, axis=1)[:, :num_times][:, ::-1][:, :num_times]",
        "tests/test_uncertainty.py",
    ),
]


def main() -> None:
    """Apply each in a copy of the repository and print those that no test finds."""
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if all(word in m.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "runs", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutation in chosen:
            is_found = found(mutation, copy)
            print(f"{'found   ' if is_found else 'SURVIVES'}  {mutation.name}", flush=True)
            if not is_found:
                survivors.append(mutation.name)
    print(f"{len(chosen)} mutations, {len(survivors)} survive")
    sys.exit(bool(survivors))


def found(mutation: Mutation, copy: Path) -> bool:
    """Whether a test fails with the fault; the file is as it was afterwards."""
    path = copy / mutation.path
    text = path.read_text()
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: its text stands {text.count(mutation.old)} times in {mutation.path}: rewrite it.")
    path.write_text(text.replace(mutation.old, mutation.new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *mutation.tests.split()]
    try:
        run = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True, timeout=1200
        )
    finally:
        path.write_text(text)
    if run.returncode not in (0, 1):
        sys.exit(f"{mutation.name}: tests could not be run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 1


if __name__ == "__main__":
    main()
