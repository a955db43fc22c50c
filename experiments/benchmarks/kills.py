"""A run that is killed again and again, against one that was not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.benchmarks import runs
from experiments.benchmarks.runs import Runner, Started

REPORT = "report"
"""Name of the stage after the last line of metrics."""

LEAST_FRACTION = 0.01
"""A report that is done before a smaller fraction of its time is not killed."""


class Timeline(NamedTuple):
    """An uninterrupted run: its lines of metrics, and when each of them was there."""

    stages: list[str]  # of each line
    arrival_s: list[float]  # since the start of the process
    end_s: float


class Moment(NamedTuple):
    """When a process is killed: once so many lines of the whole run are there, and then some time."""

    stage: str
    num_lines: int
    fraction: float  # of the time that passes until the next line


def watch(started: Started, run_dir: Path) -> list[float]:
    """Seconds after which each line of metrics was there, until the process ends.

    Args:
      started: the process.
      run_dir: of the run.
    """
    arrival_s, is_running = list[float](), True
    while is_running:
        is_running = started.is_running()  # before the last look
        new = len(runs.lines_of(run_dir)) - len(arrival_s)
        arrival_s += new * [time.monotonic() - started.begun]
        time.sleep(runs.POLL_S)
    return arrival_s


def moments(stages: list[str], num_kills: int, rng: np.random.Generator) -> list[Moment]:
    """Random moments, equally many in every stage and in the report, in the order of the run.

    Args:
      stages: of each line of an uninterrupted run.
      num_kills: number of moments.
      rng: draws them.
    """
    names = [*dict.fromkeys(stages), REPORT]
    chosen = []
    for number, name in enumerate(names):
        count = num_kills // len(names) + (number < num_kills % len(names))
        first = stages.index(name) if name in stages else len(stages)
        width = max(stages.count(name), 1)
        for line in sorted(rng.integers(0, width, count).tolist()):
            chosen.append(Moment(name, first + line, float(rng.uniform())))
    return chosen


def num_reached(lines: list[dict], stages: list[str]) -> int:
    """Lines of the whole run that are there, counting those of a stage that was begun again once.

    Args:
      lines: of metrics.
      stages: of each line of an uninterrupted run.
    """
    names = [line.get("stage") for line in lines]
    begun = [name for name in dict.fromkeys(stages) if name in names]
    if not begun:
        return 0
    distinct = {str(line.get("fraction_done")) for line in lines if line.get("stage") == begun[-1]}
    return stages.index(begun[-1]) + min(len(distinct), stages.count(begun[-1]))


def kill_at(moment: Moment, timeline: Timeline, started: Started, run_dir: Path) -> bool:
    """Kill the process at the moment; false if it ended before.

    Args:
      moment: from `moments`.
      timeline: of the uninterrupted run.
      started: the process.
      run_dir: of the run.
    """
    ends = [*timeline.arrival_s, timeline.end_s]
    is_first_look = True
    while started.is_running():
        if num_reached(runs.lines_of(run_dir), timeline.stages) >= moment.num_lines:
            # Where the lines were there before the process: somewhere before its first line, or in the report.
            begin_s = 0.0 if is_first_look or moment.num_lines == 0 else ends[moment.num_lines - 1]
            until_s = ends[0] if is_first_look else ends[moment.num_lines]
            if is_first_look and moment.stage == REPORT:
                until_s += ends[-1] - ends[-2]
            _wait(started, moment.fraction * (until_s - begin_s))
            break
        is_first_look = False
        time.sleep(runs.POLL_S)
    if not started.is_running():
        return False
    started.process.kill()
    return started.process.wait() < 0


def _wait(started: Started, seconds: float) -> None:
    until = time.monotonic() + seconds
    while started.is_running() and time.monotonic() < until:
        time.sleep(min(runs.POLL_S, max(until - time.monotonic(), 0.0)))


def reference(runner: Runner, run_dir: Path) -> Timeline:
    """An uninterrupted run.

    Args:
      runner: of the benchmark.
      run_dir: of the run.

    Raises:
      RuntimeError: it failed.
    """
    started = runner.start(run_dir)
    arrival_s = watch(started, run_dir)
    outcome = started.finish()
    if outcome.code:
        raise RuntimeError(f"the uninterrupted run ended with exit code {outcome.code}:\n{outcome.output}")
    return Timeline([line.get("stage", "") for line in runs.lines_of(run_dir)], arrival_s, outcome.wall_s)


def run(
    runner: Runner, expected: Path, timeline: Timeline, num_kills: int, seed: int, say: Callable[[str], None] = print
) -> list[dict]:
    """Rows of the record.

    Args:
      runner: of the benchmark.
      expected: directory of an uninterrupted run.
      timeline: of that run.
      num_kills: number of kills.
      seed: of the moments.
      say: told of every kill.
    """
    run_dir, killed = runner.folder / "killed", Counter[str]()
    failed, num_warned = list[dict](), 0
    waiting = moments(timeline.stages, num_kills, np.random.default_rng(seed))
    while waiting:
        moment = waiting.pop(0)
        started = runner.start(run_dir)
        was_killed = kill_at(moment, timeline, started, run_dir)
        outcome = started.finish()
        num_warned += "persistent compilation cache" in outcome.output
        killed[moment.stage] += was_killed
        say(f"{moment.stage}: {'killed' if was_killed else f'ended with {outcome.code}'} at {moment.num_lines} lines")
        if was_killed:
            continue
        if outcome.code:
            failed.append(_failed(outcome))
        elif moment.stage == REPORT and moment.fraction > LEAST_FRACTION:
            waiting.insert(0, moment._replace(fraction=moment.fraction / 2))  # it was done sooner than before
    outcome = runner.run(run_dir)
    if outcome.code:
        failed.append(_failed(outcome))
    rows = [{"metric": "kills", "value": number, "stage": stage} for stage, number in killed.items()]
    rows.append({"metric": "starts_with_unreadable_program", "value": num_warned})
    return rows + compare(expected, run_dir) + failed


def _failed(outcome: runs.Outcome) -> dict:
    return {"metric": "failed_start", "value": outcome.code, "said": outcome.output.strip().rpartition("\n")[2]}


def compare(expected: Path, found: Path) -> list[dict]:
    """Rows: are the results of two runs equal to the last bit, and does every line of metrics stand there once?

    Args:
      expected: directory of an uninterrupted run.
      found: directory of the other.
    """
    different = runs.differences(expected, found)
    names = ("pretrained.npz", "refined.npz", "record.json")
    rows = [{"metric": "is_equal", "value": int(name not in different), "file": name} for name in names]
    lost, doubled = runs.lost_and_doubled(runs.lines_of(expected), runs.lines_of(found))
    return [*rows, {"metric": "lost_lines", "value": lost}, {"metric": "doubled_lines", "value": doubled}]
