r"""Two versions of this repository, timed by the benchmarks of each: is one slower than the other?

    git worktree add ../before v0.1.0
    python -m experiments.benchmarks.commits --before ../before estimator --num_samples 640
    python -m experiments.benchmarks.commits --before ../before --metrics replica_steps_per_s \
        md_throughput --methods fast --replicas 8

Everything after the options is a benchmark and its own options. Both versions run it with this interpreter, each from
its own folder, in interleaved whole processes. Ratios are this version over the other, pair by pair; the median, and
in `low` and `high` the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from experiments import provenance
from experiments.benchmarks import records

HERE = Path(__file__).resolve().parents[2]
VALUES = ("value", "low", "high", "unit")
"""Fields of a row that are measured; the others say of what."""


def run_once(folder: Path, command: list[str]) -> dict[str, float]:
    """Values of one process of the benchmark in a version's folder, by what they are of."""
    with tempfile.TemporaryDirectory() as kept:
        path = Path(kept) / "record.json"
        subprocess.run(
            [sys.executable, "-m", f"experiments.benchmarks.{command[0]}", *command[1:], "--json", str(path)],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        rows = json.loads(path.read_text())["rows"]
    return {json.dumps({k: v for k, v in row.items() if k not in VALUES}): row["value"] for row in rows}


def ratios(pairs: list[tuple[dict[str, float], dict[str, float]]], metrics: list[str]) -> list[dict]:
    """Rows of the record: of each figure that both versions have, the ratio after/before.

    Args:
      pairs: of `run_once` before and after.
      metrics: those that are asked for.
    """
    rows = []
    for key in pairs[0][0]:
        about = json.loads(key)
        if about["metric"] not in metrics or any(key not in values for pair in pairs for values in pair):
            continue
        found = [after[key] / before[key] for before, after in pairs]
        about["metric"] = f"{about['metric']}_ratio"
        rows.append({"value": float(np.median(found)), "low": min(found), "high": max(found)} | about)
    return rows


def main() -> None:
    """Run and write the record."""
    parser = records.parser(__doc__ or "")
    parser.add_argument("--before", type=Path, required=True, help="folder of the other version")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each version")
    known = ["time_s", "replica_steps_per_s", "time_ms"]
    parser.add_argument("--metrics", type=lambda text: text.split(","), default=known, help=", ".join(known))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a benchmark and its options")
    given = parser.parse_args()
    if not given.command:
        parser.error("expected a benchmark after the options, got none: estimator, for one.")
    if not (given.before / "experiments" / "benchmarks" / f"{given.command[0]}.py").is_file():
        parser.error(f"--before has no benchmark {given.command[0]}: give the folder of a version that has it.")
    pairs = [(run_once(given.before, given.command), run_once(HERE, given.command)) for _ in range(given.pairs)]
    rows = ratios(pairs, given.metrics)
    if not rows:
        parser.error(f"no figure of {', '.join(given.metrics)} is in the records of both versions: name others.")
    records.show(rows)
    given.before = provenance.commit(given.before)
    records.keep(given, "benchmarks.commits", rows)


if __name__ == "__main__":
    main()
