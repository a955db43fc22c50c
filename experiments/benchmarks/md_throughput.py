"""Replica-steps per second of NVT dynamics: this library against plain JAX with jax-md and PyTorch Geometric.

    python -m experiments.benchmarks.md_throughput
    python -m experiments.benchmarks.md_throughput --systems aspirin --replicas 32 --methods fast,plain

Methods are those of `md_methods` (`fast_on_one` is `fast` on one device). Each has a process of its own, with the
threads that suit it; timed calls are interleaved. `pyg` needs PyTorch (`pip install '.[bench]'`) and supports SchNet
only.

Systems: aspirin with SchNet, pretrained briefly on the data that ship; the peptide Ac-Ala3-NHMe with NequIP and a box
of 64 molecules of water with GemNet-T, both with random weights, scaled so that geometries hardly change.

The floor is the time of the operations of one force evaluation, as XLA counts them in the fast form, at the rate of
float32 matrix products measured in the same run, interleaved with the others.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from experiments import cli
from experiments.benchmarks import md_methods, records
from experiments.benchmarks.md_methods import MATRIX, METHODS, NUM_PRODUCTS, Task

SYSTEMS = {"aspirin": "schnet", "peptide": "nequip", "water": "gemnet"}
MOST_REPLICAS = {"water": 8}
RANDOM_SCALE = 0.02
"""eV per unit of the output of a model with random weights."""


class Worker:
    """A process that runs one method."""

    def __init__(self, method: str):
        self.method = method
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(method, theirs), daemon=True)
        self._process.start()

    def ask(self, name: str, *arguments) -> Any:
        """The answer of the process; an error there is raised here."""
        self._connection.send((name, arguments))
        is_good, answer = self._connection.recv()
        if not is_good:
            raise ValueError(f"{self.method}: {answer}")
        return answer

    def close(self) -> None:
        self._process.terminate()


def _serve(method: str, connection) -> None:
    is_ours = method.startswith("fast")
    cli.configure(host_devices=0 if is_ours else 1, has_threads=not is_ours, keeps_programs=False)
    runners: list[md_methods.Runner] = []

    def set_task(task: Task) -> None:
        runners[:] = [METHODS[method](task)]

    def timed(num_steps: int) -> tuple[int, float]:
        begun = time.perf_counter()
        taken = runners[0](num_steps)
        return taken, time.perf_counter() - begun

    known: dict[str, Callable] = {"set": set_task, "run": timed, "task": make_task, "operations": num_operations}
    while True:
        name, arguments = connection.recv()
        try:
            connection.send((True, known[name](*arguments)))
        except Exception as error:  # raised again in the parent process
            connection.send((False, f"{type(error).__name__}: {error}"))


@contextmanager
def workers(methods: list[str]) -> Iterator[dict[str, Worker]]:
    """A process for each method."""
    made = {method: Worker(method) for method in methods}
    try:
        yield made
    finally:
        for worker in made.values():
            worker.close()


def make_task(system: str, num_replicas: int) -> Task:
    """Start geometries and parameters."""
    import jax

    from experiments.benchmarks import models
    from stablejax import bind

    case = models.SYSTEMS[system](num_replicas)
    model = models.build_model(SYSTEMS[system], case.species)
    if system == "aspirin":
        params, scale = pretrained_aspirin()[1], 1.0
    else:
        params, scale = jax.jit(bind(model, case.species, space=case.space).init)(jax.random.key(0)), RANDOM_SCALE
    return Task(
        model=SYSTEMS[system],
        params=jax.tree.map(np.asarray, params),
        species=case.species,
        position=case.position,
        cell=case.cell,
        scale=scale,
        is_tabulated=system != "water",
    )


def pretrained_aspirin() -> tuple[Any, Any]:
    """The system of the default experiment and SchNet as it is pretrained there."""
    import tempfile
    from pathlib import Path

    from experiments import systems
    from experiments.configs import aspirin as defaults
    from experiments.progress import Progress
    from experiments.stages import pretrain

    config = defaults.get_config()
    system = systems.build(config)
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(Path(folder) / "metrics.jsonl")
        progress.stage("pretraining")
        return system, pretrain.run_pretraining(pretrain.settings_of(config), system, progress)


def num_operations(task: Task) -> float:
    """Of one force evaluation in the fast form, at least those of its products: XLA counts bodies of loops once."""
    import jax

    from experiments.benchmarks import models

    potential = md_methods.md_potential(task)
    position = np.asarray(task.position[0], np.float32)
    listed = None if potential.lists is None else jax.jit(potential.lists.init)(position)
    arguments = jax.jit(potential.prepare)(task.params), position, listed
    gradient = jax.grad(potential.prepared_energy, argnums=1)
    cost: Any = jax.jit(gradient).lower(*arguments).compile().cost_analysis()
    return max(cost["flops"], models.num_operations(jax.make_jaxpr(gradient)(*arguments).jaxpr))


def run(given) -> list[dict]:
    """Rows of the record."""
    rows: list[dict] = []
    with workers([*given.methods, "matrix"]) as made:
        for system in given.systems:
            whole = made["fast"].ask("task", system, max(given.replicas))
            operations = made["fast"].ask("operations", whole)
            for num_replicas in given.replicas:
                if num_replicas > MOST_REPLICAS.get(system, math.inf):
                    print(f"{system}: {num_replicas} replicas are skipped, one step of all would take minutes")
                    continue
                task = whole._replace(position=whole.position[:num_replicas])
                chosen = {m: w for m, w in made.items() if m != "pyg" or task.model == "schnet"}
                where = {"system": system, "replicas": num_replicas}
                begun = first_steps(chosen, task)["fast"]
                rows.append({"metric": "first_step_s", "value": begun, "unit": "s", "method": "fast"} | where)
                rows += figures(take_turns(chosen, given.seconds, given.repeats), operations, where)
                records.show(rows, **where)
    return rows


def first_steps(chosen: dict[str, Worker], task: Task) -> dict[str, float]:
    """Seconds until each worker has taken its first step, compilation included."""
    seconds = {}
    for method, worker in chosen.items():
        begun = time.perf_counter()
        worker.ask("set", task)
        worker.ask("run", 1)
        seconds[method] = time.perf_counter() - begun
    return seconds


def take_turns(chosen: dict[str, Worker], seconds: float, repeats: int) -> dict[str, list[float]]:
    """Rates of each worker, from interleaved calls of about `seconds` each."""
    num_steps = {}
    for method, worker in chosen.items():
        num = 1
        while (spent := worker.ask("run", num)[1]) < seconds / 4:
            num = math.ceil(num * min(seconds / spent, 20.0))
        num_steps[method] = max(1, round(num * seconds / spent))
    rates: dict[str, list[float]] = {method: [] for method in chosen}
    for _ in range(repeats):
        for method, worker in chosen.items():
            taken, spent = worker.ask("run", num_steps[method])
            rates[method].append(taken / spent)
    return rates


def figures(rates: dict[str, list[float]], operations: float, where: dict) -> list[dict]:
    """Medians over the calls, and their ratios."""
    middle = {method: float(np.median(values)) for method, values in rates.items()}
    flops = 2 * MATRIX**3 * NUM_PRODUCTS * middle.pop("matrix")
    rows = [
        {
            "metric": "replica_steps_per_s",
            "value": value,
            "low": min(rates[method]),
            "high": max(rates[method]),
            "unit": "1/s",
            "method": method,
        }
        for method, value in middle.items()
    ]
    rows += [
        {"metric": f"speedup_vs_{baseline}", "value": middle["fast"] / middle[baseline]}
        for baseline in ("plain", "pyg", "fast_on_one")
        if baseline in middle
    ]
    rows += [
        {"metric": "operations_per_step", "value": operations},
        {"metric": "matrix_gflop_per_s", "value": flops / 1e9},
        {"metric": "fraction_of_floor", "value": middle["fast"] * operations / flops},
    ]
    return [row | where for row in rows]


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "", repeats=5)
    known = tuple(name for name in METHODS if name != "matrix")
    default = [name for name in known if name != "pyg" or importlib.util.find_spec("torch_geometric")]
    parser.add_argument("--methods", type=records.names(known), default=default, help=", ".join(known))
    parser.add_argument("--systems", type=records.names(tuple(SYSTEMS)), default=list(SYSTEMS), help=", ".join(SYSTEMS))
    parser.add_argument("--replicas", type=records.numbers, default=[1, 8, 32, 128], help="numbers of replicas")
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate length of a timed call")
    given = parser.parse_args()
    if "fast" not in given.methods:
        parser.error("--methods needs fast, which the others are compared with.")
    records.keep(given, "benchmarks.md_throughput", run(given))


if __name__ == "__main__":
    main()
