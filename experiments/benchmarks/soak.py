"""Long simulation in one process: does it lose speed, memory or handles of files?

Every round is the same work, to the last bit: an evaluation and StABlE training from the same parameters, with
checkpoints and metrics as in a run. A fixed computation after each call shows how fast the machine was.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import checkpoints, processes, systems
from experiments.benchmarks import small
from experiments.progress import Progress
from experiments.stages import evaluate, pretrain, stabilize
from stablejax import stable
from stablejax.types import Array

PARTS = ("evaluation", "simulating", "learning", "reference")
"""What a sample is of; the last is the fixed computation."""


START = np.cos(np.arange(210 * 16.0, dtype=np.float32)).reshape(210, 16)
"""Of the fixed computation."""


class Sample(NamedTuple):
    """What a call took, and what the process held after it."""

    part: str
    steps: int  # replica-steps; calls of the fixed computation
    cpu_s: float
    fraction_frozen: float  # before the call
    time_s: float  # since the first round
    memory_MB: float
    handles: int


def memory_MB() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def num_handles() -> int:
    """Files, pipes and sockets that this process has open."""
    return len(os.listdir("/proc/self/fd"))


def slope(time_s: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """Slope of a line per hour, and the standard error that the scatter of the values gives it.

    Args:
      time_s: of each value.
      value: on any scale.
    """
    if len(value) < 3:
        return float("nan"), float("nan")
    hours = np.asarray(time_s, float) / 3600
    (rate, _), covariance = np.polyfit(hours, np.asarray(value, float), 1, cov="unscaled")
    residual = value - np.polyval(np.polyfit(hours, value, 1), hours)
    spread = float(np.sum(residual**2)) / (len(value) - 2)
    return float(rate), float(np.sqrt(covariance[0, 0] * spread))


def rate(samples: list[Sample], *parts: str) -> float:
    """Replica-steps per CPU second; NaN without samples of these parts."""
    chosen = [sample for sample in samples if sample.part in parts]
    return sum(sample.steps for sample in chosen) / sum(sample.cpu_s for sample in chosen) if chosen else float("nan")


@jax.jit
def reference(x: Array) -> Array:
    """A fixed computation of the kind that dynamics is: small gathers, products, functions and sums over pairs.

    Args:
      x: [pair, channel].
    """
    atom = jnp.arange(len(x)) // 10
    table = jnp.sin(jnp.arange(128 * 64.0)).reshape(128, 64)

    def one(_, carry):
        x, r = carry
        row = table[(127 * r).astype(jnp.int32)].reshape(-1, 4, 16)
        power = jnp.stack([jnp.ones_like(r), r, r**2, r**3], axis=1)
        y = jnp.tanh(x @ (0.1 * x[:16])) * jnp.sum(power[:, :, None] * row, axis=1)
        x = jnp.tanh(jax.ops.segment_sum(y, atom, num_segments=21)[atom] + y)
        return x, 0.99 * jnp.abs(jnp.sin(r + 0.01 * x[:, 0]))

    return jax.lax.fori_loop(0, 3000, one, (x, jnp.linspace(0.1, 0.9, len(x))))[0]


class _Clock:
    """Makes samples of what happened since the last one."""

    def __init__(self):
        self._begun, self._cpu_s = time.monotonic(), time.process_time()

    def restart(self) -> None:
        """Count from here."""
        self._cpu_s = time.process_time()

    def sample(self, part: str, steps: int, fraction_frozen: float) -> Sample:
        """What was done since the last call."""
        cpu_s, self._cpu_s = self._cpu_s, time.process_time()
        passed_s = time.monotonic() - self._begun
        return Sample(part, steps, self._cpu_s - cpu_s, fraction_frozen, passed_s, memory_MB(), num_handles())

    def reference(self) -> Sample:
        """The fixed computation, done now."""
        self.restart()
        reference(START).block_until_ready()
        return self.sample("reference", 1, 0.0)


class Soak:
    """The stages of a run, compiled once, to be repeated."""

    def __init__(self, folder: Path, seed: int):
        config = small.get_config()
        config.seed = seed
        self._folder = folder
        self._system = systems.build(config)
        self._settings = stabilize.settings_of(config, self._system)
        self._progress = Progress(folder / "metrics.jsonl", is_silent=False, stream=(folder / "log").open("w"))
        self._params = pretrain.run_pretraining(pretrain.settings_of(config), self._system, self._progress)
        self._evaluator = evaluate.build(evaluate.schedule_of(config), self._system)
        self._training = stable.build(self._system.problem, self._settings, execution=self._system.execution)
        begin = partial(stabilize.start, self._settings, self._system, num_replicas=config.stable.num_replicas)
        self._begin: Callable[[Any], stable.StableState] = begin

    def round(self, clock: _Clock) -> Iterator[Sample]:
        """An evaluation and StABlE training, a sample for each call; the state at the end is in `refined.npz`."""
        self._progress.stage("evaluation")
        prepared = self._evaluator.prepare(self._params)
        replicas = self._evaluator.start(prepared)
        clock.restart()
        for done in range(self._evaluator.schedule.num_chunks):
            before, frozen = int(replicas.step.sum()), float(replicas.is_frozen.mean())
            replicas, stats = self._evaluator.run_chunk(prepared, replicas)
            processes.to_host(stats)
            self._progress.update("evaluation", (done + 1) / self._evaluator.schedule.num_chunks, unstable=frozen)
            yield clock.sample("evaluation", int(replicas.step.sum()) - before, frozen)
            yield clock.reference()
            clock.restart()
        yield from self._train(clock)

    def _train(self, clock: _Clock) -> Iterator[Sample]:
        self._progress.stage("StABlE training")
        course: list[dict] = []
        samples: list[Sample] = []

        def on_step(state, info) -> None:
            entry = stabilize.course_entry(info, int(state.cycle), 0.0)
            course.append(entry)
            checkpoints.save(self._folder / "state.npz", state, {"course": course})
            self._progress.update("training", 0.5, **entry)
            samples.append(clock.sample(entry["phase"], int(info.num_steps), 0.0))
            samples.append(clock.reference())
            clock.restart()

        start = self._begin(self._params)
        clock.restart()
        system = self._system
        state = stable.run(
            system.problem,
            self._settings,
            start,
            execution=system.execution,
            on_step=on_step,
            training=self._training,
        )
        checkpoints.save(self._folder / "refined.npz", state.params)
        yield from samples

    def result(self) -> bytes:
        """The refined parameters of the last round."""
        with np.load(self._folder / "refined.npz") as file:
            return b"".join(file[name].tobytes() for name in sorted(file.files))


def simulate(max_steps: int, max_hours: float, seed: int) -> tuple[list[list[Sample]], int]:
    """Samples of each round, and the number of rounds whose result is not that of the first.

    Args:
      max_steps: replica-steps after which the last round ends.
      max_hours: after which the last round ends.
      seed: of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        soak, rounds, num_steps, num_different = Soak(Path(folder), seed), list[list[Sample]](), 0, 0
        list(soak.round(_Clock()))  # compiles
        expected = soak.result()
        clock = _Clock()
        begun = time.monotonic()
        while num_steps < max_steps and time.monotonic() - begun < 3600 * max_hours:
            samples = list(soak.round(clock))
            num_different += soak.result() != expected
            num_steps += sum(sample.steps for sample in samples if sample.part != "reference")
            rounds.append(samples)
    return rounds, num_different


def ends(rounds: list[list[Sample]]) -> tuple[list[Sample], list[Sample]]:
    """Samples of the first and of the last tenth of the rounds."""
    number = max(len(rounds) // 10, 1)
    return [s for one in rounds[:number] for s in one], [s for one in rounds[-number:] for s in one]


def costs(rounds: list[list[Sample]]) -> tuple[float, float]:
    """CPU seconds of a replica-step, and of a chunk of evaluation whatever number of steps is in it.

    Replicas that failed take no steps, but their frames are still observed: the later chunks of an evaluation have
    fewer steps for the same observations. Medians over rounds of each chunk, and a line through them.

    Args:
      rounds: of equal work.
    """
    chunks = [[sample for sample in one if sample.part == "evaluation"] for one in rounds]
    steps = np.array([sample.steps for sample in chunks[0]], float)
    cpu_s = np.median([[sample.cpu_s for sample in one] for one in chunks], axis=0)
    per_step, per_chunk = np.polyfit(steps, cpu_s, 1)
    return float(per_step), float(per_chunk)


def rows_of(rounds: list[list[Sample]], num_different: int) -> list[dict]:
    """Rows of the record.

    Args:
      rounds: samples of each.
      num_different: rounds whose result is not that of the first.
    """
    (first, last), simulated = ends(rounds), PARTS[:-1]
    rows: list[dict] = [
        {"metric": "replica_steps", "value": sum(s.steps for one in rounds for s in one if s.part in simulated)},
        {"metric": "rounds", "value": len(rounds)},
        {"metric": "rounds_with_other_results", "value": num_different},
        {"metric": "wall_s", "value": rounds[-1][-1].time_s, "unit": "s"},
    ]
    for name, parts in [("all", simulated), *((part, (part,)) for part in PARTS)]:
        rates = {"first tenth": rate(first, *parts), "last tenth": rate(last, *parts)}
        rows += [
            {"metric": "calls_per_cpu_s" if name == "reference" else "replica_steps_per_cpu_s", "value": value}
            | {"of": name, "when": when, "unit": "1/s"}
            for when, value in rates.items()
        ]
        rows.append({"metric": "last_over_first", "value": rates["last tenth"] / rates["first tenth"], "of": name})
    slowdown = {row["of"]: row["value"] for row in rows if row["metric"] == "last_over_first"}
    ratio = slowdown["all"] / slowdown["reference"]
    each = np.array([rate(one, *simulated) / rate(one, "reference") for one in rounds])
    # Of two means over a tenth of the rounds, as the rounds scatter.
    error = ratio * float(np.std(each) / np.mean(each)) * (2 / max(len(rounds) // 10, 1)) ** 0.5
    rows.append({"metric": "last_over_first_and_reference", "value": ratio, "standard_error": error})
    return rows + _cost_rows(rounds) + _memory_rows(rounds)


def _cost_rows(rounds: list[list[Sample]]) -> list[dict]:
    """Speed of evaluation with few and with many replicas that failed, all else being the same."""
    per_step, per_chunk = costs(rounds)
    most = max(sample.steps for sample in rounds[0] if sample.part == "evaluation")
    fractions = {fraction: most * (1 - fraction) for fraction in (0.0, 0.5, 0.75)}
    return [
        {"metric": "cpu_s_per_chunk_without_steps", "value": per_chunk, "unit": "s"},
        *(
            {"metric": "replica_steps_per_cpu_s", "value": steps / (per_step * steps + per_chunk), "unit": "1/s"}
            | {"of": "evaluation", "fraction_frozen": fraction}
            for fraction, steps in fractions.items()
        ),
    ]


def _memory_rows(rounds: list[list[Sample]]) -> list[dict]:
    """What the process held after each round; the slope is of all but the first tenth."""
    last = [one[-1] for one in rounds]
    later = last[len(last) // 10 :]
    per_hour, error = slope(np.array([s.time_s for s in later]), np.array([s.memory_MB for s in later]))
    return [
        {"metric": "memory_slope_MB_per_hour", "value": per_hour, "standard_error": error, "unit": "MB/h"},
        *(
            {"metric": name, "value": float(getattr(sample, name)), "when": when}
            for when, sample in (("first", last[0]), ("last", last[-1]))
            for name in ("memory_MB", "handles")
        ),
    ]


def run(max_steps: int, max_hours: float, seed: int) -> list[dict]:
    """Rows of the record.

    Args:
      max_steps: replica-steps after which the last round ends.
      max_hours: after which the last round ends.
      seed: of the run.
    """
    return rows_of(*simulate(max_steps, max_hours, seed))
